// Checks what the compiled kernels take of a multiprocessor: registers, spills, stack and shared memory, on every
// architecture that the CUDA addon is built for.
//
//   npm run kernels:check [-- --write] [-- --all]
//
// Compiles the units whose sources are others than those recorded in cuda/resources.json, or with --all every one, and
// compares with what is recorded there: spills and stack must not grow; registers are for information. --write records
// the kernels as they are now.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { build, missingTools } from './build-addon.mjs';
import { compileUnits, hashUnits, readUnits } from './kernel-units.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const recordPath = join(root, 'cuda', 'resources.json');
const enumerators = {
  Variant: ['Large', 'Small', 'Extras'], // of cuda/sm80/tiles.cuh
  MatmulTile: ['Large', 'Small', 'Thin'], // of cuda/sm80/matmul_tiles.cuh
  Along: ['Inner', 'Outer'],
  // of cuda/sm80/recurrence_parts.h
  RecurrenceKind: ['Channels', 'Positions', 'NarrowPositions', 'Delta', 'NarrowDelta', 'LowRank'],
};
const sharedMemoryFloor = 99 * 1024; // what a block can have on every architecture
const sharedMemoryCeiling = 227 * 1024; // on any
const columns = ['registers', 'stack', 'spillStores', 'spillLoads'];

/**
 * The function and the template arguments of a mangled name, as far as kernels need the grammar of the Itanium ABI:
 * 'forward_kernel<Float16, 64, Large>'.
 */
export function demangle(mangled) {
  let at = 2; // after _Z
  const fail = () => {
    throw new Error(`cannot read the kernel's name ${mangled} at ${at}`);
  };
  const take = (pattern) => {
    pattern.lastIndex = at;
    const [text] = pattern.exec(mangled) ?? [];
    if (text !== undefined) at += text.length;
    return text;
  };
  const sourceName = () => {
    const length = Number(take(/\d+/y) ?? fail());
    at += length;
    return mangled.slice(at - length, at);
  };
  const listUntilEnd = (item) => {
    const items = [];
    while (!take(/E/y)) items.push(item());
    return items;
  };
  const nested = () =>
    listUntilEnd(() =>
      take(/S[\dA-Z]*_/y) ? '' : take(/I/y) ? `<${listUntilEnd(argument).join(', ')}>` : sourceName(),
    );
  const lastName = (parts) => {
    const last = parts.at(-1).startsWith('<') ? -2 : -1;
    return parts.slice(last).join('');
  };
  const type = () => (take(/N/y) ? lastName(nested()) : (take(/[a-z]/y) ?? fail()));
  let before; // the type of the literal before: what stands for an earlier type is the same again
  const literal = () => {
    const of = take(/S[\dA-Z]*_/y) ? before : type();
    before = of;
    const value = Number(take(/\d+/y) ?? fail());
    if (!take(/E/y)) fail();
    return enumerators[of]?.[value] ?? (of === 'b' ? String(Boolean(value)) : String(value));
  };
  const argument = () => (take(/L/y) ? literal() : type());
  return take(/N/y) ? lastName(nested()) : sourceName();
}

/** Of each kernel and architecture in the output of ptxas: what is in `columns`. Functions that are called are cold. */
export function readLog(text) {
  const kernels = [];
  let kernel;
  for (const line of text.split('\n')) {
    const [, name, architecture] = /Compiling entry function '(\w+)' for 'sm_(\w+)'/.exec(line) ?? [];
    if (name) kernel = { mangled: name, name: demangle(name), architecture };
    const [, properties] = /Function properties for (\w+)/.exec(line) ?? [];
    if (properties && properties !== kernel?.mangled) kernel = undefined;
    const [, stack, stores, loads] =
      /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line) ?? [];
    if (kernel && stack) Object.assign(kernel, { stack: +stack, spillStores: +stores, spillLoads: +loads });
    const [, registers] = /Used (\d+) registers/.exec(line) ?? [];
    if (kernel && registers) kernels.push({ ...kernel, registers: +registers });
  }
  return kernels;
}

const compiler = () => process.env.CUDACXX ?? 'nvcc';
const toolkitVersion = () => /V(\d+\.\d+\.\d+)/.exec(execFileSync(compiler(), ['--version'], { encoding: 'utf8' }))[1];

/** Threads and shared memory by kernel, from the tables that the kernels are made from. */
function readShapes() {
  const program = join(root, 'build', 'kernel-shapes');
  mkdirSync(dirname(program), { recursive: true });
  const includes = ['cuda', 'native', 'cuda/emulator/runtime'].map((folder) => `-I${join(root, folder)}`);
  const source = join(root, 'scripts', 'kernel-shapes.cpp');
  const flags = ['-std=c++20', '-Wno-unknown-pragmas', ...includes];
  execFileSync(process.env.CXX ?? 'g++', [...flags, source, '-o', program], { stdio: 'inherit' });
  return JSON.parse(execFileSync(program, { encoding: 'utf8' }));
}

