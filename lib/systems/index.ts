/**
 * Published systems of attention, each by its name.
 *
 * @packageDocumentation
 */

export {
  type CosineOptions,
  cosineReweighting,
  eluPlusOne,
  exponential,
  type FavorOptions,
  type FeatureMap,
  type FourierOptions,
  type FrequencyOptions,
  favorHyperbolic,
  favorPositive,
  type GeneralizedReluOptions,
  generalizedRelu,
  type HyperbolicOptions,
  randomFourier,
  relu as reluFeatures,
  softmaxFeatures,
  softmaxSequence,
  squaredRelu,
  taylorSecondOrder,
} from '../linear/featureMaps.js';
export { type AftOptions, aftFull } from './aft.js';
export { type BasedOptions, basedAttention } from './basedAttention.js';
export { type BiBertOptions, type BiBertWeights, biBertSelfAttention } from './biBert.js';
export {
  BinaryPartition,
  type BinaryPartitionOptions,
  type BptGraphOptions,
  type BptGraphWeights,
  type BptOptions,
  binaryPartition,
  binaryPartitionAttention,
  binaryPartitionGraphAttention,
} from './binaryPartition.js';
export {
  BitLinear,
  type BitLinearOptions,
  bitLinear1,
  bitLinear158,
  bitLinear158Codes,
  PackedBitWeight,
  packBitLinear,
} from './bitLinear.js';
export { bSplines } from './bSpline.js';
export {
  CBAM,
  type CbamOptions,
  type CbamWeights,
  type ChannelGateOptions,
  type ChannelPool,
  cbam,
  cbamChannelGate,
  cbamSpatialGate,
  type SpatialGateOptions,
  type SpatialGateWeights,
} from './cbam.js';
export { type CosformerOptions, cosformerAttention } from './cosformer.js';
export {
  CrateBlock,
  type CrateBlockOptions,
  type CrateBlockWeights,
  type CrateIstaOptions,
  type CrateMssaOptions,
  type CrateMssaWeights,
  crateBlock,
  crateIsta,
  crateMssa,
  crateMssaPaper,
} from './crate.js';
export { type DcmhaOptions, type DcmhaWeights, dcmha } from './dcmha.js';
// Recurrent attention over the engine of lib/linear.
export {
  type DeltaRuleOptions,
  deltaRule,
  type GatedDeltaRuleOptions,
  gatedDeltaRule,
} from './deltaRule.js';
export {
  DynamicConv,
  type DynamicConvLayerOptions,
  type DynamicConvOptions,
  type DynamicConvWeights,
  dynamicConv,
} from './dynamicConv.js';
export { efficientAttention } from './efficientAttention.js';
export { forgettingAttention } from './forgettingAttention.js';
export {
  type FlashQuadOptions,
  flashQuadAttention,
  type GatedAttentionOptions,
  type GatedAttentionWeights,
  gatedAttentionUnit,
} from './gatedAttention.js';
export {
  GatedCrossAttention,
  type GatedCrossAttentionLayerOptions,
  type GatedCrossAttentionOptions,
  type GatedCrossAttentionWeights,
  gatedCrossAttention,
} from './gatedCrossAttention.js';
export { GatedDeltaNet, type GatedDeltaNetOptions, type GatedDeltaNetState } from './gatedDeltaNet.js';
export {
  type GlaOptions,
  gla,
  mamba2Ssd,
  type Rwkv6Options,
  type Rwkv7Options,
  rwkv6Wkv,
  rwkv7Wkv,
  type SimpleGlaOptions,
  simpleGla,
} from './gatedLinear.js';
export { GatedLinearAttention, type GatedLinearAttentionOptions, type GatedLinearAttentionState } from './glaLayer.js';
export { hgrnRecurrence } from './hgrn.js';
// Systems with memories and inner models, of operations with gradients from the tape.
export {
  type HybridGatedOptions,
  type HybridLocalLinearOptions,
  hybridGatedWindowLinear,
  hybridLocalLinear,
} from './hybrid.js';
export {
  type InfiniMemory,
  type InfiniOptions,
  type InfiniResult,
  type InfiniState,
  infiniAttention,
  infiniAttentionPaper,
} from './infini.js';
export { InfiniAttention, type InfiniLayerOptions } from './infiniLayer.js';
export {
  KANLinear,
  type KANLinearOptions,
  type KanConv2dOptions,
  type KanWeights,
  kanConv2d,
  kanLinear,
  type PykanWeights,
  pykanLinear,
} from './kan.js';
export { type PykanCurves, type PykanGridOptions, pykanUpdateGrid } from './kanGrid.js';
export { type KernelAttentionOptions, kernelAttention } from './kernelAttention.js';
export { type KnnOptions, knn, type Neighbours } from './knn.js';
export {
  LightweightConv,
  type LightweightConvLayerOptions,
  type LightweightConvOptions,
  type LightweightConvWeights,
  lightweightConv,
} from './lightweightConv.js';
export { type LinearAttentionOptions, type LinearOptions, linearAttention } from './linearAttention.js';
export { LinearAttention, type LinearAttentionLayerOptions, type LinearAttentionState } from './linearLayer.js';
export { type LinformerOptions, linformerAttention } from './linformer.js';
export { LinformerAttention, type LinformerLayerOptions } from './linformerLayer.js';
export { type LowRankSvdOptions, type LowRankSvdResult, lowRankSvdAttention } from './lowRankSvd.js';
export { type MambaScanOptions, mambaSelectiveScan } from './mamba.js';
export { Mamba2, type Mamba2Options, type Mamba2State } from './mamba2Layer.js';
export {
  type MlaCache,
  type MlaOptions,
  type MlaResult,
  type MlaWeights,
  multiHeadLatentAttention,
} from './mla.js';
export { MultiHeadLatentAttention, type MultiHeadLatentAttentionOptions } from './mlaLayer.js';
export { type NsaGates, type NsaOptions, type NsaResult, nativeSparseAttention } from './nsa.js';
export { NativeSparseAttention, type NsaLayerOptions } from './nsaLayer.js';
export {
  type NsaCompression,
  type NsaLucidrainsOptions,
  type NsaLucidrainsResult,
  nativeSparseAttentionLucidrains,
} from './nsaLucidrains.js';
export {
  iterativePseudoInverse,
  type NystromformerOptions,
  type NystromPaddedOptions,
  nystromAttentionPadded,
  nystromformerAttention,
  type PseudoInverseOptions,
} from './nystromformer.js';
export {
  orthogonalProjection,
  type PerformerHyperbolicOptions,
  type PerformerOptions,
  type ProjectionDraw,
  performerAttention,
  performerHyperbolicAttention,
} from './performer.js';
export type { Quantised } from './quantise.js';
export {
  int8SmoothKAttention,
  int8SymmetricAttention,
  type QuantisedAttentionOptions,
  type QuantisedCacheEntry,
  type QuantisedKvCache,
  type QuantisedRows,
  quantisedKvCacheAttention,
  quantiseKvCache,
  type SmoothKResult,
  ternaryAttention,
} from './quantisedAttention.js';
export {
  type FrequencyDraw,
  type RandomFeatureOptions,
  randomFeatureAttention,
  randomFrequencies,
} from './randomFeatureAttention.js';
export type { RecurrentOptions, ScaledRecurrentOptions } from './recurrent.js';
export {
  type LayerStep,
  RecurrentLayer,
  ShortConvolution,
  type ShortConvolutionOptions,
} from './recurrentLayer.js';
export {
  type RecurrentMemoryLayerOptions,
  type RecurrentMemoryOptions,
  type RecurrentMemoryResult,
  RecurrentMemoryTransformer,
  recurrentMemory,
} from './recurrentMemory.js';

