import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { compile } from '../kernels/elementwise.js';
import { input } from '../kernels/expression.js';
import { svd as svdOperation } from '../kernels/svd.js';
import { addTensors, compute, converted } from '../tape/arithmetic.js';
import { needsRecord, record } from '../tape/tape.js';
import { elementCount } from '../tensor/shape.js';
import { allocateTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';
import { matmul } from './matmul.js';

/** One matrix is one piece of work. */
const mostValues = 256;
/** Kernels count elements of a row in 32 bits, and matrices in a launch too. */
const most = 2 ** 31 - 2 ** 10;

/** x = u diag(s) v^T, with r = min(m, n). */
export interface Svd<D extends FloatDType> {
  /** [..., m, r], orthonormal columns. */
  readonly u: Tensor<D, Shape>;
  /** [..., r], falling, at least 0. */
  readonly s: Tensor<D, Shape>;
  /** [..., n, r], orthonormal columns. */
  readonly v: Tensor<D, Shape>;
}

/** The same in float32. */
interface Factors {
  readonly u: Tensor;
  readonly s: Tensor;
  readonly v: Tensor;
}

function factorise(x: Tensor, batch: Shape, rows: number, columns: number): Factors {
  const { backend } = x;
  const isTall = rows >= columns;
  const count = Math.min(rows, columns);
  return tidying(
    () => {
      // The kernel turns rows: the shorter side's vectors.
      const vectors: Tensor = converted(isTall ? x.transpose(-2, -1) : x, 'float32');
      const values = allocateTensor(backend, [...batch, count], 'float32') as Tensor;
      const others = allocateTensor(backend, [...batch, count, count], 'float32') as Tensor;
      backend.launch(svdOperation, {
        vectors: vectors.operand('x', backend).buffer,
        values: values.operand('s', backend).buffer,
        others: others.operand('v', backend).buffer,
        matrices: elementCount(batch),
        count,
        length: Math.max(rows, columns),
      });
      const [long, short] = [vectors.transpose(-2, -1), others.transpose(-2, -1)];
      return isTall ? { u: long, s: values, v: short } : { u: short, s: values, v: long };
    },
    ({ u, s, v }) => [u, s, v],
  );
}

/** Differences, and values, up to this share of the largest value count as 0. */
const least = 2 ** -20;

/** F (a s_j + b s_i) of a = A - A^T and b = B - B^T, with F = 1 / (s_j^2 - s_i^2) or 0. */
const mixing = compile(
  [
    (() => {
      const [si, sj, largest] = [input(4), input(5), input(6)];
      const difference = sj.sub(si);
      const sum = input(0)
        .sub(input(1))
        .mul(sj)
        .add(input(2).sub(input(3)).mul(si));
      return difference
        .abs()
        .lessEqual(largest.mul(least))
        .where(0, sum.div(sj.add(si)).div(difference));
    })(),
  ],
  7,
);

const difference = compile([input(0).sub(input(1))], 2);
const product = compile([input(0).mul(input(1))], 2);
const quotient = compile(
  [
    input(1)
      .lessEqual(input(2).mul(least))
      .where(0, input(0).div(input(1))),
  ],
  3,
);

interface Incoming {
  readonly u: Tensor | undefined;
  readonly s: Tensor | undefined;
  readonly v: Tensor | undefined;
}

/** What lies outside of the columns of `own`, with each column over its value. */
function outside(gradient: Tensor, own: Tensor, inner: Tensor, s: Tensor, largest: Tensor): Tensor {
  const { backend, shape } = gradient;
  const rest = compute(backend, difference, [gradient, matmul(own, inner)], shape, 'float32');
  return compute(backend, quotient, [rest, s, largest], shape, 'float32');
}

/**
 * dX = (U (K + diag(ds)) + (1 - U U^T) dU / s) V^T + U ((1 - V V^T) dV / s)^T with
 * K[i, j] = ((A - A^T)[i, j] s[j] + s[i] (B - B^T)[i, j]) / (s[j]^2 - s[i]^2), A = U^T dU and B = V^T dV.
 */
function backward(given: Incoming, { u, s, v }: Factors): Tensor {
  const { backend } = u;
  const r = s.shape[s.shape.length - 1];
  const wide = (t: Tensor) => (t.isContiguous ? t : t.contiguous());
  const alongColumns = (t: Tensor) => wide(t).reshape([...t.shape.slice(0, -1), 1, r]);
  const sj = alongColumns(s);
  const si = sj.transpose(-2, -1);
  const largest = sj.slice(-1, 0, Math.min(1, r));
  const single = (t: Tensor | undefined) => t && (converted(t, 'float32') as Tensor);
  const [dU, dS, dV] = [single(given.u), single(given.s), single(given.v)];
  const parts: Tensor[] = [];
  if (dS) parts.push(compute(backend, product, [u, alongColumns(dS)], u.shape, 'float32'));
  const a = dU && matmul(u.transpose(-2, -1), dU);
  const b = dV && matmul(v.transpose(-2, -1), dV);
  if (a || b) {
    const none = sj.slice(-1, 0, Math.min(1, r)).expand(((a ?? b) as Tensor).shape);
    const [first, second] = [a ?? none, b ?? none];
    const turned = (t: Tensor) => (t === none ? none : t.transpose(-2, -1));
    const inputs = [first, turned(first), second, turned(second), si, sj, largest];
    parts.push(matmul(u, compute(backend, mixing, inputs, first.shape, 'float32')));
  }
  const [m, n] = [u.shape[u.shape.length - 2], v.shape[v.shape.length - 2]];
  if (dU && a && m > r) parts.push(outside(dU, u, a, sj, largest));
  let dX = parts.length > 0 ? matmul(parts.reduce(addTensors), v.transpose(-2, -1)) : undefined;
  if (dV && b && n > r) {
    const rest = matmul(u, outside(dV, v, b, sj, largest).transpose(-2, -1));
    dX = dX ? addTensors(dX, rest) : rest;
  }
  return dX as Tensor;
}

/**
 * The singular value decomposition of small matrices, batched: x = u diag(s) v^T, by one-sided Jacobi rotations in float32
 * (Hestenes 1958; Drmac and Veselic, "New Fast and Accurate Jacobi SVD Algorithm", 2008), one piece of work a matrix. Signs of
 * vectors, and which ones span the space of equal values, are not determined. NaN or Infinity makes NaN of all that belongs to
 * their matrix.
 *
 * Its gradient (Townsend, "Differentiating the Singular Value Decomposition", 2016; Ionescu, Vantzos and Sminchisescu, "Matrix
 * Backpropagation for Deep Networks with Structured Layers", 2015) divides by differences of squared values. Vectors of values
 * that differ by at most 2^-20 of the largest are not turned into one another, and those of values that are at most 2^-20
 * of it not out of their space: these terms are 0, which is right where the loss depends on the space alone.
 *
 * @param x [..., m, n] of any strides; min(m, n) is at most 256
 * @returns of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function svd<D extends FloatDType>(x: Tensor<D, Shape>): Svd<D> {
  checkTensor(x, 'x');
  const source = x as unknown as Tensor;
  const { shape, dtype, backend } = source;
  if (shape.length < 2) throw shapeError(`x has shape ${show(shape)}; it must be a matrix or a batch of matrices`);
  const [rows, columns] = shape.slice(-2);
  const batch = shape.slice(0, -2);
  if (Math.min(rows, columns) > mostValues)
    throw shapeError(
      `x has shape ${show(shape)}; the shorter side of a matrix may have at most ${mostValues} elements`,
    );
  if (Math.max(rows, columns) > most || elementCount(batch) > most)
    throw shapeError(`x has shape ${show(shape)}; at most 2^31 - 2^10 matrices, and rows and columns, can be handled`);
  source.operand('x', backend);
  const result = tidying(
    () => {
      const factors = factorise(source.detach(), batch, rows, columns);
      const out = (t: Tensor): Tensor => (dtype === 'float32' ? t : converted(t, dtype));
      const [u, s, v] = [out(factors.u), out(factors.s), out(factors.v)];
      if (needsRecord([source]))
        record('svd', [source], [u, s, v], [factors.u, factors.s, factors.v], ([dU, dS, dV], saved) => {
          if (!dU && !dS && !dV) return [];
          const [ownU, ownS, ownV] = saved as [Tensor, Tensor, Tensor];
          return [converted(backward({ u: dU, s: dS, v: dV }, { u: ownU, s: ownS, v: ownV }), dtype)];
        });
      return { u, s, v };
    },
    ({ u, s, v }) => [u, s, v],
  );
  return result as unknown as Svd<D>;
}
