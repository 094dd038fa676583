/**
 * Exact attention for Node.js: FlashAttention forward and backward on CUDA and on WebAssembly, with one typed API for
 * every device.
 *
 * @packageDocumentation
 */
export {
  type AttentionResult,
  attention,
  attentionBackward,
  type BackwardExtras,
  type Gradients,
  type Saved,
  type Shape2,
  type Shape3,
  type Shape4,
} from './attention/attention.js';
export { type Explanation, explain } from './attention/explain.js';
export {
  type AttentionState,
  type MergeBackwardOptions,
  type MergeOptions,
  mergeStates,
  mergeStatesBackward,
  type StateGradients,
} from './attention/merge.js';
export type {
  AttentionOptions,
  BooleanMask,
  CommonOptions,
  DenseOptions,
  Integers,
  RotaryOption,
  VarlenOptions,
} from './attention/options.js';
export { type Captured, type Plan, type Problem, plan } from './attention/plan.js';
export {
  alibiSlopes,
  type RelativeBias,
  swinRelativeBias,
  type T5Options,
  t5RelativeBias,
} from './attention/relative.js';
export { lookup, type ScoreMod } from './attention/scoreMod.js';
export { type AttentionWeights, attentionWeights } from './attention/weights.js';
export { grad, noGrad, parameter, scope, type ValueAndGrads, valueAndGrad } from './autograd/autograd.js';
export { type CapturedStep, type CaptureOptions, capture } from './autograd/capture.js';
export { checkLeaks } from './autograd/checkLeaks.js';
export { checkpoint } from './autograd/checkpoint.js';
export { type BackwardContext, type CustomOp, customOp, type Saving } from './autograd/customOp.js';
export type { DataOf, DType, FloatDType } from './base/dtype.js';
export { type ErrorCode, FlashAttnError } from './base/errors.js';
export {
  type BlockLists,
  BlockMask,
  type BlockMaskParts,
  type BlockMaskShape,
  type BlockMaskStatistics,
} from './blockmask/blockMask.js';
export { type BlockMaskOptions, blockMask } from './blockmask/build.js';
export { blockMaskFromBytes, blockMaskToBytes } from './blockmask/bytes.js';
export type { DrawOptions } from './blockmask/draw.js';
export { type TensorOptions, tensor, zeros } from './devices/create.js';
export { type DevicePointerOptions, fromDevicePointer, setStream } from './devices/interop.js';
export { type Profile, type ProfiledLaunch, type ProfileOptions, type ProfileRow, profile } from './devices/profile.js';
export {
  type CpuDeviceStatus,
  type CudaDeviceStatus,
  type CudaReasonCode,
  type DeviceName,
  type DeviceReason,
  emptyCache,
  type MatmulKernels,
  measurePeak,
  measureTime,
  memory,
  type NoDeviceStatus,
  type Status,
  status,
  synchronize,
  type WasmDeviceStatus,
  type WasmReason,
} from './devices/registry.js';
export type { MemoryReport } from './kernels/device.js';
export { Expression, type Term } from './kernels/expression.js';
export { type DiagonalScanOptions, diagonalScan } from './linear/diagonalScan.js';
export { type LinearScanOptions, linearScan } from './linear/linearScan.js';
export {
  type DecayOptions,
  type NormalizedRecurrence,
  type Recurrence,
  type RecurrenceOptions,
  recurrence,
  type UpdateOptions,
} from './linear/recurrence.js';
export type { Scanned } from './linear/scanOperands.js';
export { type SelectiveScanInputs, type SelectiveScanOptions, selectiveScan } from './linear/selectiveScan.js';
export {
  type NormalizedRecurrenceStep,
  type RecurrenceStep,
  type RecurrenceStepOptions,
  recurrenceStep,
} from './linear/step.js';
export { type WkvInputs, type WkvOptions, wkv } from './linear/wkv.js';
export * as masks from './masks/index.js';
export { Mask } from './masks/mask.js';
export { type CumsumOptions, cumsum, takeAlongAxis } from './ops/alongAxis.js';
export { cast } from './ops/cast.js';
export { concat } from './ops/concat.js';
export { type Conv1dOptions, type Conv2dOptions, conv1d, conv2d } from './ops/conv.js';
export { arange, full, oneHot, ones, onesLike, tril, triu, zerosLike } from './ops/create.js';
export { type CrossEntropyOptions, crossEntropy } from './ops/crossEntropy.js';
export { einsum } from './ops/einsum.js';
export {
  abs,
  add,
  clamp,
  cos,
  div,
  equal,
  erf,
  exp,
  expm1,
  floor,
  fused,
  gelu,
  greater,
  greaterEqual,
  less,
  lessEqual,
  log,
  log1p,
  maximum,
  minimum,
  mul,
  neg,
  notEqual,
  type Operand,
  pow,
  relu,
  round,
  rsqrt,
  sigmoid,
  sign,
  silu,
  sin,
  softplus,
  sqrt,
  square,
  sub,
  tanh,
  where,
} from './ops/elementwise.js';
export { embedding, type Indices, type ScatterAddOptions, scatterAdd } from './ops/embedding.js';
export { type GatherOptions, gatherRows, RowMap } from './ops/gather.js';
export { type MatmulIntoOptions, type MatmulOptions, matmul } from './ops/matmul.js';
export { layerNorm, type NormOptions, type ResidualNorm, type ResidualNormOptions, rmsNorm } from './ops/norm.js';
export {
  type AvgPoolOptions,
  avgPool1d,
  avgPool2d,
  type MaxPoolOptions,
  maxPool1d,
  maxPool2d,
  type PoolOptions,
} from './ops/pool.js';
export { dropout, normal, type RandomOptions, type Seed, uniform } from './ops/random.js';
export {
  type Axes,
  logSumExp,
  max,
  mean,
  min,
  type ReduceOptions,
  sum,
  type VarianceOptions,
  variance,
} from './ops/reduce.js';
export { type RopeAngles, type RopeOptions, rope } from './ops/rope.js';
export { logSoftmax, softmax } from './ops/softmax.js';
export { argmax, type Sorted, type SortOptions, sort, topK } from './ops/sort.js';
export { pad, split, stack, unbind, unsqueeze } from './ops/split.js';
export { type Svd, svd } from './ops/svd.js';
export { unfold } from './ops/unfold.js';
export type { PerAxis } from './ops/windows.js';
export * as patterns from './patterns/index.js';
export * from './systems/regrouped.js';
export type { Shape } from './tensor/shape.js';
export type { Float16ArrayLike, TensorSource } from './tensor/source.js';
export { type AnyTensor, Tensor } from './tensor/tensor.js';
export type { BackwardOptions } from './tensor/track.js';
