/**
 * What a visit to a GPU machine runs: steps with limits of their own, the commands of a step side by side. A command
 * that fails, hangs or loses the device ends alone; what it printed and wrote until then is kept. Results reach the
 * folder `out` as they come: summary.json and log.txt after every command, results.tar.gz after every step.
 *
 *   node build/bench/visit.js <steps or numbers of visits> --out results
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, createWriteStream, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';

interface Command {
  readonly name: string;
  readonly run: readonly [program: string, ...args: string[]];
  readonly env?: Readonly<Record<string, string>>;
  /** Whether its output is worth showing also when all is well. */
  readonly shows?: boolean;
  /** Further arguments with which it goes on after this output, such as behind a check that lost the device. */
  readonly resume?: (output: string) => readonly string[] | undefined;
}

interface Step {
  readonly name: string;
  /** The limit of each of its commands. */
  readonly seconds: number;
  /** Looked for on the PATH; without it the step is skipped. */
  readonly needs?: string;
  readonly commands: (files: Files) => readonly Command[];
}

/** Where a command may read and write. */
interface Files {
  readonly results: string;
}

interface Outcome {
  readonly result: 'pass' | 'fail' | 'timeout' | 'skipped';
  readonly code: number | null;
  readonly seconds: number;
  readonly restarts?: number;
}

const node = process.execPath;
const groups = [
  'grid',
  'lengths',
  'nothing',
  'numbers',
  'range',
  'sums',
  'precision',
  'scale',
  'masks',
  'canaries',
  'operations',
  'properties',
  'determinism',
] as const;

/** `verify` says where it goes on when the device is lost. */
const afterLoss = (output: string): readonly string[] | undefined => {
  const [, next] = /^lost: --from (\d+)$/m.exec(output) ?? [];
  return next === undefined ? undefined : ['--from', next];
};

