/** Compiles native/cpu with the sanitizers of a C++ compiler and runs it. Needs g++ and its sanitizers. */
import { execFile, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const root = fileURLToPath(new URL('../..', import.meta.url));
const kernels = join(root, 'native/cpu');
const structs = join(root, 'native/structs');
const testDirectory = join(root, 'test/native');
const cacheDirectory = join(root, 'build/native');

const compiler = process.env.CXX ?? 'g++';
// psabi: vectors wider than the processor's pass through functions that are all inlined.
const common = ['-std=c++20', '-g1', '-Wall', '-Wextra', '-Werror', '-Wno-unknown-pragmas', '-Wno-psabi'];
const sanitizers = ['-fsanitize=address,undefined', '-fno-sanitize-recover=all', '-fno-omit-frame-pointer'];

const tryToLink = () =>
  spawnSync(compiler, [...sanitizers, '-x', 'c++', '-', '-o', '/dev/null'], { input: 'int main() {}' }).status === 0;

/** Why nothing can be compiled here; undefined: it can. */
export const missingSanitizers: string | undefined = tryToLink()
  ? undefined
  : `${compiler} with -fsanitize=address,undefined is missing`;

/** A change to a copy of the kernels: `find` occurs once in `file`, which is relative to native/cpu. */
export interface Patch {
  readonly file: string;
  readonly find: string;
  readonly replace: string;
}

const run = promisify(execFile);

function digestOf(patches: readonly Patch[], flags: readonly string[]): string {
  const hash = createHash('sha256').update(JSON.stringify([compiler, common, sanitizers, patches, flags]));
  for (const directory of [kernels, structs, testDirectory])
    for (const file of readdirSync(directory, { recursive: true, encoding: 'utf8' }).sort())
      if (/\.(h|cpp)$/.test(file)) hash.update(file).update(readFileSync(join(directory, file)));
  return hash.digest('hex').slice(0, 20);
}

/** The reference needs no checking and gains from optimisation. */
const flagsFor = (source: string) => (basename(source) === 'reference.cpp' ? ['-O2'] : ['-O1', ...sanitizers]);

function apply({ file, find, replace }: Patch, directory: string): void {
  const path = join(directory, file);
  const parts = readFileSync(path, 'utf8').split(find);
  if (parts.length !== 2) throw new Error(`"${find}" occurs ${parts.length - 1} times in ${file}`);
  writeFileSync(path, parts.join(replace));
}

async function build(directory: string, patches: readonly Patch[], flags: readonly string[]): Promise<void> {
  const copy = join(directory, 'cpu');
  cpSync(kernels, copy, { recursive: true });
  cpSync(structs, join(directory, 'structs'), { recursive: true });
  for (const patch of patches) apply(patch, copy);
  const sources = readdirSync(testDirectory).filter((file) => file.endsWith('.cpp'));
  const objectOf = (source: string) => join(directory, `${source}.o`);
  const queue = [...sources];
  const worker = async () => {
    // -iquote, because native/cpu has a math.h of its own.
    for (let source = queue.shift(); source; source = queue.shift())
      await run(compiler, [
        ...[...common, ...flagsFor(source), ...flags, '-iquote', copy, '-iquote', directory],
        ...['-c', join(testDirectory, source), '-o', objectOf(source)],
      ]);
  };
  await Promise.all([worker(), worker()]);
  await run(compiler, [...sanitizers, ...sources.map(objectOf), '-o', join(directory, 'program')]);
}

/** Compiles the cases, with these flags of the compiler too, unless an earlier run has; returns the program's path. */
export async function compileCases(patches: readonly Patch[] = [], flags: readonly string[] = []): Promise<string> {
  const directory = join(cacheDirectory, digestOf(patches, flags));
  const program = join(directory, 'program');
  if (existsSync(program)) return program;
  mkdirSync(cacheDirectory, { recursive: true });
  const unfinished = mkdtempSync(join(cacheDirectory, 'unfinished-'));
  try {
    await build(unfinished, patches, flags);
    renameSync(unfinished, directory);
  } finally {
    rmSync(unfinished, { recursive: true, force: true });
  }
  return program;
}
