// Sharing CUDA memory and streams with other libraries of the process.

import { checkFunction, checkOptions, mustBe } from '../base/check.js';
import { bytesPerElement, checkDType, type DType } from '../base/dtype.js';
import { checkShape, checkStrides, contiguousStrides, elementSpan, type Shape, type Widen } from '../tensor/shape.js';
import { type Tensor, wrapBuffer } from '../tensor/tensor.js';
import { backendFor, type DeviceName } from './registry.js';

// Addresses pass through doubles.
const addressLimit = 1n << 53n;

/** How foreign memory is read as a tensor. */
export interface DevicePointerOptions<D extends DType = DType> {
  /** Default 'float32'. */
  readonly dtype?: D;
  /** The device that the memory is on. Default 'cuda'. */
  readonly device?: DeviceName;
  /** In elements, one for each axis, >= 0. Default row-major. */
  readonly strides?: readonly number[];
  /**
   * Called once, when the tensor and its views have been disposed and nothing that was launched on them needs the memory
   * any more. The memory must stay valid until then.
   */
  readonly release?: () => void;
}

/**
 * A tensor over CUDA memory that another library of this process owns. Nothing is copied and `dispose` frees nothing.
 *
 * Operations on the tensor are queued on the device's stream at once: what fills the memory must be done before, or be
 * queued on the same stream (see `setStream`).
 *
 * @param pointer the device address of the first element, aligned to the element size
 * @throws ERR_DEVICE when this is not memory of the device from the first element to the last, ERR_SHAPE, ERR_DTYPE,
 *   ERR_OPTION
 */
export function fromDevicePointer<const S extends Shape, D extends DType = 'float32'>(
  pointer: bigint,
  shape: S,
  options: DevicePointerOptions<D> = {},
): Tensor<D, Widen<S>> {
  checkOptions(options, ['dtype', 'device', 'strides', 'release']);
  const { device = 'cuda', release } = options;
  const axes = checkShape(shape, 'shape');
  const dtype = checkDType(options.dtype ?? 'float32', 'dtype') as D;
  const strides = options.strides === undefined ? contiguousStrides(axes) : checkStrides(options.strides, axes);
  const bytes = bytesPerElement[dtype];
  if (typeof pointer !== 'bigint' || pointer <= 0n || pointer >= addressLimit)
    throw mustBe('pointer', pointer, 'a device address as a bigint');
  if (pointer % BigInt(bytes) !== 0n)
    throw mustBe('pointer', pointer, `a multiple of the ${bytes} bytes of a ${dtype}`);
  if (release !== undefined) checkFunction(release, 'release');
  const backend = backendFor(device);
  const buffer = backend.adopt(pointer, bytes * elementSpan(axes, strides));
  const free = () => {
    // Whoever frees the memory must find nothing running on it.
    const done = () => release?.();
    if (release) void backend.wait(buffer).then(done, done);
  };
  return wrapBuffer(backend, buffer, { dtype, shape: axes as Widen<S>, strides }, free);
}

/**
 * Queues everything from now on on a CUDA stream of another library instead of the device's own, or on its own again
 * when `stream` is undefined. Each switch waits, on the device, for what was queued before it. The stream belongs to its
 * owner: it must outlive its use here, so switch back before destroying it. One setting for each device and JavaScript
 * thread.
 *
 * @param stream a cudaStream_t as a bigint; 0n is the legacy default stream
 * @throws ERR_DEVICE on wasm, and while a stream in use is being captured into a CUDA graph (every other call then throws it
 *   too; only disposing of tensors works), ERR_OPTION
 */
export function setStream(device: DeviceName, stream: bigint | undefined): void {
  if (stream !== undefined && (typeof stream !== 'bigint' || stream < 0n || stream >= addressLimit))
    throw mustBe('stream', stream, 'a cudaStream_t as a bigint');
  backendFor(device).setStream(stream);
}
