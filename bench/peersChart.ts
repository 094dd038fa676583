// The table of bench/peers.ts as SVG: a part for each problem, a column for each number of threads, a bar for each library.
import { escapeXml } from '../lib/base/text.js';
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
const [left, nameWidth, barWidth, valueWidth] = [16, 64, 240, 60];
const columnWidth = nameWidth + barWidth + valueWidth;
const top = 72;
const widthOfHead = 560;
const title = 'Attention forward, float32, GFLOP/s: longer is faster';

/** Legible on both grounds, which an image viewer chooses by the scheme of its system. */
const style = `<style>
svg { font: 11px sans-serif; fill: #1f2328 }
.ground { fill: #fff } .faint { fill: #59636e } .own { fill: #2f6fb0 } .peer { fill: #b8792a }
@media (prefers-color-scheme: dark) {
svg { fill: #e6edf3 }
.ground { fill: #0d1117 } .faint { fill: #9198a1 } .own { fill: #58a6ff } .peer { fill: #d29a4a }
}
</style>`;

const rounded = (value: number) => (value < 100 ? String(Number(value.toPrecision(2))) : value.toFixed(0));

export function drawPeers({ machine, names, rows }: PeersChart): string {
  const problems = [...new Map(rows.map(({ problem }) => [String(problem), problem])).values()];
  const threadCounts = [...new Set(rows.map(({ threads }) => threads))];
  const speeds = rows.flatMap(({ problem, milliseconds }) =>
    Object.values(milliseconds).map((ms = Number.POSITIVE_INFINITY) => gflopsOf(problem, ms)),
  );
  const most = Math.max(...speeds, Number.MIN_VALUE);
  const groupHeight = labelHeight + names.length * barHeight + groupGap;
  const width = Math.max(left + threadCounts.length * columnWidth + left, widthOfHead);
  const height = top + problems.length * groupHeight;

  const shapes: string[] = [];
  const text = (x: number, y: number, content: string, attributes = '') =>
    shapes.push(`<text x="${x}" y="${y}"${attributes}>${escapeXml(content)}</text>`);
  text(left, 24, title, ' font-size="14" font-weight="bold"');
  text(left, 42, machine, ' class="faint"');
  const columnAt = (threads: number) => left + threadCounts.indexOf(threads) * columnWidth;
  for (const threads of threadCounts)
    text(columnAt(threads), top - 8, `${threads} ${threads === 1 ? 'thread' : 'threads'}`, ' font-weight="bold"');

  for (const { problem, threads, milliseconds } of rows) {
    const x = columnAt(threads);
    const y = top + problems.findIndex((other) => String(other) === String(problem)) * groupHeight;
    const [batch, queries, keys, heads, dim, causal] = problem;
    const shape = `(${[...(batch > 1 ? [batch] : []), queries, keys, heads, dim].join(', ')})`;
    text(x, y + labelHeight - 6, `${shape} ${causal ? 'causal' : 'full'}`);
    for (const [i, name] of names.entries()) {
      const at = y + labelHeight + i * barHeight;
      const ms = milliseconds[name];
      const speed = ms === undefined ? 0 : gflopsOf(problem, ms);
      const length = Number(((barWidth * speed) / most).toFixed(2));
      text(x, at + 10, name, ' class="faint"');
      const kind = name === 'cpu' || name === 'wasm' ? 'own' : 'peer';
      const bar = `x="${x + nameWidth}" y="${at + 1}" width="${length}" height="${barHeight - 2}"`;
      if (ms !== undefined) shapes.push(`<rect ${bar} class="${kind}"/>`);
      text(x + nameWidth + length + 4, at + 10, ms === undefined ? '-' : rounded(speed), ' class="faint"');
    }
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
