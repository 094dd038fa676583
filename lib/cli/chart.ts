import { colors, formatNumber, Plot, round } from '../base/svg.js';
import { escapeXml } from '../base/text.js';

export interface Chart {
  readonly title: string;
  /** Of the values. */
  readonly unit: string;
  readonly series: readonly string[];
  /** For each series one value, in its order. */
  readonly groups: readonly { readonly label: string; readonly values: readonly number[] }[];
}

const [barWidth, groupGap, leastWidth] = [22, 28, 320];

/** Bars in groups, as SVG. */
export function drawChart({ title, unit, series, groups }: Chart): string {
  const most = Math.max(...groups.flatMap(({ values }) => values), Number.MIN_VALUE);
  const groupWidth = series.length * barWidth + groupGap;
  const width = Math.max(groups.length * groupWidth, leastWidth);
  const plot = new Plot({ title, unit, series, range: [0, most], width });
  for (const [g, { label, values }] of groups.entries()) {
    const x = plot.left + g * groupWidth + groupGap / 2;
    for (const [i, value] of values.entries()) {
      const at = plot.y(value);
      const bar = `x="${x + i * barWidth}" y="${at}" width="${barWidth - 2}" height="${round(plot.base - at)}"`;
      const name = escapeXml(`${label}, ${series[i]}: ${formatNumber(value)} ${unit}`);
      plot.add(`<rect ${bar} fill="${colors[i % colors.length]}"><title>${name}</title></rect>`);
    }
    const middle = x + (series.length * barWidth) / 2;
    const below = plot.base + 16;
    plot.text(middle, below, label, `text-anchor="end" transform="rotate(-25 ${middle} ${below})"`);
  }
  return plot.toString();
}
