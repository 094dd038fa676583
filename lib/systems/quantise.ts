// Numbers as small whole ones and a scale, products of those, and gradients straight through.
import { customOp } from '../autograd/customOp.js';
import { areExact, type Codes, codeMatmul, quantiseRows } from '../ops/codes.js';
import { abs, fused, mul, sign } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { max, mean, sum } from '../ops/reduce.js';
import { filled, reduceAxes } from '../tape/arithmetic.js';
import type { Shape, Tensor } from '../tensor/tensor.js';

/** x is about codes / scale. */
export interface Quantised {
  /** Whole numbers in float32, of the shape of x. */
  readonly codes: Tensor;
  /** Broadcasts to x: of length 1 where an axis shares it. */
  readonly scale: Tensor;
}

/** How numbers become whole. */
export interface Quantiser {
  quantise(x: Tensor): Quantised;
  /** The same codes in words, for exact products; without, products are those of float32. */
  pack?(x: Tensor): Codes;
}

export type PackingQuantiser = Required<Quantiser>;

const scaledBack = fused(function scaledBack(product, scaleA, scaleB) {
  return product.div(scaleA).div(scaleB);
});
const value = fused(function dequantise(codes, scale) {
  return codes.div(scale);
});

/** What the codes stand for. */
const dequantised = ({ codes, scale }: Quantised): Tensor => value(codes, scale);

/** Q(x), with the gradient of x: the straight-through estimator of Bengio, Léonard and Courville (2013), arXiv:1308.3432. */
export const throughQuantiser = (x: Tensor, quantiser: Quantiser): Tensor =>
  customOp({
    name: 'quantised',
    forward: (t: Tensor) => dequantised(quantiser.quantise(t)),
    backward: ({ gradients: [gradient] }) => [gradient],
  })(x);

/** The gradients of a and b, for those that want one. */
const throughProduct = (
  gradient: Tensor | undefined,
  needed: readonly boolean[],
  ofA: () => Tensor,
  ofB: () => Tensor,
): [Tensor | undefined, Tensor | undefined] => [
  gradient && needed[0] ? matmul(gradient, ofB()) : undefined,
  gradient && needed[1] ? matmul(gradient.transpose(-2, -1), ofA()) : undefined,
];

/** Products of codes in words. Codes are made again for the gradients, for which they are numbers. */
const exactProduct = (ofA: PackingQuantiser, ofB: PackingQuantiser) =>
  customOp({
    name: 'quantisedProduct',
    forward: (a: Tensor, b: Tensor) => ({
      result: codeMatmul(ofA.pack(a), ofB.pack(b), 'float32') as unknown as Tensor,
      save: [a, b] as const,
    }),
    backward: ({ gradients: [gradient], saved: [a, b], needed }) =>
      throughProduct(
        gradient,
        needed,
        () => dequantised(ofA.quantise(a)),
        () => dequantised(ofB.quantise(b)),
      ),
  });

/** Products of codes in float32, which are exact while the sums stay within 2^24. */
const floatProduct = (ofA: Quantiser, ofB: Quantiser) =>
  customOp({
    name: 'quantisedProduct',
    forward: (a: Tensor, b: Tensor) => {
      const [qa, qb] = [ofA.quantise(a), ofB.quantise(b)];
      const result = scaledBack(matmul(qa.codes, qb.codes.transpose(-2, -1)), qa.scale, qb.scale.transpose(-2, -1));
      return { result, save: [qa.codes, qa.scale, qb.codes, qb.scale] as const };
    },
    backward: ({ gradients: [gradient], saved: [codesA, scaleA, codesB, scaleB], needed }) =>
      throughProduct(
        gradient,
        needed,
        () => value(codesA, scaleA),
        () => value(codesB, scaleB),
      ),
  });

const packs = (quantiser: Quantiser): quantiser is PackingQuantiser => quantiser.pack !== undefined;

/**
 * Q(a) Q(b)^T with gradients straight through: as if it were a Q(b)^T for a, and Q(a) b^T for b.
 *
 * @param a float32 [...batch, m, k]
 * @param b float32 [...batch, n, k] with the same batch axes
 */
export function quantisedProduct(a: Tensor, b: Tensor, ofA: Quantiser, ofB: Quantiser): Tensor {
  const exact = packs(ofA) && packs(ofB) && areExact(a.shape[a.shape.length - 1]);
  return exact ? exactProduct(ofA, ofB)(a, b) : floatProduct(ofA, ofB)(a, b);
}

