// Runs thousands of mixed operations and fails when memory that nobody uses is kept: on the device none at all, in the
// process no more than a bound.
//
//   npm run soak -- [--device wasm|cpu|emulator|cuda] [--operations <n> | --training-steps <n>] [--seed <n>]
import { parseArgs } from 'node:util';
import { type DeviceName, memory, synchronize } from 'flashattn';
import { Random } from '../fuzz/random.js';
import { collectGarbage } from '../support/collectGarbage.js';
import { runOperation, type Sizes, type World } from './operations.js';
import { runTraining, stepsOfTraining } from './training.js';

const { values: options } = parseArgs({
  options: {
    device: { type: 'string', default: 'wasm' },
    operations: { type: 'string', default: '10000' },
    'training-steps': { type: 'string' },
    seed: { type: 'string', default: '1' },
    leak: { type: 'string' }, // 'host' or 'device': shows that leaks are noticed
  },
});
const device = options.device as DeviceName;
// The emulator's records of accesses grow until every address has been used; they are many times its memory.
process.env.FLASHATTN_EMULATOR_MEMORY ??= String(32 * 2 ** 20);
const steps = options['training-steps'];
const [run, count, perCall, what] = steps
  ? ([runTraining, Number(steps), stepsOfTraining, 'steps of training'] as const)
  : ([runOperation, Number(options.operations), 1, 'operations'] as const);
const sizes: Sizes =
  (device as string) === 'emulator' ? { tokens: 40, heads: 2, dim: 24 } : { tokens: 200, heads: 3, dim: 64 };

const checkpoints = 10;
/** Until then caches fill and code is compiled. */
const warmUpCheckpoints = 3;
const mebibyte = 2 ** 20;
/** How much larger than after warming up each may become. */
const bounds: Readonly<Record<keyof NodeJS.MemoryUsage, number>> = {
  rss: (device as string) === 'emulator' ? 640 * mebibyte : 96 * mebibyte,
  heapTotal: 32 * mebibyte,
  heapUsed: 4 * mebibyte,
  external: 4 * mebibyte,
  arrayBuffers: 4 * mebibyte,
};

const mostReserved = 64 * mebibyte;

/** What is left once all that nobody holds has been given back. */
async function settle() {
  let before = -1;
  for (let round = 0; round < 20; round++) {
    await collectGarbage();
    await synchronize(device);
    const { tensors, bytesInUse } = memory(device);
    if (tensors === 0 && bytesInUse === before) break;
    before = bytesInUse;
  }
  const { tensors, bytesInUse, bytesReserved } = memory(device);
  return { tensors, bytesInUse, bytesReserved, process: process.memoryUsage() };
}

type Sample = Awaited<ReturnType<typeof settle>>;

const inMebibytes = (bytes: number) => `${(bytes / mebibyte).toFixed(1)} MiB`;

function describe(operations: number, { tensors, bytesInUse, bytesReserved, process: p }: Sample): string {
  const used = `device ${bytesInUse} bytes in use by ${tensors} tensors, ${inMebibytes(bytesReserved)} reserved`;
  return `${operations} ${what}: ${used}; heap ${inMebibytes(p.heapUsed)}, array buffers ${inMebibytes(p.arrayBuffers)}, external ${inMebibytes(p.external)}, resident ${inMebibytes(p.rss)}`;
}

/** What has grown that must not. */
function growth(sample: Sample, empty: Sample, warm: Sample | undefined): string[] {
  const found: string[] = [];
  if (sample.tensors > 0) found.push(`${sample.tensors} tensors are left`);
  if (sample.bytesInUse > empty.bytesInUse)
    found.push(`${sample.bytesInUse - empty.bytesInUse} bytes of device memory are left`);
  if (!warm) return found;
  for (const [name, bound] of Object.entries(bounds) as [keyof NodeJS.MemoryUsage, number][]) {
    const grown = sample.process[name] - warm.process[name];
    if (grown > bound) found.push(`${name} has grown by ${inMebibytes(grown)}, more than ${inMebibytes(bound)}`);
  }
  const reserved = sample.bytesReserved - warm.bytesReserved;
  if (reserved > mostReserved) found.push(`reserved device memory has grown by ${inMebibytes(reserved)}`);
  return found;
}

/** Gives back what was kept, in both ways. Here, because the main program would hold on to the last of them. */
function releaseKept(): void {
  for (const t of world.kept.splice(0)) if (world.random.chance(0.5)) t.dispose();
}

const world: World = { device, sizes, random: new Random(Number(options.seed)), kept: [] };
await run(world); // sets the device up
releaseKept();
const empty = await settle();
console.log(describe(0, empty));

const leaked: unknown[] = [];
let warm: Sample | undefined;
for (let checkpoint = 1; checkpoint <= checkpoints; checkpoint++) {
  const end = Math.round((count * checkpoint) / checkpoints);
  for (let done = Math.round((count * (checkpoint - 1)) / checkpoints); done < end; done += perCall) {
    await run(world);
    if (options.leak === 'host') leaked.push(new Uint8Array(64 * 1024));
  }
  if (options.leak === 'device' && checkpoint === checkpoints) leaked.push(world.kept.pop());
  releaseKept();
  const sample = await settle();
  console.log(describe(end, sample));
  const found = growth(sample, empty, warm);
  if (found.length > 0) {
    console.error(`memory has leaked on ${device}: ${found.join('; ')}`);
    process.exitCode = 1;
    break;
  }
  if (checkpoint === warmUpCheckpoints) warm = sample;
}
if (!process.exitCode) console.log(`no memory has leaked on ${device} in ${count} ${what}`);
