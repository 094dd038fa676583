/** Compiles C++ programs against the CUDA emulator. Needs g++. */
import { execFile, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { extname, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const root = fileURLToPath(new URL('../../..', import.meta.url));
const cudaDirectory = join(root, 'cuda');
const emulatorDirectory = join(cudaDirectory, 'emulator');
const testDirectory = join(root, 'test/cuda/emulator');
const cacheDirectory = join(root, 'build/emulator');

/** Of the fields of /proc/<pid>/stat behind the name: when the process began. */
const STARTED = 19;

const COMPILER = process.env.CXX ?? 'g++';
const FLAGS = ['-std=c++20', '-O2', '-g1', '-Wall', '-Wextra', '-Werror', '-Wno-unknown-pragmas']; // nvcc's pragmas

/** Why no program can be compiled here; undefined: it can. */
export const missingCompiler: string | undefined =
  spawnSync(COMPILER, ['--version']).status === 0 ? undefined : `${COMPILER} is missing`;

/** A change to a copy of the device sources: `find` must occur once in `file`, which is relative to cuda/. */
export interface Patch {
  readonly file: string;
  readonly find: string;
  readonly replace: string;
}

export interface Program {
  /** C++ files (.cpp, or .cu compiled as C++): relative to test/cuda/emulator, or absolute. */
  readonly sources: readonly string[];
  readonly patches?: readonly Patch[];
  /** Also checks the loads and stores that go past ptx:: (see cuda/emulator/hooks.cpp). */
  readonly hooks?: boolean;
  readonly flags?: readonly string[];
}

const run = promisify(execFile);

function digest(data: string | Buffer): string {
  return createHash('sha256').update(data).digest('hex').slice(0, 20);
}

// Cache ---------------------------------------------------------------------------------------------------------------

/** The list in each directory of the cache. */
const INPUTS = 'inputs.json';

/** Files that went into something, by their contents. */
type Inputs = Record<string, string>;

function isCurrent(directory: string): boolean {
  const list = join(directory, INPUTS);
  if (!existsSync(list)) return false;
  const inputs: Inputs = JSON.parse(readFileSync(list, 'utf8'));
  return Object.entries(inputs).every(([file, hash]) => existsSync(file) && digest(readFileSync(file)) === hash);
}

/** The text of a file, empty where there is none (any more). */
function textOf(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

/** Names a running process for good: numbers are used again, with another time of start. */
function identityOf(pid: string | number): string {
  const fields = textOf(`/proc/${pid}/stat`).split(') ').at(-1)?.split(' ') ?? [];
  return `${pid} ${fields[STARTED]}`;
}

/** Whether the process that made a lock was killed. */
function isAbandoned(lock: string): boolean {
  const holder = textOf(lock);
  return holder !== '' && identityOf(holder.split(' ')[0] ?? '') !== holder;
}

/** Of the processes and promises that work under the same name, one at a time does. */
async function alone(name: string, work: () => Promise<void>): Promise<void> {
  const lock = `${name}.holder`;
  for (;;) {
    try {
      writeFileSync(lock, identityOf(process.pid), { flag: 'wx' });
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    if (isAbandoned(lock)) rmSync(lock, { force: true });
    await setTimeout(50);
  }
  try {
    await work();
  } finally {
    rmSync(lock, { force: true });
  }
}

/**
 * The directory that `build` has filled for `description`, now or in an earlier run. `build` returns the files that it
 * read: when one of them changes, the directory is built again.
 */
async function cached(description: unknown, build: (directory: string) => Promise<readonly string[]>): Promise<string> {
  const directory = join(cacheDirectory, digest(JSON.stringify([COMPILER, FLAGS, description])));
  if (isCurrent(directory)) return directory;
  mkdirSync(cacheDirectory, { recursive: true });
  await alone(directory, async () => {
    if (isCurrent(directory)) return;
    rmSync(directory, { recursive: true, force: true });
    mkdirSync(directory);
    const files = await build(directory);
    const inputs: Inputs = Object.fromEntries(files.map((file) => [file, digest(readFileSync(file))]));
    writeFileSync(join(directory, INPUTS), JSON.stringify(inputs));
  });
  return directory;
}

// Compiling -----------------------------------------------------------------------------------------------------------

interface Compilation {
  /** Where the device sources are: cuda/, or a changed copy. */
  readonly cuda: string;
  readonly flags: readonly string[];
}

/** The files that a compiler lists as what an object depends on: "object: file file \\\n file". */
function dependencies(list: string): string[] {
  return list
    .slice(list.indexOf(':') + 1)
    .split(/[\s\\]+/)
    .filter((file) => file.startsWith(root));
}

/** Compiles one file; returns the files of the repository that it read. */
async function compileObject(source: string, object: string, { cuda, flags }: Compilation): Promise<string[]> {
  const language = extname(source) === '.cu' ? ['-x', 'c++'] : [];
  const includes = [`-I${cuda}`, `-I${join(root, 'native')}`, `-I${join(cuda, 'emulator/runtime')}`];
  await run(COMPILER, [...FLAGS, ...flags, ...includes, '-MD', ...language, '-c', source, '-o', object]);
  const read = dependencies(readFileSync(object.replace(/\.o$/, '.d'), 'utf8'));
  return read.map((file) => (file.startsWith(`${cuda}/`) ? join(cudaDirectory, file.slice(cuda.length)) : file));
}

/** Compiles files, two at a time, to `${index}.o` in `directory`; returns the files that they read. */
async function compileObjects(sources: readonly string[], directory: string, how: Compilation): Promise<Set<string>> {
  const read = new Set<string>();
  const queue = [...sources.entries()];
  const worker = async () => {
    for (let next = queue.shift(); next; next = queue.shift()) {
      const [index, source] = next;
      for (const file of await compileObject(source, join(directory, `${index}.o`), how)) read.add(file);
    }
  };
  await Promise.all([worker(), worker()]);
  return read;
}

function objectsIn(directory: string): string[] {
  return readdirSync(directory)
    .filter((file) => file.endsWith('.o'))
    .map((file) => join(directory, file));
}

/** The emulator as a library, by its path. */
async function compileEmulator(): Promise<string> {
  const sources = [emulatorDirectory, join(emulatorDirectory, 'runtime')].flatMap((directory) =>
    readdirSync(directory)
      .filter((file) => file.endsWith('.cpp'))
      .map((file) => join(directory, file)),
  );
  const directory = await cached(sources, async (directory) => {
    const read = await compileObjects(sources, directory, { cuda: cudaDirectory, flags: [] });
    await run('ar', ['rcs', join(directory, 'emulator.a'), ...objectsIn(directory)]);
    return [...read];
  });
  return join(directory, 'emulator.a');
}

/** Copies the device sources to `directory`, changed. */
function patchSources(directory: string, patches: readonly Patch[]): void {
  cpSync(cudaDirectory, directory, { recursive: true });
  for (const { file, find, replace } of patches) {
    const path = join(directory, file);
    const parts = readFileSync(path, 'utf8').split(find);
    if (parts.length !== 2) throw new Error(`"${find}" occurs ${parts.length - 1} times in ${file}`);
    writeFileSync(path, parts.join(replace));
  }
}

interface SharedObject {
  readonly object: string;
  /** What it was compiled from. */
  readonly inputs: readonly string[];
}

/** The object of a device source as it is, compiled once for all programs that need it. */
async function sharedObject(source: string, flags: readonly string[]): Promise<SharedObject> {
  const directory = await cached(['object', source, flags], (directory) =>
    compileObject(source, join(directory, '0.o'), { cuda: cudaDirectory, flags }),
  );
  const inputs: Inputs = JSON.parse(readFileSync(join(directory, INPUTS), 'utf8'));
  return { object: join(directory, '0.o'), inputs: Object.keys(inputs) };
}

const isDeviceSource = (source: string) => source.startsWith(`${cudaDirectory}/`);

/** Compiles a shared library of one file, unless an earlier run has, and returns its path. */
export async function compileLibrary(source: string, flags: readonly string[] = []): Promise<string> {
  const directory = await cached(['library', source, flags], async (directory) => {
    const object = join(directory, '0.o');
    const read = await compileObject(source, object, { cuda: cudaDirectory, flags: [...flags, '-fPIC'] });
    await run(COMPILER, ['-shared', object, '-o', join(directory, 'library.so')]);
    return read;
  });
  return join(directory, 'library.so');
}

/** Compiles a program, unless an earlier run has, and returns its path. */
export async function compileProgram(program: Program): Promise<string> {
  const { patches = [], hooks = false, flags = [] } = program;
  const emulator = await compileEmulator();
  const directory = await cached([program, emulator], async (directory) => {
    const cuda = patches.length ? join(directory, 'cuda') : cudaDirectory;
    if (patches.length) patchSources(cuda, patches);
    const changed = new Set(patches.map(({ file }) => join(cudaDirectory, file)));
    const all = hooks ? [...flags, '-fsanitize=thread'] : flags;
    // Definitions are for the program's own file.
    const deviceFlags = all.filter((flag) => !flag.startsWith('-D'));
    const shared: SharedObject[] = [];
    const own: string[] = [];
    for (const source of program.sources) {
      const object = isDeviceSource(source) ? await sharedObject(source, deviceFlags) : undefined;
      if (object && !object.inputs.some((file) => changed.has(file))) shared.push(object);
      else if (object) own.push(join(cuda, source.slice(cudaDirectory.length)));
      else own.push(source.startsWith('/') ? source : join(testDirectory, source));
    }
    const read = await compileObjects(own, directory, { cuda, flags: all });
    // Without the sanitizer's library: its functions are the emulator's.
    const libraries = [...shared.map(({ object }) => object), emulator, '-ldl', '-lpthread'];
    await run(COMPILER, [...objectsIn(directory), ...libraries, '-o', join(directory, 'program')]);
    return [...read, ...shared.flatMap(({ inputs }) => inputs), emulator];
  });
  return join(directory, 'program');
}