/** The kernels that units had when they were recorded. */
export function readRecorded(record, units) {
  const names = units.flatMap((unit) => record.units[unit].kernels);
  return names.flatMap((name) =>
    record.architectures.map((architecture, i) => {
      const [registers, stack, spillStores, spillLoads] = parseCell(record.kernels[name][i]);
      return { name, architecture: String(architecture), registers, stack, spillStores, spillLoads };
    }),
  );
}

/**
 * kernels: { [kernel]: { threads, shared, [architecture]: [registers, stack, spill stores, spill loads] } }, in order;
 * units: { [unit]: { hash, kernels } }
 */
async function collect(record, toolkit) {
  const shapes = readShapes();
  const units = readUnits(build({ emulator: false, steps: ['configure'] }));
  const hashes = await hashUnits(units);
  const isRecorded = ({ name }) => record?.nvcc === toolkit && record.units?.[name]?.hash === hashes[name];
  const same = units.filter(isRecorded).map(({ name }) => name);
  const changed = units.filter((unit) => !isRecorded(unit));
  console.log(`${changed.length} of ${units.length} units have changed since they were recorded`);
  const found = new Map(same.map((name) => [name, readRecorded(record, [name])]));
  for (const [name, log] of Object.entries(await compileUnits(changed, hashes, toolkit))) found.set(name, readLog(log));

  const kernels = {};
  const order = new Intl.Collator('en', { numeric: true });
  const all = [...found.values()].flat().sort((a, b) => order.compare(a.name, b.name));
  for (const { name, architecture, ...values } of all) {
    kernels[name] ??= { ...shapes[name] };
    kernels[name][architecture] = columns.map((column) => values[column]);
  }
  const recorded = [...found]
    .sort(([a], [b]) => order.compare(a, b))
    .map(([name, list]) => [
      name,
      { hash: hashes[name], kernels: [...new Set(list.map((kernel) => kernel.name))].sort(order.compare) },
    ]);
  return { kernels, shapes, units: Object.fromEntries(recorded) };
}

const architecturesOf = (kernels) =>
  [...new Set(Object.values(kernels).flatMap((kernel) => Object.keys(kernel).filter((key) => /^\d/.test(key))))].sort(
    (a, b) => a - b,
  );

/** What kernels of the common head dims may spill, stored and loaded, where it is not 0. */
const allowedSpills = [
  // Tiles of 64 keys: on an H200, where nothing is spilled, 1.16 times as fast as 32. Not measured on these.
  { kernels: /^forward_kernel<B?Float16, 128, (?:Large|Small)>/, architectures: ['100', '120'], bytes: 360 },
  // One register.
  { kernels: /^forward_kernel<Float16, 96, Large>/, architectures: ['90'], bytes: 16 },
  { kernels: /^backward_kernel<Float16, 64, Large>/, architectures: ['120'], bytes: 16 },
  // Slopes of softcap and score_mod, where there are some.
  { kernels: /^backward_kernel<Float32, 128, Extras>/, architectures: ['80', '90'], bytes: 288 },
  // One register.
  { kernels: /^backward_bias_kernel<B?Float16, 128>/, architectures: ['100'], bytes: 16 },
  // Where sums are carried to memory, once in 2,048 rows.
  { kernels: /<Float32, /, architectures: ['80', '90', '100', '120'], bytes: 160 },
];

/** Bytes; undefined: any number. Matmul, and attention of the common head dims, have to keep everything in registers. */
function spillLimit(name, architecture) {
  if (/^matmul_kernel</.test(name)) return 0;
  const [, headDim] = /^(?:forward|backward|backward_bias|backward_relative)_kernel<\w+, (\d+)/.exec(name) ?? [];
  if (headDim === undefined || Number(headDim) > 128) return undefined;
  const allowed = allowedSpills.find((one) => one.kernels.test(name) && one.architectures.includes(architecture));
  return allowed?.bytes ?? 0;
}

function* absoluteProblems(name, kernel, architectures) {
  const limit = /Large/.test(name) ? sharedMemoryCeiling : sharedMemoryFloor;
  if (kernel.shared > limit) yield `${name}: ${kernel.shared} bytes of shared memory, of at most ${limit}`;
  for (const architecture of architectures) {
    if (!kernel[architecture]) {
      yield `${name}: not compiled for sm_${architecture}`;
      continue;
    }
    const [, , stores, loads] = kernel[architecture];
    if (stores + loads > (spillLimit(name, architecture) ?? Infinity))
      yield `${name} on sm_${architecture}: spills ${stores} + ${loads} bytes`;
  }
}

/** '255 54/112 s48': registers, spill stores and loads, stack. */
function formatCell([registers, stack, stores, loads]) {
  const spills = stores + loads > 0 ? [`${stores}/${loads}`] : [];
  return [String(registers), ...spills, ...(stack > 0 ? [`s${stack}`] : [])].join(' ');
}

