/** Softmax and its gradient in float64, along any axis of a row-major array. */
import type { OracleArray } from './matmul.js';

const product = (sizes: readonly number[]) => sizes.reduce((x, n) => x * n, 1);

/** The places of the elements of each row along the axis. */
function* rows(shape: readonly number[], axis: number): Generator<number[]> {
  const length = shape[axis] as number;
  const inner = product(shape.slice(axis + 1));
  const outer = product(shape.slice(0, axis));
  for (let o = 0; o < outer; o++)
    for (let i = 0; i < inner; i++) yield Array.from({ length }, (_, at) => (o * length + at) * inner + i);
}

/** e^x / sum e^x, or its logarithm. What is not finite makes NaN of its row, unless it is -Infinity beside numbers. */
export function softmax({ shape, data }: OracleArray, axis: number, log = false): Float64Array {
  const out = new Float64Array(product(shape));
  for (const row of rows(shape, axis)) {
    const x = row.map((at) => data[at] as number);
    let most = Number.NEGATIVE_INFINITY;
    for (const value of x) if (!(value <= most)) most = value;
    let sum = 0;
    for (const value of x) sum += Math.exp(value - most);
    for (const [n, at] of row.entries()) {
      const less = (x[n] as number) - most;
      out[at] = log ? less - Math.log(sum) : Math.exp(less) / sum;
    }
  }
  return out;
}

/** The gradient of x, from what softmax (or its logarithm) has returned. */
export function softmaxBackward(out: OracleArray, dOut: ArrayLike<number>, axis: number, log = false): Float64Array {
  const dx = new Float64Array(product(out.shape));
  for (const row of rows(out.shape, axis)) {
    let sum = 0;
    for (const at of row) sum += (dOut[at] as number) * (log ? 1 : (out.data[at] as number));
    for (const at of row) {
      const [y, dy] = [out.data[at] as number, dOut[at] as number];
      dx[at] = log ? dy - Math.exp(y) * sum : y * (dy - sum);
    }
  }
  return dx;
}
