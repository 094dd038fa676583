import { escapeXml } from './text.js';

/** Of the series, in their order. */
export const colors = ['#2f6fb0', '#d9822b', '#4a9a5b', '#8a5cb8'];

const plotHeight = 240;
const margin = { left: 70, right: 30, top: 56, bottom: 64 };

/** The smallest of 1, 2 or 5 times a power of ten that cuts `range` into five steps or fewer. */
export function stepFor(range: number): number {
  const power = 10 ** Math.floor(Math.log10(range / 5));
  return power * ([1, 2, 5, 10].find((factor) => factor * power * 5 >= range) ?? 10);
}

export const formatNumber = (value: number) => String(Number(value.toPrecision(3)));

/** What stands beside a line of an axis: exact, for lines that are `step` apart. */
export const formatTick = (value: number, step: number) =>
  String(Number(value.toFixed(Math.min(100, Math.max(0, -Math.floor(Math.log10(step)))))));

/** Coordinates to a hundredth of a pixel. */
export const round = (pixels: number) => Number(pixels.toFixed(2));

export interface PlotOptions {
  readonly title: string;
  /** Of the values. */
  readonly unit: string;
  readonly series: readonly string[];
  /** What the values lie between, least < most. */
  readonly range: readonly [least: number, most: number];
  /** Of the plot itself, in pixels. */
  readonly width: number;
}

/** A title, a legend, and a vertical axis with its lines; what they are about is added by who draws it. */
export class Plot {
  readonly left = margin.left;
  readonly width: number;
  /** The pixels of the lower edge. */
  readonly base = margin.top + plotHeight;
  readonly #title: string;
  readonly #shapes: string[] = [];
  readonly #from: number;
  readonly #to: number;

  constructor({ title, unit, series, range: [least, most], width }: PlotOptions) {
    this.width = width;
    this.#title = title;
    const step = stepFor(most - least);
    const [first, last] = [Math.floor(least / step), Math.ceil(most / step)];
    [this.#from, this.#to] = [first * step, last * step];
    this.text(margin.left, 22, title, 'font-size="14" font-weight="bold"');
    for (const [i, name] of series.entries()) {
      this.add(
        `<rect x="${margin.left + i * 110}" y="34" width="11" height="11" fill="${colors[i % colors.length]}"/>`,
      );
      this.text(margin.left + i * 110 + 16, 44, name);
    }
    for (let i = first; i <= last; i++) {
      const at = this.y(i * step);
      this.add(`<line x1="${margin.left}" y1="${at}" x2="${margin.left + width}" y2="${at}" stroke="#ddd"/>`);
      this.text(margin.left - 8, at + 4, formatTick(i * step, step), 'text-anchor="end"');
    }
    const middle = margin.top + plotHeight / 2;
    this.text(16, middle, unit, `text-anchor="middle" transform="rotate(-90 16 ${middle})"`);
  }

  /** Where a value is, in pixels. */
  y(value: number): number {
    return round(margin.top + plotHeight * (1 - (value - this.#from) / (this.#to - this.#from)));
  }

  add(shape: string): void {
    this.#shapes.push(shape);
  }

  text(x: number, y: number, content: string, attributes = ''): void {
    this.add(`<text x="${x}" y="${y}" ${attributes}>${escapeXml(content)}</text>`);
  }

  toString(): string {
    const [width, height] = [margin.left + this.width + margin.right, this.base + margin.bottom];
    const open = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}"`;
    return [
      `${open} font-family="sans-serif" font-size="11" fill="#222">`,
      `<title>${escapeXml(this.#title)}</title>`,
      `<rect width="${width}" height="${height}" fill="#fff"/>`,
      ...this.#shapes,
      '</svg>\n',
    ].join('\n');
  }
}
