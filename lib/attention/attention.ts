import type { DType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import type { AttentionExtras, Backend, BackwardOperands, ForwardOperands, Scratch, View } from '../kernels/device.js';
import { allocateTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import type { AttentionOptions, DenseOptions, VarlenOptions } from './options.js';
import { type AttentionProblem, readProblem } from './problem.js';

export type Shape2 = readonly [number, number];
export type Shape3 = readonly [number, number, number];
export type Shape4 = readonly [number, number, number, number];

/** Nothing fits it when TypeScript knows the rank: then the overload for that rank is the one to satisfy. */
type OfUnknownRank<S extends Shape> = number extends S['length'] ? unknown : never;

export interface AttentionResult<D extends DType = DType, S extends Shape = Shape> {
  /** The shape of q with v's head dim; rows that see no key are 0. */
  readonly out: Tensor<D, S>;
  /**
   * log sum_j e^logit_ij of every row, natural logarithm, sink included; -Infinity for rows that see nothing
   * and have no sink (with one, it is the sink itself).
   * [batch, heads, Nq], or [heads, total q] when varlen.
   */
  readonly lse: Tensor<'float32', S extends Shape4 ? Shape3 : S extends Shape3 ? Shape2 : Shape>;
}

/** What `attentionBackward` needs of the forward pass. */
export interface Saved<D extends DType = DType, S extends Shape = Shape> {
  readonly q: Tensor<D, S>;
  readonly k: Tensor<D, S>;
  readonly v: Tensor<D, S>;
  readonly out: Tensor<D, S>;
  readonly lse: Tensor<'float32', Shape>;
}

export interface BackwardExtras {
  /** The gradient of the loss with respect to lse, if it depends on it. float32, the shape of lse. */
  readonly dLse?: Tensor<'float32', Shape>;
}

export interface Gradients<D extends DType = DType, S extends Shape = Shape> {
  readonly dq: Tensor<D, S>;
  readonly dk: Tensor<D, S>;
  readonly dv: Tensor<D, S>;
  /** Of `bias`, in its shape and dtype: summed over what it was broadcast to. */
  readonly dBias?: Tensor<DType, Shape>;
  /** Of `relativeBias.table`, in its shape and dtype. */
  readonly dRelativeBias?: Tensor<DType, Shape>;
  /** Of `sink`, in its shape and dtype. */
  readonly dSink?: Tensor<DType, Shape>;
}

/** @internal Output shapes of a problem. */
export function outputShapes(problem: AttentionProblem): { out: Shape; lse: Shape } {
  const { batch, queryRows, heads, valueDim } = problem;
  if (problem.layout === 'varlen') return { out: [queryRows, heads, valueDim], lse: [heads, queryRows] };
  const out = problem.layout === 'bshd' ? [batch, queryRows, heads, valueDim] : [batch, heads, queryRows, valueDim];
  return { out, lse: [batch, heads, queryRows] };
}

/** @internal */
export function viewOf(t: Tensor, layout: AttentionProblem['layout'], argument: string, backend: Backend): View {
  // Field by field: destructuring and spreading take the engine's slow paths, and this runs for every tensor of a call.
  const { buffer, offset } = t.operand(argument, backend);
  const { strides } = t;
  const first = layout === 'varlen' ? 0 : 1;
  const swapped = layout === 'bhsd' ? 1 : 0;
  const batchStride = layout === 'varlen' ? 0 : (strides[0] as number);
  const seqStride = strides[first + swapped] as number;
  const headStride = strides[first + 1 - swapped] as number;
  const dimStride = strides[first + 2] as number;
  if (dimStride !== 1 && t.shape[t.shape.length - 1] !== 1 && t.size > 0)
    throw shapeError(`${argument} must be contiguous along its last dim, its stride is ${dimStride}`);
  return { buffer, offset, dtype: t.dtype, batchStride, seqStride, headStride };
}

const sameShape = (a: Shape, b: Shape) => a.length === b.length && a.every((n, axis) => n === b[axis]);

/** @internal */
export function expect(t: unknown, argument: string, shape: Shape, dtype: DType): asserts t is Tensor {
  checkTensor(t, argument);
  if (!sameShape(t.shape, shape)) throw shapeError(`${argument} has shape ${show(t.shape)}; it must be ${show(shape)}`);
  if (t.dtype !== dtype) throw new FlashAttnError('ERR_DTYPE', `${argument} is ${t.dtype}; it must be ${dtype}`);
}

function checkInputs(q: unknown, k: unknown, v: unknown): asserts q is Tensor {
  checkTensor(q, 'q');
  checkTensor(k, 'k');
  checkTensor(v, 'v');
  for (const [name, t] of [
    ['k', k],
    ['v', v],
  ] as const)
    if (t.dtype !== q.dtype)
      throw new FlashAttnError('ERR_DTYPE', `${name} is ${t.dtype} and q is ${q.dtype}; they must be the same`);
}

function readExtras(options: AttentionOptions, backend: Backend): AttentionExtras {
  const { bias, alibi, relativeBias, sink } = options;
  return {
    ...(bias && { bias: bias.flat('bias', backend) }),
    ...(alibi && 'shape' in alibi && { alibi: alibi.flat('alibi', backend) }),
    ...(relativeBias && { relativeTable: relativeBias.table.flat('relativeBias.table', backend) }),
    ...(sink && { sink: sink.flat('sink', backend) }),
  };
}

/** @internal The tensors of a forward pass, checked. */
export function forwardOperands(
  problem: AttentionProblem,
  tensors: { q: Tensor; k: Tensor; v: Tensor; out: Tensor; lse: Tensor },
  options: AttentionOptions,
): ForwardOperands {
  const backend = tensors.q.backend;
  const view = (name: 'q' | 'k' | 'v' | 'out') => viewOf(tensors[name], problem.layout, name, backend);
  return {
    query: view('q'),
    key: view('k'),
    value: view('v'),
    out: view('out'),
    lse: tensors.lse.flat('lse', backend),
    ...readExtras(options, backend),
  };
}

function run(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): AttentionResult {
  checkInputs(q, k, v);
  const problem = readProblem(q.shape, k.shape, v.shape, q.dtype, options);
  const { backend } = q;
  // Operands are checked before the outputs are allocated: an error leaves nothing behind.
  const check = (t: Tensor, name: string) => viewOf(t, problem.layout, name, backend);
  check(q, 'q');
  check(k, 'k');
  check(v, 'v');
  readExtras(options, backend);
  return allocating(backend, (allocate) => {
    const result = allocateResult(problem, allocate);
    backend.forward(problem, forwardOperands(problem, { q, k, v, ...result }, options));
    return result;
  });
}

type Allocate = (shape: Shape, dtype: DType) => Tensor;

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

/** @internal Uninitialised results of a problem. */
export function allocateResult(problem: AttentionProblem, allocate: Allocate): AttentionResult {
  const shapes = outputShapes(problem);
  return { out: allocate(shapes.out, problem.dtype), lse: allocate(shapes.lse, 'float32') as AttentionResult['lse'] };
}

/**
 * Exact attention: out = dropout(softmax(mask(softcap(scale * q k^T) + biases))) v, without ever holding the
 * Nq x Nk matrix. Dao et al., FlashAttention (2022) and FlashAttention-2 (2023).
 *
 * q [batch, Nq, heads, dim], k [batch, Nk, kv heads, dim], v [batch, Nk, kv heads, value dim], or in the order of
 * `options.layout`; packed sequences [total, heads, dim] with `cuSeqlensQ`. One dtype; any strides with the last dim
 * contiguous; dims from 1 to 256; heads a multiple of kv heads, query head h reads kv head floor(h / (heads / kv heads)).
 *
 * Returns at once: wait by reading the results.
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY before anything is computed
 */
export function attention<D extends DType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options?: DenseOptions,
): AttentionResult<D, Shape4>;
export function attention<D extends DType>(
  q: Tensor<D, Shape3>,
  k: Tensor<NoInfer<D>, Shape3>,
  v: Tensor<NoInfer<D>, Shape3>,
  options: VarlenOptions,
): AttentionResult<D, Shape3>;
export function attention<D extends DType, S extends Shape = Shape>(
  q: Tensor<D, S> & OfUnknownRank<S>,
  k: Tensor<NoInfer<D>, Shape>,
  v: Tensor<NoInfer<D>, Shape>,
  options?: AttentionOptions,
): AttentionResult<D, Shape>;
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): AttentionResult {
  return run(q, k, v, options);
}

