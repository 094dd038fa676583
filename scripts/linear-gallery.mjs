// Draws docs/linear/: what decays and updates leave of what was written at each earlier position, as the engine computes it,
// and who meets whom in each of its forms. Run after a build: npm run gallery
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { recurrence, tensor } from 'flashattn';

const length = 24;
const side = 7;
const size = length * side;
const [across, down] = [size + 28, size + 66];
const colours = { full: '#1b6ca8', partial: '#8cc3e8', empty: '#f3f5f7', ink: '#22303c', line: '#c8d0d8' };
const device = 'wasm';

const filled = (shape, value) =>
  tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => value(i)),
    shape,
    { device },
  );

/**
 * weights[t][s]: how much of the value of position s is in the result of position t. Values are the rows of an identity matrix,
 * so that results are weights.
 *
 * @param keys the key of each position, of which there are `dims`, all at right angles
 * @param query the key that all positions ask for
 */
function weightsOf({ keys = () => 0, dims = 1, query = 0, decay, beta, bonus, normalizer = false }) {
  const rows = [1, length, 1];
  const options = {
    scale: 1,
    normalizer,
    ...(decay && {
      decay: { per: 'channel', log: filled([...rows, dims], (i) => Math.log(decay(Math.floor(i / dims)))) },
    }),
    ...(bonus !== undefined && { bonus: filled([1, dims], () => bonus) }),
    ...(beta !== undefined && { update: { kind: 'delta', beta: filled(rows, () => beta) } }),
  };
  // The delta rule has decays by position.
  if (decay && beta !== undefined) options.decay = { per: 'position', log: filled(rows, (t) => Math.log(decay(t))) };
  const q = filled([...rows, dims], (i) => (i % dims === query ? 1 : 0));
  const k = filled([...rows, dims], (i) => (i % dims === keys(Math.floor(i / dims)) ? 1 : 0));
  const v = filled([...rows, length], (i) => (i % (length + 1) === 0 ? 1 : 0));
  const { out, normalizer: sums } = recurrence(q, k, v, options);
  const [values, divisors] = [out.toFloat32Sync(), sums?.toFloat32Sync()];
  return Array.from({ length }, (_, t) =>
    Array.from({ length: t + 1 }, (_, s) => values[t * length + s] / (divisors?.[t] ?? 1)),
  );
}

const mixed = (share) => {
  const [from, to] = [colours.empty, colours.full].map((c) =>
    [1, 3, 5].map((i) => Number.parseInt(c.slice(i, i + 2), 16)),
  );
  return `#${from.map((a, i) => Math.round(a + share * (to[i] - a)).toString(16).padStart(2, '0')).join('')}`; // biome-ignore format: a line
};

/** Squares of one colour are one path. */
function squares(weights, colourOf) {
  const paths = new Map();
  for (const [t, row] of weights.entries())
    for (const [s, weight] of row.entries()) {
      const colour = colourOf(weight);
      paths.set(colour, `${paths.get(colour) ?? ''}M${s * side} ${t * side}h${side}v${side}h-${side}z`);
    }
  return [...paths].map(([colour, d]) => `<path fill="${colour}" d="${d}" shape-rendering="crispEdges"/>`).join('');
}

/** In 32 steps. */
const shade = (weight) => mixed(Math.round(32 * Math.min(1, Math.max(0, weight))) / 32);

function panel({ title, note, weights, colourOf = shade, letters = '' }, column, row) {
  const heads = [...letters]
    .map((c, s) => `<text x="${(s + 0.5) * side}" y="-3" font-size="7" text-anchor="middle">${c}</text>`)
    .join('');
  return `<g transform="translate(${column * across} ${row * down + 44})">
<text x="0" y="-28" font-size="13" font-weight="600">${title}</text>
<text x="0" y="-13">${note}</text>
${heads}<path fill="none" stroke="${colours.line}" d="M0 0h${size}v${size}"/>
${squares(weights, colourOf)}
</g>`;
}

