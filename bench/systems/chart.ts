// The results of bench/systems as SVG: a row for each system, a column for each length, in which a bar goes to the right
// where the system is faster than dense attention of the same shapes and to the left where it is slower.
import { escapeXml } from '../../lib/base/text.js';

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

const [rowHeight, top, left] = [16, 84, 16];
const [nameWidth, columnWidth, powerWidth, memoryWidth] = [176, 112, 64, 64];
/** Where a bar ends: so many times as fast, or as slow. */
const most = 64;
const barWidth = 36;
const widthOfHead = 720;
const title = 'Systems beside dense attention, forward and backward: to the right, so many times as fast';

/** Legible on both grounds, which an image viewer chooses by the scheme of its system. */
const style = `<style>
svg { font: 11px sans-serif; fill: #1f2328 }
.ground { fill: #fff } .faint { fill: #59636e } .axis { stroke: #d0d7de } .faster { fill: #2f6fb0 } .slower { fill: #b8792a }
@media (prefers-color-scheme: dark) {
svg { fill: #e6edf3 }
.ground { fill: #0d1117 } .faint { fill: #9198a1 } .axis { stroke: #3d444d } .faster { fill: #58a6ff } .slower { fill: #d29a4a }
}
</style>`;

const short = (ratio: number) => (ratio < 10 ? ratio.toFixed(ratio < 1 ? 2 : 1) : ratio.toFixed(0));

/** Draws what `npm run bench:systems -- --json` has written; those that grow least come first. */
export function drawSystems({ machine, systems }: SystemsChart): string {
  const lengths = [...new Set(systems.flatMap(({ rows }) => rows.map(({ length }) => length)))].sort((a, b) => a - b);
  const power = ({ exponents }: SystemsChart['systems'][number]) => exponents.both ?? Number.POSITIVE_INFINITY;
  const sorted = systems.filter(({ rows }) => rows.length > 0).toSorted((a, b) => power(a) - power(b));
  const columnAt = (i: number) => left + nameWidth + i * columnWidth;
  const width = Math.max(columnAt(lengths.length) + powerWidth + memoryWidth + left, widthOfHead);
  const height = top + sorted.length * rowHeight + 12;

  const shapes: string[] = [];
  const text = (x: number, y: number, content: string, attributes = '') =>
    shapes.push(`<text x="${x}" y="${y}"${attributes}>${escapeXml(content)}</text>`);
  text(left, 24, title, ' font-size="14" font-weight="bold"');
  text(left, 42, machine, ' class="faint"');
  const headed = ' font-weight="bold"';
  for (const [i, length] of lengths.entries()) text(columnAt(i), top - 12, length.toLocaleString('en'), headed);
  text(columnAt(lengths.length), top - 12, 'time', headed);
  text(columnAt(lengths.length) + powerWidth, top - 12, 'memory', headed);

  for (const [i] of lengths.entries()) {
    const middle = columnAt(i) + barWidth;
    shapes.push(`<path class="axis" d="M${middle} ${top - 4}V${height - 8}"/>`);
  }
  for (const [at, { name, rows, exponents }] of sorted.entries()) {
    const y = top + at * rowHeight;
    text(left, y + 11, name);
    for (const { length, bothRatio } of rows) {
      const middle = columnAt(lengths.indexOf(length)) + barWidth;
      const share = Math.min(1, Math.abs(Math.log(bothRatio)) / Math.log(most));
      const size = Number((share * barWidth).toFixed(2));
      const isFaster = bothRatio >= 1;
      const bar = `x="${isFaster ? middle : middle - size}" y="${y + 2}" width="${size}" height="${rowHeight - 4}"`;
      shapes.push(`<rect ${bar} class="${isFaster ? 'faster' : 'slower'}"/>`);
      text(middle + barWidth + 4, y + 11, short(bothRatio), ' class="faint"');
    }
    const { both } = exponents;
    text(columnAt(lengths.length), y + 11, both === undefined ? '-' : `N^${both.toFixed(2)}`);
    const memory = rows.findLast((row) => row.memory !== undefined)?.memory;
    text(
      columnAt(lengths.length) + powerWidth,
      y + 11,
      memory === undefined ? '-' : memory.toFixed(1),
      ' class="faint"',
    );
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">`,
    `<title>${title}</title>`,
    style,
    `<rect width="${width}" height="${height}" class="ground"/>`,
    ...shapes,
    '</svg>\n',
  ].join('\n');
}
