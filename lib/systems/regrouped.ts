// Patterns that move tokens around attention: systems that `flashattn` itself exports too.
export {
  type AdaptiveSpanGradients,
  type AdaptiveSpanLayout,
  type AdaptiveSpanOptions,
  type AdaptiveSpanReachOptions,
  adaptiveSpanAttention,
  adaptiveSpanAttentionBackward,
  adaptiveSpanReach,
} from './adaptiveSpan.js';
export { type AxialLayout, type AxialOptions, axialAttention, axialAttentionBackward } from './axial.js';
export {
  type LongnetBackwardOptions,
  type LongnetLayout,
  type LongnetOptions,
  longnetAttention,
  longnetAttentionBackward,
  SavedLongnet,
} from './longnet.js';
export {
  type GlobalTokenOptions,
  type LongT5GlobalGradients,
  type LongT5GlobalOptions,
  type LongT5Gradients,
  type LongT5Options,
  longT5GlobalAttention,
  longT5GlobalAttentionBackward,
  longT5GlobalTokens,
  longT5GlobalTokensBackward,
  longT5LocalAttention,
  longT5LocalAttentionBackward,
  SavedLongT5,
} from './longT5.js';
export {
  type PatternShapes,
  type Regrouped,
  type RegroupedGradients,
  SavedAttention,
  type ScaleOption,
} from './saved.js';
export {
  type MapShape,
  type SwinGradients,
  type SwinLayout,
  type SwinOptions,
  swinAttention,
  swinAttentionBackward,
} from './swin.js';
export {
  type TimesformerLayout,
  type TimesformerOptions,
  timesformerAttention,
  timesformerAttentionBackward,
} from './timesformer.js';
export { type TopKLayout, type TopKOptions, topKAttention, topKAttentionBackward } from './topK.js';
