// Draws every named pattern into docs/masks/ and lists them in docs/masks.md. Run after a build: npm run gallery
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { blockMask, patterns } from 'flashattn';

const length = 1024;
const docs = new URL('../docs/', import.meta.url);
rmSync(new URL('masks/', docs), { recursive: true, force: true });
mkdirSync(new URL('masks/', docs), { recursive: true });

const sections = patterns.gallery.map(({ name, title, make }) => {
  const mask = blockMask(make(length), { nq: length });
  writeFileSync(new URL(`masks/${name}.svg`, docs), mask.toSVG({ title }));
  const { density, blockDensity } = mask.statistics();
  const percent = (x) => `${(100 * x).toFixed(1)} %`;
  return `## ${title}

![${title}](masks/${name}.svg)

\`npx flashattn mask ${name} --seq ${length}\`: ${percent(density)} of the pairs visible, ${percent(1 - blockDensity)} of the FLOPs saved.
`;
});

writeFileSync(
  new URL('masks.md', docs),
  `# Attention patterns

Every named pattern at ${length} tokens, in blocks of 64. Made by \`npm run gallery\`; draw your own with
\`npx flashattn mask <name> --svg out.svg\`, or any mask with \`blockMask(mask, { nq }).toSVG()\`.
[All systems](systems.md), these and others, with their papers and costs.

${sections.join('\n')}`,
);
console.log(`docs/masks.md: ${sections.length} patterns`);
