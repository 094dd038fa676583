/**
 * What a visit to a GPU machine runs.
 *
 *   node build/bench/visit.js <steps or numbers of visits> --out results
 */
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { type Command, type Files, runVisit, type Step } from './runner.js';

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    out: { type: 'string', default: 'results' },
    device: { type: 'string', default: 'cuda' },
    /** How much of its limit a step gets; for trying them. */
    scale: { type: 'string', default: '1' },
    /** Say what would be run. */
    list: { type: 'boolean', default: false },
  },
});
const { device } = flags;
const isGpu = device === 'cuda';
/** An emulated device runs every path once. */
const tiny = isGpu ? [] : ['--tiny'];

const node = process.execPath;
const groups = [
  'grid',
  'lengths',
  'nothing',
  'numbers',
  'range',
  'sums',
  'precision',
  ...(isGpu ? ['scale'] : []),
  'masks',
  'canaries',
  'operations',
  'products',
  'properties',
  'determinism',
];

interface Extent {
  readonly name: string;
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly of?: readonly string[];
}

/** A process for each group of checks. */
function verify({ results }: Files, { name, args = [], env = {}, of }: Extent): Command[] {
  const program = ['build/device/verify.js', '--device', device, '--verbose'];
  const one = (group: string, more: readonly string[]): Command => {
    const command = `verify-${name}-${group}`;
    const json = (suffix = '') => ['--json', join(results, `${command}${suffix}.json`)];
    return {
      name: command,
      run: [node, ...program, '--group', group, ...json(), ...args, ...more],
      env,
      resume: (output) => {
        // What `verify` says when the device is lost.
        const [, next] = /^lost: --from (\d+)$/m.exec(output) ?? [];
        return next === undefined ? undefined : ['--from', next, ...json(`-from-${next}`)];
      },
    };
  };
  if (of) return of.map((group) => one(group, []));
  return [...groups.map((group) => one(group, [])), one('golden', ['--golden', 'vectors'])];
}

const ownProducts = { FLASHATTN_CUBLASLT: 'off' };
const largeTiles = { ...ownProducts, FLASHATTN_MULTIPROCESSORS: '1' };

function benchmark({ results }: Files, name: string, ...args: string[]): Command {
  return {
    name,
    shows: true,
    run: [node, 'build/bench/gpu.js', '--device', device, '--json', join(results, `${name}.json`), ...tiny, ...args],
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
      ...['grid', 'operations', 'products', 'properties'].map(
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

const program = (name: string) => ({ what: name, test: `command -v ${name}` });
const torchModule = { what: 'torch in python3', test: "python3 -c 'import torch'" };
const findsCublasLt = `import('./dist/index.js').then((fa) => process.exit(fa.status('${device}').matmul.kernels === 'cublasLt' ? 0 : 1))`;
const cublasLt = { what: 'cuBLASLt', test: `'${node}' -e "${findsCublasLt}"` };

const steps: readonly Step[] = [
  { name: 'probe', seconds: 30, commands: () => [{ name: 'probe', shows: true, run: ['sh', '-c', probe] }] },
  {
    name: 'conformance',
    seconds: 30,
    needs: { what: 'GPU', test: String(isGpu) },
    commands: ({ results }) => {
      const args = ['--compare', 'emulator.bin', '--write', join(results, 'conformance.bin')];
      return [{ name: 'conformance', shows: true, run: ['./conformance', ...args] }];
    },
  },
  {
    name: 'quick',
    seconds: 90,
    commands: (files) => [
      ...verify(files, { name: 'quick', args: ['--quick'], env: ownProducts }),
      ...verify(files, { name: 'quick-large', args: ['--quick'], env: largeTiles }),
    ],
  },
  {
    name: 'cublaslt',
    seconds: 30,
    needs: cublasLt,
    commands: (files) => verify(files, { name: 'cublaslt', args: ['--quick'], of: ['products'] }),
  },
  { name: 'bench', seconds: 90, commands: (files) => [benchmark(files, 'bench', '--dtypes', 'bfloat16', '--dense')] },
  {
    name: 'torch',
    seconds: 90,
    needs: torchModule,
    commands: (files) => [torch(files, 'torch', '--dtypes', 'bfloat16', '--only', 'sdpa')],
  },
  {
    name: 'full',
    seconds: 200,
    commands: (files) => [
      ...verify(files, { name: 'full', env: ownProducts }),
      ...verify(files, { name: 'full-large', env: largeTiles }),
    ],
  },
  { name: 'sanitizer', seconds: 150, needs: program('compute-sanitizer'), commands: sanitizer },
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
    name: 'others',
    seconds: 60,
    commands: ({ results }) => {
      const args = ['--device', device, '--json', join(results, 'others.json'), ...tiny];
      return [{ name: 'others', shows: true, run: [node, 'build/bench/others.js', ...args] }];
    },
  },
  {
    name: 'flex',
    seconds: 90,
    needs: torchModule,
    commands: (files) => [torch(files, 'flex', '--dtypes', 'bfloat16', '--seconds', '60', '--only', 'flex')],
  },
  { name: 'profile', seconds: 90, needs: program('ncu'), commands: profile },
];

/** What fits into a command of ten minutes. */
const visits: Readonly<Record<string, readonly string[]>> = {
  '1': ['probe', 'conformance', 'quick', 'cublaslt', 'bench', 'torch', 'profile'],
  '2': ['full', 'sparse', 'float16', 'others', 'flex'],
  '3': ['sanitizer'],
};

const names = positionals.flatMap((word) => visits[word] ?? [word]);
const unknown = names.filter((name) => !steps.some((step) => step.name === name));
if (names.length === 0 || unknown.length > 0) {
  const known = `visits (${Object.keys(visits).join(', ')}) or steps (${steps.map(({ name }) => name).join(', ')})`;
  console.error(`${unknown.join(', ') || 'nothing'} to run: name ${known}`);
  process.exit(2);
}
const chosen = names.map((name) => steps.find((step) => step.name === name) as Step);
const results = resolve('results');
if (flags.list) {
  for (const { name, commands } of chosen)
    for (const command of commands({ results })) console.log(`${name}: ${command.run.join(' ')}`);
  process.exit(0);
}
const outcomes = await runVisit({
  steps: chosen,
  out: resolve(flags.out),
  results,
  scale: Number(flags.scale),
});
if (Object.values(outcomes).some(({ result }) => result === 'fail' || result === 'timeout')) process.exitCode = 1;