/** x, but from -bound to bound; only what lies strictly between has a gradient. NaN stays. */
export const clippedTo = fused(function clip(x, bound) {
  return x.abs().less(bound).where(x, x.sign().mul(bound));
});

const rounded = fused(function roundToCodes(x, scale, least, most) {
  return x.mul(scale).round().maximum(least).minimum(most);
});
// Of nothing but zeros any scale does: `least` leaves it finite.
const scaleFor = fused(function scaleFor(size, most, least) {
  return most.div(size.maximum(least));
});
const tiny = 2 ** -100;

const float32 = (t: Tensor) => t as unknown as Tensor<'float32', Shape>;

const axesOf = ({ shape }: Tensor): number[] => shape.map((_, axis) => axis);

/** Whole numbers of up to 8 bits, with one scale for the whole tensor: (2^(bits - 1) - 1) / max|x|. */
export function symmetric(bits: number): PackingQuantiser {
  const most = 2 ** (bits - 1) - 1;
  const scaleOf = (x: Tensor) => scaleFor(max(abs(x), axesOf(x), { keepDims: true }), most, tiny);
  return {
    quantise(x) {
      const scale = scaleOf(x);
      return { codes: rounded(x, scale, -most, most), scale };
    },
    pack: (x) => quantiseRows(x, { scale: float32(scaleOf(x)), smallest: -most, largest: most }),
  };
}

const leastSize = 1e-5;

/** 8 bits with a scale for each row, 127 / max(max|x|, 1e-5). */
export const perToken: PackingQuantiser = {
  quantise(x) {
    const scale = scaleFor(max(abs(x), -1, { keepDims: true }), 127, leastSize);
    return { codes: rounded(x, scale, -128, 127), scale };
  },
  pack: (x) => quantiseRows(x, { least: leastSize }),
};

/** mean|x|, of length 1 along every axis. */
export const meanSize = (x: Tensor): Tensor =>
  reduceAxes(
    x,
    x.shape.map(() => true),
    { reduction: 'magnitude', scale: 1 / x.size, dtype: 'float32' },
  ).reshape(x.shape.map(() => 1)) as Tensor;

const absMeanScale = (x: Tensor) => scaleFor(meanSize(x), 1, leastSize);

/** -1, 0 or 1, the nearest to x / mean|x|, with one scale for the whole tensor. */
export const absMean: PackingQuantiser = {
  quantise(x) {
    const scale = absMeanScale(x);
    return { codes: rounded(x, scale, -1, 1), scale };
  },
  pack: (x) => quantiseRows(x, { format: 'trits', scale: float32(absMeanScale(x)) }),
};

const scaleOfSize = fused(function scaleOfSize(size, one) {
  // What has size 0 has codes 0, and 0 / Infinity is 0.
  return one.div(size);
});

/** The sign of x, each standing for `size`. */
export const signs = (x: Tensor, size: Tensor): Quantised => ({ codes: sign(x), scale: scaleOfSize(size, 1) });

/** Codes from -1 to 1 with one scale, in words. */
export const packSigns = ({ codes, scale }: Quantised): Codes => ({
  ...quantiseRows(codes, { format: 'trits', scale: filled(codes.backend, [1], 'float32', 1) }),
  scale: float32(scale).reshape([1]),
});

const isAbove = fused(function isAbove(x, threshold) {
  return threshold.less(x.abs());
});
const keptSign = fused(function keptSign(x, kept) {
  return kept.mul(x.sign());
});
const shareOf = fused(function shareOf(total, count) {
  return total.div(count.maximum(1));
});

/**
 * -1, 0 or 1 with 0 where |x| is at most 0.7 mean|x|, standing for the mean |x| of the others: ternary weight networks, Li et
 * al. (2016), arXiv:1605.04711. One threshold and one scale for the whole tensor.
 */
export const ternary: Quantiser = {
  quantise(x) {
    const axes = axesOf(x);
    const over = (t: Tensor) => sum(t, axes, { keepDims: true });
    const sizes = abs(x);
    const kept = isAbove(x, mul(mean(sizes, axes, { keepDims: true }), 0.7) as Tensor);
    const size = shareOf(over(mul(sizes, kept) as Tensor), over(kept));
    return { codes: keptSign(x, kept), scale: scaleOfSize(size, 1) };
  },
};
