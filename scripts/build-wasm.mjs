// Compiles native/cpu to WebAssembly with the clang that npm installed: two builds from the same sources, one with
// relaxed SIMD (fused multiply-add) and one without. Writes them next to the code that loads them.
//
//   node scripts/build-wasm.mjs [--out <folder>] [relaxed] [simd]
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const sources = join(root, 'native');
const besideLoader = join(root, 'lib', 'backends', 'cpu', 'wasm');

const compile = [
  '--target=wasm32-unknown-unknown',
  '-std=c++20',
  '-O3',
  '-ffreestanding',
  '-nostdlib',
  '-nostdinc++',
  '-fno-exceptions',
  '-fno-rtti',
  '-fno-math-errno',
  '-I.',
  '-Icpu',
  '-msimd128',
  '-mbulk-memory',
  '-matomics',
  '-mmutable-globals',
  // Without an explicit choice clang contracts a * b + c into relaxed multiply-adds wherever it likes.
  '-ffp-contract=off',
  '-Wall',
  '-Wextra',
  '-Werror',
];
const link = [
  '--no-entry',
  '--shared-memory',
  '--import-memory',
  '--max-memory=4294967296',
  '--initial-memory=1048576',
  '--export=__stack_pointer',
  '--export=__heap_base',
  '-z',
  'stack-size=65536',
  '--strip-all',
].map((flag) => `-Wl,${flag}`);

export const builds = [
  { variant: 'relaxed', file: 'flashattn.relaxed.wasm', flags: ['-mrelaxed-simd'] },
  { variant: 'simd', file: 'flashattn.simd.wasm', flags: [] },
];

function readTree(folder) {
  const tree = {};
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    tree[entry.name] = entry.isDirectory() ? readTree(path) : readFileSync(path, 'utf8');
  }
  return tree;
}

async function buildWasm(output, variants) {
  const { runClang, Exit } = await import('@yowasp/clang');
  mkdirSync(output, { recursive: true });
  const print = (bytes) => bytes && process.stderr.write(bytes);
  for (const { file, flags } of builds.filter(({ variant }) => variants.length === 0 || variants.includes(variant))) {
    const command = ['clang++', ...compile, ...flags, 'cpu/host/wasm/module.cc', ...link, '-o', file];
    try {
      const files = await runClang(
        command,
        { cpu: readTree(join(sources, 'cpu')), structs: readTree(join(sources, 'structs')) },
        {
          stdout: print,
          stderr: print,
          fetchProgress: () => {},
        },
      );
      writeFileSync(join(output, file), files[file]);
      console.log(`${relative(root, join(output, file))}: ${files[file].length} bytes`);
    } catch (error) {
      if (!(error instanceof Exit)) throw error;
      throw new Error(`clang++ failed with exit code ${error.code} while building ${file}`);
    }
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const options = { out: { type: 'string', default: besideLoader } };
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  await buildWasm(values.out, positionals);
}
