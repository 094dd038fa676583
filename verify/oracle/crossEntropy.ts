/** The cross entropy of rows and its gradient in float64. */

export interface LossOptions {
  readonly ignoreIndex: number;
  readonly labelSmoothing: number;
  readonly zLoss: number;
}

export interface Losses {
  /** [rows]: 0 where ignored, NaN where the target is no class. */
  readonly losses: Float64Array;
  readonly lse: Float64Array;
  /** Rows that are not ignored. */
  readonly count: number;
  /** [rows, classes]: that of each row's own loss. */
  readonly gradients: Float64Array;
}

export function crossEntropy(
  logits: ArrayLike<number>,
  classes: number,
  targets: ArrayLike<number>,
  { ignoreIndex, labelSmoothing, zLoss }: LossOptions,
): Losses {
  const rows = targets.length;
  const [losses, lse] = [new Float64Array(rows), new Float64Array(rows)];
  const gradients = new Float64Array(rows * classes);
  let count = 0;
  for (let row = 0; row < rows; row++) {
    const target = targets[row] as number;
    if (target === ignoreIndex) continue;
    count++;
    const x = Array.from({ length: classes }, (_, c) => logits[row * classes + c] as number);
    const most = Math.max(...x);
    const sum = x.reduce((total, value) => total + Math.exp(value - most), 0);
    const logSum = most + Math.log(sum);
    const isClass = target >= 0 && target < classes;
    // Where one class has nearly all of the sum, this is more exact than log(sum).
    const others = x.reduce(
      (total, value, c) => (c === target ? total : total + Math.exp(value - (x[target] ?? 0))),
      0,
    );
    const ofTarget = isClass ? Math.log1p(others) : Number.NaN;
    const mean = x.reduce((total, value) => total + value / classes, 0);
    lse[row] = logSum;
    losses[row] =
      (1 - labelSmoothing) * ofTarget +
      (labelSmoothing === 0 ? 0 : labelSmoothing * (logSum - mean)) +
      zLoss * logSum * logSum;
    for (let c = 0; c < classes; c++) {
      const softmax = Math.exp((x[c] as number) - most) / sum;
      const wanted = (c === target ? 1 - labelSmoothing : 0) + labelSmoothing / classes;
      gradients[row * classes + c] = isClass ? softmax * (1 + 2 * zLoss * logSum) - wanted : Number.NaN;
    }
  }
  return { losses, lse, count, gradients };
}
