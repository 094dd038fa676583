import { attention, type Shape4 } from '../attention/attention.js';
import { checkpoint } from '../autograd/checkpoint.js';
import { checkInteger, checkObject, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError } from '../base/errors.js';
import { cast } from '../ops/cast.js';
import { concat } from '../ops/concat.js';
import { fused } from '../ops/elementwise.js';
import type { Indices } from '../ops/embedding.js';
import { matmul } from '../ops/matmul.js';
import { mean, sum } from '../ops/reduce.js';
import { topK } from '../ops/sort.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { inChunks } from './chunks.js';
import { checkQkv, checkShaped, narrow, type Sequence, type Wide, wide } from './inputs.js';
import { checkOptions as checkScaled, type ScaleOption } from './saved.js';
import { hasSelectedAttention, selectedAttention } from './selectedAttention.js';
import {
  attendBlocks,
  attendOwnBlocks,
  blockAt,
  blocksOf,
  countUp,
  emptyLike,
  noBlocks,
  queriesAtOnce,
  ranges,
  staircase,
} from './selectedBlocks.js';

/** How much each branch counts, [batch, seq, heads], of any dtype: as in the paper, after the sigmoid. */
export interface NsaGates {
  readonly compressed: Tensor<FloatDType, Shape>;
  readonly selected: Tensor<FloatDType, Shape>;
  /** Needed unless the window is 0. */
  readonly sliding?: Tensor<FloatDType, Shape>;
}

export interface NsaOptions extends ScaleOption {
  readonly gates: NsaGates;
  /** Tokens of a block. Default 64. */
  readonly blockSize?: number;
  /** How many blocks each query selects, its own and all that are always selected included. Default 16. */
  readonly blockCount?: number;
  /** How many tokens the sliding branch sees, the query's own included; 0 leaves it out. Default 512. */
  readonly window?: number;
  /** Blocks at the start that are always selected. Default 0, as in fla's code; the paper has 1. */
  readonly initialBlocks?: number;
  /** Blocks up to the query's own that are always selected, at least 1. Default 1, as in fla's code; the paper has 2. */
  readonly localBlocks?: number;
}

export interface NsaResult<D extends FloatDType = FloatDType> {
  /** [batch, seq, heads, value dim], as are those of the branches. */
  readonly out: Tensor<D, Shape4>;
  /** Before the gates. */
  readonly compressed: Tensor<D, Shape4>;
  readonly selected: Tensor<D, Shape4>;
  readonly sliding?: Tensor<D, Shape4>;
  /**
   * int32 [batch, seq, kv heads, slots]: which blocks each query has selected, the most important first, -1 where there are no
   * more, and its own in the last slot.
   */
  readonly blockIndices: Indices;
}

const probability = fused((score, lse, scale) => score.mul(scale).sub(lse).exp());

/** Blocks that are always selected come first, those that the query cannot select last. */
const ranked = fused((importance, block, own, initial, local) =>
  block
    .less(own)
    .where(
      block.less(initial).maximum(own.sub(local).less(block)).where(Number.POSITIVE_INFINITY, importance),
      Number.NEGATIVE_INFINITY,
    ),
);

/** Of its slots a query fills as many as there are blocks before its own. */
const filledSlot = fused((slot, own, block) => slot.less(own).where(block, -1));

interface Selecting {
  readonly scale: number;
  readonly size: number;
  readonly slots: number;
  readonly initial: number;
  readonly local: number;
}

/**
 * The blocks of the queries from `from` on: [batch, queries, kv heads, slots], -1 for none, its own in the last slot.
 *
 * @param q [batch, queries, heads, dim]
 * @param keys [batch, complete blocks, kv heads, dim]
 * @param lse [batch, heads, queries] of the compressed branch
 */
