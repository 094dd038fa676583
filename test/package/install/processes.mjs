// One process with several copies or many threads, and the commands of the package.
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { emulatedAddon, ensure, root, Skipped, write } from './context.mjs';

function twoCopies(context) {
  const folder = context.folder('two copies');
  const aliases = ['one', 'two'].map((name) => `${name}@file:${context.tarball}`);
  context.npm(['install', '--no-audit', '--no-fund', '--prefer-offline', '--cache', context.cache, ...aliases], {
    cwd: folder,
  });
  const [first, second, refusal] = context.ask(folder, 'two-copies.mjs');
  for (const { out } of [first, second]) ensure(String(out) === '1,2.5', `a copy gave ${out}`);
  ensure(refusal?.distinct, 'the copies are one');
  const clear = refusal.code === 'ERR_OPTION' && /another copy/.test(refusal.message);
  ensure(clear, `a tensor of the other copy gave ${JSON.stringify(refusal)}`);
}

const mostGrowthMiB = 96;

function manyWorkers(addon, pendingCalls) {
  return (context) => {
    const env = { FLASHATTN_THREADS: '1', FLASHATTN_ADDON: addon, PENDING_CALLS: String(pendingCalls) };
    const [{ answered, grownMiB }] = context.ask(context.installed, 'workers.mjs', { env });
    ensure(answered === 50, `${answered} of 50 workers answered`);
    ensure(grownMiB <= mostGrowthMiB, `memory grew by ${grownMiB} MiB`);
  };
}

/** Few calls: the emulator never uses memory again, so that it sees whoever reads what has been freed. */
function onEmulator(context) {
  if (!existsSync(emulatedAddon)) throw new Skipped('there is no emulated addon: npm run setup');
  manyWorkers(emulatedAddon, 2)(context);
}

/** The first program of the README, as it is written there. */
function readme(context) {
  const text = readFileSync(join(root, 'README.md'), 'utf8');
  const program = [...text.matchAll(/```ts\n([\s\S]*?)```/g)]
    .map(([, code]) => code)
    .find((code) => /'flashattn'/.test(code));
  ensure(program !== undefined, 'the README has no program');
  const { transpileModule, ModuleKind, ScriptTarget } = createRequire(join(root, 'package.json'))('typescript');
  const compilerOptions = { module: ModuleKind.ESNext, target: ScriptTarget.ES2022 };
  const folder = context.copyInstalled('readme');
  write(join(folder, 'readme.mjs'), transpileModule(program, { compilerOptions }).outputText);
  const { stdout } = context.run(['readme.mjs'], { cwd: folder });
  ensure(stdout.trim() !== '', 'it printed nothing');
}

function commands(context) {
  const run = (args, expected) =>
    context.npm(['exec', '--offline', '--', 'flashattn', ...args], { cwd: context.installed, expected });
  const { stdout } = run(['doctor', '--json']);
  ensure(JSON.parse(stdout).healthy, 'doctor is not healthy');
  const wasm = ['--device', 'wasm'];
  run(['verify', ...wasm, '--quick', '--group', 'golden']);
  run(['bench', ...wasm, '--rounds', '1', '1,64,2,32', '--svg', join(context.work, 'bench.svg')]);
  run(['explain', '--shape', '1,64,2,32']);
  run(['doctor', '--device', 'cuda:99'], 2);
  run(['nothing'], 64);
}

export const processChecks = [
  { name: 'the program of the README', run: readme },
  { name: 'npx flashattn doctor, verify, bench, explain', run: commands },
  { name: 'two copies in one process', run: twoCopies },
  { name: '50 workers on WebAssembly', run: manyWorkers('/nowhere.node', 20) },
  { name: '50 workers on the emulated addon', run: onEmulator },
];