/** @internal Checks the saved tensors of a backward pass against its problem. */
export function checkSaved(problem: AttentionProblem, dOut: unknown, saved: Saved, extras: BackwardExtras): void {
  const shapes = outputShapes(problem);
  expect(saved.out, 'saved.out', shapes.out, problem.dtype);
  expect(saved.lse, 'saved.lse', shapes.lse, 'float32');
  expect(dOut, 'dOut', shapes.out, problem.dtype);
  if (extras.dLse !== undefined) expect(extras.dLse, 'dLse', shapes.lse, 'float32');
}

interface ShapedLike {
  readonly shape: Shape;
  readonly dtype: DType;
}

/** @internal Uninitialised gradient tensors of a problem. */
export function allocateGradients(
  saved: { q: ShapedLike; k: ShapedLike; v: ShapedLike },
  options: AttentionOptions,
  allocate: Allocate,
): Gradients {
  const like = (t: ShapedLike) => allocate(t.shape, t.dtype);
  return {
    dq: like(saved.q),
    dk: like(saved.k),
    dv: like(saved.v),
    ...(options.bias && { dBias: like(options.bias) }),
    ...(options.relativeBias && { dRelativeBias: like(options.relativeBias.table) }),
    ...(options.sink && { dSink: like(options.sink) }),
  };
}