interface Extent {
  readonly name: string;
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

/** A process for each group of checks. */
function verify({ results }: Files, { name, args = [], env = {} }: Extent): Command[] {
  const program = ['build/device/verify.js', '--device', device, '--verbose'];
  const one = (group: string, more: readonly string[]): Command => {
    const json = join(results, `verify-${name}-${group}.json`);
    return {
      name: `verify-${name}-${group}`,
      run: [node, ...program, '--group', group, '--json', json, ...args, ...more],
      env,
      resume: afterLoss,
    };
  };
  return [...groups.map((group) => one(group, [])), one('golden', ['--golden', 'vectors'])];
}

const largeTiles = { FLASHATTN_MULTIPROCESSORS: '1' };

function benchmark({ results }: Files, name: string, ...args: string[]): Command {
  return {
    name,
    shows: true,
    run: [node, 'build/bench/gpu.js', '--device', device, '--json', join(results, `${name}.json`), ...args],
  };
}

function torch({ results }: Files, name: string, ...args: string[]): Command {
  return { name, shows: true, run: ['python3', 'torch_baseline.py', '--json', join(results, `${name}.json`), ...args] };
}

const sanitizerTools = ['memcheck', 'racecheck', 'synccheck', 'initcheck'] as const;

/** The wrappers one by one, then attention on small grids. */
function sanitizer(): Command[] {
  return sanitizerTools.flatMap((tool) => {
    const check = ['compute-sanitizer', '--tool', tool, '--error-exitcode', '9', '--print-limit', '20'] as const;
    const checks = ['build/device/verify.js', '--device', device, '--quick', '--cases', '3', '--repeats', '2'];
    return [
      { name: `${tool}-conformance`, run: [...check, './conformance'] },
      ...['grid', 'operations', 'properties'].map(
        (group): Command => ({
          name: `${tool}-${group}`,
          run: [...check, node, ...checks, '--verbose', '--group', group],
          env: group === 'grid' ? largeTiles : {},
        }),
      ),
    ];
  });
}

/** The kernels of one forward and backward pass under the profiler. */
function profile({ results }: Files): Command[] {
  return ['64', '128', '256'].map((dim) => {
    const report = join(results, `ncu-${dim}`);
    const metrics = ['--set', 'full', '--import-source', 'no'];
    const which = ['--kernel-name', 'regex:forward_kernel|backward_kernel', '--launch-count', '2'];
    return {
      name: `ncu-${dim}`,
      run: [
        'ncu',
        ...['--clock-control', 'none', '--target-processes', 'all', ...metrics, ...which],
        ...['--export', report, '--force-overwrite', '--print-details', 'all'],
        ...[node, 'build/bench/gpu.js', '--device', device, '--once', dim],
      ],
    };
  });
}

const probe = `
nvidia-smi; nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.sm,power.limit --format=csv
uname -r; nproc; grep -m1 'model name' /proc/cpuinfo
for program in ncu compute-sanitizer nvcc cuobjdump; do command -v $program; done
python3 -c 'import torch; print("torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())'
exit 0`;

const steps: readonly Step[] = [
  { name: 'probe', seconds: 30, commands: () => [{ name: 'probe', shows: true, run: ['sh', '-c', probe] }] },
  {
    name: 'conformance',
    seconds: 30,
    commands: ({ results }) => {
      const args = ['--compare', 'emulator.bin', '--write', join(results, 'conformance.bin')];
      return [{ name: 'conformance', shows: true, run: ['./conformance', ...args] }];
    },
  },
  {
    name: 'quick',
    seconds: 90,
    commands: (files) => [
      ...verify(files, { name: 'quick', args: ['--quick'] }),
      ...verify(files, { name: 'quick-large', args: ['--quick'], env: largeTiles }),
    ],
  },
  { name: 'bench', seconds: 90, commands: (files) => [benchmark(files, 'bench', '--dtypes', 'bfloat16', '--dense')] },
  {
    name: 'torch',
    seconds: 90,
    needs: 'python3',
    commands: (files) => [torch(files, 'torch', '--dtypes', 'bfloat16', '--only', 'sdpa')],
  },
  {
    name: 'full',
    seconds: 200,
    commands: (files) => [
      ...verify(files, { name: 'full' }),
      ...verify(files, { name: 'full-large', env: largeTiles }),
    ],
  },
  { name: 'sanitizer', seconds: 150, needs: 'compute-sanitizer', commands: sanitizer },
  {
    name: 'sparse',
    seconds: 60,
    commands: (files) => [benchmark(files, 'sparse', '--dtypes', 'bfloat16', '--sparse')],
  },
  {
    name: 'float16',
    seconds: 60,
    commands: (files) => [benchmark(files, 'float16', '--dtypes', 'float16', '--dense')],
  },
  {
    name: 'flex',
    seconds: 90,
    needs: 'python3',
    commands: (files) => [torch(files, 'flex', '--dtypes', 'bfloat16', '--seconds', '60', '--only', 'flex')],
  },
  { name: 'profile', seconds: 90, needs: 'ncu', commands: profile },
];

/** What fits into a command of ten minutes. */
const visits: Readonly<Record<string, readonly string[]>> = {
  '1': ['probe', 'conformance', 'quick', 'bench', 'torch', 'profile'],
  '2': ['full', 'sparse', 'float16', 'others', 'flex'],
  '3': ['sanitizer'],
};

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    out: { type: 'string', default: 'results' },
    device: { type: 'string', default: 'cuda' },
    /** How much of its limit a step gets; for trying them. */
    scale: { type: 'string', default: '1' },
  },
});
const { device } = flags;
const scale = Number(flags.scale);
const out = resolve(flags.out);
const results = resolve('results');
const began = performance.now();
const outcomes: Record<string, Outcome> = {};

const clock = () => `${((performance.now() - began) / 1000).toFixed(0).padStart(4)} s`;

function say(text: string): void {
  console.log(text);
  appendFileSync(join(out, 'log.txt'), `${text}\n`);
}

/** A full disk must not end a visit. */
function attempt(action: () => void): void {
  try {
    action();
  } catch (error) {
    console.log(`not kept: ${(error as Error).message}`);
  }
}

