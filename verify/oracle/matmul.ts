/** Products of matrices in float64, over batches that broadcast. */

/** Row-major elements. */
export interface OracleArray {
  readonly shape: readonly number[];
  readonly data: ArrayLike<number>;
}

const product = (sizes: readonly number[]) => sizes.reduce((x, n) => x * n, 1);

/** The matrix of `array` that belongs to entry `entry` of a batch of shape `batch`: where it begins. */
function matrixAt({ shape }: OracleArray, entry: number, batch: readonly number[]): number {
  const [rows = 1, columns = 1] = shape.slice(-2);
  let offset = 0;
  let stride = rows * columns;
  let rest = entry;
  for (let axis = -1; axis >= -batch.length; axis--) {
    const n = batch.at(axis) as number;
    const own = shape.at(axis - 2) ?? 1;
    if (own !== 1) offset += (rest % n) * stride;
    stride *= own;
    rest = Math.floor(rest / n);
  }
  return offset;
}

/** row += factor * from[begin...] */
function addScaled(row: Float64Array, factor: number, from: Float64Array, begin: number): void {
  for (let j = 0; j < row.length; j++) (row[j] as number) += factor * (from[begin + j] as number);
}

/** out[..., i, j] = alpha * sum_k a[..., i, k] * b[..., k, j]; `shape` is that of the result. */
export function matmul(a: OracleArray, b: OracleArray, shape: readonly number[], alpha = 1): Float64Array {
  const batch = shape.slice(0, -2);
  const [rows, columns] = shape.slice(-2) as [number, number];
  const inner = a.shape.at(-1) as number;
  const [left, right] = [Float64Array.from(a.data), Float64Array.from(b.data)];
  const out = new Float64Array(product(shape));
  for (let entry = 0; entry < product(batch); entry++) {
    const [fromA, fromB] = [matrixAt(a, entry, batch), matrixAt(b, entry, batch)];
    for (let i = 0; i < rows; i++) {
      const row = out.subarray((entry * rows + i) * columns, (entry * rows + i + 1) * columns);
      for (let k = 0; k < inner; k++)
        addScaled(row, alpha * (left[fromA + i * inner + k] as number), right, fromB + k * columns);
    }
  }
  return out;
}
