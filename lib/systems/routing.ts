import { attention, type Shape4 } from '../attention/attention.js';
import { lookup, type ScoreMod } from '../attention/scoreMod.js';
import { checkBoolean, checkInteger, checkNumber, checkObject, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError } from '../base/errors.js';
import { cast } from '../ops/cast.js';
import { concat } from '../ops/concat.js';
import { fused, mul, square, where } from '../ops/elementwise.js';
import { embedding, type Indices, scatterAdd } from '../ops/embedding.js';
import { matmul } from '../ops/matmul.js';
import { sum } from '../ops/reduce.js';
import { argmax, topK } from '../ops/sort.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkAlike, checkPositions, checkQkv, checkShaped, narrow, type Sequence, type Wide, wide } from './inputs.js';
import { countUp } from './selectedBlocks.js';

/** Keys and values that all queries of a cluster see beside its own, of the dtype of q. */
export interface RoutingMemory {
  /** [heads, clusters, any, dim] */
  readonly keys: Tensor<FloatDType, Shape>;
  /** [heads, clusters, as many, value dim] */
  readonly values: Tensor<FloatDType, Shape>;
}

export interface RoutingOptions {
  /** The centroids of each head, of length 1: [heads, clusters, dim], any dtype. `updateRoutingMeans` moves them. */
  readonly means: Tensor<FloatDType, Shape>;
  /** Queries, and keys, of a cluster. In the original seq / clusters. */
  readonly window: number;
  /** A query sees keys up to its own position. Default false. */
  readonly causal?: boolean;
  readonly memory?: RoutingMemory;
  /**
   * Which positions are real, [batch, seq], of q and k. Clusters take others only where they find no more real ones; those are
   * seen by nobody, and see the memory alone.
   */
  readonly mask?: Tensor<'bool', Shape>;
}

export interface RoutingResult<D extends FloatDType = FloatDType> {
  readonly out: Tensor<D, Shape4>;
  /** int32 [batch, heads, clusters, window]: the positions that each cluster has taken, the nearest first. */
  readonly queryIndices: Indices;
  readonly keyIndices: Indices;
}

/** Whole numbers up to here are exact in float32, in which rows are counted. */
const mostCounted = 2 ** 24;
/** The logit of a token with itself, where queries are keys too. */
const toItself = -5e4;

const overRoot = fused((x, squares) => x.mul(squares.maximum(1e-24).rsqrt()));
/** The direction of each row; 0 of 0. */
export const unit = (x: Sequence): Sequence => overRoot(x, sum(square(x) as Sequence, -1, { keepDims: true }));

/** The cosine of each token and each centroid: [batch, heads, clusters, seq]. */
function nearness(x: Tensor, means: Tensor): Sequence {
  const tokens = unit(wide(x.detach())).permute([0, 2, 3, 1]);
  return matmul(wide(means.detach()), tokens);
}

/** The `window` tokens that are nearest to each centroid: [batch, heads, clusters, window]. */
function takenBy(x: Tensor, { means, window, mask }: RoutingOptions): Indices {
  const all = nearness(x, means);
  const [batch, seq] = x.shape;
  const real = mask ? (where(mask.reshape([batch, 1, 1, seq]), all, Number.NEGATIVE_INFINITY) as Sequence) : all;
  return topK(real, window).indices;
}

const rowAt = fused((position, entry, head, seq, heads) => entry.mul(seq).add(position).mul(heads).add(head));

/** The rows of [batch * seq * heads, dim] at these positions of [batch, heads, clusters, window]. */
function rowsAt(indices: Indices, seq: number): Indices {
  const [batch, heads] = indices.shape;
  const entries = countUp(batch, indices as unknown as Tensor).reshape([batch, 1, 1, 1]);
  const own = countUp(heads, indices as unknown as Tensor).reshape([heads, 1, 1]);
  return cast(rowAt(cast(indices, 'float32'), entries, own, seq, heads), 'int32');
}

const tableOf = (t: Tensor): Tensor => {
  const [batch, seq, heads, dim] = t.shape;
  return t.contiguous().reshape([batch * seq * heads, dim]);
};

const meanOf = fused((sum, count) => sum.div(count.add(1e-5)));

interface Routed {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly queryIndices: Indices;
  readonly keyIndices: Indices;
  /** Whether queries are keys too. */
  readonly shared: boolean;
}

