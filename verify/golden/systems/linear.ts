/** The projections around the attention of a case, in float64. */

/** Row-major [rows, columns]. */
export interface Matrix {
  readonly values: Float64Array;
  readonly columns: number;
}

export function matrix(values: Float64Array, columns: number): Matrix {
  return { values, columns };
}

/** y = x W^T + bias, with W [out, in]. */
export function linear(x: Matrix, weight: Matrix, bias?: Float64Array): Matrix {
  const rows = x.values.length / x.columns;
  const columns = weight.values.length / weight.columns;
  const y = new Float64Array(rows * columns);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      let sum = bias?.[c] ?? 0;
      for (let n = 0; n < x.columns; n++) {
        sum += (x.values[r * x.columns + n] ?? NaN) * (weight.values[c * x.columns + n] ?? NaN);
      }
      y[r * columns + c] = sum;
    }
  }
  return { values: y, columns };
}

function transposed(m: Matrix): Matrix {
  const rows = m.values.length / m.columns;
  const values = m.values.map((_, n) => m.values[(n % rows) * m.columns + Math.floor(n / rows)] ?? NaN);
  return { values, columns: rows };
}

/** The gradients of `linear` with respect to x and W. */
export function linearBackward(dy: Matrix, x: Matrix, weight: Matrix): { dx: Matrix; dWeight: Matrix } {
  return { dx: linear(dy, transposed(weight)), dWeight: linear(transposed(dy), transposed(x)) };
}

export function sum(...terms: readonly ArrayLike<number>[]): Float64Array {
  const [first = []] = terms;
  return Float64Array.from(first, (_, n) => terms.reduce((total, term) => total + (term[n] ?? NaN), 0));
}
