import { checkArray, checkNumber, checkObject, checkOptions, checkString, mustBe } from '../base/check.js';
import { colors, formatTick, Plot, round, stepFor } from '../base/svg.js';

/** Losses of a step, as far as they are known. */
export interface LossPoint {
  readonly step: number;
  readonly train?: number | undefined;
  readonly validation?: number | undefined;
}

export interface LossCurveOptions {
  /** Default 'Loss'. */
  readonly title?: string;
  /** Default 'nats per token'. */
  readonly unit?: string;
}

const series = ['train', 'validation'] as const;
const width = 640;
/** Above it a loss is as good as infinite, and differences of losses are. */
const largest = 1e300;

interface At {
  readonly x: number;
  readonly y: number;
}

/** Of the points in one column of pixels the highest and the lowest, in their order: more cannot be seen. */
function thin(points: readonly At[]): readonly At[] {
  const kept: At[] = [];
  for (let begin = 0, end = 0; begin < points.length; begin = end) {
    const column = Math.round(points[begin].x);
    let [low, high] = [begin, begin];
    for (end = begin; end < points.length && Math.round(points[end].x) === column; end++) {
      if (points[end].y < points[low].y) low = end;
      if (points[end].y > points[high].y) high = end;
    }
    kept.push(points[Math.min(low, high)]);
    if (low !== high) kept.push(points[Math.max(low, high)]);
  }
  return kept;
}

/** A line through points; one that stands alone is a dot. */
const pathOf = (points: readonly At[]) =>
  `M${thin(points)
    .map(({ x, y }) => `${x} ${y}`)
    .join('L')}${points.length === 1 ? 'h0' : ''}`;

/** The points in runs without those that are no number: a line ends where the loss is NaN, and begins again behind it. */
function runsOf(losses: readonly (readonly [step: number, loss: number])[]): (readonly [number, number])[][] {
  const runs: (readonly [number, number])[][] = [[]];
  for (const point of losses) {
    if (Math.abs(point[1]) < largest) runs.at(-1)?.push(point);
    else runs.push([]);
  }
  return runs.filter((run) => run.length > 0);
}

function checkPoint(point: unknown, argument: string): LossPoint {
  checkObject(point as LossPoint, argument);
  const { step, train, validation } = point as LossPoint;
  for (const [name, loss] of Object.entries({ train, validation }))
    if (loss !== undefined && typeof loss !== 'number') throw mustBe(`${argument}.${name}`, loss, 'a number');
  return { step: checkNumber(step, `${argument}.step`, 0, 2 ** 53), train, validation };
}

/** What an axis goes from and to. */
function rangeOf(values: readonly number[]): [least: number, most: number] {
  let [least, most] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const value of values) [least, most] = [Math.min(least, value), Math.max(most, value)];
  if (least > most) return [0, 1];
  const size = Math.max(Math.abs(least), Math.abs(most));
  if (most - least > Math.max(size * 1e-9, 1e-100)) return [least, most];
  return [least, most + (size > 1e-100 ? size / 10 : 1)]; // labels have too few digits for less
}

/**
 * The losses of training and validation over its steps, as SVG. Long runs take no more room than short ones.
 *
 * @param points in any order
 * @throws ERR_OPTION
 */
export function lossCurve(points: readonly LossPoint[], options: LossCurveOptions = {}): string {
  checkOptions(options, ['title', 'unit']);
  const title = checkString(options.title ?? 'Loss', 'title');
  const unit = checkString(options.unit ?? 'nats per token', 'unit');
  const sorted = checkArray(points, 'points', 'an array of points', checkPoint).sort((a, b) => a.step - b.step);
  const lines = series.map((name) =>
    runsOf(sorted.flatMap(({ step, [name]: loss }) => (loss === undefined ? [] : [[step, loss] as const]))),
  );
  const range = rangeOf(lines.flat(2).map(([, loss]) => loss));
  const plot = new Plot({ title, unit, series, range, width });

  const [first, last] = rangeOf(sorted.map(({ step }) => step));
  const x = (step: number) => round(plot.left + (width * (step - first)) / (last - first));
  const every = stepFor(last - first);
  for (let tick = Math.ceil(first / every); tick * every <= last; tick++)
    plot.text(x(tick * every), plot.base + 16, formatTick(tick * every, every), 'text-anchor="middle"');
  plot.text(plot.left + width / 2, plot.base + 36, 'step', 'text-anchor="middle"');

  for (const [i, runs] of lines.entries()) {
    const d = runs.map((run) => pathOf(run.map(([step, loss]) => ({ x: x(step), y: plot.y(loss) })))).join('');
    const stroke = `stroke="${colors[i]}" stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round"`;
    if (d !== '') plot.add(`<path fill="none" ${stroke} d="${d}"><title>${series[i]}</title></path>`);
  }
  return plot.toString();
}