export {
  type LshHashing,
  type LshOptions,
  type LshResult,
  lshAttention,
  lshBuckets,
  lshRotations,
  type ReformerOptions,
  type RotationDraw,
  reformerAttention,
} from './reformer.js';
export { ReformerAttention, type ReformerLayerOptions } from './reformerLayer.js';

export * from './regrouped.js';
export {
  type GatedRetentionOptions,
  gatedRetention,
  type LightningOptions,
  lightningAttention,
  retention,
} from './retention.js';
export {
  MultiScaleRetention,
  type MultiScaleRetentionOptions,
  type MultiScaleRetentionState,
} from './retentionLayer.js';
export {
  type RetentionChunkwiseOptions,
  retentionTorchscaleChunkwise,
  retentionTorchscaleParallel,
  retentionTorchscaleRecurrent,
  type TorchscaleRetention,
  type TorchscaleRetentionState,
} from './retentionTorchscale.js';
export { type RetroOptions, retroCrossAttention } from './retro.js';
export {
  type RoutingMeansOptions,
  type RoutingMemory,
  type RoutingOptions,
  type RoutingResult,
  routingAttention,
  sharedRoutingAttention,
  updateRoutingMeans,
} from './routing.js';
export { RoutingAttention, type RoutingLayerOptions } from './routingLayer.js';
export {
  type Rwkv4Options,
  type Rwkv4Result,
  type Rwkv4State,
  type Rwkv4Weights,
  rwkv4TimeMixing,
} from './rwkv4.js';
export { type S4DOptions, type S4DOutput, type S4DParameters, s4d, s4dKernel, s4dOutput } from './s4d.js';
export {
  type DifferentiableMaskOptions,
  differentiableAttentionMask,
  type SparseBertOptions,
  sparseBertAttention,
  sparseBertMask,
  sparseBertUnstructuredAttention,
  type UnstructuredMaskOptions,
  type UnstructuredResult,
} from './sparseBert.js';
export {
  SqueezeExcitation,
  type SqueezeExcitationOptions,
  type SqueezeExcitationWeights,
  squeezeExcitation,
} from './squeezeExcitation.js';
export { type TalkingHeadsOptions, talkingHeadsAttention } from './talkingHeads.js';
export { distanceSinusoids, type TransformerXLOptions, transformerXLAttention } from './transformerXL.js';
export {
  TransformerXLAttention,
  type TransformerXLLayerOptions,
  type TransformerXLStep,
} from './transformerXLLayer.js';
export { type TransnarOptions, type TransnarWeights, transnarCrossAttention } from './transnar.js';

