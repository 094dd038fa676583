import { attention, attentionBackward } from '../attention/attention.js';
import type { VarlenOptions } from '../attention/options.js';
import type { FloatDType } from '../base/dtype.js';
import { gatherRows, RowMap } from '../ops/gather.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { type PatternShapes, type RegroupedGradients, SavedAttention, scoped } from './saved.js';

/** Rows of q that attend to rows of k and v, and to nothing else. -1 is a row of zeros. */
export interface Sequence {
  readonly queries: readonly number[];
  readonly keys: readonly number[];
}

/** Packed sequences of any lengths whose rows come from anywhere in [batch, rows, ...]; a row may be in many of them. */
export class Packing {
  readonly queries: RowMap;
  readonly keys: RowMap;
  readonly #sequences: readonly Sequence[];

  constructor(sequences: readonly Sequence[], queryRows: number, keyRows: number) {
    this.#sequences = sequences;
    this.queries = RowMap.of(
      sequences.flatMap(({ queries }) => queries),
      queryRows,
    );
    this.keys = RowMap.of(
      sequences.flatMap(({ keys }) => keys),
      keyRows,
    );
  }

  /** Where the sequences of all batch entries begin, one entry after the other. */
  offsets(batch: number): { cuSeqlensQ: Int32Array; cuSeqlensK: Int32Array } {
    const starts = (side: 'queries' | 'keys') => {
      const offsets = new Int32Array(batch * this.#sequences.length + 1);
      for (let at = 1; at < offsets.length; at++)
        offsets[at] = offsets[at - 1] + this.#sequences[(at - 1) % this.#sequences.length][side].length;
      return offsets;
    };
    return { cuSeqlensQ: starts('queries'), cuSeqlensK: starts('keys') };
  }
}

/** [batch, rows, ...rest] -> [batch * rows, ...rest] */
function join<D extends FloatDType>(t: Tensor<D, Shape>): Tensor<D, Shape> {
  const [batch, rows, ...rest] = t.shape;
  return t.reshape([batch * rows, ...rest] as Shape);
}

/** The rows of packed sequences, gathered from t [batch, rows, ...rest] and joined: [batch * packed rows, ...rest]. */
export function pack<D extends FloatDType>(t: Tensor<D, Shape>, map: RowMap, scale = 1): Tensor<D, Shape> {
  return scoped(({ use }) => join(use(gatherRows(t, map, { scale }))));
}

/** The adjoint of `pack`: the sum of the packed rows over all places that a row was gathered to. */
export function unpack<D extends FloatDType>(t: Tensor<D, Shape>, map: RowMap, scale = 1): Tensor<D, Shape> {
  return scoped(({ use }) => {
    const [rows, ...rest] = t.shape;
    const batch = map.rows === 0 ? 0 : rows / map.rows;
    return gatherRows(use(t.reshape([batch, map.rows, ...rest] as Shape)), map.transposed(), { scale });
  });
}

export interface Inputs<D extends FloatDType> {
  /** [batch, rows, heads, dim]; k and v with rows and heads of their own. */
  readonly q: Tensor<D, Shape>;
  readonly k: Tensor<D, Shape>;
  readonly v: Tensor<D, Shape>;
}

/** Attention within each sequence. The results stay packed: out [batch * packed rows, heads, dim]. */
export function packedAttention<D extends FloatDType, Layout extends { readonly packing: Packing }>(
  pattern: string,
  inputs: Inputs<D>,
  layout: Layout,
  shapes: PatternShapes,
  options: Pick<VarlenOptions, 'scale' | 'causal'>,
): SavedAttention<D, Layout> {
  const { packing } = layout;
  return scoped(({ keep }) => {
    const q = keep(pack(inputs.q, packing.queries));
    const k = keep(pack(inputs.k, packing.keys));
    const v = keep(pack(inputs.v, packing.keys));
    const packed: VarlenOptions = { ...options, ...packing.offsets(inputs.q.shape[0]) };
    const { out, lse } = attention<D>(q, k, v, packed);
    return new SavedAttention(pattern, { q, k, v, out: keep(out), lse: keep(lse) }, packed, shapes, layout);
  });
}

/** The gradients of `packedAttention` in the shapes of the pattern, given the packed gradient of its out. */
export function packedBackward<D extends FloatDType>(
  dOut: Tensor<D, Shape>,
  saved: SavedAttention<D, { readonly packing: Packing }>,
  results: Partial<Pick<SavedAttention<D>, 'out' | 'lse'>> = {},
): RegroupedGradients<D, Shape> {
  return scoped(({ use, keep }) => {
    const { q, k, v, out, lse, options, shapes } = saved;
    const { packing } = saved.layout;
    const gradients = attentionBackward(dOut, { q, k, v, out, lse, ...results }, options);
    for (const name of ['dq', 'dk', 'dv'] as const) use(gradients[name]);
    const restore = (t: Tensor<D, Shape>, map: RowMap, shape: Shape) => keep(use(unpack(t, map)).reshape(shape));
    return {
      dq: restore(gradients.dq, packing.queries, shapes.q),
      dk: restore(gradients.dk, packing.keys, shapes.k),
      dv: restore(gradients.dv, packing.keys, shapes.v),
    };
  });
}