/** Attention within clusters, and the mean over those that a token is in. */
function attendClusters(routed: Routed, { causal = false, memory, mask, window }: RoutingOptions): Tensor {
  const { q, k, v, queryIndices, keyIndices, shared } = routed;
  const [batch, seq, heads] = q.shape;
  const [, , clusters] = queryIndices.shape;
  const lists = batch * heads * clusters;
  const [queryRows, keyRows] = [rowsAt(queryIndices, seq), rowsAt(keyIndices, k.shape[1])];
  const clustered = (t: Tensor, own: Tensor | undefined): Tensor => {
    const dim = t.shape[3];
    const tokens = embedding(tableOf(t), keyRows);
    const first = own?.expand([batch, ...own.shape]);
    return (first ? concat([first, tokens], 3) : tokens).reshape([lists, -1, 1, dim]);
  };
  const queries = embedding(tableOf(q), queryRows).reshape([lists, window, 1, q.shape[3]]) as Tensor;
  const [keys, values] = [clustered(k, memory?.keys), clustered(v, memory?.values)];
  const memories = keys.shape[1] - window;

  const inLists = <T extends Indices | Wide>(t: T) => t.reshape([lists, window]) as unknown as T;
  const [froms, tos] = [inLists(queryIndices), inLists(keyIndices)];
  const ofHeads = mask && cast(mask, 'float32').reshape([batch, seq, 1]).expand([batch, seq, heads]).contiguous();
  const realAt = (rows: Indices) => ofHeads && inLists(embedding(ofHeads.reshape([batch * seq * heads]), rows) as Wide);
  const [realFrom, realTo] = [realAt(queryRows), realAt(keyRows)];
  const scoreMod: ScoreMod = (score, list, _head, i, j) => {
    const key = j.sub(memories);
    const [from, to] = [lookup(froms, list, i), lookup(tos, list, key)];
    const after = causal ? from.less(to).where(Number.NEGATIVE_INFINITY, score) : score;
    const isReal = realFrom && realTo && lookup(realFrom, list, i).mul(lookup(realTo, list, key));
    const seen = isReal ? isReal.where(after, Number.NEGATIVE_INFINITY) : after;
    const own = shared ? from.equal(to).where(toItself, seen) : seen;
    return memories > 0 ? key.less(0).where(score, own) : own;
  };
  const { out } = attention(queries, keys, values, causal || mask || shared ? { scoreMod } : {});

  const valueDim = v.shape[3];
  const found = wide(out as Tensor).reshape([batch, heads, clusters, window, valueDim]);
  const rows = batch * seq * heads;
  const total = scatterAdd(rows, queryRows, found);
  const count = scatterAdd(rows, queryRows, filled(q.backend, queryRows.shape, 'float32', 1) as Wide);
  return narrow(meanOf(total, count.reshape([rows, 1])), q).reshape([batch, seq, heads, valueDim]);
}

function checkRouting(q: Tensor, k: Tensor, v: Tensor, options: RoutingOptions): void {
  checkOptions(options, ['means', 'window', 'causal', 'memory', 'mask']);
  const { means, window, causal = false, memory, mask } = options;
  const [batch, seq, heads, dim] = q.shape;
  checkShaped(means, 'means', [heads, -1, dim], 'heads, clusters, dim', q);
  const clusters = means.shape[1];
  checkInteger(window, 'window', 1);
  if (q.size > 0 && window > Math.min(seq, k.shape[1]))
    throw mustBe('window', window, `at most the number of queries and of keys, ${seq} and ${k.shape[1]}`);
  checkBoolean(causal, 'causal');
  if (memory !== undefined) {
    checkObject(memory, 'memory');
    checkOptions(memory, ['keys', 'values'], 'memory');
    checkAlike(memory.keys, 'memory.keys', [heads, clusters, -1, dim], 'heads, clusters, memories, dim', q);
    const shape = [heads, clusters, memory.keys.shape[2], v.shape[3]];
    checkAlike(memory.values, 'memory.values', shape, 'heads, clusters, memories, value dim', q);
  }
  if (mask !== undefined) checkPositions(mask, q);
  if (batch * heads * Math.max(seq, k.shape[1], clusters * window) > mostCounted)
    throw shapeError(
      'q has more than 2^24 rows in all batch entries and heads, or its clusters do: give fewer batch entries',
    );
}

/**
 * Routing attention: every centroid takes the `window` queries, and the `window` keys, that point most in its direction, the
 * earlier of equal ones, and they attend to each other with scale 1 / sqrt(dim), so that all clusters have as many and a
 * token may be in several or in none. The result of a token is the sum over its clusters over (their number + 1e-5); 0 in
 * none. Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers" (2020), arXiv:2003.05997, as
 * KmeansAttention of lucidrains' routing-transformer computes it, but for queries that see nothing at all, whose result is 0.
 *
 * Clusters have no gradient. Time and memory are those of clusters * window tokens, time also of clusters * window^2 pairs
 * and of clusters * seq cosines: with window = seq / clusters seq^2 / clusters pairs.
 *
 * @param q [batch, seq, heads, dim]
 * @param k [batch, key seq, heads, dim], as long as q with `causal` or `mask`
 * @param v [batch, key seq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function routingAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: RoutingOptions,
): RoutingResult<D> {
  const [query, key, value] = [q, k, v] as unknown as readonly [Tensor, Tensor, Tensor];
  checkQkv(query, key, value, { self: (options?.causal ?? false) || options?.mask !== undefined });
  checkRouting(query, key, value, options);
  return routed(query, key, value, options, false) as unknown as RoutingResult<D>;
}

/**
 * `routingAttention` with queries that are keys too, k = q / |q|, which clusters take together; the logit of a token with
 * itself is
 * -5e4, so that it sees itself only where it sees nobody else. As the original (Roy et al. 2020,
 * arXiv:2003.05997) does it where `shared_qk` is set.
 *
 * @param qk [batch, seq, heads, dim]
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim]
 * @throws as `routingAttention`
 */
