/**
 * Feature maps of linear attention: phi of a query or a key, where phi(q) . phi(k) is the weight of a pair. Each is made of
 * differentiable operations, and takes and returns [batch, seq, heads, features]; 16-bit elements are widened, so that
 * features are float32.
 */
import { checkBoolean, checkFloat32, checkInteger, checkOptions, checkWord, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { cumsum } from '../ops/alongAxis.js';
import { cast } from '../ops/cast.js';
import { concat } from '../ops/concat.js';
import { add, exp, fused, mul, relu as reluOf, square } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { max, sum } from '../ops/reduce.js';
import { softmax } from '../ops/softmax.js';
import { unsqueeze } from '../ops/split.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { withoutRecording } from '../tape/tape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/** [batch, seq, heads, dim] -> float32 [batch, seq, heads, features] */
export type FeatureMap = (x: Tensor<FloatDType, Shape>) => Tensor<'float32', Shape>;

type Rows = Tensor<FloatDType, Shape>;
type Features = Tensor<'float32', Shape>;

const order = '[batch, seq, heads, dim]';

/** The elements as float32. @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION */
function wide(x: Rows): Features {
  checkTensor(x, 'x');
  if (x.shape.length !== 4) throw shapeError(`x has shape ${show(x.shape)}; it must be ${order}`);
  return x.dtype === 'float32' ? (x as Features) : cast(x, 'float32');
}

/** A float32 matrix whose axis `axis` is the dim of x. */
function checkMatrix(t: unknown, argument: string, x: Rows, axis: 0 | 1, layout: string): asserts t is Features {
  checkTensor(t, argument);
  checkTensor(x, 'x');
  const dim = x.shape[x.shape.length - 1];
  if (t.dtype !== 'float32') throw new FlashAttnError('ERR_DTYPE', `${argument} is ${t.dtype}; it must be float32`);
  if (t.shape.length !== 2 || t.shape[axis] !== dim || t.shape[1 - axis] === 0)
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be ${layout} with the dim ${dim} of x`);
}

/** A number above 0. */
function checkPositive(value: unknown, argument: string): number {
  const checked = checkFloat32(value, argument);
  if (checked <= 0) throw mustBe(argument, value, 'a number above 0');
  return checked;
}

// e^min(x, 0) + max(x, 0): no branch overflows, and both share the gradient 1 at 0.
const eluAndOne = fused((x) => x.minimum(0).exp().add(x.maximum(0)));

/**
 * elu(x) + 1: x + 1 above 0, else e^x. Katharopoulos et al., "Transformers are RNNs" (2020), arXiv:2006.16236.
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY, as every feature map
 */
export const eluPlusOne: FeatureMap = (x) => scope(() => eluAndOne(wide(x)) as Features);

/** max(x, 0). Qin et al., "cosFormer" (2022), arXiv:2202.08791, and others. */
export const relu: FeatureMap = (x) => scope(() => reluOf(wide(x)));

const squareOfRelu = fused((x) => x.maximum(0).square());

/** max(x, 0)^2. So et al., "Primer" (2021), arXiv:2109.08668. */
export const squaredRelu: FeatureMap = (x) => scope(() => squareOfRelu(wide(x)) as Features);

/** e^x. */
export const exponential: FeatureMap = (x) => scope(() => exp(wide(x)));

/** Softmax over the features of each position. Shen et al., "Efficient Attention" (2018), arXiv:1812.01243. */
export const softmaxFeatures: FeatureMap = (x) => scope(() => softmax(wide(x), -1));

/** Softmax of each feature over the positions: for keys, and not for causal attention. Shen et al. (2018). */
export const softmaxSequence: FeatureMap = (x) => scope(() => softmax(wide(x), 1));

/** |x|^2 of each row: [batch, seq, heads, 1] */
const squaredNorm = (x: Features): Features => sum(square(x), -1, { keepDims: true });

export interface FavorOptions {
  /** [features, dim], float32: rows of which q and k see the same, orthogonal or not. No gradient is refused. */
  readonly projection: Tensor<'float32', Shape>;
  /**
   * What is subtracted in the exponent, so that it does not overflow: the largest u of each position and head ('position', for
   * queries), or of each head over all positions ('head', for keys, whose features are compared). Constant in backward, as in
   * the original. 'none' subtracts nothing.
   */
  readonly stabilizer: 'position' | 'head' | 'none';
  /** Added to every feature. Default 1e-4. */
  readonly epsilon?: number;
}

const favor = fused((u, half, most, epsilon, scale) => u.sub(half).sub(most).exp().add(epsilon).mul(scale));

/**
 * FAVOR+, positive features of the softmax kernel e^(q . k / sqrt(dim)): phi(x) = m^(-1/2) (e^(u - |x|^2 / (2 sqrt(dim)) - c)
 * + epsilon) with u = dim^(-1/4) x projection^T, m features and the stabilizer c. Choromanski et al., "Rethinking Attention
 * with Performers" (2021), arXiv:2009.14794.
 */
export function favorPositive(x: Rows, options: FavorOptions): Features {
  checkOptions(options, ['projection', 'stabilizer', 'epsilon']);
  const { projection, stabilizer, epsilon = 1e-4 } = options;
  checkMatrix(projection, 'projection', x, 1, '[features, dim]');
  checkWord(stabilizer, 'stabilizer', ['position', 'head', 'none']);
  checkFloat32(epsilon, 'epsilon');
  return scope(() => {
    const rows = wide(x);
    const [features, dim] = projection.shape;
    const u = matmul(rows, projection.transpose(0, 1), { alpha: dim ** -0.25 });
    const axes = stabilizer === 'head' ? [1, 3] : [3];
    const most = stabilizer === 'none' || u.size === 0 ? 0 : withoutRecording(() => max(u, axes, { keepDims: true }));
    const half = mul(squaredNorm(rows), 0.5 / Math.sqrt(dim));
    return favor(u, half, most, epsilon, features ** -0.5) as Features;
  });
}

export interface FrequencyOptions {
  /** [dim, P], float32: directions of which q and k see the same. */
  readonly omega: Tensor<'float32', Shape>;
  /** t: what the argument of the kernel is multiplied by, above 0. Default 1 / sqrt(dim). */
  readonly softmaxTemp?: number;
}

export interface HyperbolicOptions extends FrequencyOptions {
  /**
   * Whether the largest |x|^2 of a head over all positions is subtracted in the exponents: it is differentiated through, as in
   * the original. Default false.
   */
  readonly stabilize?: boolean;
}

/** sqrt(t) x and sqrt(t) x omega */
function projected(x: Rows, omega: Features, softmaxTemp: number | undefined): { rows: Features; u: Features } {
  const root = Math.sqrt(softmaxTemp ?? 1 / Math.sqrt(omega.shape[0]));
  const rows = mul(wide(x), root) as Features;
  return { rows, u: matmul(rows, omega) };
}

const hyperbolic = fused((u, offset, scale) => u.sub(offset).exp().mul(scale));
const hyperbolicOfNegative = fused((u, offset, scale) => u.neg().sub(offset).exp().mul(scale));

/**
 * Hyperbolic FAVOR+ features, for e^(t q . k): with y = sqrt(t) x and u = y omega, phi(x) = [e^(u - o), e^(-u - o)] /
 * sqrt(2 P) and o = |y|^2 / 2, plus the largest |y|^2 of the head with `stabilize`. Choromanski et al. (2021), as in
 * fast-transformers' Favor.
 */
export function favorHyperbolic(x: Rows, options: HyperbolicOptions): Features {
  checkOptions(options, ['omega', 'softmaxTemp', 'stabilize']);
  const { omega, softmaxTemp, stabilize = false } = options;
  checkMatrix(omega, 'omega', x, 0, '[dim, P]');
  if (softmaxTemp !== undefined) checkPositive(softmaxTemp, 'softmaxTemp');
  checkBoolean(stabilize, 'stabilize');
  return scope(() => {
    const { rows, u } = projected(x, omega, softmaxTemp);
    const norm = squaredNorm(rows);
    const half = mul(norm, 0.5);
    const offset = stabilize && norm.size > 0 ? add(half, max(norm, 1, { keepDims: true })) : half;
    const scale = (2 * omega.shape[1]) ** -0.5;
    return concat([hyperbolic(u, offset, scale), hyperbolicOfNegative(u, offset, scale)], -1) as Features;
  });
}

export interface GeneralizedReluOptions {
  /** [features, dim], float32. */
  readonly projection: Tensor<'float32', Shape>;
  /** Added to every feature, so that no denominator is 0. Default 1e-3. */
  readonly epsilon?: number;
}

const reluAnd = fused((u, epsilon) => u.maximum(0).add(epsilon));

/** Performer's generalised attention with ReLU: phi(x) = max(dim^(-1/4) x projection^T, 0) + epsilon. Choromanski et al. (2021). */
export function generalizedRelu(x: Rows, options: GeneralizedReluOptions): Features {
  checkOptions(options, ['projection', 'epsilon']);
  const { projection, epsilon = 1e-3 } = options;
  checkMatrix(projection, 'projection', x, 1, '[features, dim]');
  checkFloat32(epsilon, 'epsilon');
  return scope(() => {
    const u = matmul(wide(x), projection.transpose(0, 1), { alpha: projection.shape[1] ** -0.25 });
    return reluAnd(u, epsilon) as Features;
  });
}

/**
 * The second order Taylor expansion of e^(q . k / sqrt(dim)): phi(x) = [1, x / dim^(1/4), x x^T / sqrt(2 dim)], 1 + dim + dim^2
 * features whose product is 1 + s + s^2 / 2 of s = q . k / sqrt(dim). Arora et al., "Based" (2024), arXiv:2402.18668.
 */
export const taylorSecondOrder: FeatureMap = (x) =>
  scope(() => {
    const rows = wide(x);
    const [batch, seq, heads, dim] = rows.shape;
    const scaled = mul(rows, dim ** -0.25);
    const products = mul(unsqueeze(scaled, -1), mul(unsqueeze(scaled, -2), Math.SQRT1_2));
    const ones = filled(x.backend, [batch, seq, heads, 1], 'float32', 1);
    return concat([ones, scaled, products.reshape([batch, seq, heads, dim * dim])], -1) as Features;
  });

export interface CosineOptions {
  /** M, at least the number of positions; the same for queries and keys. */
  readonly length: number;
}

const timesSine = fused((x, position, step) => x.mul(position.mul(step).sin()));
const timesCosine = fused((x, position, step) => x.mul(position.mul(step).cos()));

/**
 * cosFormer's re-weighting of features by their positions, from 1: phi_i = [x sin(pi i / 2 M), x cos(pi i / 2 M)], so that
 * phi_i . phi_j = (x_i . x_j) cos(pi (i - j) / 2 M). Qin et al., "cosFormer" (2022), arXiv:2202.08791, uses it on `relu`.
 */
export function cosineReweighting(x: Rows, options: CosineOptions): Features {
  checkOptions(options, ['length']);
  checkTensor(x, 'x');
  const { length } = options;
  checkInteger(length, 'length', Math.max(1, x.shape[1] ?? 1));
  return scope(() => {
    const rows = wide(x);
    const seq = rows.shape[1];
    const positions = cumsum(filled(x.backend, [seq], 'float32', 1)).reshape([seq, 1, 1]);
    const step = Math.PI / (2 * length);
    return concat([timesSine(rows, positions, step), timesCosine(rows, positions, step)], -1) as Features;
  });
}

export interface FourierOptions extends FrequencyOptions {
  /** The value of one more feature, which adds its square to the kernel. Default none. */
  readonly smoothing?: number;
}

const cosine = fused((u, scale) => u.cos().mul(scale));
const sine = fused((u, scale) => u.sin().mul(scale));

/**
 * Random Fourier features: phi(x) = [cos u, sin u] / sqrt(P) with u = sqrt(t) x omega. With normal omega their product
 * estimates e^(-t |q - k|^2 / 2), with Cauchy ones e^(-sqrt(t) |q - k|_1). Rahimi and Recht, "Random Features for Large-Scale
 * Kernel Machines" (2007); smoothed as in fast-transformers.
 */
export function randomFourier(x: Rows, options: FourierOptions): Features {
  checkOptions(options, ['omega', 'softmaxTemp', 'smoothing']);
  const { omega, softmaxTemp, smoothing } = options;
  checkMatrix(omega, 'omega', x, 0, '[dim, P]');
  if (softmaxTemp !== undefined) checkPositive(softmaxTemp, 'softmaxTemp');
  if (smoothing !== undefined) checkFloat32(smoothing, 'smoothing');
  return scope(() => {
    const { u } = projected(x, omega, softmaxTemp);
    const scale = omega.shape[1] ** -0.5;
    const parts = [cosine(u, scale), sine(u, scale)];
    if (smoothing !== undefined) parts.push(filled(x.backend, [...u.shape.slice(0, 3), 1], 'float32', smoothing));
    return concat(parts, -1) as Features;
  });
}
