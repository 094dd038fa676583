import { checkBoolean, checkOptions } from '../base/check.js';
import { arrayOf, bytesPerElement, type DataOf, type DType, decode, type FloatDType, isFloat } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import type { DeviceBuffer } from '../kernels/memory.js';
import type { Flat, Strided } from '../kernels/operand.js';
import { copyElements } from './copies.js';
import type { Extremes } from './integers.js';
import {
  checkAxis,
  checkExpand,
  checkIndex,
  checkPermutation,
  checkReshape,
  checkSlice,
  contiguousStrides,
  copyStrided,
  elementCount,
  elementSpan,
  isContiguous,
  type Shape,
  sameShape,
  type Widen,
} from './shape.js';
import { type Encoded, encodeSource, type TensorSource } from './source.js';
import { Storage } from './storage.js';
import { describe, inspect } from './text.js';
import { type BackwardOptions, noteCreated, type Track, type ViewStep } from './track.js';
import { writeElements } from './write.js';

export type { Shape, Widen } from './shape.js';

// Only a backstop: device memory is scarce and the collector does not see it. Dispose tensors, or use `using`.
const collected = new FinalizationRegistry<Storage>((storage) => storage.release());

/**
 * An n-dimensional array in a device's memory. Operations on it and `write` return at once; reading its data waits for them.
 * Views (`reshape`, `transpose`, `slice`, `select`) share the memory, which is freed when the last of them is disposed.
 */
