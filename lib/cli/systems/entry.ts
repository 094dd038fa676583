/** What the catalogue says of a system; `flashattn systems` and docs/systems.md print it. */
export interface SystemEntry {
  /** As one would type it: 'performer'. */
  readonly name: string;
  readonly title: string;
  /** Of what it is from; left out where a definition is all that there is. */
  readonly year?: number;
  /** 'arXiv:<number>', or where else it is from. */
  readonly paper: string;
  /** Names that belong to the system, by their entry point; with a dot for what is in a namespace: 'patterns.bigBird'. */
  readonly imports: { readonly [point in EntryPoint]?: readonly string[] };
  /** Which kernels of ours carry the work, those that are worth most first. None: it is a composition. */
  readonly runs: readonly Kernel[];
  /** Of a composition: why, and what is in memory for it. */
  readonly because?: string;
  /** Multiply-adds of one head, without constants, or of what else the formula names. */
  readonly cost: string;
  readonly formula: string;
  /** The most important ones: name -> what it is. */
  readonly options: Readonly<Record<string, string>>;
  /** Lines that run after `importsOf`, and print a shape. */
  readonly example: readonly string[];
  /** System of the golden files that check it -> how many of them pass. */
  readonly golden: Readonly<Record<string, number>>;
  /** Below docs/. */
  readonly picture?: string;
}

export interface SystemFamily {
  readonly title: string;
  /** What its members have in common. */
  readonly about: string;
  readonly systems: readonly SystemEntry[];
}

export type Kernel =
  | 'attention'
  | 'headMixing'
  | 'recurrence'
  | 'linearScan'
  | 'selectiveScan'
  | 'wkv'
  | 'diagonalScan';

const entryPoints = ['flashattn', 'flashattn/systems', 'flashattn/nn', 'flashattn/inference'] as const;

export type EntryPoint = (typeof entryPoints)[number];

/** Names of `flashattn` that examples use besides those of the system. */
const helpers = [
  'arange',
  'attention',
  'cos',
  'greater',
  'mul',
  'neg',
  'normal',
  'ones',
  'patterns',
  'relu',
  'sigmoid',
  'sin',
  'tensor',
  'uniform',
  'zeros',
];

/** The line that makes q, k and v of an example. */
export const qkv = (shape = '[1, 32, 2, 16]'): string =>
  `const [q, k, v] = [1, 2, 3].map((seed) => normal(${shape}, { seed }));`;

/** Names of one entry point. */
const namesOf = ({ imports }: SystemEntry, point: EntryPoint): readonly string[] => imports[point] ?? [];

/** All names of a system, as a user writes them. */
export const allNamesOf = (entry: SystemEntry): readonly string[] =>
  entryPoints.flatMap((point) => namesOf(entry, point));

/** The example with its imports: a module that runs. */
export function exampleOf(entry: SystemEntry): string {
  const body = entry.example.join('\n');
  // Neither members of something nor names of options.
  const words = new Set(body.match(/(?<![.\w])\w+\b(?!:)/g));
  const lines = entryPoints.flatMap((point) => {
    const known = [...namesOf(entry, point), ...(point === 'flashattn' ? helpers : [])];
    const used = [...new Set(known.map((name) => name.split('.')[0] as string))]
      .filter((name) => words.has(name))
      .sort();
    return used.length > 0 ? [`import { ${used.join(', ')} } from '${point}';`] : [];
  });
  return `${lines.join('\n')}\n\n${body}`;
}