function keepSummary(): void {
  attempt(() =>
    writeFileSync(
      join(out, 'summary.json'),
      `${JSON.stringify({ date: new Date().toISOString(), outcomes }, null, 2)}\n`,
    ),
  );
}

function keepResults(): void {
  const { status } = spawnSync('tar', ['-czf', join(out, 'results.tar.gz'), '-C', results, '.']);
  if (status !== 0) console.log('not kept: results.tar.gz');
}

const lastLines = (text: string, count: number) => text.trimEnd().split('\n').slice(-count).join('\n');

/** Runs until it ends or its time is up; the whole group of its processes ends with it. */
async function runOnce(command: Command, args: readonly string[], log: string, seconds: number) {
  const [program, ...given] = command.run;
  const child = spawn(program, [...given, ...args], {
    detached: true,
    env: { ...process.env, ...command.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const file = createWriteStream(log, { flags: 'a' });
  file.on('error', () => {});
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      output = (output + text).slice(-200_000);
      file.write(text);
    });
  let timedOut = false;
  const kill = setTimeout(() => {
    timedOut = true;
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    } catch {
      // It has just ended.
    }
  }, seconds * 1000);
  const code = await new Promise<number | null>((settle) => {
    child.once('error', (error) => {
      output += `${error.message}\n`;
      settle(127);
    });
    child.once('close', settle);
  });
  clearTimeout(kill);
  file.end();
  await Promise.race([once(file, 'close'), once(file, 'error')]);
  return { code, output, timedOut };
}

async function runCommand(command: Command, seconds: number): Promise<void> {
  const start = performance.now();
  const spent = () => (performance.now() - start) / 1000;
  const log = join(results, `${command.name}.log`);
  attempt(() => rmSync(log, { force: true }));
  let restarts = 0;
  let failed = false;
  let last = await runOnce(command, [], log, seconds);
  for (;;) {
    failed ||= last.code !== 0;
    const more = last.timedOut ? undefined : command.resume?.(last.output);
    if (!more || spent() >= seconds) break;
    restarts++;
    last = await runOnce(command, more, log, seconds - spent());
  }
  const result = last.timedOut ? 'timeout' : failed ? 'fail' : 'pass';
  outcomes[command.name] = { result, code: last.code, seconds: Number(spent().toFixed(1)), restarts };
  const again = restarts > 0 ? `, ${restarts} restarts` : '';
  say(`${clock()}  ${result.padEnd(8)} ${command.name}, ${spent().toFixed(1)} s${again}`);
  if (result !== 'pass' || !command.resume)
    say(lastLines(last.output, result === 'pass' ? 60 : 25).replace(/^/gm, '    '));
  keepSummary();
}

async function runStep({ name, seconds, needs, commands }: Step): Promise<void> {
  say(`${clock()}  == ${name}`);
  if (needs !== undefined && spawnSync('sh', ['-c', `command -v ${needs}`]).status !== 0) {
    outcomes[name] = { result: 'skipped', code: null, seconds: 0 };
    say(`skipped: there is no ${needs}`);
    return keepSummary();
  }
  await Promise.all(commands({ results }).map((command) => runCommand(command, seconds * scale)));
  keepResults();
}

mkdirSync(out, { recursive: true });
mkdirSync(results, { recursive: true });
const names = positionals.flatMap((word) => visits[word] ?? [word]);
const unknown = names.filter((name) => !steps.some((step) => step.name === name));
if (names.length === 0 || unknown.length > 0) {
  console.error(
    `${unknown.join(', ') || 'nothing'} to run: name visits (1, 2, 3) or steps (${steps.map((s) => s.name).join(', ')})`,
  );
  process.exit(2);
}
for (const name of names) await runStep(steps.find((step) => step.name === name) as Step);
const bad = Object.entries(outcomes).filter(([, { result }]) => result === 'fail' || result === 'timeout');
say(`${clock()}  ${Object.keys(outcomes).length} commands, ${bad.length} bad: ${bad.map(([name]) => name).join(', ')}`);
process.exitCode = bad.length > 0 ? 1 : 0;
