import { bytesPerElement, checkDType, type DataOf, type DType, decode, encode } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { backendFor, type DeviceName } from '../devices/registry.js';
import type { Backend, DeviceBuffer, Flat } from '../kernels/device.js';

export type Shape = readonly number[];

/** Numbers to fill a tensor with. 16-bit patterns (`Uint16Array`) need an explicit dtype to have a meaning. */
export type TensorSource = Float32Array | Float64Array | readonly number[] | Float16ArrayLike | Uint16Array;

/** `Float16Array`, where the JavaScript engine has it. */
export interface Float16ArrayLike extends ArrayLike<number> {
  readonly [Symbol.toStringTag]: 'Float16Array';
  readonly buffer: ArrayBufferLike;
  readonly byteOffset: number;
}

export interface TensorOptions<D extends DType = DType> {
  /** Default 'float32', or 'float16' for a Float16Array. Numbers are rounded to nearest, ties to even. */
  readonly dtype?: D;
  /** Default 'auto': the best device that works here. */
  readonly device?: DeviceName;
}

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

const contiguousStrides = (shape: Shape): number[] => {
  const strides = new Array<number>(shape.length);
  let stride = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
  return strides;
};

export const elementCount = (shape: Shape): number => shape.reduce((product, n) => product * n, 1);

/** From the first to the last element that a strided view covers. */
export const elementSpan = (shape: Shape, strides: readonly number[]): number =>
  elementCount(shape) === 0 ? 0 : shape.reduce((span, n, axis) => span + (n - 1) * strides[axis], 1);

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
    const packed = contiguousStrides(this.shape);
    return this.size === 0 || this.shape.every((n, axis) => n === 1 || this.strides[axis] === packed[axis]);
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
    const bytes = encodeSource(source, this.dtype, this.shape, 'source');
    this.#storage.backend.write(this.#storage.buffer, this.#offset * bytesPerElement[this.dtype], bytes);
  }

  /** The same elements in another shape, as a view. Contiguous tensors only. */
  reshape<T extends Shape>(shape: T): Tensor<D, T> {
    this.#checkUsable();
    if (!this.isContiguous) throw shapeError('reshape needs a contiguous tensor, this is a strided view');
    if (elementCount(shape) !== this.size)
      throw shapeError(
        `shape ${show(shape)} has ${elementCount(shape)} elements, the tensor ${show(this.shape)} has ${this.size}`,
      );
    return this.#view(shape, contiguousStrides(shape), 0);
  }

  /** Swaps two axes, as a view. */
  transpose(a: number, b: number): Tensor<D, S> {
    this.#checkAxis(a);
    this.#checkAxis(b);
    const swap = (values: readonly number[]) =>
      values.map((value, axis) => (axis === a ? values[b] : axis === b ? values[a] : value));
    return this.#view(swap(this.shape) as unknown as S, swap(this.strides), 0);
  }

  /** Elements [start, end) along an axis, as a view. */
  slice(axis: number, start: number, end: number): Tensor<D, S> {
    this.#checkAxis(axis);
    const length = this.shape[axis];
    if (!(Number.isInteger(start) && Number.isInteger(end) && 0 <= start && start <= end && end <= length))
      throw shapeError(
        `slice [${start}, ${end}) must lie within [0, ${length}) on axis ${axis} of ${show(this.shape)}`,
      );
    const shape = this.shape.map((n, at) => (at === axis ? end - start : n)) as unknown as S;
    return this.#view(shape, this.strides, start * this.strides[axis]);
  }

  /** The elements at one index of an axis, as a view without that axis: `qkv.select(2, 0)`. */
  select(axis: number, index: number): Tensor<D, Shape> {
    this.#checkAxis(axis);
    const length = this.shape[axis];
    if (!(Number.isInteger(index) && index >= 0 && index < length))
      throw shapeError(`index ${show(index)} must lie within [0, ${length}) on axis ${axis} of ${show(this.shape)}`);
    const without = (values: readonly number[]) => values.filter((_, at) => at !== axis);
    return this.#view(without(this.shape), without(this.strides), index * this.strides[axis]);
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
    const operand = this.operand(argument, backend);
    if (!this.isContiguous) throw shapeError(`${argument} must be contiguous, this is a strided view`);
    return { ...operand, dtype: this.dtype, count: this.size };
  }

  /** @internal */
  get backend(): Backend {
    return this.#storage.backend;
  }

  #checkUsable(): void {
    if (this.#disposed) throw new FlashAttnError('ERR_DISPOSED', 'the tensor has been disposed');
    this.#storage.backend.checkIntact(this.#storage.buffer, 'the tensor');
  }

  #checkAxis(axis: number): void {
    this.#checkUsable();
    if (!(Number.isInteger(axis) && axis >= 0 && axis < this.shape.length))
      throw shapeError(`axis ${show(axis)} must lie within [0, ${this.shape.length}) for ${show(this.shape)}`);
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
    const result = new Elements(this.size);
    let at = 0;
    const copy = (axis: number, from: number): void => {
      if (axis === this.shape.length) {
        result[at++] = stored[from];
        return;
      }
      for (let i = 0; i < this.shape[axis]; i++) copy(axis + 1, from + i * this.strides[axis]);
    };
    copy(0, 0);
    return result as DataOf[D];
  }
}