function select(q: Tensor, keys: Tensor, lse: Tensor, from: number, options: Selecting): Wide {
  const { scale, size, slots, initial, local } = options;
  const [batch, queries, heads, dim] = q.shape as readonly number[];
  const [, blocks, kvHeads] = keys.shape as readonly number[];
  const own = blockAt(countUp(queries, q, from), size).reshape([queries, 1]);
  const chosen = Math.min(slots - 1, blocks);
  const ownOfAll = own.reshape([queries, 1, 1]).expand([batch, queries, kvHeads, 1]).contiguous();
  if (chosen === 0) return ownOfAll as Wide;
  const group = heads / kvHeads;
  const query = wide(q.contiguous()).reshape([batch, queries, kvHeads, group, dim]).permute([0, 2, 3, 1, 4]);
  const key = wide(keys.contiguous()).reshape([batch, blocks, kvHeads, 1, dim]).permute([0, 2, 3, 4, 1]);
  const normalizer = lse.contiguous().reshape([batch, kvHeads, group, queries, 1]);
  const importance = sum(probability(matmul(query, key), normalizer, scale), 2);
  const { indices } = topK(ranked(importance, countUp(blocks, q), own, initial, local) as Sequence, chosen);
  const best = cast(indices, 'float32').transpose(1, 2);
  return concat([filledSlot(countUp(chosen, q), ownOfAll, best), ownOfAll], 3) as Wide;
}

const joinedAlong = (parts: readonly Tensor[]): Tensor => concat(parts, 1);

const joined = fused((ofCompressed, compressed, ofSelected, selected) =>
  ofCompressed.mul(compressed).add(ofSelected.mul(selected)),
);
const added = fused((sum, gate, branch) => gate.mul(branch).add(sum));

function readOptions(q: Tensor, options: NsaOptions) {
  checkScaled(options, ['gates', 'blockSize', 'blockCount', 'window', 'initialBlocks', 'localBlocks']);
  const { gates, blockSize = 64, blockCount = 16, window = 512, initialBlocks = 0, localBlocks = 1 } = options;
  const [batch, seq, heads, dim] = q.shape as readonly number[];
  checkInteger(blockSize, 'blockSize', 1);
  checkInteger(blockCount, 'blockCount', 1);
  checkInteger(window, 'window', 0);
  checkInteger(initialBlocks, 'initialBlocks', 0);
  checkInteger(localBlocks, 'localBlocks', 1);
  if (initialBlocks + localBlocks > blockCount)
    throw mustBe('blockCount', blockCount, `at least initialBlocks + localBlocks, ${initialBlocks + localBlocks}`);
  checkObject(gates, 'gates');
  checkOptions(gates, ['compressed', 'selected', 'sliding'], 'gates');
  for (const name of ['compressed', 'selected', ...(window > 0 ? (['sliding'] as const) : [])] as const)
    checkShaped(gates[name], `gates.${name}`, [batch, seq, heads], 'batch, seq, heads', q);
  if (window === 0 && gates.sliding !== undefined)
    throw optionError('gates.sliding is given, but window is 0: there is no sliding branch');
  const slots = Math.max(1, Math.min(blockCount, Math.ceil(seq / blockSize)));
  const { scale = 1 / Math.sqrt(dim) } = options;
  return { seq, scale, gates, size: blockSize, slots, window, initialBlocks, localBlocks };
}

/** The blocks of the queries [from, to): [batch, to - from, kv heads, slots]. */
type Choose = (from: number, to: number) => Wide;

interface SelectedBranch {
  readonly selected: Tensor;
  readonly blockIndices: Indices;
}

/** What one kernel does. */
function attendSelected(q: Tensor, k: Tensor, v: Tensor, { scale, size }: Selecting, choose: Choose): SelectedBranch {
  const [batch, seq, heads] = q.shape as readonly number[];
  const parts = ranges(seq, queriesAtOnce((batch * heads * seq) / size));
  const blockIndices = scope(() => cast(joinedAlong(parts.map(([from, to]) => choose(from, to))), 'int32'));
  return { selected: selectedAttention(q, k, v, blockIndices, { size, scale }).out, blockIndices };
}

