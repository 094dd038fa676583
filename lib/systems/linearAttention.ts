import type { Integers } from '../attention/options.js';
import { checkBoolean, checkFloat32, checkFunction, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import type { Expression } from '../kernels/expression.js';
import { eluPlusOne, type FeatureMap } from '../linear/featureMaps.js';
import { recurrence } from '../linear/recurrence.js';
import { concat } from '../ops/concat.js';
import { add, fused, where } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { sum } from '../ops/reduce.js';
import { split, unsqueeze } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { isTensor } from '../tensor/tensor.js';
import { checkLens, checkQkv, narrow, type Sequence, type Wide, wide, within } from './inputs.js';

/** What every linear attention takes, whatever its features are. */
export interface LinearOptions {
  /** Position i sees keys up to i alone, and there are as many queries as keys. Default false. */
  readonly causal?: boolean;
}

export interface LinearAttentionOptions extends LinearOptions {
  /** phi of queries and keys: [batch, seq, heads, dim] -> float32 [batch, seq, heads, features]. Default `eluPlusOne`. */
  readonly featureMap?: FeatureMap;
  /** phi of queries, where it is another one. */
  readonly qMap?: FeatureMap;
  /** phi of keys, where it is another one. */
  readonly kMap?: FeatureMap;
  /** Whether each row is divided by the sum of its weights. Default true. */
  readonly normalize?: boolean;
  /** Keeps the divisor from 0. Default 1e-6. Where the divisor is 0 all the same, as of rows without keys, nothing is divided. */
  readonly epsilon?: number;
  /**
   * What epsilon does: it is added to the divisor ('denominator', default) or to each feature of the sum of keys ('keys'), or it
   * is the least that the divisor can be ('floor').
   */
  readonly epsilonIn?: 'denominator' | 'keys' | 'floor';
  /** How many keys of each batch entry are real; what later ones hold makes no difference. */
  readonly kLens?: Integers;
}

/** What a row adds up: the values, and the weights alone. */
export interface LinearSums {
  /** [batch, Nq, heads, value dim] */
  readonly out: Wide;
  /** [batch, Nq, heads] */
  readonly normalizer: Wide;
}

/** All queries with all keys: two products with a state [features, value dim] for each kv head between them. */
function sumsOverAll(phiQ: Wide, phiK: Wide, v: Wide): LinearSums {
  const [batch, queries, heads, features] = phiQ.shape;
  const [, , kvHeads, dim] = v.shape;
  const keys = phiK.permute([0, 2, 3, 1]);
  const state = matmul(keys, v.transpose(1, 2));
  const total = sum(phiK, 1);
  // [batch, kv heads, group, Nq, features]: query heads of a group share a state.
  const grouped = phiQ.contiguous().reshape([batch, queries, kvHeads, heads / kvHeads, features]);
  const rows = grouped.permute([0, 2, 3, 1, 4]);
  const out = matmul(rows, state.reshape([batch, kvHeads, 1, features, dim]));
  const normalizer = matmul(rows, total.reshape([batch, kvHeads, 1, features, 1]));
  const inOrder = (t: Wide) => t.permute([0, 3, 1, 2, 4]).contiguous() as Wide;
  return {
    out: inOrder(out).reshape([batch, queries, heads, dim]),
    normalizer: inOrder(normalizer).reshape([batch, queries, heads]),
  };
}

/** A state for each head, which is carried along the positions. */
const carriedSums = (phiQ: Wide, phiK: Wide, v: Wide): LinearSums =>
  recurrence(phiQ, phiK, v, { scale: 1, normalizer: true });

/** As many features and value dims as one state has. */
const mostOfState = 256;

const sumOfTwo = (a: Wide, b: Wide) => add(a, b) as Wide;

/** Every query with the keys up to its position. Sums over features and over parts of a value are those of their parts. */
function sumsUpToEach(phiQ: Wide, phiK: Wide, v: Wide): LinearSums {
  const parts = (t: Wide) => (t.shape[3] <= mostOfState ? [t] : split(t, mostOfState, 3));
  const [queries, keys] = [parts(phiQ), parts(phiK)];
  const sums = parts(v).map((part) =>
    queries
      .map((query, i) => carriedSums(query, keys[i], part))
      .reduce((a, b) => ({ out: sumOfTwo(a.out, b.out), normalizer: sumOfTwo(a.normalizer, b.normalizer) })),
  );
  const out = sums.map((part) => part.out);
  return { out: out.length === 1 ? out[0] : concat(out, 3), normalizer: sums[0].normalizer };
}

/**
 * The sums of linear attention before any division.
 *
 * @param phiQ [batch, Nq, heads, features]
 * @param phiK [batch, Nk, kv heads, features]
 * @param v [batch, Nk, kv heads, value dim]
 */
export const linearSums = (phiQ: Wide, phiK: Wide, v: Wide, causal: boolean): LinearSums =>
  causal ? sumsUpToEach(phiQ, phiK, v) : sumsOverAll(phiQ, phiK, v);

/** A row that sees nothing is 0, and not 0 / 0. */
const orOne = (divisor: Expression) => divisor.equal(0).where(1, divisor);
const dividedBySum = fused((out, normalizer, epsilon) => out.div(orOne(normalizer.add(epsilon))));
const dividedByFloor = fused((out, normalizer, epsilon) => out.div(orOne(normalizer.maximum(epsilon))));
const dividedByKeys = fused((out, normalizer, epsilon, features) =>
  out.div(orOne(normalizer.add(features.mul(epsilon)))),
);

type Divisor = Required<Pick<LinearAttentionOptions, 'epsilon' | 'epsilonIn'>>;

function divided({ out, normalizer }: LinearSums, phiQ: Wide, { epsilon, epsilonIn }: Divisor): Wide {
  const weights = unsqueeze(normalizer, -1);
  if (epsilonIn === 'floor') return dividedByFloor(out, weights, epsilon) as Wide;
  if (epsilonIn === 'denominator') return dividedBySum(out, weights, epsilon) as Wide;
  return dividedByKeys(out, weights, epsilon, sum(phiQ, -1, { keepDims: true })) as Wide;
}

/** @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE where a feature map gives something else than features */
function featuresOf(map: FeatureMap, name: string, x: Sequence): Wide {
  const features: unknown = map(x);
  if (!isTensor(features)) throw optionError(`${name} gives ${show(features)}; it must give a tensor`);
  const { shape, dtype } = features;
  if (shape.length !== 4 || shape.slice(0, 3).some((n, axis) => n !== x.shape[axis]))
    throw shapeError(`${name} gives shape ${show(shape)}; it must be [${x.shape.slice(0, 3).join(', ')}, features]`);
  if (dtype !== 'float32') throw new FlashAttnError('ERR_DTYPE', `${name} gives ${dtype}; it must give float32`);
  return features as Wide;
}

/**
 * Linear attention: out_i = sum_j (phi(q_i) . phi(k_j)) v_j / (sum_j phi(q_i) . phi(k_j) + epsilon), in time that grows with
 * N, since the sums over j of phi(k_j) v_j^T and phi(k_j) are the same for all i. Without a feature map it is that of
 * Katharopoulos et al., "Transformers are RNNs" (2020), arXiv:2006.16236: elu(x) + 1, no scale. Features and sums are
 * float32, whatever the dtype.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, kv heads, dim]; heads a multiple of kv heads, query head h reads kv head floor(h / (heads / kv heads))
 * @param v [batch, Nk, kv heads, value dim]
 * @returns out [batch, Nq, heads, value dim], of the dtype of q
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function linearAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: LinearAttentionOptions = {},
): Sequence<D> {
  checkOptions(options, ['featureMap', 'qMap', 'kMap', 'causal', 'normalize', 'epsilon', 'epsilonIn', 'kLens']);
  const { causal = false, normalize = true, epsilon = 1e-6, epsilonIn = 'denominator', kLens } = options;
  checkBoolean(causal, 'causal');
  checkBoolean(normalize, 'normalize');
  checkFloat32(epsilon, 'epsilon');
  checkWord(epsilonIn, 'epsilonIn', ['denominator', 'keys', 'floor']);
  const { featureMap = eluPlusOne, qMap = featureMap, kMap = featureMap } = options;
  checkFunction(qMap, options.qMap ? 'qMap' : 'featureMap');
  checkFunction(kMap, options.kMap ? 'kMap' : 'featureMap');
  checkQkv(q, k, v, { grouped: true, self: causal });
  const lens = kLens === undefined ? undefined : checkLens(kLens, 'kLens', k.shape[0], k.shape[1]);
  return scope(() => {
    const real = lens && within(lens, k.shape[1], k);
    // Before the features too: some look at all positions.
    const visible = <T extends Sequence>(t: T): T => (real ? (where(real, t, 0) as Sequence as T) : t);
    const phiQ = featuresOf(qMap, 'qMap', q);
    const phiK = visible(featuresOf(kMap, 'kMap', visible(k)));
    if (phiQ.shape[3] !== phiK.shape[3])
      throw shapeError(`qMap gives ${phiQ.shape[3]} features and kMap ${phiK.shape[3]}; they must give as many`);
    const values = visible(wide(v));
    const sums = linearSums(phiQ, phiK, values, causal);
    return narrow(normalize ? divided(sums, phiQ, { epsilon, epsilonIn }) : sums.out, q);
  });
}