/** @internal */
export function runBackward(
  problem: AttentionProblem,
  dOut: Tensor,
  saved: Saved,
  options: AttentionOptions & BackwardExtras,
  gradients: Gradients,
  scratch?: Scratch,
): void {
  const { backend } = saved.q;
  const view = (t: Tensor, name: string) => viewOf(t, problem.layout, name, backend);
  const { dBias, dRelativeBias, dSink } = gradients;
  const operands: BackwardOperands = {
    ...forwardOperands(problem, saved, options),
    dOut: view(dOut, 'dOut'),
    ...(options.dLse && { dLse: options.dLse.flat('dLse', backend) }),
    dQuery: view(gradients.dq, 'dq'),
    dKey: view(gradients.dk, 'dk'),
    dValue: view(gradients.dv, 'dv'),
    ...(dBias && { dBias: dBias.flat('dBias', backend) }),
    ...(dRelativeBias && { dRelativeTable: dRelativeBias.flat('dRelativeBias', backend) }),
    ...(dSink && { dSink: dSink.flat('dSink', backend) }),
  };
  backend.backward(problem, operands, scratch);
}

/**
 * The gradients of `attention`, given the gradient of its out (and of its lse: `options.dLse`).
 *
 * @param dOut the shape and dtype of out
 * @param saved the inputs and results of the forward pass: `{ q, k, v, ...attention(q, k, v, options) }`. Where the
 *   keys were a part of all keys, `out` and `lse` may be those of the merged result: the gradients are then exact.
 * @param options the options of the forward pass
 * @throws as `attention`
 */
export function attentionBackward<D extends DType, S extends Shape>(
  dOut: Tensor<NoInfer<D>, NoInfer<S>>,
  saved: Saved<D, S>,
  options: AttentionOptions & BackwardExtras = {},
): Gradients<D, S> {
  const { dLse, ...forward } = options;
  if (saved === null || typeof saved !== 'object')
    throw new FlashAttnError('ERR_OPTION', `saved is ${show(saved)}; it must be { q, k, v, out, lse }`);
  checkInputs(saved.q, saved.k, saved.v);
  const problem = readProblem(saved.q.shape, saved.k.shape, saved.v.shape, saved.q.dtype, forward as AttentionOptions);
  checkSaved(problem, dOut, saved, options);
  const { backend } = saved.q;
  forwardOperands(problem, saved, options);
  viewOf(dOut, problem.layout, 'dOut', backend);
  dLse?.flat('dLse', backend);
  return allocating(backend, (allocate) => {
    const gradients = allocateGradients(saved, forward as AttentionOptions, allocate);
    runBackward(problem, dOut, saved, options, gradients);
    return gradients as Gradients<D, S>;
  });
}