/** The same with queries that are copied for each of their blocks. */
function attendCopies(q: Tensor, k: Tensor, v: Tensor, selecting: Selecting, choose: Choose): SelectedBranch {
  const { scale, size, slots } = selecting;
  const [batch, seq, heads] = q.shape as readonly number[];
  const blocks = blocksOf(k, v, size);
  const near = attendOwnBlocks(q, k, v, size, scale);
  const elements = heads * ((slots - 1) * (k.shape[3] + 2 * v.shape[3]) + seq / size);
  const parts = ranges(seq, queriesAtOnce(batch * elements)).map(([from, to]) => {
    const chosen = choose(from, to);
    const attend = (q: Tensor, keys: Tensor, values: Tensor, out: Tensor, lse: Tensor, chosen: Tensor) =>
      attendBlocks(q, chosen.slice(3, 0, slots - 1), { ...blocks, keys, values }, { out, lse }, scale);
    const [own, out, ownLse] = [q, near.out, near.lse].map((t) => t.slice(1, from, to)) as [Tensor, Tensor, Tensor];
    const all = [own, blocks.keys, blocks.values, out, ownLse, chosen] as const;
    return { out: to - from === seq ? attend(...all) : checkpoint(attend, ...all), chosen };
  });
  return {
    selected: narrow(joinedAlong(parts.map(({ out }) => out)), q),
    blockIndices: cast(joinedAlong(parts.map(({ chosen }) => chosen)), 'int32'),
  };
}

/**
 * Native sparse attention: three branches of causal attention, each times a gate, with scale 1 / sqrt(dim) by default.
 * - compressed: to the means of the keys and values of each block that ends at or before the query;
 * - selected: to the tokens, up to the query, of its own block and of the `blockCount` - 1 earlier ones whose compressed keys have the
 *   largest sum of probabilities over the query heads that share a kv head; of equal ones the earlier. The choice has no gradient;
 * - sliding: to the last `window` tokens.
 *
 * Yuan et al., "Native Sparse Attention" (2025), arXiv:2502.11089, as fla's naive_nsa_with_compression computes it: means where
 * the paper has an MLP over overlapping blocks.
 *
 * Selection happens on the device, in float32. Time is that of seq^2 / blockSize pairs, twice, and of about seq * blockCount *
 * blockSize pairs. On processors the selected branch is one kernel, for which nothing is copied; its gradients need float32 sums of the
 * size of k and v for each of 16 parts of the sequence, fewer where there are several kv heads or batch entries. On GPUs queries are
 * sorted by the blocks that they have selected: a query is copied for each of its blocks, a block for every 64 queries that have
 * selected it, and results are merged. That is done for as many queries at a time as fit 2^25 elements; where these are not all, it is
 * done once more for gradients, rather than kept.
 *
 * @param q [batch, seq, heads, dim]
 * @param k [batch, seq, kv heads, dim], kv heads dividing heads
 * @param v [batch, seq, kv heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function nativeSparseAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: NsaOptions,
): NsaResult<D> {
  const [query, key, value] = [q, k, v] as unknown as readonly [Tensor, Tensor, Tensor];
  checkQkv(query, key, value, { grouped: true, self: true });
  const { seq, scale, gates, size, slots, window, initialBlocks, localBlocks } = readOptions(query, options);
  return scope(() => {
    if (query.size === 0) {
      const [out, compressed, selected, sliding] = Array.from({ length: 4 }, () => emptyLike(query, value));
      return { out, compressed, selected, ...(window > 0 && { sliding }), blockIndices: noBlocks(key, slots) };
    }
    const complete = Math.floor(seq / size) * size;
    const means = (t: Tensor) => mean(inChunks(t.slice(1, 0, complete), size), 3);
    const keys = means(key);
    const { out: compressed, lse } = attention(query, keys, means(value), { scale, mask: staircase(size) });

    const selecting = { scale, size, slots, initial: initialBlocks, local: localBlocks };
    const choose = (from: number, to: number) =>
      scope(() =>
        select(query.slice(1, from, to).detach(), keys.detach(), lse.detach().slice(2, from, to), from, selecting),
      );
    const { selected, blockIndices } = (hasSelectedAttention(query.backend) ? attendSelected : attendCopies)(
      query,
      key,
      value,
      selecting,
      choose,
    );
    const gate = (t: Tensor) => wide(t.contiguous()).reshape([...t.shape, 1]);
    const both = joined(gate(gates.compressed), compressed, gate(gates.selected), selected);
    const branches = { compressed, selected, blockIndices };
    if (!gates.sliding) return { out: narrow(both, query), ...branches };
    const { out: sliding } = attention(query, key, value, { scale, causal: true, window: [window - 1, 0] });
    return { out: narrow(added(both, gate(gates.sliding), sliding), query), ...branches, sliding };
  }) as unknown as NsaResult<D>;
}
