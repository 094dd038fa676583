/** Where the text comes from, and how characters become numbers. */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, extname, join, relative, sep } from 'node:path';

export type TextErrorCode = 'ERR_TEXT_MISSING' | 'ERR_TEXT_EMPTY' | 'ERR_TEXT_SHORT' | 'ERR_TEXT_BINARY';

export class TextError extends Error {
  constructor(
    readonly code: TextErrorCode,
    message: string,
  ) {
    super(message);
    this.name = 'TextError';
  }
}

/** Below this there is too little to hold a tenth back and learn from the rest. */
const MIN_CHARACTERS = 1000;
const MAX_VOCABULARY = 128;
/** Stands for every character that is too rare for the vocabulary. */
const REPLACEMENT = '\ufffd';

export interface Corpus {
  readonly vocabulary: Vocabulary;
  readonly train: Int32Array;
  /** The last tenth of the text, which training never sees. */
  readonly validation: Int32Array;
}

/** Splits the text, then names its characters by the training part alone. */
export function makeCorpus(text: string, source: string): Corpus {
  const characters = Array.from(text);
  if (characters.length === 0) throw new TextError('ERR_TEXT_EMPTY', `${source} is empty`);
  if (characters.length < MIN_CHARACTERS) {
    throw new TextError(
      'ERR_TEXT_SHORT',
      `${source} has ${characters.length} characters; training needs at least ${MIN_CHARACTERS}`,
    );
  }
  const cut = Math.floor(characters.length * 0.9);
  const vocabulary = new Vocabulary(characters.slice(0, cut));
  return {
    vocabulary,
    train: vocabulary.encode(characters.slice(0, cut)),
    validation: vocabulary.encode(characters.slice(cut)),
  };
}

/** The most frequent characters, numbered from 1; number 0 is the replacement for all others. */
export class Vocabulary {
  readonly #characters: readonly string[];
  readonly #numbers: ReadonlyMap<string, number>;

  constructor(characters: readonly string[]) {
    const counts = new Map<string, number>();
    for (const c of characters) counts.set(c, (counts.get(c) ?? 0) + 1);
    counts.delete(REPLACEMENT);
    const byFrequency = [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1)).map(([c]) => c);
    this.#characters = [REPLACEMENT, ...byFrequency.slice(0, MAX_VOCABULARY - 1)];
    this.#numbers = new Map(this.#characters.map((c, i) => [c, i]));
  }

  get size(): number {
    return this.#characters.length;
  }

  encode(characters: Iterable<string>): Int32Array {
    return Int32Array.from(characters, (c) => this.#numbers.get(c) ?? 0);
  }

  decode(tokens: Iterable<number>): string {
    return Array.from(tokens, (t) => this.#characters[t]).join('');
  }
}

/** One file, which must hold UTF-8 text. */
export function readTextFile(path: string): string {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new TextError('ERR_TEXT_MISSING', `cannot read the text: ${reason}`);
  }
  if (bytes.includes(0)) throw new TextError('ERR_TEXT_BINARY', `${path} is not text: it holds zero bytes`);
  try {
    return normalize(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw new TextError('ERR_TEXT_BINARY', `${path} is not UTF-8 text`);
  }
}

const EXTENSIONS = new Set(['.md', '.ts', '.mts', '.mjs', '.js', '.cc', '.h', '.cuh', '.cu', '.json']);
const SKIPPED_FOLDERS = new Set(['node_modules', 'dist', 'build', 'coverage', 'vectors']);
const SKIPPED_FILES = new Set(['package-lock.json', 'npm-shrinkwrap.json']);
/** People write neither longer files nor longer lines; programs do. */
const MAX_FILE_BYTES = 200_000;
const MAX_LINE = 1000;

export interface RepositoryText {
  readonly text: string;
  /** How many files it was put together from. */
  readonly files: number;
}

/** The hand-written text files of a source tree, one after the other. */
export function readRepository(root: string): RepositoryText {
  const parts: string[] = [];
  for (const path of listTextFiles(root)) {
    const text = readTextFile(join(root, path));
    if (text.split('\n').every((line) => line.length <= MAX_LINE)) parts.push(text);
  }
  return { text: parts.join('\n'), files: parts.length };
}

function listTextFiles(root: string): string[] {
  const found: string[] = [];
  const visit = (folder: string): void => {
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (entry.name.startsWith('.') || SKIPPED_FOLDERS.has(entry.name) || SKIPPED_FILES.has(entry.name)) continue;
      if (entry.isDirectory()) visit(path);
      else if (entry.isFile() && EXTENSIONS.has(extname(entry.name)) && statSync(path).size <= MAX_FILE_BYTES) {
        found.push(relative(root, path).split(sep).join('/'));
      }
    }
  };
  visit(root);
  // In the order of their names, the tenth held back at the end would be one kind of file, such as the tests. Ordering
  // by a hash mixes the kinds, and still does not depend on the file system.
  return found.sort((a, b) => hash(a) - hash(b) || (a < b ? -1 : 1));
}

/** FNV-1a */
function hash(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  return h >>> 0;
}

function normalize(text: string): string {
  return text.replace(/^\ufeff/, '').replaceAll('\r\n', '\n');
}

/** The nearest folder at or above `start` with this package's package.json. */
export function findPackageRoot(start: string): string {
  for (let folder = start; ; folder = dirname(folder)) {
    try {
      const manifest: unknown = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
      if (isNamed(manifest, 'flashattn')) return folder;
    } catch {
      // No package.json here: look further up.
    }
    if (dirname(folder) === folder)
      throw new TextError('ERR_TEXT_MISSING', `no flashattn package at or above ${start}`);
  }
}

function isNamed(manifest: unknown, name: string): boolean {
  return typeof manifest === 'object' && manifest !== null && 'name' in manifest && manifest.name === name;
}
