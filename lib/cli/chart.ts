import { escapeXml } from '../base/text.js';

export interface Chart {
  readonly title: string;
  /** Of the values. */
  readonly unit: string;
  readonly series: readonly string[];
  /** For each series one value, in its order. */
  readonly groups: readonly { readonly label: string; readonly values: readonly number[] }[];
}

const colors = ['#2f6fb0', '#d9822b', '#4a9a5b', '#8a5cb8'];
const [plotHeight, barWidth, groupGap] = [240, 22, 28];
const [left, right, top, bottom] = [70, 30, 56, 64];

/** The smallest of 1, 2 or 5 times a power of ten that cuts `most` into five steps or fewer. */
function stepFor(most: number): number {
  const power = 10 ** Math.floor(Math.log10(most / 5));
  return power * ([1, 2, 5, 10].find((factor) => factor * power * 5 >= most) ?? 10);
}

const format = (value: number) => String(Number(value.toPrecision(3)));

/** Bars in groups, as SVG. */
export function drawChart({ title, unit, series, groups }: Chart): string {
  const most = Math.max(...groups.flatMap(({ values }) => values), Number.MIN_VALUE);
  const step = stepFor(most);
  const steps = Math.ceil(most / step);
  const y = (value: number) => Number((top + plotHeight * (1 - value / (steps * step))).toFixed(2));
  const groupWidth = series.length * barWidth + groupGap;
  const width = Math.max(left + groups.length * groupWidth + right, 420);
  const height = top + plotHeight + bottom;

  const shapes: string[] = [];
  const text = (x: number, at: number, content: string, attributes = '') =>
    shapes.push(`<text x="${x}" y="${at}" ${attributes}>${escapeXml(content)}</text>`);
  text(left, 22, title, 'font-size="14" font-weight="bold"');
  for (const [i, name] of series.entries()) {
    shapes.push(`<rect x="${left + i * 110}" y="34" width="11" height="11" fill="${colors[i % colors.length]}"/>`);
    text(left + i * 110 + 16, 44, name);
  }
  for (let i = 0; i <= steps; i++) {
    const at = y(i * step);
    shapes.push(`<line x1="${left}" y1="${at}" x2="${width - right}" y2="${at}" stroke="#ddd"/>`);
    text(left - 8, at + 4, format(i * step), 'text-anchor="end"');
  }
  text(16, top + plotHeight / 2, unit, `text-anchor="middle" transform="rotate(-90 16 ${top + plotHeight / 2})"`);
  for (const [g, { label, values }] of groups.entries()) {
    const x = left + g * groupWidth + groupGap / 2;
    for (const [i, value] of values.entries()) {
      const [at, base] = [y(value), y(0)];
      const bar = `x="${x + i * barWidth}" y="${at}" width="${barWidth - 2}" height="${Number((base - at).toFixed(2))}"`;
      const name = escapeXml(`${label}, ${series[i]}: ${format(value)} ${unit}`);
      shapes.push(`<rect ${bar} fill="${colors[i % colors.length]}"><title>${name}</title></rect>`);
    }
    const middle = x + (series.length * barWidth) / 2;
    const below = top + plotHeight + 16;
    text(middle, below, label, `text-anchor="end" transform="rotate(-25 ${middle} ${below})"`);
  }
  const open = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}"`;
  return [
    `${open} font-family="sans-serif" font-size="11" fill="#222">`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    ...shapes,
    '</svg>\n',
  ].join('\n');
}
