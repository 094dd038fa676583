import { attention, type Shape4 } from '../attention/attention.js';
import { checkpoint } from '../autograd/checkpoint.js';
import { checkBoolean, checkInteger, checkObject, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { cast } from '../ops/cast.js';
import { concat } from '../ops/concat.js';
import { add, fused } from '../ops/elementwise.js';
import type { Indices } from '../ops/embedding.js';
import { matmul } from '../ops/matmul.js';
import { mean } from '../ops/reduce.js';
import { type RopeAngles, type RopeOptions, rope } from '../ops/rope.js';
import { softmax } from '../ops/softmax.js';
import { topK } from '../ops/sort.js';
import { pad } from '../ops/split.js';
import { unfold } from '../ops/unfold.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkAlike, checkQkv, checkShaped, narrow, type Sequence, type Wide, wide } from './inputs.js';
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

/** What makes one key, or value, of a window of tokens: W2 max(W1 (window + positions) + b1, 0) + b2, of the dtype of q. */
export interface NsaCompression {
  /** Keys that all queries see, in front of those of windows: [kv heads, any, dim]. */
  readonly memory: Tensor<FloatDType, Shape>;
  /** Added to the tokens of a window: [kv heads, tokens of a window, dim]. */
  readonly positions: Tensor<FloatDType, Shape>;
  /** [hidden, tokens of a window * dim], of the dims of the first token and then those of the next: of all heads. */
  readonly W1: Tensor<FloatDType, Shape>;
  /** [hidden] */
  readonly b1: Tensor<FloatDType, Shape>;
  /** [dim, hidden] */
  readonly W2: Tensor<FloatDType, Shape>;
  /** [dim] */
  readonly b2: Tensor<FloatDType, Shape>;
}

export interface NsaLucidrainsOptions extends ScaleOption {
  /** [batch, seq, heads, 3]: of the compressed, the selected and the sliding branch, after the sigmoid; any dtype. */
  readonly gates: Tensor<FloatDType, Shape>;
  readonly keyCompression: NsaCompression;
  readonly valueCompression: NsaCompression;
  /** Tokens from one window to the next, at most those of a window. */
  readonly stride: number;
  /** Tokens of a block that can be selected, a multiple of the stride. */
  readonly blockSize: number;
  /** How many blocks each query selects beside its own. */
  readonly blockCount: number;
  /** How many tokens before its own the sliding branch sees. */
  readonly window: number;
  /** Lets a gradient into the importance of the selected blocks: their keys are multiplied by p + (1 - p), 1 as a constant. Default false. */
  readonly differentiableTopK?: boolean;
  /** Turns q and k of the selected and the sliding branch; the original has pairs 'interleaved'. Default none. */
  readonly rope?: RopeAngles & RopeOptions;
}

export interface NsaLucidrainsResult<D extends FloatDType = FloatDType> {
  /** [batch, seq, heads, value dim], as are those of the branches. */
  readonly out: Tensor<D, Shape4>;
  /** Before the gates. */
  readonly compressed: Tensor<D, Shape4>;
  readonly selected: Tensor<D, Shape4>;
  readonly sliding: Tensor<D, Shape4>;
  /** int32 [batch, seq, kv heads, slots]: the selected blocks, the best first and the query's own last; -1: none. */
  readonly blockIndices: Indices;
}

/** Below it a block is not selected. */
const leastProbability = 1e-10;
/** A logit that stands for selecting nothing. */
const nothing = -1000;

/** [batch, memories + windows, kv heads, dim] */
function compress(t: Tensor, { memory, positions, W1, b1, W2, b2 }: NsaCompression, stride: number): Tensor {
  const [batch, seq, kvHeads, dim] = t.shape as readonly number[];
  const size = positions.shape[1];
  const windows = Math.floor(seq / stride);
  const first = memory.transpose(0, 1).expand([batch, memory.shape[1], kvHeads, dim]).contiguous();
  if (windows === 0) return first;
  const none = [0, 0] as const;
  const tokens = pad(t.slice(1, 0, windows * stride), [none, [size - stride, 0], none, none]);
  const own = unfold(tokens, 1, size, stride).permute([0, 1, 2, 4, 3]);
  const flat = (add(own, positions) as Tensor).reshape([batch, windows, kvHeads, size * dim]);
  const hidden = matmul(flat, W1.transpose(0, 1), { bias: b1, activation: 'relu' });
  return concat([first, matmul(hidden, W2.transpose(0, 1), { bias: b2 })], 1);
}

const visibleBlock = fused((logit, block, own) => block.less(own).where(logit, Number.NEGATIVE_INFINITY));
const chosenSlot = fused((block, p) => p.greater(leastProbability).where(block, -1));
/** 1, with the gradient of p. */
const straightThrough = fused((p, constant) => p.sub(constant).add(1));

interface Selection {
  /** [batch, queries, kv heads, slots], -1 for none; the last is the query's own. */
  readonly blocks: Wide;
  /** Probabilities of those but the own one. */
  readonly probabilities: Sequence | undefined;
}

/**
 * What the queries from `from` on select, of q [batch, queries, heads, dim] and keys [batch, blocks, kv heads, dim]. The mean logit of
 * several heads and windows is that of their mean query and key.
 */
function select(q: Tensor, keys: Tensor, from: number, size: number, count: number, scale: number): Selection {
  const [batch, queries, heads, dim] = q.shape as readonly number[];
  const [, blocks, kvHeads] = keys.shape as readonly number[];
  const positions = countUp(queries, q, from).reshape([queries, 1, 1]);
  const own = blockAt(positions, size).expand([batch, queries, kvHeads, 1]).contiguous() as Wide;
  const chosen = Math.min(count, blocks);
  if (chosen === 0) return { blocks: own, probabilities: undefined };
  const query = mean(wide(q.contiguous()).reshape([batch, queries, kvHeads, heads / kvHeads, dim]), 3).transpose(1, 2);
  const key = wide(keys).permute([0, 2, 3, 1]);
  const logits = matmul(query, key, { alpha: scale });
  const visible = visibleBlock(logits, countUp(blocks, q), blockAt(positions, size).reshape([queries, 1]));
  const rest = filled(q.backend, [batch, kvHeads, queries, 1], 'float32', nothing);
  const all = softmax(concat([visible, rest as Sequence], 3)).slice(3, 0, blocks);
  const { values, indices } = topK(all, chosen);
  const [p, best] = [values, cast(indices, 'float32')].map((t) => (t as Sequence).transpose(1, 2).contiguous());
  const selected = chosenSlot(best, p.detach());
  return { blocks: concat([selected, own], 3) as Wide, probabilities: p };
}

function checkCompression(c: unknown, argument: string, t: Tensor, windows: number | undefined, memories?: number) {
  checkObject(c as object, argument);
  const own = c as NsaCompression;
  checkOptions(own, ['memory', 'positions', 'W1', 'b1', 'W2', 'b2'], argument);
  const [, , kvHeads, dim] = t.shape as readonly number[];
  const check = (name: keyof NsaCompression, shape: Shape, axes: string) =>
    checkAlike(own[name], `${argument}.${name}`, shape, axes, t);
  check('memory', [kvHeads, memories ?? -1, dim], 'kv heads, memories, dim');
  check('positions', [kvHeads, windows ?? -1, dim], 'kv heads, tokens of a window, dim');
  const size = own.positions.shape[1];
  check('W1', [-1, size * dim], 'hidden, tokens of a window * dim');
  check('b1', [own.W1.shape[0]], 'hidden');
  check('W2', [dim, own.W1.shape[0]], 'dim, hidden');
  check('b2', [dim], 'dim');
  return { size, memories: own.memory.shape[1] };
}

interface SelectedBranch {
  readonly q: Tensor;
  /** As the selected branch sees them. */
  readonly turnedQ: Tensor;
  readonly turnedK: Tensor;
  readonly v: Tensor;
  /** [batch, blocks, kv heads, dim], of the compressed keys of each block. */
  readonly means: Tensor;
  readonly size: number;
  readonly slots: number;
  readonly scale: number;
}

/** `select` for some of the queries, from position `from` on. */
type Choose = (q: Tensor, means: Tensor, from: number) => Selection;

/** What one kernel does. */
function attendSelected({ q, turnedQ, turnedK, v, means, size, scale }: SelectedBranch, choose: Choose) {
  const [batch, seq, heads] = q.shape as readonly number[];
  const blockIndices = scope(() => {
    const parts = ranges(seq, queriesAtOnce(batch * heads * means.shape[1])).map(([from, to]) =>
      scope(() => choose(q.slice(1, from, to).detach(), means.detach(), from).blocks),
    );
    return cast(concat(parts, 1), 'int32');
  });
  return { selected: selectedAttention(turnedQ, turnedK, v, blockIndices, { size, scale }).out, blockIndices };
}

/** The same with queries that are copied for each of their blocks. */
function attendCopies(branch: SelectedBranch, choose: Choose, differentiable: boolean) {
  const { q, turnedQ, turnedK, v, means, size, slots, scale } = branch;
  const [batch, seq, heads, dim] = q.shape as readonly number[];
  const blocks = blocksOf(turnedK, v, size);
  const near = attendOwnBlocks(turnedQ, turnedK, v, size, scale);
  const elements = heads * ((slots - 1) * (dim + 2 * v.shape[3]) + means.shape[1]);
  const parts = ranges(seq, queriesAtOnce(batch * elements)).map(([from, to]) => {
    const attend = (...[own, turned, means, keys, values, out, lse]: readonly Tensor[]) => {
      const judged = [own, means].map((t) => (differentiable ? t : t.detach())) as [Tensor, Tensor];
      const { blocks: chosen, probabilities: p } = choose(...judged, from);
      const weights = differentiable && p ? straightThrough(p, p.detach()) : undefined;
      const others = chosen.slice(3, 0, slots - 1);
      const table = { ...blocks, keys, values };
      return [attendBlocks(turned, others, table, { out, lse }, scale, weights), chosen] as const;
    };
    const [own, turned, out, lse] = [q, turnedQ, near.out, near.lse].map((t) => t.slice(1, from, to)) as [
      Tensor,
      Tensor,
      Tensor,
      Tensor,
    ];
    const inputs = [own, turned, means, blocks.keys, blocks.values, out, lse] as const;
    return to - from === seq ? attend(...inputs) : checkpoint(attend, ...inputs);
  });
  const joined = (at: 0 | 1) =>
    concat(
      parts.map((part) => part[at] as Tensor),
      1,
    );
  return { selected: narrow(joined(0), q), blockIndices: cast(joined(1), 'int32') };
}

const optionNames = [
  ...(['gates', 'keyCompression', 'valueCompression', 'stride', 'blockSize', 'blockCount'] as const),
  ...(['window', 'differentiableTopK', 'rope'] as const),
];

function checkAll(q: Tensor, k: Tensor, v: Tensor, options: NsaLucidrainsOptions): { memories: number } {
  checkQkv(q, k, v, { grouped: true, self: true });
  checkScaled(options, optionNames);
  const { gates, keyCompression, valueCompression, stride, blockSize, blockCount, window } = options;
  const [batch, seq, heads] = q.shape as readonly number[];
  checkShaped(gates, 'gates', [batch, seq, heads, 3], 'batch, seq, heads, 3', q);
  const { size, memories } = checkCompression(keyCompression, 'keyCompression', k, undefined);
  checkCompression(valueCompression, 'valueCompression', v, size, memories);
  checkInteger(stride, 'stride', 1, size);
  checkInteger(blockSize, 'blockSize', 1);
  if (blockSize % stride !== 0) throw mustBe('blockSize', blockSize, `a multiple of the stride, ${stride}`);
  checkInteger(blockCount, 'blockCount', 0);
  checkInteger(window, 'window', 0);
  checkBoolean(options.differentiableTopK ?? false, 'differentiableTopK');
  return { memories };
}

const gated = fused((a, gateA, b, gateB) => a.mul(gateA).add(b.mul(gateB)));
const added = fused((sum, gate, branch) => gate.mul(branch).add(sum));

/**
 * Native sparse attention with compression that is learned: three branches of causal attention, each times a gate, with scale
 * 1 / sqrt(dim) by default.
 * - compressed: to keys and values that an MLP makes of windows of tokens, one every `stride` tokens, which end with the `stride` tokens
 *   they are named for, zeros before the first token; a query sees those that end before it, and the memories always. Neither
 *   they nor these queries are turned by `rope`;
 * - selected: to the tokens of its own block up to itself, and to the `blockCount` blocks before that have the largest
 *   p = softmax over blocks of their mean logit, over windows of a block and query heads that share a kv head, beside a logit of
 *   -1000 for none; of equal ones the earlier, and only where p > 1e-10;
 * - sliding: to itself and the `window` tokens before.
 *
 * Yuan et al., "Native Sparse Attention" (2025), arXiv:2502.11089, as SparseAttention of lucidrains' native-sparse-attention-pytorch
 * computes it, between its projections. Selection happens on the device, in float32; what it costs is said at
 * `nativeSparseAttention`: with `differentiableTopK` on processors what it costs on GPUs.
 *
 * @param q [batch, seq, heads, dim]
 * @param k [batch, seq, kv heads, dim], kv heads dividing heads
 * @param v [batch, seq, kv heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function nativeSparseAttentionLucidrains<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: NsaLucidrainsOptions,
): NsaLucidrainsResult<D> {
  const [query, key, value] = [q, k, v] as unknown as readonly [Tensor, Tensor, Tensor];
  const { memories } = checkAll(query, key, value, options);
  const { gates, stride, blockSize, blockCount, window, differentiableTopK = false } = options;
  const [batch, seq, , dim] = query.shape as readonly number[];
  const kvHeads = key.shape[2];
  const scale = options.scale ?? 1 / Math.sqrt(dim);
  return scope(() => {
    if (query.size === 0) {
      const [out, compressed, selected, sliding] = Array.from({ length: 4 }, () => emptyLike(query, value));
      const slots = Math.min(blockCount, Math.floor(seq / blockSize)) + 1;
      return { out, compressed, selected, sliding, blockIndices: noBlocks(key, slots) };
    }
    const keys = compress(key, options.keyCompression, stride);
    const values = compress(value, options.valueCompression, stride);
    const { out: compressed } = attention(query, keys, values, { scale, mask: staircase(stride, memories, 1) });

    const turn = (t: Tensor) => {
      if (!options.rope || t.size === 0) return t;
      const { pairs, ...angles } = options.rope;
      return rope(t, angles, pairs === undefined ? {} : { pairs });
    };
    const [turnedQ, turnedK] = [turn(query), turn(key)];
    // Windows that make no whole block of them cannot be selected.
    const perBlock = blockSize / stride;
    const count = Math.floor((keys.shape[1] - memories) / perBlock);
    const whole = keys.slice(1, memories, memories + count * perBlock);
    const means = mean(whole.contiguous().reshape([batch, count, perBlock, kvHeads, dim]), 2);
    const choose = (q: Tensor, means: Tensor, from: number) => select(q, means, from, blockSize, blockCount, scale);
    const branch = {
      q: query,
      turnedQ,
      turnedK,
      v: value,
      means,
      size: blockSize,
      slots: Math.min(blockCount, count) + 1,
      scale,
    };
    const isOneKernel = !differentiableTopK && hasSelectedAttention(query.backend);
    const { selected, blockIndices } = isOneKernel
      ? attendSelected(branch, choose)
      : attendCopies(branch, choose, differentiableTopK);
    const { out: sliding } = attention(turnedQ, turnedK, value, { scale, causal: true, window: [window, 0] });
    const gate = (branch: number) => wide(gates.slice(3, branch, branch + 1));
    const out = added(gated(compressed, gate(0), selected, gate(1)), gate(2), sliding);
    return { out: narrow(out, query), compressed, selected, sliding, blockIndices };
  }) as unknown as NsaLucidrainsResult<D>;
}