export function sharedRoutingAttention<D extends FloatDType>(
  qk: Tensor<D, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: RoutingOptions,
): RoutingResult<D> {
  const [query, value] = [qk, v] as unknown as readonly [Tensor, Tensor];
  checkQkv(query, query, value, { self: true });
  checkRouting(query, query, value, options);
  return routed(query, query, value, options, true) as unknown as RoutingResult<D>;
}

function routed(q: Tensor, k: Tensor, v: Tensor, options: RoutingOptions, shared: boolean) {
  return scope(() => {
    const { means, window } = options;
    if (q.size === 0 || v.size === 0 || k.size === 0 || means.size === 0) {
      const none = () => filled(q.backend, [q.shape[0], q.shape[2], means.shape[1], window], 'int32', 0) as Indices;
      const out = filled(q.backend, [...q.shape.slice(0, 3), v.shape[3]], q.dtype, 0);
      return { out, queryIndices: none(), keyIndices: none() };
    }
    const queryIndices = takenBy(q, options);
    const keyIndices = shared ? queryIndices.detach() : takenBy(k, options);
    const key = shared ? narrow(unit(wide(q)), q) : k;
    const out = attendClusters({ q, k: key, v, queryIndices, keyIndices, shared }, options);
    return { out, queryIndices, keyIndices };
  });
}

export interface RoutingMeansOptions {
  /** How much of the centroids stays. Default 0.999. */
  readonly decay?: number;
  /** Which positions are real, [batch, seq]. */
  readonly mask?: Tensor<'bool', Shape>;
}

const moved = fused((mean, direction, count, decay) =>
  count.equal(0).where(mean, mean.mul(decay).add(direction.mul(decay.neg().add(1)))),
);

/**
 * One step of online k-means: every token goes to the centroid that it points to most, and each centroid moves to decay *
 * centroid + (1 - decay) * the direction of the sum of its tokens' directions; one without tokens stays. As lucidrains'
 * routing-transformer (Roy et al. 2020, section 4.1). It has no gradient.
 *
 * @param x the queries and keys, one after the other: [batch, seq, heads, dim]
 * @param means [heads, clusters, dim]
 * @returns new means, float32
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function updateRoutingMeans(
  x: Tensor<FloatDType, Shape>,
  means: Tensor<FloatDType, Shape>,
  options: RoutingMeansOptions = {},
): Tensor<'float32', Shape> {
  checkTensor(x, 'x');
  if (x.shape.length !== 4) throw shapeError(`x has rank ${x.shape.length}; it must be [batch, seq, heads, dim]`);
  checkOptions(options, ['decay', 'mask']);
  const { decay = 0.999, mask } = options;
  const [batch, seq, heads, dim] = x.shape;
  checkShaped(means, 'means', [heads, -1, dim], 'heads, clusters, dim', x);
  checkNumber(decay, 'decay', 0, 1);
  if (mask !== undefined) checkPositions(mask, x);
  const clusters = means.shape[1];
  return scope(() => {
    const own = wide(means.detach());
    if (x.size === 0 || means.size === 0) return mul(own, 1) as Wide;
    const nearest = cast(argmax(nearness(x, means), 2), 'float32');
    const ids = cast(clusterOf(nearest, countUp(heads, x).reshape([heads, 1]), clusters), 'int32');
    const ones = filled(x.backend, [batch, 1, seq], 'float32', 1) as Wide;
    const real = (mask ? cast(mask, 'float32').reshape([batch, 1, seq]) : ones).expand([batch, heads, seq]);
    const tokens = mul(unit(wide(x.detach())).transpose(1, 2), real.contiguous().reshape([batch, heads, seq, 1]));
    const sums = scatterAdd(heads * clusters, ids, (tokens as Sequence).contiguous()).reshape([heads, clusters, dim]);
    const counts = scatterAdd(heads * clusters, ids, real.contiguous() as Wide).reshape([heads, clusters, 1]);
    return moved(own, unit(sums), counts, decay) as Wide;
  });
}

const clusterOf = fused((cluster, head, clusters) => head.mul(clusters).add(cluster));
