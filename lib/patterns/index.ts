/** Published attention patterns under their authors' names: functions that return masks. */
export { type BigBirdOptions, bigBird } from './bigBird.js';
export type { RandomColumns } from './blockGrid.js';
export {
  type DeepSpeedBigBirdOptions,
  type DeepSpeedBSLongformerOptions,
  type DeepSpeedConfig,
  type DeepSpeedFixedOptions,
  type DeepSpeedLocalSlidingWindowOptions,
  type DeepSpeedOptions,
  type DeepSpeedVariableOptions,
  deepspeedBigBird,
  deepspeedBSLongformer,
  deepspeedDense,
  deepspeedFixed,
  deepspeedLayout,
  deepspeedLocalSlidingWindow,
  deepspeedVariable,
} from './deepspeed.js';
export { type GalleryEntry, gallery } from './gallery.js';
export { type LongformerOptions, longformer } from './longformer.js';
export { type RingCacheOptions, ringCache } from './ringCache.js';
export {
  type SparseTransformerFixedOptions,
  type SparseTransformerPaperFixedOptions,
  type SparseTransformerPaperOptions,
  sparseTransformerFixed,
  sparseTransformerLocal,
  sparseTransformerPaperFixed,
  sparseTransformerPaperStrided,
  sparseTransformerStrided,
} from './sparseTransformer.js';
export { type SqrtNOptions, sqrtN } from './sqrtN.js';
export { type StreamingLLMOptions, streamingLLM } from './streamingLLM.js';
export { atrous, local, localDilated, type StrideOptions, sparse } from './strides.js';
export { medusaParents, type TreeEdges, treeEdges } from './treeEdges.js';
