/** Kolmogorov-Arnold layers in float64, curve by curve. */
import { type Numbers, range, row, silu, total } from './dense.js';

/** B-spline c of an order by its recursion. */
export function bSpline(x: number, knots: readonly number[], c: number, order: number): number {
  if (order === 0) return knots[c] <= x && x < knots[c + 1] ? 1 : 0;
  // A spline between knots that coincide is 0.
  const part = (from: number, slope: (span: number) => number) => {
    const span = knots[from + order] - knots[from];
    return span === 0 ? 0 : slope(span) * bSpline(x, knots, from, order - 1);
  };
  return part(c, (span) => (x - knots[c]) / span) + part(c + 1, (span) => (knots[c + order + 1] - x) / span);
}

export interface Kan {
  readonly inputs: number;
  readonly outputs: number;
  readonly knots: number;
  readonly order: number;
}

const curveOf = (k: Kan, grid: Numbers, i: number, x: number, coefficientOf: (c: number) => number): number =>
  total(range(k.knots - k.order - 1).map((c) => coefficientOf(c) * bSpline(x, row(grid, i, k.knots), c, k.order)));

export interface KanInputs {
  readonly x: Numbers;
  readonly baseWeight: Numbers;
  readonly splineWeight: Numbers;
  readonly splineScaler?: Numbers;
}

export function efficientKan(k: Kan, grid: Numbers, { x, baseWeight, splineWeight, splineScaler }: KanInputs) {
  const splines = k.knots - k.order - 1;
  return Float64Array.from(
    range(x.length / k.inputs).flatMap((r) =>
      range(k.outputs).map((o) =>
        total(
          row(x, r, k.inputs).map((value, i) => {
            const at = o * k.inputs + i;
            const curve = curveOf(k, grid, i, value, (c) => splineWeight[at * splines + c]);
            return baseWeight[at] * silu(value) + (splineScaler?.[at] ?? 1) * curve;
          }),
        ),
      ),
    ),
  );
}

export interface PykanInputs {
  readonly x: Numbers;
  readonly coef: Numbers;
  readonly scaleBase: Numbers;
  readonly scaleSp: Numbers;
}

export function pykan(k: Kan, grid: Numbers, mask: Numbers | undefined, w: PykanInputs): Float64Array {
  const splines = k.knots - k.order - 1;
  return Float64Array.from(
    range(w.x.length / k.inputs).flatMap((r) =>
      range(k.outputs).map((o) =>
        total(
          row(w.x, r, k.inputs).map((value, i) => {
            const at = i * k.outputs + o;
            const curve = curveOf(k, grid, i, value, (c) => w.coef[at * splines + c]);
            return (mask?.[at] ?? 1) * (w.scaleBase[at] * silu(value) + w.scaleSp[at] * curve);
          }),
        ),
      ),
    ),
  );
}

/** Knots by quantiles of samples, mixed with even ones, and `order` more on both sides. */
export function gridOfSamples(samples: Numbers, intervals: number, order: number, eps: number): number[] {
  const sorted = Array.from(samples).sort((a, b) => a - b);
  const [low, high] = [sorted[0], sorted[sorted.length - 1]];
  const step = (high - low) / intervals;
  const inner = range(intervals + 1).map((i) => {
    const quantile = i === intervals ? high : sorted[Math.floor((sorted.length / intervals) * i)];
    return eps * (low + i * step) + (1 - eps) * quantile;
  });
  const outside = range(order).map((i) => (i + 1) * step);
  return [...outside.toReversed().map((d) => low - d), ...inner, ...outside.map((d) => high + d)];
}

/** The coefficients of a curve through samples as near as it comes: (A^T A)^-1 A^T y by elimination. */
export function fitCurve(x: Numbers, y: Numbers, knots: readonly number[], order: number): number[] {
  const count = knots.length - order - 1;
  const rows = Array.from(x, (value) => range(count).map((c) => bSpline(value, knots, c, order)));
  const system = range(count).map((i) => [
    ...range(count).map((j) => total(rows.map((r) => r[i] * r[j]))),
    total(rows.map((r, n) => r[i] * y[n])),
  ]);
  for (const pivot of range(count)) {
    const best = range(count - pivot)
      .map((d) => pivot + d)
      .reduce((a, b) => (Math.abs(system[b][pivot]) > Math.abs(system[a][pivot]) ? b : a));
    [system[pivot], system[best]] = [system[best], system[pivot]];
    for (const other of range(count)) {
      if (other === pivot) continue;
      const factor = system[other][pivot] / system[pivot][pivot];
      system[other] = system[other].map((value, j) => value - factor * system[pivot][j]);
    }
  }
  return system.map((r, i) => r[count] / r[i]);
}
