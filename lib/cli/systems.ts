import { nearestWord } from '../base/check.js';
import { allNamesOf, exampleOf, type SystemEntry } from './systems/entry.js';
import { families } from './systems/index.js';
import { type Column, headsOf, lineOf, text } from './table.js';
import { formatTable, readFlagsAndWords, UsageError } from './usage.js';

const all = families.flatMap(({ systems }) => systems);

const plain = (name: string) => name.toLowerCase().replaceAll(/[-_ ]/g, '');

const runsOf = ({ runs }: SystemEntry) => (runs.length > 0 ? runs.join(', ') : 'composition');

const widest = (head: string, value: (entry: SystemEntry) => string): Column<SystemEntry> =>
  text(head, Math.max(head.length, ...all.map((entry) => value(entry).length)) + 1, value);

/** The system of this name, or that a function or a golden file of this name belongs to. */
function find(name: string): SystemEntry {
  const meant = plain(name);
  const found =
    all.find((entry) => plain(entry.name) === meant) ??
    all.find((entry) => [...allNamesOf(entry), ...Object.keys(entry.golden)].some((word) => plain(word) === meant));
  if (found) return found;
  const names = all.map((entry) => entry.name);
  const holding = meant.length > 1 ? names.filter((known) => plain(known).includes(meant)) : [];
  const near = [...new Set([nearestWord(name, names) ?? [], holding].flat())];
  const hint = near.length > 0 ? `did you mean ${near.map((known) => `'${known}'`).join(', ')}? ` : '';
  throw new UsageError(`there is no system '${name}'; ${hint}\`flashattn systems\` lists them`);
}

function printAll(): void {
  const columns = [
    widest('system', ({ name }) => name),
    widest('year', ({ year = '-' }) => `${year}`),
    widest('what runs', runsOf),
    widest('title', ({ title }) => title),
    widest('cost', ({ cost }) => cost),
  ];
  console.log(headsOf(columns));
  for (const { title, systems } of families) {
    console.log(`\n${title}`);
    for (const entry of systems) console.log(lineOf(columns, entry));
  }
  console.log('\nN: sequence length, D: head dim. `flashattn systems <name>` shows formula, options and an example.');
}

function printOne(entry: SystemEntry): void {
  const { title, year, paper, cost, formula, because, options, golden, picture } = entry;
  const imports = Object.entries(entry.imports).map(([point, names]) => `${names.join(', ')} (${point})`);
  const checked = Object.entries(golden).map(([system, files]) => `${files} of ${system}`);
  const rows: (readonly [string, string])[] = [
    ['paper', year === undefined ? paper : `${paper}, ${year}`],
    ['import', imports.join('; ')],
    ['formula', formula],
    ['cost', `${cost} (N: sequence length, D: head dim)`],
    ['what runs', runsOf(entry)],
    ...(because === undefined ? [] : [['', because] as const]),
    ['golden files', checked.length > 0 ? checked.join(', ') : 'none'],
    ...(picture === undefined ? [] : [['picture', `docs/${picture}`] as const]),
  ];
  const indented = formatTable(Object.entries(options)).replaceAll(/^/gm, '  ');
  console.log(`${title}\n\n${formatTable(rows)}\n\nOptions\n${indented}\n\nExample\n`);
  console.log(exampleOf(entry).replaceAll(/^(?=.)/gm, '  '));
}

/** `flashattn systems` */
export async function systemsCommand(args: string[]): Promise<number> {
  const { flags, words } = readFlagsAndWords(args, { json: { type: 'boolean', default: false } });
  if (words.length > 1) throw new UsageError(`systems takes one name; it got ${words.length}`);
  const [name] = words;
  const found = name === undefined ? undefined : find(name);
  if (flags.json) {
    const shown = (entry: SystemEntry) => ({ ...entry, example: exampleOf(entry) });
    const listed = families.map((family) => ({ ...family, systems: family.systems.map(shown) }));
    console.log(JSON.stringify(found ? shown(found) : listed, null, 2));
  } else if (found) printOne(found);
  else printAll();
  return 0;
}