export class Tensor<D extends DType = FloatDType, S extends Shape = Shape> implements Disposable {
  readonly #storage: Storage;
  /** In elements, from the start of the storage. */
  readonly #offset: number;
  #disposed = false;
  #track: Track<AnyTensor, Tensor> | undefined;

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
    noteCreated(this);
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
    this.overwrite(encodeSource(source, this.dtype, this.shape, 'source'));
  }

  /** @internal */
  overwrite(encoded: Encoded): void {
    const { backend } = this.#storage;
    if (backend.isRecording)
      throw optionError(
        'the host writes a tensor within a function that is being captured: every replay would have the same numbers; make the tensor before, and write() to it between replays',
      );
    const known = this.#storage.integers;
    writeElements(backend, this.flat('the tensor', backend), encoded);
    const { buffer, byteOffset, byteLength } = encoded.bytes;
    if (this.dtype === 'int32') this.#storage.wroteIntegers(new Int32Array(buffer, byteOffset, byteLength / 4), known);
    this.#storage.version++;
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
    const own = this.shape;
    return this.#view(axes, contiguousStrides(axes), 0, {
      kind: 'whole',
      name: 'reshape',
      back: (gradient) => inRowMajorOrder(gradient, (t) => t.reshape(own)),
    });
  }

  /** Swaps two axes, as a view. @throws ERR_SHAPE, ERR_DISPOSED */
  transpose(a: number, b: number): Tensor<D, S> {
    this.#checkUsable();
    const [first, second] = [checkAxis(a, this.shape), checkAxis(b, this.shape)];
    const swap = (values: readonly number[]) =>
      values.map((value, axis) => (axis === first ? values[second] : axis === second ? values[first] : value));
    return this.#view(swap(this.shape) as unknown as S, swap(this.strides), 0, {
      kind: 'whole',
      name: 'transpose',
      back: (gradient) => gradient.transpose(first, second),
    });
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
      { kind: 'part', name: 'slice', again: (t) => t.slice(along, start, end, step) },
    );
  }

  /** The elements at one index of an axis, as a view without that axis: `qkv.select(2, 0)`. @throws ERR_SHAPE, ERR_DISPOSED */
  select(axis: number, index: number): Tensor<D, Shape> {
    this.#checkUsable();
    const along = checkAxis(axis, this.shape);
    const at = checkIndex(index, this.shape, along);
    const without = (values: readonly number[]) => values.filter((_, axis) => axis !== along);
    return this.#view(without(this.shape), without(this.strides), at * this.strides[along], {
      kind: 'part',
      name: 'select',
      again: (t) => t.select(along, at),
    });
  }

  /**
   * The same elements with axes in another order, as a view: axis i is `axes[i]` of the tensor.
   *
   * @throws ERR_SHAPE, ERR_DISPOSED
   */
  permute(axes: readonly number[]): Tensor<D, Shape> {
    this.#checkUsable();
    const order = checkPermutation(axes, this.shape);
    const of = (values: readonly number[]) => order.map((axis) => values[axis]);
    return this.#view(of(this.shape), of(this.strides), 0, {
      kind: 'whole',
      name: 'permute',
      back: (gradient) => gradient.permute(order.map((_, axis) => order.indexOf(axis))),
    });
  }

  /**
   * Axes of length 1 repeated and missing ones added in front, as a view in which elements lie at several places: nothing
   * can be written to it. -1 leaves an axis as it is.
   *
   * @throws ERR_SHAPE, ERR_DISPOSED
   */
  expand(shape: Shape): Tensor<D, Shape> {
    this.#checkUsable();
    const axes = checkExpand(shape, this.shape);
    const missing = axes.length - this.shape.length;
    const strides = axes.map((n, axis) =>
      axis < missing || this.shape[axis - missing] !== n ? 0 : this.strides[axis - missing],
    );
    return this.#view(axes, strides, 0, { kind: 'expand', name: 'expand' });
  }

  /** The same tensor for those who do not differentiate: a view that no gradient flows through. @throws ERR_DISPOSED */
  detach(): Tensor<D, S> {
    this.#checkUsable();
    return new Tensor(this.#storage, this.dtype, this.shape, this.strides, this.#offset);
  }

  /** Whether a gradient flows to it: it is a parameter, or has been computed of one. */
  get requiresGrad(): boolean {
    return this.#track !== undefined;
  }

  /**
   * The gradient that `backward` has left, of the tensor's shape and dtype; only parameters get one. Each `backward` that adds
   * to it makes it anew; it is disposed with the parameter.
   */
  get grad(): Tensor<D, S> | undefined {
    return this.#track?.grad as Tensor<D, S> | undefined;
  }

  /** `undefined` disposes the gradient. @throws ERR_AUTOGRAD, ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED */
  set grad(gradient: Tensor<D, S> | undefined) {
    const track = this.#track;
    if (!track?.isLeaf)
      throw new FlashAttnError('ERR_AUTOGRAD', 'only a parameter has a gradient: parameter(t) makes one');
    if (gradient !== undefined) checkLike(gradient, 'grad', this as AnyTensor);
    if (track.grad !== gradient) track.grad?.dispose();
    track.grad = gradient as Tensor | undefined;
  }

  /**
   * Adds to `grad` of every parameter what this tensor depends on: the gradient of it, or of the sum of its elements
   * weighted by `gradient`. What the operations have kept for it is freed on the way, unless `retainGraph`.
   *
   * Returns at once, as every operation; there is nothing to await.
   *
   * @param gradient of the tensor's shape; may be left out where that has one element
   * @throws ERR_AUTOGRAD, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  backward(gradient?: Tensor<FloatDType, Shape>, options: BackwardOptions = {}): void {
    this.#checkUsable();
    checkOptions(options, ['retainGraph']);
    checkBoolean(options.retainGraph ?? false, 'retainGraph');
    if (!this.#track)
      throw new FlashAttnError(
        'ERR_AUTOGRAD',
        'backward() of a tensor that no parameter has led to: parameter(t) makes one, and within noGrad nothing is recorded',
      );
    this.#track.backward(this as AnyTensor, gradient, options);
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
    const pointer = backend.devicePointer(buffer) + BigInt(this.#bytes()[0]);
    this.#storage.share();
    return pointer;
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
    checkAnyTensor(target, 'target');
    checkOptions(options, ['accumulate']);
    const { accumulate = false } = options;
    checkBoolean(accumulate, 'accumulate');
    const { backend } = this.#storage;
    copyElements(backend, this.strided('the tensor', backend), target.strided('target', backend), accumulate);
    target.written();
  }

  /** A copy in row-major order, on the device. @throws ERR_DISPOSED, ERR_OUT_OF_MEMORY */
  contiguous(): Tensor<D, S> {
    this.#checkUsable();
    const { backend } = this.#storage;
    return allocating(backend, (allocate) => {
      const result = allocate(this.shape, this.dtype) as Tensor<D, S>;
      copyElements(backend, this.strided('the tensor', backend), result.strided('result', backend), false);
      const step: ViewStep<Tensor> = { kind: 'whole', name: 'contiguous', back: (gradient) => gradient.detach() };
      this.#track?.recordView(this as AnyTensor, result as AnyTensor, step);
      return result;
    });
  }

  /** Frees the memory once pending operations no longer need it. Disposing twice is harmless. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#track?.released();
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

  /** @internal */
  get track(): Track<AnyTensor, Tensor> | undefined {
    return this.#track;
  }

  /** @internal */
  set track(track: Track<AnyTensor, Tensor> | undefined) {
    this.#track = track;
  }

  /** @internal Whether nothing but its elements lies in its memory, and no other tensor does. */
  get ownsStorage(): boolean {
    return this.#storage.references === 1 && this.#storage.buffer.byteLength === this.byteLength;
  }

  /** @internal Changes whenever its memory is written, also by what has been captured. */
  get version(): number {
    return this.#storage.version + this.#storage.buffer.revision;
  }

  /** @internal To be called by what writes into the memory of a tensor that it was given. */
  written(): void {
    this.#storage.version++;
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

  /** @internal Elements of its memory from one of them on, at strides of any kind. */
  restrided(shape: Shape, strides: readonly number[], offset: number, step: ViewStep<Tensor>): Tensor<D, Shape> {
    this.#checkUsable();
    return this.#view(shape, strides, offset, step);
  }

  /** @internal What the host knows of the elements of an int32 tensor, and perhaps of others in its memory, without reading. */
  get integers(): Extremes | undefined {
    return this.#storage.integers;
  }

  /** @internal */
  get backend(): Backend {
    return this.#storage.backend;
  }

  #checkUsable(): void {
    if (this.#disposed) throw new FlashAttnError('ERR_DISPOSED', 'the tensor has been disposed');
    this.#storage.backend.checkIntact(this.#storage.buffer, 'the tensor');
  }

  #view<T extends Shape>(shape: T, strides: readonly number[], offset: number, step: ViewStep<Tensor>): Tensor<D, T> {
    const view = new Tensor(this.#storage, this.dtype, shape, strides, this.#offset + offset);
    this.#track?.recordView(this as AnyTensor, view as AnyTensor, step);
    return view;
  }

  /** The bytes of the storage that the elements lie in. */
  #bytes(): [byteOffset: number, byteLength: number] {
    const bytes = bytesPerElement[this.dtype];
    return [this.#offset * bytes, elementSpan(this.shape, this.strides) * bytes];
  }

  /** The elements in row-major order, out of the bytes that a read gave. */
  #gather(bytes: Uint8Array): DataOf[D] {
    const Elements = arrayOf[this.dtype];
    const length = bytes.byteLength / bytesPerElement[this.dtype];
    const stored = new Elements(bytes.buffer as ArrayBuffer, bytes.byteOffset, length);
    if (this.isContiguous) return stored as DataOf[D];
    return copyStrided(stored, new Elements(this.size), this.shape, this.strides) as DataOf[D];
  }
}

