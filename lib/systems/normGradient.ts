// Layer norm whose own gradient is a part of the function: what test-time training differentiates.
import { compile } from '../kernels/elementwise.js';
import { type Expression, input } from '../kernels/expression.js';
import { fused } from '../ops/elementwise.js';
import { normBackward, normForward } from '../ops/norm.js';
import { mean } from '../ops/reduce.js';
import { launchElementwise } from '../tape/arithmetic.js';
import { record } from '../tape/tape.js';
import { allocateTensor, type Tensor } from '../tensor/tensor.js';

/** x = (z - mean) rstd of every row of z [..., dim], float32. */
export interface Standardised {
  readonly z: Tensor;
  readonly x: Tensor;
  /** [rows] */
  readonly mean: Tensor<'float32'>;
  /** [rows], 1 / sqrt(variance + epsilon) */
  readonly rstd: Tensor<'float32'>;
}

const plain = { gain: undefined, bias: undefined };
const wanted = { x: true, gain: false, bias: false };

/** Rows of mean 0 and variance 1, with what `throughNorm` needs. */
export function standardise(z: Tensor, epsilon: number): Standardised {
  const { out, mean, rstd } = normForward(z, { ...plain, residual: undefined, epsilon, centered: true }, true);
  const statistics = { mean: mean as Tensor<'float32'>, rstd: rstd as Tensor<'float32'> };
  record('standardise', [z], [out], [z, statistics.mean, statistics.rstd], ([dOut], [x, mean, rstd]) => [
    dOut && backThrough(x as Tensor, dOut, mean as Tensor<'float32'>, rstd as Tensor<'float32'>),
  ]);
  return { z, x: out, ...statistics };
}

const backThrough = (x: Tensor, dOut: Tensor, mean: Tensor<'float32'>, rstd: Tensor<'float32'>): Tensor =>
  normBackward({ x, mean, rstd, dOut, ...plain, wanted }).dX as Tensor;

const combined = fused(function normGradientBackward(x, g, du, rstd, ux, dx, dg) {
  return ux.mul(du).add(dx.mul(g)).add(dg.mul(x)).mul(rstd).neg();
});

const [u, x, gradient, g] = [0, 1, 2, 3].map(input) as [Expression, Expression, Expression, Expression];
const products = compile([u.mul(x), gradient.mul(x), gradient.mul(g)], 4);

/** mean(u x), mean(G x) and mean(G g) of every row [..., 1], in two launches. */
function meansOfProducts(tensors: readonly [u: Tensor, x: Tensor, gradient: Tensor, g: Tensor]): readonly Tensor[] {
  const [{ shape, backend }] = tensors;
  const all = allocateTensor(backend, [3, ...shape], 'float32') as Tensor;
  launchElementwise(backend, {
    program: products,
    inputs: tensors.map((t) => t.strided('a factor', backend)),
    outputs: [0, 1, 2].map((i) => all.select(0, i).strided('a product', backend)),
  });
  const means = mean(all, -1, { keepDims: true });
  return [0, 1, 2].map((i) => means.select(0, i));
}

/**
 * The gradient of z from that of x: g = rstd (u - mean(u) - x mean(u x)). With the gradient G of g:
 * du = rstd (G - mean(G) - x mean(G x)), dz = -rstd (mean(u x) du + mean(G x) g + mean(G g) x).
 *
 * @param u of the shape of z
 */
export function throughNorm(u: Tensor, { z, x, mean: means, rstd }: Standardised): Tensor {
  const { shape } = z;
  const result = backThrough(z.detach(), u.detach(), means, rstd);
  record('normGradient', [u, z], [result], [u, z, x, means, rstd, result], ([gradient], saved, [needsU, needsZ]) => {
    if (!gradient) return [];
    const [ownU, ownZ, ownX, ownMeans, ownRstd, g] = saved as readonly [Tensor, Tensor, Tensor, ...Tensor<'float32'>[]];
    const du = backThrough(ownZ, gradient, ownMeans, ownRstd);
    if (!needsZ) return [needsU ? du : undefined, undefined];
    const [ux, dx, dg] = meansOfProducts([ownU, ownX, gradient, g]) as [Tensor, Tensor, Tensor];
    const rows = ownRstd.reshape([...shape.slice(0, -1), 1]);
    return [needsU ? du : undefined, combined(ownX, g, du, rows, ux, dx, dg)];
  });
  return result;
}