const isHalfArray = (source: unknown): source is Float16ArrayLike =>
  Object.prototype.toString.call(source) === '[object Float16Array]';

const isNumbers = (source: unknown): source is readonly number[] =>
  Array.isArray(source) && source.every((x) => typeof x === 'number');

/** The bytes of `source` as elements of `dtype`; shares memory with it where nothing has to be converted. */
function encodeSource(source: TensorSource, dtype: DType, shape: Shape, argument: string): Uint8Array {
  const data = encodeElements(source, dtype, argument);
  if (data.length !== elementCount(shape))
    throw shapeError(`${argument} has ${data.length} elements; shape ${show(shape)} needs ${elementCount(shape)}`);
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

function encodeElements(source: TensorSource, dtype: DType, argument: string): Float32Array | Uint16Array {
  if (source instanceof Uint16Array) {
    if (dtype !== 'float32') return source;
    throw new FlashAttnError(
      'ERR_DTYPE',
      `${argument} is a Uint16Array of bit patterns; its dtype must be 'float16' or 'bfloat16', not 'float32'`,
    );
  }
  if (isHalfArray(source) && dtype === 'float16')
    return new Uint16Array(source.buffer as ArrayBuffer, source.byteOffset, source.length);
  if (source instanceof Float32Array && dtype === 'float32') return source;
  if (source instanceof Float32Array || source instanceof Float64Array || isHalfArray(source) || isNumbers(source))
    return encode(source, dtype);
  throw new FlashAttnError(
    'ERR_DTYPE',
    `${argument} is ${show(source)}; it must be a Float32Array, Float64Array, Float16Array, Uint16Array or an array of numbers`,
  );
}

/** @internal */
export function checkShape(shape: unknown, argument: string): asserts shape is Shape {
  const valid = Array.isArray(shape) && shape.every((n) => Number.isSafeInteger(n) && n >= 0);
  if (!valid) throw shapeError(`${argument} is ${show(shape)}; a shape is an array of integers >= 0`);
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
  { dtype, shape, strides }: { dtype: D; shape: S; strides?: readonly number[] | undefined },
  free: () => void,
): Tensor<D, S> {
  return new Tensor(new Storage(backend, buffer, free), dtype, shape, strides ?? contiguousStrides(shape), 0);
}

/** Tuples of numbers keep their length, so that TypeScript knows the rank. */
export type Widen<S extends Shape> = { readonly [axis in keyof S]: number };

/**
 * Copies data to a device.
 *
 * @param data as many numbers as the shape has elements, in row-major order
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export function tensor<const S extends Shape>(
  data: Float16ArrayLike,
  shape: S,
  options?: TensorOptions<'float16'>,
): Tensor<'float16', Widen<S>>;
export function tensor<const S extends Shape, D extends 'float16' | 'bfloat16'>(
  data: Uint16Array,
  shape: S,
  options: TensorOptions<D> & { readonly dtype: D },
): Tensor<D, Widen<S>>;
export function tensor<const S extends Shape, D extends DType = 'float32'>(
  data: Float32Array | Float64Array | readonly number[],
  shape: S,
  options?: TensorOptions<D>,
): Tensor<D, Widen<S>>;
export function tensor(data: TensorSource, shape: Shape, options: TensorOptions = {}): Tensor {
  checkShape(shape, 'shape');
  const dtype = checkDType(options.dtype ?? (isHalfArray(data) ? 'float16' : 'float32'), 'dtype');
  const bytes = encodeSource(data, dtype, shape, 'data');
  const backend = backendFor(options.device);
  const result = allocateTensor(backend, [...shape], dtype, 'hostWritten');
  backend.write(result.operand('data', backend).buffer, 0, bytes);
  return result;
}

/** A tensor of zeros. */
export function zeros<const S extends Shape, D extends DType = 'float32'>(
  shape: S,
  options: TensorOptions<D> = {},
): Tensor<D, Widen<S>> {
  checkShape(shape, 'shape');
  const dtype = checkDType(options.dtype ?? 'float32', 'dtype') as D;
  const backend = backendFor(options.device);
  const result = allocateTensor(backend, [...shape], dtype);
  backend.fillZero(result.operand('zeros', backend).buffer);
  return result as unknown as Tensor<D, Widen<S>>;
}

/** @internal */
export function checkTensor(value: unknown, argument: string): asserts value is Tensor {
  if (value instanceof Tensor) return;
  const found = show(value) === Tensor.name ? 'a tensor of another copy of this package' : show(value);
  throw optionError(`${argument} is ${found}; it must be a tensor`);
}
