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