export {
  type TTTLinearWeights,
  type TTTMlpWeights,
  type TTTOptions,
  type TTTResult,
  type TTTState,
  tttLinear,
  tttMlp,
} from './ttt.js';
export { type TTTLayerOptions, TTTLinear, TTTMlp } from './tttLayer.js';
export { type UnlimiformerOptions, type UnlimiformerResult, unlimiformerAttention } from './unlimiformer.js';
export { type SearchOptions, VectorIndex, type VectorIndexOptions } from './vectorIndex.js';
export type { Weight } from './weights.js';
export { type XposOptions, type XposTableOptions, type XposTables, xpos, xposAttention, xposTables } from './xpos.js';
export { type RopeFrequencyOptions, ropeFrequencies, type YarnOptions, yarnScale } from './yarn.js';
export {
  Yoco,
  YocoCrossDecoder,
  type YocoCrossDecoderOptions,
  type YocoCrossState,
  type YocoOptions,
  YocoSelfDecoder,
  type YocoSelfDecoderOptions,
  type YocoSelfState,
  type YocoState,
} from './yoco.js';
export {
  GatedRetention,
  type GatedRetentionLayerOptions,
  type GatedRetentionState,
  SlidingWindowAttention,
  type SlidingWindowAttentionOptions,
  type SlidingWindowState,
} from './yocoMixers.js';