function parseCell(text) {
  const [, registers, stores = 0, loads = 0, stack = 0] = /^(\d+)(?: (\d+)\/(\d+))?(?: s(\d+))?$/.exec(text);
  return [registers, stack, stores, loads].map(Number);
}

function* growth(name, kernel, record) {
  for (const [at, architecture] of record.architectures.entries()) {
    const [now, before] = [kernel[architecture] ?? [], parseCell(record.kernels[name][at])];
    for (const [i, column] of columns.entries())
      if (column !== 'registers' && now[i] > before[i])
        yield `${name} on sm_${architecture}: ${column} ${now[i]} bytes, ${before[i]} recorded`;
  }
}

/** What is wrong with the kernels, a line each. `record`: cuda/resources.json, where it is to be compared with. */
export function problems({ kernels, shapes }, record, toolkit) {
  const architectures = architecturesOf(kernels);
  const found = Object.entries(kernels).flatMap(([name, kernel]) => [...absoluteProblems(name, kernel, architectures)]);
  for (const name of Object.keys(shapes)) if (!kernels[name]) found.push(`${name}: not compiled`);
  if (!record) return found;
  if (record.nvcc !== toolkit) {
    console.log(`recorded with nvcc ${record.nvcc}, this is ${toolkit}: spills are not compared with the record`);
    return found;
  }
  for (const [name, kernel] of Object.entries(kernels))
    if (record.kernels[name]) found.push(...growth(name, kernel, record));
    else found.push(`${name}: not recorded`);
  for (const name of Object.keys(record.kernels)) if (!kernels[name]) found.push(`${name}: recorded, but gone`);
  return found;
}

function print({ kernels }) {
  const architectures = architecturesOf(kernels);
  const width = 15;
  console.log('registers, bytes spilled (stored/loaded) and s: bytes of stack, by architecture\n');
  const heads = architectures.map((architecture) => `sm_${architecture}`.padEnd(width)).join(' ');
  console.log(`${'kernel'.padEnd(44)} threads shared KB  ${heads}`);
  for (const [name, kernel] of Object.entries(kernels)) {
    const shared = kernel.shared === undefined ? '' : (kernel.shared / 1024).toFixed(1);
    const cells = architectures
      .map((key) => (kernel[key] ? formatCell(kernel[key]).padStart(3) : 'none').padEnd(width))
      .join(' ');
    console.log(
      `${name.padEnd(44)} ${String(kernel.threads ?? '').padStart(7)} ${shared.padStart(9)}  ${cells}`.trimEnd(),
    );
  }
}

/** JSON with a line for each kernel and unit. */
export function formatRecord({ kernels, units }, toolkit) {
  const architectures = architecturesOf(kernels).map(Number);
  const line = (list) => `[${list.map((item) => JSON.stringify(item)).join(', ')}]`;
  const lines = Object.entries(kernels).map(([name, kernel]) => {
    return `    ${JSON.stringify(name)}: ${line(architectures.map((architecture) => formatCell(kernel[architecture])))}`;
  });
  const unitLines = Object.entries(units).map(
    ([name, { hash, kernels: names }]) => `    "${name}": { "hash": "${hash}", "kernels": ${line(names)} }`,
  );
  const head = `  "nvcc": "${toolkit}",\n  "architectures": ${line(architectures)},\n`;
  return `{\n${head}  "kernels": {\n${lines.join(',\n')}\n  },\n  "units": {\n${unitLines.join(',\n')}\n  }\n}\n`;
}

async function main() {
  const { values: flags } = parseArgs({ options: { write: { type: 'boolean' }, all: { type: 'boolean' } } });
  const missing = missingTools({ emulator: false });
  if (missing.length > 0) {
    console.log(`the resources of the kernels were not checked: install ${missing.join(' and ')}`);
    return 0;
  }
  const recorded = existsSync(recordPath) ? JSON.parse(readFileSync(recordPath, 'utf8')) : undefined;
  const toolkit = toolkitVersion();
  const collected = await collect(flags.all ? undefined : recorded, toolkit);
  print(collected);
  const record = flags.write ? undefined : recorded;
  if (!record && !flags.write) throw new Error(`${relative(root, recordPath)} is missing: run with --write`);
  const found = problems(collected, record, toolkit);
  for (const problem of found) console.error(problem);
  const count = Object.keys(collected.kernels).length;
  if (flags.write) {
    writeFileSync(recordPath, formatRecord(collected, toolkit));
    console.log(`\nrecorded ${count} kernels in ${relative(root, recordPath)}`);
  }
  console.log(
    `\n${count} kernels for ${architecturesOf(collected.kernels).length} architectures, ${found.length} problems`,
  );
  return found.length > 0 ? 1 : 0;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    process.exitCode = await main();
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }
}