function draw(name, title, rows, footer) {
  const columns = Math.max(...rows.map((row) => row.length));
  const [width, height] = [columns * across - 12, rows.length * down + 16];
  const panels = rows.flatMap((row, y) => row.map((each, x) => panel(each, x, y)));
  writeFileSync(
    new URL(`${name}.svg`, folder),
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 0 ${width + 16} ${height}" width="${width + 16}" height="${height}" font-family="system-ui, sans-serif" font-size="11" fill="${colours.ink}">
<title>${title}</title>
<rect x="-8" y="0" width="${width + 16}" height="${height}" fill="#ffffff"/>
${panels.join('\n')}
${footer(height - 12)}
</svg>
`,
  );
}

const legend = (entries) => (y) =>
  entries
    .map(
      ([colour, text], n) =>
        `<rect x="${n * 210}" y="${y - 10}" width="12" height="12" fill="${colour}" stroke="${colours.ink}" stroke-width="0.5"/><text x="${n * 210 + 18}" y="${y}">${text}</text>`,
    )
    .join('');
const weightsLegend = legend([
  [mixed(0), 'nothing of it is left'],
  [mixed(0.5), 'half'],
  [mixed(1), 'all'],
]);

/** Gates of a text: it forgets at two places, and keeps nearly all between. */
const gates = (t) => (t === 8 ? 0.15 : t === 17 ? 0 : 0.97);
const channels = [
  { note: 'keeps all', decay: () => 1 },
  { note: 'forgets at two places', decay: gates },
  { note: 'sees a few positions', decay: () => 0.6 },
];
const places = 'abcd'.repeat(length / 4);
const reading = { keys: (t) => t % 4, dims: 4, query: 0 };

const folder = new URL('../docs/linear/', import.meta.url);
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });

draw(
  'decay',
  'Decays: how much of what position s wrote (columns) is left at position t (rows)',
  [
    [
      { title: 'none', note: 'all of it, for ever', weights: weightsOf({}) },
      { title: 'head', note: 'head 0: 0.95 a position', weights: weightsOf({ decay: () => 0.95 }) },
      { title: 'head', note: 'head 1: 0.75 a position', weights: weightsOf({ decay: () => 0.75 }) },
      { title: 'position', note: '0.97; 0.15 at 8, 0 at 17', weights: weightsOf({ decay: gates }) },
    ],
    channels.map(({ note, decay }, c) => ({
      title: 'channel',
      note: `${c}: ${note}`,
      weights: weightsOf({ decay }),
    })),
  ],
  weightsLegend,
);

draw(
  'update',
  'Updates: what reading the key a at position t (rows) gives of the value written at s (columns)',
  [
    [
      { title: 'add', note: 'values of one key add up', letters: places, weights: weightsOf(reading) },
      {
        title: 'delta, beta 0.5',
        note: 'half is replaced',
        letters: places,
        weights: weightsOf({ ...reading, beta: 0.5 }),
      },
      {
        title: 'delta, beta 1',
        note: 'the last one is left',
        letters: places,
        weights: weightsOf({ ...reading, beta: 1 }),
      },
      {
        title: 'gated delta, beta 1',
        note: 'and fades by 0.8 a position',
        letters: places,
        weights: weightsOf({ ...reading, beta: 1, decay: () => 0.8 }),
      },
    ],
    [
      { title: 'a decay', note: '0.85 a position', weights: weightsOf({ decay: () => 0.85 }) },
      {
        title: 'bonus',
        note: '0.4 of the own position',
        weights: weightsOf({ decay: () => 0.85, bonus: 0.4 }),
      },
      {
        title: 'normalizer',
        note: 'each row divided by its sum',
        weights: weightsOf({ decay: () => 0.85, normalizer: true }),
      },
    ],
  ],
  weightsLegend,
);

/** Whether each pair is in one chunk of so many positions. With chunks of 0 none is. */
const chunked = (chunk) =>
  Array.from({ length }, (_, t) =>
    Array.from({ length: t + 1 }, (_, s) => chunk > 0 && Math.floor(s / chunk) === Math.floor(t / chunk)),
  );
const colourOf = (together) => (together ? colours.full : colours.partial);
draw(
  'forms',
  'Forms: which pairs of positions meet as a score, and which by way of a state',
  [
    [
      { title: 'parallel', note: 'every pair is a score', weights: chunked(length), colourOf },
      { title: 'chunked', note: 'pairs of a chunk are', weights: chunked(6), colourOf },
      { title: 'recurrent', note: 'no pair is', weights: chunked(0), colourOf },
    ],
  ],
  legend([
    [colours.full, 'a score q . k'],
    [colours.partial, 'by way of the state'],
  ]),
);
console.log('docs/linear: decay, update, forms');
