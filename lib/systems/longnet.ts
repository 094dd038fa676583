import type { Shape3, Shape4 } from '../attention/attention.js';
import { mergeStates } from '../attention/merge.js';
import { checkBoolean, checkIntegers, checkWord, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { gatherRows, RowMap, releaseCopies } from '../ops/gather.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { Packing, pack, packedAttention, packedBackward, type Sequence } from './packing.js';
import {
  checkGradient,
  checkInputs,
  checkOptions,
  type RegroupedGradients,
  type SavedAttention,
  type ScaleOption,
  scaleOf,
  scoped,
  shapesOf,
} from './saved.js';

export interface LongnetOptions extends ScaleOption {
  /** The segment length of each branch; longer than the sequence means all of it. */
  readonly segmentLengths: readonly number[];
  /** As many dilation ratios: every `ratio`-th token of a segment takes part, from an offset that the head decides. */
  readonly dilatedRatios: readonly number[];
  /** A token sees only those before it. Default false. */
  readonly causal?: boolean;
}

export interface LongnetBackwardOptions {
  /**
   * 'joint' (default) differentiates the weights of the branches, which makes all of them one softmax;
   * 'detached' takes them as constants, as the original code does.
   */
  readonly gradient?: 'joint' | 'detached';
}

/** What `longnetAttentionBackward` needs: the attention of all branches, and their merged result. */
export class SavedLongnet<D extends FloatDType = FloatDType> implements Disposable {
  /** @internal */
  constructor(
    readonly branches: SavedAttention<D, LongnetLayout>,
    /** [batch, tokens * heads, 1, value dim] */
    readonly out: Tensor<D, Shape4>,
    /** [batch, 1, tokens * heads] */
    readonly lse: Tensor<'float32', Shape3>,
  ) {}

  dispose(): void {
    for (const t of [this.branches, this.out, this.lse]) t.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** How `longnetAttention` regroups tokens. */
export interface LongnetLayout {
  /** Rows are pairs (token, head): heads take different tokens. */
  readonly packing: Packing;
  /** For each branch, from packed rows to pairs (token, head). */
  readonly results: readonly RowMap[];
}

const layouts = new Remember<LongnetLayout>(releaseCopies);

function layoutOf(tokens: number, heads: number, kvHeads: number, options: LongnetOptions): LongnetLayout {
  const { segmentLengths, dilatedRatios, causal = false } = options;
  return layouts.get([tokens, heads, kvHeads, segmentLengths, dilatedRatios, causal], () => {
    // A query without keys comes first: pairs that a branch leaves out get its out 0 and lse -Infinity.
    const sequences: Sequence[] = [{ queries: [-1], keys: [] }];
    let packedRows = 1;
    const places = segmentLengths.map((length, branch) => {
      const place = new Int32Array(tokens * heads);
      const segment = Math.min(length, tokens);
      const ratio = dilatedRatios[branch];
      for (let start = 0; start < tokens; start += segment)
        for (let head = 0; head < heads; head++) {
          const kvHead = Math.floor(head / (heads / kvHeads));
          const first = Math.floor(head / Math.ceil(heads / ratio));
          const queries: number[] = [];
          const keys: number[] = [];
          // Segments are padded to a multiple of the ratio, so that heads with a late offset get as many keys.
          for (let at = first; at < Math.ceil(segment / ratio) * ratio; at += ratio) {
            const token = start + at;
            const real = at < segment && token < tokens;
            if (real) {
              place[token * heads + head] = packedRows++;
              queries.push(token * heads + head);
            }
            if (real) keys.push(token * kvHeads + kvHead);
            else if (!causal) keys.push(-1);
          }
          sequences.push({ queries, keys });
        }
      return place;
    });
    const packing = new Packing(sequences, tokens * heads, tokens * kvHeads);
    return { packing, results: places.map((place) => RowMap.of(place, packedRows)) };
  });
}

function readLayout(shapes: { q: Shape; k: Shape }, options: LongnetOptions): LongnetLayout {
  checkOptions(options, ['segmentLengths', 'dilatedRatios', 'causal']);
  const segmentLengths = checkIntegers(options.segmentLengths, 'segmentLengths', 1);
  const dilatedRatios = checkIntegers(options.dilatedRatios, 'dilatedRatios', 1);
  if (segmentLengths.length === 0 || segmentLengths.length !== dilatedRatios.length)
    throw optionError(
      `there are ${segmentLengths.length} segmentLengths and ${dilatedRatios.length} dilatedRatios; they must be as many, at least one`,
    );
  if (options.causal !== undefined) checkBoolean(options.causal, 'causal');
  const [, tokens, heads] = shapes.q;
  return layoutOf(tokens, heads, shapes.k[2], { ...options, segmentLengths, dilatedRatios });
}

/** [batch, tokens, heads, dim] -> [batch, tokens * heads, 1, dim] */
const pairs = <D extends FloatDType>(t: Tensor<D, Shape>): Tensor<D, Shape> =>
  t.reshape([t.shape[0], t.shape[1] * t.shape[2], 1, t.shape[3]] as Shape);

/**
 * Dilated attention of LongNet (Ding et al. 2023). Branch b cuts the sequence into segments of segmentLengths[b] tokens;
 * within each, head h attends among the tokens floor(h / ceil(heads / r)) + n * r, r = dilatedRatios[b]. The branches
 * are merged by their log-sum-exp: out = sum_b e^(lse_b - lse) out_b, lse = log sum_b e^lse_b. A key that several
 * branches see counts in each of them. As in the original code, the zeros that pad the last segment, and segments to a
 * multiple of the ratio, are keys like any other unless `causal`. A pair of token and head in no branch gives 0.
 *
 * @param q [batch, tokens, heads, dim], contiguous
 * @param k [batch, tokens, kv heads, dim], contiguous
 * @param v [batch, tokens, kv heads, value dim], contiguous
 * @returns out [batch, tokens, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function longnetAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<D, Shape4>,
  v: Tensor<D, Shape4>,
  options: LongnetOptions,
): { out: Tensor<D, Shape4>; saved: SavedLongnet<D> } {
  checkInputs(q, k, v, ['batch', 'tokens', 'heads', 'dim']);
  checkHeads(q, k);
  const layout = readLayout({ q: q.shape, k: k.shape }, options);
  const { causal = false } = options;
  const shapes = shapesOf(q, k, v);
  const [batch] = q.shape;
  const rowCount = q.shape[1] * q.shape[2];
  return scoped(({ use, keep }) => {
    const inputs = { q: use(pairs<D>(q)), k: use(pairs<D>(k)), v: use(pairs<D>(v)) };
    const branches = packedAttention('longnetAttention', inputs, layout, shapes, { ...scaleOf(options), causal });
    for (const t of [branches.q, branches.k, branches.v, branches.out, branches.lse]) keep(t);
    const { rows } = layout.packing.queries;
    const packedOut = use(branches.out.reshape([batch, rows, 1, v.shape[3]] as Shape));
    const packedLse = use(branches.lse.reshape([batch, rows, 1] as Shape));
    const states = layout.results.map((map) => ({
      out: use(gatherRows(packedOut, map)) as Tensor<D, Shape4>,
      lse: use(use(gatherRows(packedLse, map)).reshape([batch, 1, rowCount] as Shape3)),
    }));
    const merged = mergeStates<D, Shape4>(states);
    keep(merged.out);
    keep(merged.lse);
    const out = merged.out.reshape(shapes.out as Shape4);
    return { out, saved: new SavedLongnet(branches, merged.out, merged.lse) };
  });
}

/**
 * The gradients of `longnetAttention`.
 *
 * @param dOut the shape and dtype of out
 * @param saved what the forward pass saved
 * @throws as `longnetAttention`
 */
export function longnetAttentionBackward<D extends FloatDType>(
  dOut: Tensor<D, Shape4>,
  saved: SavedLongnet<D>,
  options: LongnetBackwardOptions = {},
): RegroupedGradients<D, Shape4> {
  if (!(saved instanceof SavedLongnet)) throw mustBe('saved', saved, 'what longnetAttention saved');
  const { branches, out, lse } = saved;
  checkGradient(dOut, branches, 'longnetAttention');
  const gradient = checkWord(options.gradient ?? 'joint', 'gradient', ['joint', 'detached']);
  const { packing } = branches.layout;
  return scoped(({ use }) => {
    const packed = use(pack(use(pairs<D>(dOut)), packing.queries));
    // With the merged lse every probability carries the weight of its branch. The merged out makes that the gradient of
    // one softmax over all branches; a branch's own out leaves the weight itself without gradient.
    const rows = use(lse.reshape([lse.shape[0], lse.shape[2], 1] as Shape));
    const packedLse = use(pack(rows, packing.queries));
    const mergedLse = use(packedLse.reshape(branches.lse.shape));
    const results =
      gradient === 'joint' ? { out: use(pack<D>(out, packing.queries)), lse: mergedLse } : { lse: mergedLse };
    return packedBackward(packed, branches, results) as RegroupedGradients<D, Shape4>;
  });
}

function checkHeads(q: Tensor<FloatDType, Shape>, k: Tensor<FloatDType, Shape>): void {
  if (k.shape[2] < 1 || q.shape[2] % k.shape[2] !== 0)
    throw shapeError(`the ${q.shape[2]} query heads must be a multiple of the ${k.shape[2]} kv heads`);
}
