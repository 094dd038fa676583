// What charts of horizontal bars share: a title, the machine, text, and the two kinds of bars, as SVG.
import { escapeXml } from '../lib/base/text.js';

/** Legible on both grounds, which an image viewer chooses by the scheme of its system. */
const style = `<style>
svg { font: 11px sans-serif; fill: #1f2328 }
.ground { fill: #fff } .faint { fill: #59636e } .axis { stroke: #d0d7de } .good { fill: #2f6fb0 } .other { fill: #b8792a }
@media (prefers-color-scheme: dark) {
svg { fill: #e6edf3 }
.ground { fill: #0d1117 } .faint { fill: #9198a1 } .axis { stroke: #3d444d } .good { fill: #58a6ff } .other { fill: #d29a4a }
}
</style>`;

const left = 16;

export class BarChart {
  readonly left = left;
  readonly #shapes: string[] = [];

  constructor(
    readonly title: string,
    machine: string,
  ) {
    this.text(left, 24, title, ' font-size="14" font-weight="bold"');
    this.text(left, 42, machine, ' class="faint"');
  }

  text(x: number, y: number, content: string, attributes = ''): void {
    this.#shapes.push(`<text x="${x}" y="${y}"${attributes}>${escapeXml(content)}</text>`);
  }

  bar(x: number, y: number, width: number, height: number, kind: 'good' | 'other'): void {
    this.#shapes.push(`<rect x="${x}" y="${y}" width="${width}" height="${height}" class="${kind}"/>`);
  }

  /** A vertical line. */
  axis(x: number, from: number, to: number): void {
    this.#shapes.push(`<path class="axis" d="M${x} ${from}V${to}"/>`);
  }

  /** The document, wide enough for its title. */
  draw(width: number, height: number): string {
    return [
      `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">`,
      `<title>${this.title}</title>`,
      style,
      `<rect width="${width}" height="${height}" class="ground"/>`,
      ...this.#shapes,
      '</svg>\n',
    ].join('\n');
  }
}
