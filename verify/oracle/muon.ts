/** Muon (Jordan et al. 2024) in float64, by its definition: products of matrices in plain loops. */

export interface MuonHyper {
  readonly rate: number;
  readonly momentum: number;
  readonly nesterov: boolean;
  readonly weightDecay: number;
  readonly iterations: number;
}

/** Row-major [rows, columns]. */
interface Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly data: Float64Array;
}

const matrix = (rows: number, columns: number, at: (row: number, column: number) => number): Matrix => ({
  rows,
  columns,
  data: Float64Array.from({ length: rows * columns }, (_, i) => at(Math.floor(i / columns), i % columns)),
});

const element = ({ data, columns }: Matrix, row: number, column: number) => data[row * columns + column] as number;

const transpose = (a: Matrix) => matrix(a.columns, a.rows, (row, column) => element(a, column, row));

const multiply = (a: Matrix, b: Matrix) =>
  matrix(a.rows, b.columns, (row, column) => {
    let sum = 0;
    for (let k = 0; k < a.columns; k++) sum += element(a, row, k) * element(b, k, column);
    return sum;
  });

/** x <- 3.4445 x - 4.775 (x x^T) x + 2.0315 (x x^T)^2 x, from x of Frobenius norm 1. */
export function orthogonalized(rows: number, columns: number, data: Float64Array, iterations: number): Float64Array {
  let length = 0;
  for (const x of data) length += x * x;
  const scaled = { rows, columns, data: data.map((x) => x / (Math.sqrt(length) + 1e-7)) };
  let x = rows > columns ? transpose(scaled) : scaled;
  for (let i = 0; i < iterations; i++) {
    const gram = multiply(x, transpose(x));
    const first = multiply(gram, x);
    const second = multiply(gram, first);
    const before = x;
    x = matrix(
      x.rows,
      x.columns,
      (r, c) => 3.4445 * element(before, r, c) - 4.775 * element(first, r, c) + 2.0315 * element(second, r, c),
    );
  }
  return (rows > columns ? transpose(x) : x).data;
}

/** A step, in place; `mean` is 0 before the first one. */
export function muon(
  weight: Float64Array,
  [rows, columns]: readonly [number, number],
  gradient: ArrayLike<number>,
  mean: Float64Array,
  { rate, momentum, nesterov, weightDecay, iterations }: MuonHyper,
): void {
  const direction = mean.map((m, i) => {
    const g = gradient[i] as number;
    mean[i] = momentum * m + (1 - momentum) * g;
    return nesterov ? (1 - momentum) * g + momentum * (mean[i] as number) : (mean[i] as number);
  });
  const step = orthogonalized(rows, columns, direction, iterations);
  const length = Math.sqrt(Math.max(1, rows / columns));
  weight.forEach((w, i) => {
    weight[i] = w * (1 - rate * weightDecay) - rate * length * (step[i] as number);
  });
}
