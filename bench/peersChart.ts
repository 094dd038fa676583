// The table of bench/peers.ts as SVG: a part for each problem, a column for each number of threads, a bar for each library.
import { BarChart } from './barChart.js';
import type { Problem } from './peers/serve.mjs';

export interface PeersChart {
  readonly machine: string;
  /** Of the libraries, from the top. */
  readonly names: readonly string[];
  readonly rows: readonly {
    readonly problem: Problem;
    readonly threads: number;
    readonly milliseconds: Readonly<Partial<Record<string, number>>>;
  }[];
}

/** Products and sums of the pairs that the mask lets see each other. */
function gflopsOf([batch, queries, keys, heads, dim, causal]: Problem, milliseconds: number): number {
  const pairs = causal ? (queries * (queries + 1)) / 2 : queries * keys;
  return (4 * batch * heads * dim * pairs) / milliseconds / 1e6;
}

const [barHeight, labelHeight, groupGap] = [13, 20, 12];
const [nameWidth, barWidth, valueWidth] = [64, 240, 60];
const columnWidth = nameWidth + barWidth + valueWidth;
const top = 72;
const widthOfHead = 560;
const title = 'Attention forward, float32, GFLOP/s: longer is faster';

const rounded = (value: number) => (value < 100 ? String(Number(value.toPrecision(2))) : value.toFixed(0));

export function drawPeers({ machine, names, rows }: PeersChart): string {
  const problems = [...new Map(rows.map(({ problem }) => [String(problem), problem])).values()];
  const threadCounts = [...new Set(rows.map(({ threads }) => threads))];
  const speeds = rows.flatMap(({ problem, milliseconds }) =>
    Object.values(milliseconds).map((ms = Number.POSITIVE_INFINITY) => gflopsOf(problem, ms)),
  );
  const most = Math.max(...speeds, Number.MIN_VALUE);
  const groupHeight = labelHeight + names.length * barHeight + groupGap;
  const chart = new BarChart(title, machine);
  const { left } = chart;
  const columnAt = (threads: number) => left + threadCounts.indexOf(threads) * columnWidth;
  for (const threads of threadCounts)
    chart.text(columnAt(threads), top - 8, `${threads} ${threads === 1 ? 'thread' : 'threads'}`, ' font-weight="bold"');

  for (const { problem, threads, milliseconds } of rows) {
    const x = columnAt(threads);
    const y = top + problems.findIndex((other) => String(other) === String(problem)) * groupHeight;
    const [batch, queries, keys, heads, dim, causal] = problem;
    const shape = `(${[...(batch > 1 ? [batch] : []), queries, keys, heads, dim].join(', ')})`;
    chart.text(x, y + labelHeight - 6, `${shape} ${causal ? 'causal' : 'full'}`);
    for (const [i, name] of names.entries()) {
      const at = y + labelHeight + i * barHeight;
      const ms = milliseconds[name];
      const speed = ms === undefined ? 0 : gflopsOf(problem, ms);
      const length = Number(((barWidth * speed) / most).toFixed(2));
      chart.text(x, at + 10, name, ' class="faint"');
      const kind = name === 'cpu' || name === 'wasm' ? 'good' : 'other';
      if (ms !== undefined) chart.bar(x + nameWidth, at + 1, length, barHeight - 2, kind);
      chart.text(x + nameWidth + length + 4, at + 10, ms === undefined ? '-' : rounded(speed), ' class="faint"');
    }
  }
  const width = Math.max(left + threadCounts.length * columnWidth + left, widthOfHead);
  return chart.draw(width, top + problems.length * groupHeight);
}
