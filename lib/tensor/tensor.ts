import { checkBoolean, checkOptions } from '../base/check.js';
import { bytesPerElement, type DataOf, type DType, decode } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import type { DeviceBuffer } from '../kernels/memory.js';
import type { Flat, Strided } from '../kernels/operand.js';
import { copyElements } from './copies.js';
import {
  checkAxis,
  checkIndex,
  checkReshape,
  checkSlice,
  contiguousStrides,
  copyStrided,
  elementCount,
  elementSpan,
  isContiguous,
  type Shape,
  type Widen,
} from './shape.js';
import { encodeSource, type TensorSource } from './source.js';
import { describe, inspect } from './text.js';
import { writeElements } from './write.js';

export type { Shape, Widen } from './shape.js';

/** Device memory shared by a tensor and its views; freed with the last of them. */
class Storage {
  #references = 0;
  readonly #free: () => void;

  /** @param free how the memory is given back, when that is not to the backend */
  constructor(
    readonly backend: Backend,
    readonly buffer: DeviceBuffer,
    free = () => backend.free(buffer),
  ) {
    this.#free = free;
  }

  retain(): this {
    if (this.#references++ === 0) this.backend.tensorCreated();
    return this;
  }

  release(): void {
    if (--this.#references > 0) return;
    this.#free();
    this.backend.tensorDisposed();
  }
}

// Only a backstop: device memory is scarce and the collector does not see it. Dispose tensors, or use `using`.
const collected = new FinalizationRegistry<Storage>((storage) => storage.release());

/**
 * An n-dimensional array in a device's memory. Operations on it return at once; reading its data waits for them, and so
 * does `write`.
 * Views (`reshape`, `transpose`, `slice`, `select`) share the memory, which is freed when the last of them is disposed.
 */
export class Tensor<D extends DType = DType, S extends Shape = Shape> implements Disposable {
  readonly #storage: Storage;
  /** In elements, from the start of the storage. */
  readonly #offset: number;
  #disposed = false;

  /** @internal Use `tensor` or `zeros`. */
  constructor(
    storage: Storage,
    readonly dtype: D,
    readonly shape: S,
    /** In elements. */
    readonly strides: readonly number[],
    offset: number,
  ) {
    Object.freeze(shape);
    Object.freeze(strides);
    this.#storage = storage.retain();
    this.#offset = offset;
    collected.register(this, storage, this);
  }

  /** Where the tensor lives: 'wasm', 'cuda:0', ... */
  get device(): string {
    return this.#storage.backend.device;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Number of elements. */
  get size(): number {
    return elementCount(this.shape);
  }

  get byteLength(): number {
    return this.size * bytesPerElement[this.dtype];
  }

  get isContiguous(): boolean {
    return isContiguous(this.shape, this.strides);
  }

  /**
   * A copy of the elements in row-major order, as every operation before this call leaves them: what is written, run or
   * disposed after it makes no difference.
   */
  async data(): Promise<DataOf[D]> {
    this.#checkUsable();
    const { backend, buffer } = this.#storage.retain();
    try {
      return this.#gather(await backend.read(buffer, ...this.#bytes()));
    } finally {
      this.#storage.release();
    }
  }

  /** Like `data`, but blocks the thread. */
  dataSync(): DataOf[D] {
    this.#checkUsable();
    const { backend, buffer } = this.#storage;
    return this.#gather(backend.readSync(buffer, ...this.#bytes()));
  }

  /** The elements widened to float32, whatever the dtype. */
  async toFloat32(): Promise<Float32Array> {
    return decode(await this.data(), this.dtype);
  }

  /** Like `toFloat32`, but blocks the thread. */
  toFloat32Sync(): Float32Array {
    return decode(this.dataSync(), this.dtype);
  }

  /** Resolves when every operation that writes this tensor is done. */
  async ready(): Promise<void> {
    this.#checkUsable();
    const { backend, buffer } = this.#storage.retain();
    try {
      await backend.wait(buffer);
    } finally {
      this.#storage.release();
    }
  }

  /** Overwrites all elements. Blocks until pending operations that use the memory are done. Contiguous tensors only. */
  write(source: TensorSource): void {
    this.#checkUsable();
    if (!this.isContiguous) throw shapeError('write needs a contiguous tensor, this is a strided view');
    const encoded = encodeSource(source, this.dtype, this.shape, 'source');
    const { backend } = this.#storage;
    writeElements(backend, this.flat('the tensor', backend), encoded);
  }

  /**
   * The same elements in another shape, as a view. One axis may be -1, as in PyTorch: whatever the others leave for it.
   * Contiguous tensors only.
   *
   * @throws ERR_SHAPE, ERR_DISPOSED
   */
  reshape<const T extends Shape>(shape: T): Tensor<D, Widen<T>> {
    this.#checkUsable();
    if (!this.isContiguous) throw shapeError('reshape needs a contiguous tensor, this is a strided view');
    const axes = checkReshape(shape, this.shape) as Widen<T>;
    return this.#view(axes, contiguousStrides(axes), 0);
  }

  /** Swaps two axes, as a view. @throws ERR_SHAPE, ERR_DISPOSED */
  transpose(a: number, b: number): Tensor<D, S> {
    this.#checkUsable();
    const [first, second] = [checkAxis(a, this.shape), checkAxis(b, this.shape)];
    const swap = (values: readonly number[]) =>
      values.map((value, axis) => (axis === first ? values[second] : axis === second ? values[first] : value));
    return this.#view(swap(this.shape) as unknown as S, swap(this.strides), 0);
  }

  /** Every `step`-th of the elements [start, end) along an axis, from `start` on, as a view. @throws ERR_SHAPE, ERR_DISPOSED */
  slice(axis: number, start: number, end: number, step = 1): Tensor<D, S> {
    this.#checkUsable();
    const along = checkAxis(axis, this.shape);
    const [first, count, every] = checkSlice(this.shape, along, start, end, step);
    const replace = (values: readonly number[], n: number) => values.map((value, at) => (at === along ? n : value));
    const stride = this.strides[along];
    return this.#view(
      replace(this.shape, count) as unknown as S,
      replace(this.strides, stride * every),
      first * stride,
    );
  }

  /** The elements at one index of an axis, as a view without that axis: `qkv.select(2, 0)`. @throws ERR_SHAPE, ERR_DISPOSED */
  select(axis: number, index: number): Tensor<D, Shape> {
    this.#checkUsable();
    const along = checkAxis(axis, this.shape);
    const at = checkIndex(index, this.shape, along);
    const without = (values: readonly number[]) => values.filter((_, axis) => axis !== along);
    return this.#view(without(this.shape), without(this.strides), at * this.strides[along]);
  }

  /**
   * Where the first element lies in the device's memory, for other CUDA libraries of this process. Valid until the
   * tensor and its views are disposed; what has been launched on the tensor may still be under way (see `synchronize` and
   * `setStream`).
   *
   * @throws ERR_DEVICE on wasm
   */
  get devicePointer(): bigint {
    this.#checkUsable();
    const { backend, buffer } = this.#storage;
    return backend.devicePointer(buffer) + BigInt(this.#bytes()[0]);
  }

  /**
   * Copies all elements into another tensor of the same shape on the same device, converting them to its dtype (to
   * nearest, ties to even). Nothing passes through the host and nothing waits. With `accumulate` they are added to what is
   * there, in float32.
   *
   * @param target any strides, of memory that this tensor does not share
   * @throws ERR_SHAPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED
   */
  copyInto(target: Tensor<DType, Widen<S>>, options: { readonly accumulate?: boolean } = {}): void {
    this.#checkUsable();
    checkTensor(target, 'target');
    checkOptions(options, ['accumulate']);
    const { accumulate = false } = options;
    checkBoolean(accumulate, 'accumulate');
    const { backend } = this.#storage;
    copyElements(backend, this.strided('the tensor', backend), target.strided('target', backend), accumulate);
  }

  /** A copy in row-major order, on the device. @throws ERR_DISPOSED, ERR_OUT_OF_MEMORY */
  contiguous(): Tensor<D, S> {
    this.#checkUsable();
    const { backend } = this.#storage;
    return allocating(backend, (allocate) => {
      const result = allocate(this.shape, this.dtype) as Tensor<D, S>;
      copyElements(backend, this.strided('the tensor', backend), result.strided('result', backend), false);
      return result;
    });
  }

  /** Frees the memory once pending operations no longer need it. Disposing twice is harmless. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    collected.unregister(this);
    this.#storage.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Shape, dtype and device; never the data. */
  toString(): string {
    return describe(this);
  }

  [inspect](): string {
    return describe(this);
  }

  /** @internal What kernels need of this tensor; throws when it cannot be used on `backend`. */
  operand(argument: string, backend: Backend): { buffer: DeviceBuffer; offset: number } {
    if (this.#disposed) throw new FlashAttnError('ERR_DISPOSED', `${argument} has been disposed`);
    const { backend: own, buffer } = this.#storage;
    if (own !== backend)
      throw new FlashAttnError(
        'ERR_DEVICE',
        `${argument} is on ${own.device}; all tensors of this call must be on ${backend.device}`,
      );
    own.checkIntact(buffer, argument);
    return { buffer, offset: this.#offset };
  }

  /** @internal */
  flat(argument: string, backend: Backend): Flat {
    const { buffer, offset } = this.operand(argument, backend);
    if (!this.isContiguous) throw shapeError(`${argument} must be contiguous, this is a strided view`);
    return { buffer, offset, dtype: this.dtype, count: this.size };
  }

  /** @internal */
  strided(argument: string, backend: Backend): Strided {
    const { buffer, offset } = this.operand(argument, backend);
    return { buffer, offset, dtype: this.dtype, shape: this.shape, strides: this.strides };
  }

  /** @internal */
  get backend(): Backend {
    return this.#storage.backend;
  }

  #checkUsable(): void {
    if (this.#disposed) throw new FlashAttnError('ERR_DISPOSED', 'the tensor has been disposed');
    this.#storage.backend.checkIntact(this.#storage.buffer, 'the tensor');
  }

  #view<T extends Shape>(shape: T, strides: readonly number[], offset: number): Tensor<D, T> {
    return new Tensor(this.#storage, this.dtype, shape, strides, this.#offset + offset);
  }

  /** The bytes of the storage that the elements lie in. */
  #bytes(): [byteOffset: number, byteLength: number] {
    const bytes = bytesPerElement[this.dtype];
    return [this.#offset * bytes, elementSpan(this.shape, this.strides) * bytes];
  }

  /** The elements in row-major order, out of the bytes that a read gave. */
  #gather(bytes: Uint8Array): DataOf[D] {
    const Elements = this.dtype === 'float32' ? Float32Array : Uint16Array;
    const length = bytes.byteLength / bytesPerElement[this.dtype];
    const stored = new Elements(bytes.buffer as ArrayBuffer, bytes.byteOffset, length);
    if (this.isContiguous) return stored as DataOf[D];
    return copyStrided(stored, new Elements(this.size), this.shape, this.strides) as DataOf[D];
  }
}

/** @internal An uninitialised tensor that a launch will write. */
export function allocateTensor<D extends DType, const S extends Shape>(
  backend: Backend,
  shape: S,
  dtype: D,
  purpose: 'hostWritten' | 'deviceWritten' = 'deviceWritten',
): Tensor<D, S> {
  const buffer = backend.allocate(elementCount(shape) * bytesPerElement[dtype], purpose);
  return new Tensor(new Storage(backend, buffer), dtype, shape, contiguousStrides(shape), 0);
}

/** @internal A tensor over memory that `free` gives back to its owner. */
export function wrapBuffer<D extends DType, const S extends Shape>(
  backend: Backend,
  buffer: DeviceBuffer,
  { dtype, shape, strides }: { dtype: D; shape: S; strides: readonly number[] },
  free: () => void,
): Tensor<D, S> {
  return new Tensor(new Storage(backend, buffer, free), dtype, shape, strides, 0);
}

export const isTensor = (value: unknown): value is Tensor => value instanceof Tensor;

/** @internal */
export function checkTensor(value: unknown, argument: string): asserts value is Tensor {
  if (isTensor(value)) return;
  const found = show(value) === Tensor.name ? 'a tensor of another copy of this package' : show(value);
  throw optionError(`${argument} is ${found}; it must be a tensor`);
}

export type Allocate = (shape: Shape, dtype: DType) => Tensor;

/** @internal Runs `make`; when it throws, disposes what it had allocated so far. */
export function allocating<T>(backend: Backend, make: (allocate: Allocate) => T): T {
  const made: Tensor[] = [];
  try {
    return make((shape, dtype) => {
      const t = allocateTensor(backend, shape, dtype);
      made.push(t);
      return t;
    });
  } catch (error) {
    for (const t of made) t.dispose();
    throw error;
  }
}
