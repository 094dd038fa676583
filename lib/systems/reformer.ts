import { attention, type Shape4 } from '../attention/attention.js';
import { lookup, type ScoreMod } from '../attention/scoreMod.js';
import { checkBoolean, checkInteger, checkIntegers, checkOptions, checkWord, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { takeAlongAxis } from '../ops/alongAxis.js';
import { cast } from '../ops/cast.js';
import { concat } from '../ops/concat.js';
import { add, fused, mul, neg, where } from '../ops/elementwise.js';
import { embedding, type Indices, scatterAdd } from '../ops/embedding.js';
import { matmul } from '../ops/matmul.js';
import { rmsNorm } from '../ops/norm.js';
import { normal, type RandomOptions } from '../ops/random.js';
import { sum } from '../ops/reduce.js';
import { softmax } from '../ops/softmax.js';
import { argmax, sort } from '../ops/sort.js';
import { unfold } from '../ops/unfold.js';
import { scope } from '../tape/scope.js';
import { sameShape } from '../tensor/shape.js';
import { checkIndices, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkAlike, checkPositions, checkShaped, narrow, type Sequence, type Wide, wide } from './inputs.js';
import { blockAt, countUp } from './selectedBlocks.js';

export interface LshHashing {
  /** Buckets of a round, even; or several even factors of it, which need fewer rotations. */
  readonly numBuckets: number | readonly number[];
  /** [heads, dim, rounds, half the sum of the factors], float32: `lshRotations` draws them. */
  readonly rotations: Tensor<'float32', Shape>;
  /** Which positions are real, [batch, seq]: the others have a bucket of their own, the last of a round. */
  readonly mask?: Tensor<'bool', Shape>;
}

export interface LshOptions {
  /** int32 [batch, heads, rounds, seq], from 0 to 2^24: those of a round are smaller than those of the next. `lshBuckets` makes them. */
  readonly buckets: Indices;
  /** Entries of a chunk of the sorted list, a divisor of seq. */
  readonly chunkLength: number;
  /** Chunks before its own that an entry sees. Default 1. */
  readonly chunksBefore?: number;
  /** Chunks after its own that an entry sees. Default 0. */
  readonly chunksAfter?: number;
  /** A token sees tokens up to itself. Default false. */
  readonly causal?: boolean;
  /** Which positions are real, [batch, seq]; nobody else sees the others. */
  readonly mask?: Tensor<'bool', Shape>;
  /**
   * What becomes of a key that a token meets several times, in several rounds: it counts each time ('count', the default, as in
   * the original code), or once ('share': its weight is divided by how often they meet, eq. 7 of the paper), so that the
   * result is softmax over all keys that it meets.
   */
  readonly duplicates?: 'count' | 'share';
}

export interface ReformerOptions extends Omit<LshOptions, 'buckets'>, LshHashing {}

export interface LshResult<D extends FloatDType = FloatDType> {
  readonly out: Tensor<D, Shape4>;
  readonly buckets: Indices;
}

/** Whole numbers up to here are exact in float32, in which places are counted. */
const mostCounted = 2 ** 24;
/** The logit of a token with itself. */
const toItself = -1e5;

function readFactors(numBuckets: unknown): readonly number[] {
  const factors =
    typeof numBuckets === 'number' ? [numBuckets] : checkIntegers(numBuckets, 'numBuckets', 2, mostCounted);
  for (const n of factors)
    if (checkInteger(n, 'numBuckets', 2, mostCounted) % 2 !== 0) throw mustBe('numBuckets', numBuckets, 'even');
  if (factors.length === 0) throw mustBe('numBuckets', numBuckets, 'an even number, or a list of at least one');
  return factors;
}

export interface RotationDraw extends Omit<RandomOptions<'float32'>, 'dtype'> {
  readonly heads: number;
  readonly dim: number;
  readonly rounds: number;
  readonly numBuckets: number | readonly number[];
}

/** Random rotations for `lshBuckets`, normal: [heads, dim, rounds, half the sum of the factors]. @throws ERR_OPTION, ERR_DEVICE */
export function lshRotations(options: RotationDraw): Tensor<'float32', Shape> {
  checkOptions(options, ['heads', 'dim', 'rounds', 'numBuckets', 'seed', 'device']);
  const { heads, dim, rounds, numBuckets, ...rest } = options;
  const half = readFactors(numBuckets).reduce((total, n) => total + n / 2, 0);
  const shape = [checkInteger(heads, 'heads', 1), checkInteger(dim, 'dim', 1), checkInteger(rounds, 'rounds', 1), half];
  return normal(shape, rest) as Tensor<'float32', Shape>;
}

function checkTokens(t: unknown, argument: string): asserts t is Tensor {
  checkTensor(t, argument);
  if (t.shape.length !== 4)
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be [batch, seq, heads, dim]`);
}

const withDigit = fused((digits, digit, factor) => digits.add(digit.mul(factor)));

/**
 * Buckets of tokens by random rotations: argmax over [x R, -x R], in every round with other rotations, so that tokens that lie
 * in a similar direction tend to share one; of several factors a, b, ... argmax_a + a argmax_b + ... Andoni et al. (2015), as
 * Reformer uses them. They have no gradient.
 *
 * @param qk [batch, seq, heads, dim]
 * @returns int32 [batch, heads, rounds, seq], those of round r with r times the number of buckets added
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function lshBuckets(qk: Tensor<FloatDType, Shape>, options: LshHashing): Indices {
  checkTokens(qk, 'qk');
  checkOptions(options, ['numBuckets', 'rotations', 'mask']);
  const { rotations, mask } = options;
  const factors = readFactors(options.numBuckets);
  const [batch, seq, heads, dim] = qk.shape;
  const half = factors.reduce((total, n) => total + n / 2, 0);
  checkShaped(rotations, 'rotations', [heads, dim, -1, half], 'heads, dim, rounds, half the sum of numBuckets', qk);
  if (mask !== undefined) checkPositions(mask, qk);
  const rounds = rotations.shape[2];
  const count = factors.reduce((product, n) => product * n, 1) + (mask ? 1 : 0);
  if (rounds * count > mostCounted)
    throw optionError(
      `numBuckets is ${show(options.numBuckets)}, with ${rounds} rounds; there may be 2^24 buckets in all`,
    );
  return scope(() => {
    const vectors = wide(qk.detach()).transpose(1, 2).contiguous().reshape([batch, heads, 1, seq, dim]);
    const turned = matmul(vectors, wide(rotations.detach()).permute([0, 2, 1, 3]));
    let buckets: Sequence | undefined;
    let [from, product] = [0, 1];
    for (const factor of factors) {
      const own = turned.slice(4, from, from + factor / 2);
      const digit = cast(argmax(concat([own, neg(own)], 4)), 'float32') as Sequence;
      buckets = buckets ? withDigit(buckets, digit, product) : digit;
      from += factor / 2;
      product *= factor;
    }
    const real = buckets as Sequence;
    const own = mask ? (where(mask.reshape([batch, 1, 1, seq]), real, product) as Sequence) : real;
    const firsts = mul(countUp(rounds, qk), count) as Sequence;
    return cast(add(own, firsts.reshape([rounds, 1])), 'int32');
  });
}

const placeAt = fused((slot, seq) => slot.sub(slot.add(0.5).div(seq).floor().mul(seq)));
const rowAt = fused((position, entry, head, seq, heads) => entry.mul(seq).add(position).mul(heads).add(head));
const slotOf = fused((slot, list, length) => list.mul(length).add(slot));
/** One more where a key lies in the chunks that a query sees, on a ring of so many. */
const withMeeting = fused((count, key, query, before, chunks, seen) => {
  const ahead = key.sub(query).add(before);
  const turns = ahead.add(0.5).div(chunks).floor();
  return count.add(ahead.sub(turns.mul(chunks)).less(seen));
});
const shared = fused((count) => count.maximum(1).log().neg());

function readOptions(qk: Tensor, v: Tensor, options: LshOptions) {
  checkOptions(options, ['buckets', 'chunkLength', 'chunksBefore', 'chunksAfter', 'causal', 'mask', 'duplicates']);
  const {
    buckets,
    chunkLength: size,
    chunksBefore: before = 1,
    chunksAfter: after = 0,
    causal = false,
    mask,
  } = options;
  const { duplicates = 'count' } = options;
  checkTokens(qk, 'qk');
  const [batch, seq, heads, dim] = qk.shape;
  checkAlike(v, 'v', [batch, seq, heads, -1], 'batch, seq, heads, value dim', qk);
  checkIndices(buckets, 'buckets');
  const rounds = buckets.shape[2];
  if (!sameShape(buckets.shape, [batch, heads, rounds, seq]) || rounds < 1)
    throw shapeError(
      `buckets has shape ${show(buckets.shape)}; it must be [batch, heads, rounds, seq], here [${batch}, ${heads}, rounds, ${seq}]`,
    );
  buckets.operand('buckets', qk.backend);
  checkInteger(size, 'chunkLength', 1);
  checkInteger(before, 'chunksBefore', 0);
  checkInteger(after, 'chunksAfter', 0);
  checkBoolean(causal, 'causal');
  checkWord(duplicates, 'duplicates', ['count', 'share']);
  if (mask !== undefined) checkPositions(mask, qk);
  if (seq % size !== 0)
    throw shapeError(
      `qk has ${seq} tokens; they must be a multiple of chunkLength, ${size}: fill up with others and give a mask`,
    );
  const length = rounds * seq;
  const chunks = length / size;
  if (seq > 0 && before + after >= chunks)
    throw optionError(
      `chunksBefore + chunksAfter is ${before + after}; it must be less than the ${chunks} chunks of the list`,
    );
  if (batch * heads * length > mostCounted)
    throw shapeError(
      `buckets has shape ${show(buckets.shape)}; it may have at most 2^24 elements: give fewer batch entries`,
    );
  const ring = { length, chunks, size, before, after };
  return { batch, seq, heads, dim, rounds, ring, causal, mask, buckets, duplicates };
}

/** How a sorted list is cut into chunks, and which of them a chunk sees. */
interface Ring {
  readonly length: number;
  readonly chunks: number;
  readonly size: number;
  readonly before: number;
  readonly after: number;
}

const windowOf = ({ before, after, size }: Ring) => (before + 1 + after) * size;

/** A sorted list [lists, length] with the chunks around it that its first and last ones see. */
function around(t: Wide, { size, before, after, length }: Ring): Wide {
  const parts = [t.slice(1, length - before * size, length), t, t.slice(1, 0, after * size)];
  return concat(parts, 1) as Wide;
}

/**
 * Minus the logarithm of how often a query meets a key, over all entries of both: [chunks, lists, size, window].
 *
 * @param ids [lists, length], of entries among those of all lists, by their place
 */
function sharesOf(ids: Indices, positions: Wide, rounds: number, ring: Ring): Wide {
  const { length, chunks, size, before, after } = ring;
  const [lists] = positions.shape;
  const window = windowOf(ring);
  const places = countUp(length, positions).expand([lists, length]).contiguous();
  const chunkOf = blockAt(scatterAdd(lists * length, ids, places), size).reshape([lists, rounds, length / rounds]);
  const [ofQueries, ofKeys] = [cast(positions, 'int32'), cast(around(positions, ring), 'int32')];
  const inRounds = Array.from({ length: rounds }, (_, r) => {
    const own = chunkOf.select(1, r).contiguous();
    const queries = takeAlongAxis(own, ofQueries).reshape([lists, chunks, size, 1]);
    const keys = unfold(takeAlongAxis(own, ofKeys), 1, window, size).contiguous();
    return { queries, keys: keys.reshape([lists, chunks, 1, window]) };
  });
  let count: Sequence | number = 0;
  for (const { keys } of inRounds)
    for (const { queries } of inRounds) count = withMeeting(count, keys, queries, before, chunks, before + after + 1);
  return shared(count).transpose(0, 1).contiguous() as Wide;
}

/** [batch, seq] for each head: [batch * heads, seq]. */
function ofLists(t: Sequence, heads: number): Sequence {
  const [batch, seq] = t.shape;
  const all = t.reshape([batch, 1, seq]).expand([batch, heads, seq]);
  return all.contiguous().reshape([batch * heads, seq]);
}

/** Rows of t [batch, seq, heads, dim] by their index, as windows of a sorted list: [chunks, window, lists, dim]. */
function windowsOf(t: Tensor, rows: Indices, window: number, step: number): Tensor {
  const [batch, seq, heads, dim] = t.shape;
  const list = embedding(t.contiguous().reshape([batch * seq * heads, dim]), rows);
  return unfold(list, 1, window, step).permute([1, 3, 0, 2]);
}

/**
 * Attention by locality-sensitive hashing, with queries that are keys too: in each list of a head the `rounds` entries of
 * every token are sorted by their bucket, equal ones by round and position, and cut into chunks; an entry sees its own chunk
 * and those around it, on a ring. Logits are qk_i . qk_j / (rms(qk_j) sqrt(dim)), with rms(x)^2 = mean x^2 + 1e-6, and -1e5
 * of a token with itself, which therefore sees itself only where it sees nobody else. A token's entries are averaged by their
 * share in the softmax over all of them. Kitaev et al., "Reformer" (2020), arXiv:2001.04451, as transformers'
 * LSHSelfAttention computes it: entries see other buckets within their chunks.
 *
 * Sorted on the device; time is that of rounds * seq * chunkLength * (chunksBefore + 1 + chunksAfter) pairs, memory that of
 * rounds * seq tokens, and with `duplicates: 'share'` that of these pairs. At most 2^24 entries in all batch entries and heads.
 *
 * @param qk [batch, seq, heads, dim]
 * @param v [batch, seq, heads, value dim], of the dtype of qk
 * @returns [batch, seq, heads, value dim]; a position that is not real sees real ones and itself
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function lshAttention<D extends FloatDType>(
  qk: Tensor<D, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: LshOptions,
): Tensor<D, Shape4> {
  const [vectors, value] = [qk, v] as unknown as readonly [Tensor, Tensor];
  const { batch, seq, heads, dim, rounds, ring, causal, mask, buckets, duplicates } = readOptions(
    vectors,
    value,
    options,
  );
  const { length, size } = ring;
  const [lists, valueDim] = [batch * heads, value.shape[3]];
  return scope(() => {
    if (vectors.size === 0 || value.size === 0) return mul(value, 1);
    // Which entry of a head stands at each place of its list: round * seq + position.
    const { indices } = sort(cast(buckets, 'float32').reshape([lists, length]));
    const slots = cast(indices, 'float32');
    const positions = placeAt(slots, seq) as Wide;
    const list = countUp(lists, vectors).reshape([lists, 1]);
    const rows = rowAt(positions, blockAt(list, heads), placeAt(list, heads), seq, heads) as Wide;
    const [queryRows, keyRows] = [cast(rows, 'int32'), cast(around(rows, ring), 'int32')];
    const queries = windowsOf(vectors, queryRows, size, size);
    const keys = windowsOf(rmsNorm(vectors, undefined, { epsilon: 1e-6 }), keyRows, windowOf(ring), size);
    const values = windowsOf(value, keyRows, windowOf(ring), size);

    const [ofQueries, ofKeys] = [cast(positions, 'int32'), cast(around(positions, ring), 'int32')];
    const real = mask && (takeAlongAxis(ofLists(cast(mask, 'float32'), heads), ofKeys) as Wide);
    const scoreMod: ScoreMod = (score, chunk, list, i, j) => {
      const [query, key] = [chunk.mul(size).add(i), chunk.mul(size).add(j)];
      const [from, to] = [lookup(ofQueries, list, query), lookup(ofKeys, list, key)];
      const before = causal ? from.less(to).where(Number.NEGATIVE_INFINITY, score) : score;
      const seen = real ? lookup(real, list, key).where(before, Number.NEGATIVE_INFINITY) : before;
      return from.equal(to).where(toItself, seen);
    };
    const ids = cast(slotOf(slots, list, length), 'int32');
    const bias = duplicates === 'share' && rounds > 1 ? { bias: sharesOf(ids, positions, rounds, ring) } : {};
    const { out, lse } = attention(queries, keys, values, { scale: 1 / Math.sqrt(dim), scoreMod, ...bias });

    const sorted = out.permute([2, 0, 1, 3]).contiguous().reshape([lists, length, valueDim]);
    const outs = scatterAdd(lists * length, ids, wide(sorted)).reshape([lists, rounds, seq, valueDim]);
    const sortedLse = lse.transpose(0, 1).contiguous().reshape([lists, length]);
    const lses = scatterAdd(lists * length, ids, sortedLse).reshape([lists, rounds, seq]);
    const mixed = sum(mul(outs, softmax(lses, 1).reshape([lists, rounds, seq, 1])) as Sequence, 1);
    return narrow(mixed.reshape([batch, heads, seq, valueDim]).transpose(1, 2).contiguous(), vectors);
  }) as unknown as Tensor<D, Shape4>;
}

/**
 * `lshAttention` with the buckets of `lshBuckets`: the attention of Reformer (Kitaev et al. 2020, arXiv:2001.04451).
 *
 * @param qk [batch, seq, heads, dim]: queries that are keys too
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim], and buckets, int32 [batch, heads, rounds, seq]
 * @throws as both
 */
export function reformerAttention<D extends FloatDType>(
  qk: Tensor<D, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: ReformerOptions,
): LshResult<D> {
  checkOptions(options, [
    ...(['numBuckets', 'rotations', 'mask', 'chunkLength', 'chunksBefore', 'chunksAfter'] as const),
    ...(['causal', 'duplicates'] as const),
  ]);
  const { numBuckets, rotations, ...rest } = options;
  const { mask } = rest;
  return scope(() => {
    const buckets = lshBuckets(qk as unknown as Tensor, { numBuckets, rotations, ...(mask && { mask }) });
    return { out: lshAttention(qk, v, { ...rest, buckets }), buckets };
  });
}
