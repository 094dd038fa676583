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
export { type AttentionWeights, attentionWeights } from './attention/weights.js';
export type { DataOf, DType } from './base/dtype.js';
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
export {
  type CpuDeviceStatus,
  type CudaDeviceStatus,
  type CudaReasonCode,
  type DeviceName,
  type DeviceReason,
  emptyCache,
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
export * as masks from './masks/index.js';
export { Mask } from './masks/mask.js';
export { concat } from './ops/concat.js';
export { type GatherOptions, gatherRows, RowMap } from './ops/gather.js';
export { type MatmulIntoOptions, type MatmulOptions, matmul } from './ops/matmul.js';
export * as patterns from './patterns/index.js';
export * from './systems/index.js';
export type { Shape } from './tensor/shape.js';
export type { Float16ArrayLike, TensorSource } from './tensor/source.js';
export { Tensor } from './tensor/tensor.js';
