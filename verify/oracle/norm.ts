/** Layer norm, RMS norm and their gradients in float64. */

export interface NormProblem {
  readonly rows: number;
  readonly dim: number;
  /** [rows, dim] */
  readonly x: ArrayLike<number>;
  /** [dim] */
  readonly gain?: ArrayLike<number> | undefined;
  readonly bias?: ArrayLike<number> | undefined;
  readonly epsilon: number;
  /** Whether the mean is taken off: layer norm. */
  readonly centered: boolean;
}

/** The normalised rows, without gain and bias, and 1 / sqrt(variance + epsilon) of each. */
function normalise({ rows, dim, x, epsilon, centered }: NormProblem): { normed: Float64Array; rstd: Float64Array } {
  const normed = new Float64Array(rows * dim);
  const rstd = new Float64Array(rows);
  for (let r = 0; r < rows; r++) {
    const row = Float64Array.from({ length: dim }, (_, i) => x[r * dim + i] as number);
    const mean = centered ? row.reduce((sum, value) => sum + value, 0) / dim : 0;
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / dim;
    rstd[r] = 1 / Math.sqrt(variance + epsilon);
    for (let i = 0; i < dim; i++) normed[r * dim + i] = ((row[i] as number) - mean) * (rstd[r] as number);
  }
  return { normed, rstd };
}

export function norm(problem: NormProblem): Float64Array {
  const { dim, gain, bias } = problem;
  return normalise(problem).normed.map((y, at) => y * (gain?.[at % dim] ?? 1) + (bias?.[at % dim] ?? 0));
}

export interface NormGradients {
  readonly dX: Float64Array;
  readonly dGain: Float64Array;
  readonly dBias: Float64Array;
}

/** `dSum`: the gradient that reaches x besides. */
export function normBackward(
  problem: NormProblem,
  dOut: ArrayLike<number>,
  dSum?: ArrayLike<number> | undefined,
): NormGradients {
  const { rows, dim, gain, centered } = problem;
  const { normed, rstd } = normalise(problem);
  const [dX, dGain, dBias] = [new Float64Array(rows * dim), new Float64Array(dim), new Float64Array(dim)];
  for (let r = 0; r < rows; r++) {
    let [mean, meanProduct] = [0, 0];
    for (let i = 0; i < dim; i++) {
      const [dy, y] = [dOut[r * dim + i] as number, normed[r * dim + i] as number];
      const d = dy * (gain?.[i] ?? 1);
      if (centered) mean += d / dim;
      meanProduct += (d * y) / dim;
      (dGain[i] as number) += dy * y;
      (dBias[i] as number) += dy;
    }
    for (let i = 0; i < dim; i++) {
      const at = r * dim + i;
      const d = (dOut[at] as number) * (gain?.[i] ?? 1);
      dX[at] = (rstd[r] as number) * (d - mean - (normed[at] as number) * meanProduct) + (dSum?.[at] ?? 0);
    }
  }
  return { dX, dGain, dBias };
}
