/** Convolutions and pooling of images in float64, element by element; a sequence is an image of one row. */

/** How windows lie on one axis: window i has the elements i * step + j * dilation - before for j < size. */
export interface OracleWindow {
  readonly length: number;
  readonly size: number;
  readonly step: number;
  readonly dilation: number;
  readonly before: number;
  readonly count: number;
}

type Axes = readonly [rows: OracleWindow, columns: OracleWindow];

/** Calls `f` with each window and each element of x in it: places in [count, count], [size, size] and [length, length]. */
function forWindows([rows, columns]: Axes, f: (window: number, tap: number, at: number) => void): void {
  const place = (w: OracleWindow, i: number, j: number) => i * w.step + j * w.dilation - w.before;
  const isInside = (w: OracleWindow, at: number) => at >= 0 && at < w.length;
  for (let i = 0; i < rows.count; i++)
    for (let k = 0; k < columns.count; k++)
      for (let j = 0; j < rows.size; j++)
        for (let l = 0; l < columns.size; l++) {
          const [row, column] = [place(rows, i, j), place(columns, k, l)];
          if (isInside(rows, row) && isInside(columns, column))
            f(i * columns.count + k, j * columns.size + l, row * columns.length + column);
        }
}

const areas = ([rows, columns]: Axes) => ({
  windows: rows.count * columns.count,
  taps: rows.size * columns.size,
  elements: rows.length * columns.length,
});

export interface ConvProblem {
  /** [batch, channels, rows, columns] */
  readonly x: ArrayLike<number>;
  /** [out channels, channels / groups, size, size] */
  readonly weights: ArrayLike<number>;
  readonly bias?: ArrayLike<number>;
  readonly axes: Axes;
  readonly batch: number;
  readonly channels: number;
  readonly outChannels: number;
  readonly groups: number;
  /** Of the result. */
  readonly gradient: ArrayLike<number>;
}

export interface ConvResult {
  readonly out: Float64Array;
  readonly dX: Float64Array;
  readonly dWeights: Float64Array;
  readonly dBias: Float64Array;
}

export function conv(p: ConvProblem): ConvResult {
  const { windows, taps, elements } = areas(p.axes);
  const [perGroup, outPerGroup] = [p.channels / p.groups, p.outChannels / p.groups];
  const result = {
    out: new Float64Array(p.batch * p.outChannels * windows),
    dX: new Float64Array(p.x.length),
    dWeights: new Float64Array(p.weights.length),
    dBias: new Float64Array(p.outChannels),
  };
  const add = (array: Float64Array, at: number, value: number) => {
    (array[at] as number) += value;
  };
  for (let n = 0; n < p.batch; n++)
    for (let o = 0; o < p.outChannels; o++) {
      const out = (n * p.outChannels + o) * windows;
      for (let w = 0; w < windows; w++) {
        add(result.out, out + w, p.bias?.[o] ?? 0);
        add(result.dBias, o, p.gradient[out + w] as number);
      }
      for (let c = 0; c < perGroup; c++) {
        const x = (n * p.channels + Math.floor(o / outPerGroup) * perGroup + c) * elements;
        const kernel = (o * perGroup + c) * taps;
        forWindows(p.axes, (window, tap, at) => {
          const [value, weight] = [p.x[x + at] as number, p.weights[kernel + tap] as number];
          const gradient = p.gradient[out + window] as number;
          add(result.out, out + window, value * weight);
          add(result.dX, x + at, gradient * weight);
          add(result.dWeights, kernel + tap, gradient * value);
        });
      }
    }
  return result;
}

export interface PoolProblem {
  /** [images, rows, columns] */
  readonly x: ArrayLike<number>;
  readonly images: number;
  readonly axes: Axes;
  readonly gradient: ArrayLike<number>;
}

export interface PoolResult {
  readonly out: Float64Array;
  readonly dX: Float64Array;
}

/** The largest element of each window, NaN where there is one; the first of them has the gradient. */
export function maxPool({ x, images, axes, gradient }: PoolProblem): PoolResult {
  const { windows, elements } = areas(axes);
  const out = new Float64Array(images * windows).fill(Number.NEGATIVE_INFINITY);
  const dX = new Float64Array(x.length);
  for (let image = 0; image < images; image++) {
    const best = new Array<number>(windows).fill(-1);
    forWindows(axes, (window, _, at) => {
      const value = x[image * elements + at] as number;
      const before = out[image * windows + window] as number;
      if (best[window] !== -1 && (Number.isNaN(before) || value <= before)) return;
      out[image * windows + window] = value;
      best[window] = at;
    });
    for (const [window, at] of best.entries())
      if (at >= 0) (dX[image * elements + at] as number) += gradient[image * windows + window] as number;
  }
  return { out, dX };
}

/** The mean of each window: over all of its places, or over the elements of x alone. */
export function avgPool({ x, images, axes, gradient }: PoolProblem, countPadding: boolean): PoolResult {
  const { windows, elements, taps } = areas(axes);
  const out = new Float64Array(images * windows);
  const dX = new Float64Array(x.length);
  const counts = new Array<number>(windows).fill(countPadding ? taps : 0);
  if (!countPadding) forWindows(axes, (window) => void (counts[window] as number)++);
  for (let image = 0; image < images; image++)
    forWindows(axes, (window, _, at) => {
      const [to, from] = [image * windows + window, image * elements + at];
      (out[to] as number) += (x[from] as number) / (counts[window] as number);
      (dX[from] as number) += (gradient[to] as number) / (counts[window] as number);
    });
  return { out, dX };
}
