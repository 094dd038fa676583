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
} from './attention.js';
export type { MemoryReport } from './backends/backend.js';
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
export {
  type CudaDeviceStatus,
  type CudaReasonCode,
  type DeviceName,
  type DeviceReason,
  measurePeak,
  measureTime,
  memory,
  type Status,
  status,
  synchronize,
  type WasmDeviceStatus,
} from './device.js';
export type { DataOf, DType } from './dtype.js';
export { type ErrorCode, FlashAttnError } from './errors.js';
export { type Explanation, explain } from './explain.js';
export { type GatherOptions, gatherRows, RowMap } from './gather.js';
export { type DevicePointerOptions, fromDevicePointer, setStream } from './interop.js';
export * as masks from './masks/index.js';
export { Mask } from './masks/mask.js';
export {
  type AttentionState,
  type MergeBackwardOptions,
  type MergeOptions,
  mergeStates,
  mergeStatesBackward,
  type StateGradients,
} from './merge.js';
export type { AttentionOptions, CommonOptions, DenseOptions, Integers, VarlenOptions } from './options.js';
export * as patterns from './patterns/index.js';
export { type Plan, type Problem, plan } from './plan.js';
export * from './regroup/index.js';
export { alibiSlopes, type RelativeBias, swinRelativeBias, type T5Options, t5RelativeBias } from './relative.js';
export {
  type Float16ArrayLike,
  type Shape,
  Tensor,
  type TensorOptions,
  type TensorSource,
  tensor,
  zeros,
} from './tensor.js';
