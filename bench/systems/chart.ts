// The results of bench/systems as SVG: a row for each system, a column for each length, in which a bar goes to the right
// where the system is faster than dense attention of the same shapes and to the left where it is slower.
import { BarChart } from '../barChart.js';

export interface SystemsChart {
  readonly machine: string;
  readonly systems: readonly {
    readonly name: string;
    readonly rows: readonly {
      readonly length: number;
      /** How many times as fast as dense attention, forward and backward. */
      readonly bothRatio: number;
      readonly memory?: number | undefined;
    }[];
    readonly exponents: { readonly both?: number | undefined };
  }[];
}

const [rowHeight, top] = [16, 84];
const [nameWidth, columnWidth, powerWidth, memoryWidth] = [176, 112, 64, 64];
/** Where a bar ends: so many times as fast, or as slow. */
const most = 64;
const barWidth = 36;
const widthOfHead = 720;
const title = 'Systems beside dense attention, forward and backward: to the right, so many times as fast';

const short = (ratio: number) => (ratio < 10 ? ratio.toFixed(ratio < 1 ? 2 : 1) : ratio.toFixed(0));

/** Draws what `npm run bench:systems -- --json` has written; those that grow least come first. */
export function drawSystems({ machine, systems }: SystemsChart): string {
  const lengths = [...new Set(systems.flatMap(({ rows }) => rows.map(({ length }) => length)))].sort((a, b) => a - b);
  const power = ({ exponents }: SystemsChart['systems'][number]) => exponents.both ?? Number.POSITIVE_INFINITY;
  const sorted = systems.filter(({ rows }) => rows.length > 0).toSorted((a, b) => power(a) - power(b));
  const chart = new BarChart(title, machine);
  const { left } = chart;
  const columnAt = (i: number) => left + nameWidth + i * columnWidth;
  const width = Math.max(columnAt(lengths.length) + powerWidth + memoryWidth + left, widthOfHead);
  const height = top + sorted.length * rowHeight + 12;

  const headed = ' font-weight="bold"';
  for (const [i, length] of lengths.entries()) chart.text(columnAt(i), top - 12, length.toLocaleString('en'), headed);
  chart.text(columnAt(lengths.length), top - 12, 'time', headed);
  chart.text(columnAt(lengths.length) + powerWidth, top - 12, 'memory', headed);

  for (const i of lengths.keys()) chart.axis(columnAt(i) + barWidth, top - 4, height - 8);
  for (const [at, { name, rows, exponents }] of sorted.entries()) {
    const y = top + at * rowHeight;
    chart.text(left, y + 11, name);
    for (const { length, bothRatio } of rows) {
      const middle = columnAt(lengths.indexOf(length)) + barWidth;
      const share = Math.min(1, Math.abs(Math.log(bothRatio)) / Math.log(most));
      const size = Number((share * barWidth).toFixed(2));
      const isFaster = bothRatio >= 1;
      chart.bar(isFaster ? middle : middle - size, y + 2, size, rowHeight - 4, isFaster ? 'good' : 'other');
      chart.text(middle + barWidth + 4, y + 11, short(bothRatio), ' class="faint"');
    }
    const { both } = exponents;
    chart.text(columnAt(lengths.length), y + 11, both === undefined ? '-' : `N^${both.toFixed(2)}`);
    const memory = rows.findLast((row) => row.memory !== undefined)?.memory;
    chart.text(
      columnAt(lengths.length) + powerWidth,
      y + 11,
      memory === undefined ? '-' : memory.toFixed(1),
      ' class="faint"',
    );
  }
  return chart.draw(width, height);
}
