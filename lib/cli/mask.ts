import { writeFileSync } from 'node:fs';
import { blockMask } from '../blockmask/build.js';
import { gallery } from '../patterns/gallery.js';
import { formatTable, readFlags, readIntegers, UsageError } from './usage.js';

/** `flashattn mask` */
export async function maskCommand([name, ...args]: string[]): Promise<number> {
  if (name === undefined) {
    console.log(formatTable(gallery.map((pattern) => [pattern.name, pattern.title])));
    return 0;
  }
  const pattern = gallery.find((entry) => entry.name === name.toLowerCase().replaceAll(/[-_]/g, ''));
  if (!pattern) throw new UsageError(`there is no pattern '${name}'; \`flashattn mask\` lists them`);
  const flags = readFlags(args, {
    seq: { type: 'string', default: '1024' },
    block: { type: 'string', default: '64' },
    head: { type: 'string', default: '0' },
    svg: { type: 'string' },
  });
  const [length] = readIntegers(flags.seq, '--seq', 1);
  const [blockSize] = readIntegers(flags.block, '--block', 1);
  const [head] = readIntegers(flags.head, '--head', 1);
  const mask = blockMask(pattern.make(length), { nq: length, blockSize: blockSize as 64 | 128 });
  const drawing = { head, title: pattern.title };
  if (flags.svg === undefined) {
    console.log(mask.toText({ ...drawing, columns: process.stdout.columns ?? 80 }));
  } else {
    writeFileSync(flags.svg, mask.toSVG(drawing));
    console.log(flags.svg);
  }
  return 0;
}
