import type { Saved } from '../attention/attention.js';
import type { AttentionOptions } from '../attention/options.js';
import { checkFloat32, checkOptions as checkNames, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { sameShape } from '../tensor/shape.js';
import { allocateTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/** The softmax scale, which every pattern takes. */
export interface ScaleOption {
  /** Multiplies q.k. Default 1 / sqrt(head dim). */
  readonly scale?: number;
}

/** What a pattern returns. Dispose of both when they are no longer needed. */
export interface Regrouped<D extends FloatDType, S extends Shape, Layout> {
  readonly out: Tensor<D, S>;
  /** For the backward pass. */
  readonly saved: SavedAttention<D, Layout>;
}

/** The gradients of a pattern's inputs, in their shapes. */
export interface RegroupedGradients<D extends FloatDType = FloatDType, S extends Shape = Shape> {
  readonly dq: Tensor<D, S>;
  readonly dk: Tensor<D, S>;
  readonly dv: Tensor<D, S>;
}

/** Shapes of a pattern's own inputs and result, before any regrouping. */
export interface PatternShapes {
  readonly q: Shape;
  readonly k: Shape;
  readonly v: Shape;
  readonly out: Shape;
}

/** The attention that a pattern ran on the regrouped tokens: its inputs, results and options. It owns the tensors. */
export class SavedAttention<D extends FloatDType = FloatDType, Layout = unknown>
  implements Saved<D, Shape>, Disposable
{
  readonly q: Tensor<D, Shape>;
  readonly k: Tensor<D, Shape>;
  readonly v: Tensor<D, Shape>;
  readonly out: Tensor<D, Shape>;
  readonly lse: Tensor<'float32', Shape>;

  /** @internal */
  constructor(
    readonly pattern: string,
    tensors: Saved<D, Shape>,
    readonly options: AttentionOptions,
    readonly shapes: PatternShapes,
    /** How tokens were regrouped. */
    readonly layout: Layout,
    /** What the options hold that nobody else owns. */
    readonly owned: readonly { dispose(): void }[] = [],
  ) {
    this.q = tensors.q;
    this.k = tensors.k;
    this.v = tensors.v;
    this.out = tensors.out;
    this.lse = tensors.lse;
  }

  dispose(): void {
    for (const t of [this.q, this.k, this.v, this.out, this.lse, ...this.owned]) t.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Takes charge of the tensors that a computation makes. */
export interface Scope {
  /** Disposed of at the end. */
  readonly use: <T extends Tensor>(t: T) => T;
  /** Disposed of only if the computation fails. */
  readonly keep: <T extends Tensor>(t: T) => T;
}

export function scoped<T>(make: (scope: Scope) => T): T {
  const used: Tensor[] = [];
  const kept: Tensor[] = [];
  const into =
    (list: Tensor[]) =>
    <U extends Tensor>(t: U): U => {
      list.push(t);
      return t;
    };
  try {
    return make({ use: into(used), keep: into(kept) });
  } catch (error) {
    for (const t of kept) t.dispose();
    throw error;
  } finally {
    for (const t of used) t.dispose();
  }
}

/** Another handle on the same memory, to be disposed of on its own. */
export const viewOfAll = <T extends Tensor>(t: T): T => t.slice(0, 0, t.shape[0]) as T;

/**
 * Checks that q, k and v have the rank of `order`, one dtype and the same first `shared` dims (default: all but heads and
 * head dim), q and k the same head dim, k and v the same tokens and heads.
 */
export function checkInputs(q: unknown, k: unknown, v: unknown, order: readonly string[], shared = order.length - 2) {
  const named = Object.entries({ q, k, v });
  for (const [name, t] of named) {
    checkTensor(t, name);
    if (t.shape.length !== order.length)
      throw shapeError(`${name} has shape ${show(t.shape)}; it must be [${order.join(', ')}]`);
  }
  const [query, key, value] = [q, k, v] as [Tensor, Tensor, Tensor];
  for (const [name, t] of [
    ['k', key],
    ['v', value],
  ] as const) {
    if (t.dtype !== query.dtype)
      throw new FlashAttnError('ERR_DTYPE', `${name} is ${t.dtype} and q is ${query.dtype}; they must be the same`);
    const differs = order.findIndex((_, axis) => axis < shared && t.shape[axis] !== query.shape[axis]);
    if (differs >= 0)
      throw shapeError(
        `q has shape ${show(query.shape)} and ${name} ${show(t.shape)}; they must have the same ${order[differs]}`,
      );
  }
  const [keyDim, keyHeads] = [key.shape.at(-1), key.shape.at(-2)];
  if (keyDim !== query.shape.at(-1))
    throw shapeError(`q has shape ${show(query.shape)} and k ${show(key.shape)}; they must have the same head dim`);
  if (keyHeads !== value.shape.at(-2) || key.shape.at(-3) !== value.shape.at(-3))
    throw shapeError(
      `k has shape ${show(key.shape)} and v ${show(value.shape)}; they may differ in their last dim only`,
    );
}

/** The shapes of a pattern whose out has a row for each of q. */
export const shapesOf = (q: Tensor, k: Tensor, v: Tensor): PatternShapes => ({
  q: q.shape,
  k: k.shape,
  v: v.shape,
  out: [...q.shape.slice(0, -1), v.shape[v.shape.length - 1]],
});

/** Checks the gradient of a pattern's result. */
export function checkGradient(dOut: unknown, saved: unknown, pattern: string): asserts dOut is Tensor {
  if (!(saved instanceof SavedAttention) || saved.pattern !== pattern)
    throw mustBe('saved', saved, `what ${pattern} saved`);
  checkTensor(dOut, 'dOut');
  const { shapes, out } = saved;
  if (!sameShape(dOut.shape, shapes.out))
    throw shapeError(`dOut has shape ${show(dOut.shape)}; it must be ${show(shapes.out)}`);
  if (dOut.dtype !== out.dtype) throw new FlashAttnError('ERR_DTYPE', `dOut is ${dOut.dtype}; it must be ${out.dtype}`);
}

/** @throws ERR_OPTION unless `options` is an object with no other options than `names` and a `scale`. */
export function checkOptions(options: ScaleOption, names: readonly string[]): void {
  checkNames<Record<string, unknown>>(options as Record<string, unknown>, [...names, 'scale']);
  if (options.scale !== undefined) checkFloat32(options.scale, 'scale');
}

/** The options of `scale` alone. */
export const scaleOf = ({ scale }: ScaleOption) => (scale === undefined ? {} : { scale });

/** A sum of tensors of one shape. Takes them over. */
export function sumOf<T extends Tensor>(terms: readonly T[]): T {
  const [first] = terms;
  if (terms.length === 1) return first;
  return scoped(({ use, keep }) => {
    for (const term of terms) use(term);
    const { backend, shape, dtype } = first;
    // Added up in float32 and rounded once.
    const sum = use(allocateTensor(backend, shape, 'float32'));
    for (const [i, term] of terms.entries()) term.copyInto(sum, { accumulate: i > 0 });
    const total = keep(allocateTensor(backend, shape, dtype));
    sum.copyInto(total);
    return total as Tensor as T;
  });
}
