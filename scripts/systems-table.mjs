// Writes docs/systems.md from the catalogue of `flashattn systems`. Run after a build: npm run gallery
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const link = (paper) =>
  paper.replaceAll(/\b(\d{4}\.\d{5})\b/g, '[$1](https://arxiv.org/abs/$1)').replaceAll('arXiv:', 'arXiv ');

const code = (text) => `\`${text}\``;

const pointOf = (point) => (point === 'flashattn' ? '' : ` of ${code(point)}`);

const importOf = ({ imports }) =>
  Object.entries(imports)
    .map(([point, names]) => `${names.map(code).join(', ')}${pointOf(point)}`)
    .join('; ');

const runsOf = ({ runs, because }) =>
  runs.length === 0 ? 'composition' : `${runs.map(code).join(', ')}${because === undefined ? '' : ', in part'}`;

const filesOf = ({ golden }) => {
  const count = Object.values(golden).reduce((a, b) => a + b, 0);
  return count > 0 ? count : 'none';
};

const pictureOf = ({ picture, title }) =>
  picture === undefined ? '' : `<img src="${picture}" alt="${title}" width="96">`;

/** A cell: a bar would end it. */
const cell = (text) => `${text}`.replaceAll('|', '\\|');

const rowOf = (system) =>
  [
    `${system.title}, ${code(system.name)}`,
    [link(system.paper), system.year].filter(Boolean).join(', '),
    importOf(system),
    runsOf(system),
    system.cost,
    filesOf(system),
    pictureOf(system),
  ].map(cell);

function tableOf({ title, about, systems }) {
  const pictures = systems.some(({ picture }) => picture !== undefined);
  const heads = ['system', 'paper', 'import', 'what runs', 'cost', 'golden', ...(pictures ? ['picture'] : [])];
  const rows = [heads, heads.map(() => '---'), ...systems.map((system) => rowOf(system).slice(0, heads.length))];
  return `## ${title}\n\n${about}\n\n${rows.map((row) => `| ${row.join(' | ')} |`).join('\n')}\n`;
}

/** A reason that systems share is said once. */
function reasons(systems) {
  const byReason = new Map();
  for (const { title, because } of systems) byReason.set(because, [...(byReason.get(because) ?? []), `**${title}**`]);
  return [...byReason].map(([because, titles]) => `- ${titles.join('; ')}: ${because}`).join('\n');
}

const anchorOf = (title) =>
  title
    .toLowerCase()
    .replaceAll(' ', '-')
    .replaceAll(/[^\w-]/g, '');

/** docs/systems.md, from what `flashattn systems --json` prints. */
export function systemsPage(families) {
  const systems = families.flatMap((family) => family.systems);
  const compositions = systems.filter(({ runs }) => runs.length === 0);
  const inPart = systems.filter(({ runs, because }) => runs.length > 0 && because !== undefined);
  const files = systems.reduce((sum, system) => sum + Object.values(system.golden).reduce((a, b) => a + b, 0), 0);
  const contents = families.map(
    ({ title, systems: members }) =>
      `| [${title}](#${anchorOf(title)}) | ${members.map(({ name }) => name).join(', ')} |`,
  );
  return `# Attention systems

${systems.length} systems. \`npx flashattn systems\` prints these tables, \`npx flashattn systems <name>\` the formula, the options
and an example of one that runs. This page is made of the same list by \`npm run gallery\`.

| family | systems |
| --- | --- |
${contents.join('\n')}

- **import**: of \`flashattn\`, where nothing else is said. Names that begin with a capital are modules. They
  have gradients, by the tape; what has none is a choice (of keys, buckets or clusters), \`knn\`, and what \`kivi\` and
  \`sage-attention\` quantise.
- **what runs**: which kernels of this package carry the work: \`attention\` (fused: never a matrix of all pairs),
  \`headMixing\` (the same with all heads of a pair at once), \`recurrence\` (a state that is carried along, in chunks) or a scan. "Composition": none of them does, see
  [below](#where-no-kernel-of-ours-carries-the-work).
- **cost**: multiply-adds of one head without constants, for N positions and head dim D. Names of other quantities are
  those of the options. Costs "in blocks" follow the blocks of 64 or 128 tokens that have a visible pair.
- **golden**: how many files of results of the original implementations or of the paper's equations, forward and every
  gradient, the system passes: ${files} in all. The small ones are in \`verify/golden/vectors\`, and run with the tests.

${families.map(tableOf).join('\n')}
## Where no kernel of ours carries the work

A composition is made of differentiable operations, each a kernel on the device, one after the other: products of matrices,
softmax, arithmetic. It has the gradients and devices of all others, and not the speed or the memory of a fused kernel.

${reasons(compositions)}

In part:

${reasons(inPart)}
`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url));
  const families = JSON.parse(execFileSync(process.execPath, [cli, 'systems', '--json'], { encoding: 'utf8' }));
  writeFileSync(new URL('../docs/systems.md', import.meta.url), systemsPage(families));
  console.log(`docs/systems.md: ${families.flatMap(({ systems }) => systems).length} systems`);
}