/** `f` of the tensor or, where that is a strided view, of a contiguous copy. */
function inRowMajorOrder(t: Tensor, f: (t: Tensor) => Tensor): Tensor {
  if (t.isContiguous) return f(t);
  const copy = t.contiguous();
  try {
    return f(copy);
  } finally {
    copy.dispose();
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
  const storage = new Storage(backend, buffer, free);
  storage.share();
  return new Tensor(storage, dtype, shape, strides, 0);
}

/** A tensor of any dtype; `Tensor` alone is one of floating-point numbers. */
export type AnyTensor = Tensor<DType, Shape>;

export const isTensor = (value: unknown): value is AnyTensor => value instanceof Tensor;

/** @internal */
export function checkAnyTensor(value: unknown, argument: string): asserts value is AnyTensor {
  if (isTensor(value)) return;
  const found = show(value) === Tensor.name ? 'a tensor of another copy of this package' : show(value);
  throw optionError(`${argument} is ${found}; it must be a tensor`);
}

/** @internal A tensor of floating-point numbers. @throws ERR_OPTION, ERR_DTYPE */
export function checkTensor(value: unknown, argument: string): asserts value is Tensor {
  checkAnyTensor(value, argument);
  if (!isFloat(value.dtype))
    throw new FlashAttnError(
      'ERR_DTYPE',
      `${argument} is ${value.dtype}; it must be float32, float16 or bfloat16: cast() converts`,
    );
}

/**
 * Of the shape and dtype of `t`, and on its device.
 *
 * @internal
 * @param named what messages call `t`
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED
 */
export function checkLike<T extends AnyTensor>(
  value: unknown,
  argument: string,
  t: T,
  named = 'the tensor',
): asserts value is T {
  checkAnyTensor(value, argument);
  if (!sameShape(value.shape, t.shape))
    throw shapeError(`${argument} has shape ${show(value.shape)}; it must be ${show(t.shape)}, that of ${named}`);
  if (value.dtype !== t.dtype)
    throw new FlashAttnError('ERR_DTYPE', `${argument} is ${value.dtype}; it must be ${t.dtype} as ${named} is`);
  value.operand(argument, t.backend);
}

/** @internal @throws ERR_OPTION, ERR_DTYPE */
export function checkIndices(value: unknown, argument: string): asserts value is Tensor<'int32', Shape> {
  checkAnyTensor(value, argument);
  if (value.dtype !== 'int32') throw new FlashAttnError('ERR_DTYPE', `${argument} is ${value.dtype}; it must be int32`);
}

export type Allocate = <D extends DType>(shape: Shape, dtype: D) => Tensor<D, Shape>;

/** @internal Runs `make`; when it throws, disposes what it had allocated so far. */
export function allocating<T>(backend: Backend, make: (allocate: Allocate) => T): T {
  const made: AnyTensor[] = [];
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
