// Step times along a size as SVG, both axes logarithmic.
import { colors, formatNumber, round } from '../../lib/base/svg.js';
import { escapeXml } from '../../lib/base/text.js';

export interface LinesChart {
  readonly title: string;
  readonly subtitle: string;
  /** Of the horizontal axis. */
  readonly label: string;
  readonly unit: string;
  readonly lines: readonly { readonly name: string; readonly points: readonly (readonly [x: number, y: number])[] }[];
}

const [left, top, plotWidth, plotHeight, right, bottom] = [64, 62, 420, 280, 110, 48];

/** Powers of ten within a range, and the range rounded up to them. */
function decades(values: readonly number[]): number[] {
  const [from, to] = [Math.floor(Math.log10(Math.min(...values))), Math.ceil(Math.log10(Math.max(...values)))];
  return Array.from({ length: Math.max(1, to - from) + 1 }, (_, i) => 10 ** (from + i));
}

export function drawLines({ title, subtitle, label, unit, lines }: LinesChart): string {
  const xs = [...new Set(lines.flatMap(({ points }) => points.map(([x]) => x)))].toSorted((a, b) => a - b);
  const [leastX, mostX] = [xs[0] ?? 1, xs.at(-1) ?? 10];
  const ticks = decades(lines.flatMap(({ points }) => points.map(([, y]) => y)));
  const [leastY, mostY] = [ticks[0] as number, ticks.at(-1) as number];
  const part = (value: number, least: number, most: number) => Math.log(value / least) / Math.log(most / least || 10);
  const atX = (x: number) => round(left + plotWidth * (mostX > leastX ? part(x, leastX, mostX) : 0.5));
  const atY = (y: number) => round(top + plotHeight * (1 - part(y, leastY, mostY)));

  const shapes: string[] = [];
  const text = (x: number, y: number, content: string, attributes = '') =>
    shapes.push(`<text x="${x}" y="${y}" ${attributes}>${escapeXml(content)}</text>`);
  text(16, 22, title, 'font-size="14" font-weight="bold"');
  text(16, 40, subtitle, 'fill="#666"');
  const base = top + plotHeight;
  for (const tick of ticks) {
    shapes.push(`<line x1="${left}" y1="${atY(tick)}" x2="${left + plotWidth}" y2="${atY(tick)}" stroke="#ddd"/>`);
    text(left - 8, atY(tick) + 4, formatNumber(tick), 'text-anchor="end"');
  }
  for (const x of xs) text(atX(x), base + 18, formatNumber(x), 'text-anchor="middle"');
  text(left + plotWidth / 2, base + 36, label, 'text-anchor="middle"');
  const middle = top + plotHeight / 2;
  text(16, middle, unit, `text-anchor="middle" transform="rotate(-90 16 ${middle})"`);
  for (const [i, { name, points }] of lines.entries()) {
    const color = colors[i % colors.length];
    const path = points.map(([x, y]) => `${atX(x)},${atY(y)}`).join(' ');
    shapes.push(`<polyline points="${path}" fill="none" stroke="${color}" stroke-width="2"/>`);
    for (const [x, y] of points)
      shapes.push(
        `<circle cx="${atX(x)}" cy="${atY(y)}" r="3" fill="${color}"><title>${escapeXml(`${name}: ${formatNumber(y)} ${unit} at ${formatNumber(x)}`)}</title></circle>`,
      );
    const last = points.at(-1);
    if (last) text(left + plotWidth + 10, atY(last[1]) + 4, name, `fill="${color}"`);
  }
  const [width, height] = [left + plotWidth + right, base + bottom];
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="sans-serif" font-size="11" fill="#222">`,
    `<title>${escapeXml(title)}</title>`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    ...shapes,
    '</svg>\n',
  ].join('\n');
}
