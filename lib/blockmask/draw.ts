import { checkInteger, checkOptions, checkString } from '../base/check.js';
import { shapeError } from '../base/errors.js';
import { escapeXml } from '../base/text.js';
import { countBits } from '../masks/mask.js';
import type { Drawable } from './parts.js';

export interface DrawOptions {
  /** Default 0. */
  readonly batch?: number;
  /** Default 0. */
  readonly head?: number;
  readonly title?: string;
}

/** How much of each block is visible, 0 to 1: [rows][columns]. Blocks with a single visible pair are above 0. */
function blockShares(mask: Drawable, { batch = 0, head = 0 }: DrawOptions): Float64Array[] {
  checkInteger(batch, 'batch', 0);
  checkInteger(head, 'head', 0);
  if (batch >= mask.batch || head >= mask.heads)
    throw shapeError(
      `the mask has ${mask.batch} batch entries and ${mask.heads} heads; (${batch}, ${head}) is none of them`,
    );
  const { blockSize, queries, keys, full, partial, bits, wordsPerBlock } = mask;
  return Array.from({ length: mask.rows }, (_, row) => {
    const list = mask.listOf(batch, head, row);
    const shares = new Float64Array(mask.columns);
    for (let at = full.offsets[list]; at < full.offsets[list + 1]; at++) shares[full.indices[at]] = 1;
    for (let at = partial.offsets[list]; at < partial.offsets[list + 1]; at++) {
      const column = partial.indices[at];
      const height = Math.min(blockSize, queries - row * blockSize);
      const width = Math.min(blockSize, keys - column * blockSize);
      const visible = countBits(bits.subarray(at * wordsPerBlock, (at + 1) * wordsPerBlock));
      // A partial block is never quite full, however the division rounds.
      shares[column] = Math.min(visible / (height * width), 1 - Number.EPSILON);
    }
    return shares;
  });
}

/** One line of numbers: what a drawing is about. */
function describeMask(mask: Drawable): string {
  const s = mask.statistics();
  const percent = (x: number) => `${(100 * x).toFixed(1)} %`;
  return (
    `${mask.queries} x ${mask.keys}, blocks of ${mask.blockSize}: ${s.fullBlocks} full, ${s.partialBlocks} partial, ${s.emptyBlocks} empty; ` +
    `${percent(s.density)} of the pairs visible, ${percent(1 - s.blockDensity)} of the FLOPs saved`
  );
}

/** Joins blocks until at most `most` columns are left; a cell is full (empty) when all of its blocks are. */
function shrink(shares: readonly Float64Array[], most: number): Float64Array[] {
  const columns = shares[0]?.length ?? 0;
  const step = Math.max(1, Math.ceil(columns / most));
  if (step === 1) return [...shares];
  return Array.from({ length: Math.ceil(shares.length / step) }, (_, row) =>
    Float64Array.from({ length: Math.ceil(columns / step) }, (_, column) => {
      const cells = shares
        .slice(row * step, (row + 1) * step)
        .flatMap((line) => [...line.subarray(column * step, (column + 1) * step)]);
      return cells.reduce((a, b) => a + b, 0) / cells.length;
    }),
  );
}

/** A drawing in characters, two for each block: full, partial and empty. */
export function drawText(mask: Drawable, options: DrawOptions & { readonly columns?: number } = {}): string {
  checkOptions(options, ['batch', 'head', 'title', 'columns']);
  const { title = '', columns = 80 } = options;
  checkString(title, 'title');
  const shares = shrink(blockShares(mask, options), Math.floor(checkInteger(columns, 'columns', 2) / 2));
  const cell = (share: number) => (share === 1 ? '██' : share > 0 ? '▒▒' : '··');
  const lines = shares.map((row) => Array.from(row, cell).join(''));
  const legend = '██ full   ▒▒ partial   ·· empty   (rows: queries, columns: keys)';
  return [...(title ? [title] : []), ...lines, legend, describeMask(mask)].join('\n');
}

const colours = { full: '#1b6ca8', partial: '#8cc3e8', empty: '#f3f5f7', ink: '#22303c' } as const;

/** Squares of one colour as one path. */
function squares(
  shares: readonly Float64Array[],
  side: number,
  top: number,
  wanted: (share: number) => boolean,
): string {
  let path = '';
  for (const [row, line] of shares.entries())
    for (const [column, share] of line.entries())
      if (wanted(share)) path += `M${column * side} ${top + row * side}h${side}v${side}h-${side}z`;
  return path;
}

/** A picture: full, partial and empty blocks, a legend and the numbers. Self-contained SVG. */
export function drawSvg(mask: Drawable, options: DrawOptions = {}): string {
  checkOptions(options, ['batch', 'head', 'title']);
  const { title = '' } = options;
  checkString(title, 'title');
  const shares = shrink(blockShares(mask, options), 128);
  const columns = shares[0]?.length ?? 1;
  const side = Math.max(3, Math.floor(384 / Math.max(columns, shares.length)));
  const top = title ? 26 : 4;
  const [width, height] = [Math.max(384, columns * side), shares.length * side];
  const bottom = top + height;
  const font = 'font-family="system-ui, sans-serif"';
  const legend = (['full', 'partial', 'empty'] as const)
    .map(
      (name, n) =>
        `<rect x="${n * 90}" y="${bottom + 10}" width="12" height="12" fill="${colours[name]}" stroke="${colours.ink}" stroke-width="0.5"/>` +
        `<text x="${n * 90 + 18}" y="${bottom + 20}">${name}</text>`,
    )
    .join('');
  const [geometry, numbers] = describeMask(mask).split('; ') as [string, string];
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 0 ${width + 16} ${bottom + 66}" width="${width + 16}" height="${bottom + 66}" ${font} font-size="12" fill="${colours.ink}">
<title>${escapeXml(title || 'Block mask')}</title>
${title ? `<text x="0" y="17" font-size="15" font-weight="600">${escapeXml(title)}</text>` : ''}
<rect x="0" y="${top}" width="${columns * side}" height="${height}" fill="${colours.empty}"/>
<path fill="${colours.partial}" d="${squares(shares, side, top, (share) => share > 0 && share < 1)}"/>
<path fill="${colours.full}" d="${squares(shares, side, top, (share) => share === 1)}"/>
<rect x="0" y="${top}" width="${columns * side}" height="${height}" fill="none" stroke="${colours.ink}" stroke-width="0.75"/>
${legend}
<text x="0" y="${bottom + 42}">${escapeXml(geometry)}</text>
<text x="0" y="${bottom + 58}">${escapeXml(numbers)}</text>
</svg>
`;
}
