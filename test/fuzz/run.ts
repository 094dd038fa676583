// Fuzzes the decoders, guided by coverage. An input that fails is written below build/fuzz/failures.
//
//   npm run fuzz -- [--target <name>] [--seconds <n> | --executions <n>] [--seed <n>] [--save]
//   npm run fuzz -- --target <name> --replay <file>
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { type Answer, CurrentInput, type Job } from './messages.js';
import { longestInput } from './mutate.js';

const root = fileURLToPath(new URL('../../', import.meta.url));
const targets = ['blockMask', 'safetensors'];
const heapMegabytes = 256;
/** Longer ones are found again and would only fill the repository. */
const longestSaved = 2048;

const { values: options } = parseArgs({
  options: {
    target: { type: 'string' },
    seconds: { type: 'string' },
    executions: { type: 'string' },
    seed: { type: 'string', default: '1' },
    save: { type: 'boolean', default: false },
    replay: { type: 'string' },
    'hang-seconds': { type: 'string', default: '10' },
  },
});

/** Of processor time, so that other work on the machine does not count: longer than any input may take. */
const hangSeconds = Number(options['hang-seconds']);

const corpusFolder = (target: string) => join(root, 'test/fuzz/corpus', target);

const readCorpus = (target: string) => {
  const folder = corpusFolder(target);
  if (!existsSync(folder)) return [];
  const names = readdirSync(folder).sort();
  return names.map((name) => new Uint8Array(readFileSync(join(folder, name))));
};

function write(folder: string, input: Uint8Array): string {
  mkdirSync(folder, { recursive: true });
  const file = join(folder, `${createHash('sha256').update(input).digest('hex').slice(0, 12)}.bin`);
  writeFileSync(file, input);
  return relative(root, file);
}

function fuzz(job: Omit<Job, 'current'>): Promise<Answer> {
  const current = CurrentInput.ofSize(longestInput);
  const worker = new Worker(new URL('worker.js', import.meta.url), {
    workerData: { ...job, current: current.memory } satisfies Job,
    resourceLimits: { maxOldGenerationSizeMb: heapMegabytes },
  });
  return new Promise((resolve) => {
    // The worker's time: this thread only waits.
    let last = { count: 0, cpu: process.cpuUsage() };
    const watch = setInterval(() => {
      const { user, system } = process.cpuUsage(last.cpu);
      if (current.count !== last.count) last = { count: current.count, cpu: process.cpuUsage() };
      else if (current.count > 0 && user + system > 1e6 * hangSeconds) fail(`it ran for more than ${hangSeconds} s`);
    }, 200);
    const finish = (answer: Answer) => {
      clearInterval(watch);
      void worker.terminate();
      resolve(answer);
    };
    const fail = (message: string) => finish({ kind: 'failure', message, input: current.input });
    worker.on('message', finish);
    worker.on('error', (error: Error) => fail(error.stack ?? error.message));
  });
}

function report(target: string, seed: number, answer: Answer, seconds: number): boolean {
  if (answer.kind === 'failure') {
    const file = write(join(root, 'build/fuzz/failures', target), answer.input);
    console.log(`${target}: failed on ${answer.input.length} bytes: ${answer.message}`);
    console.log(`again: npm run fuzz -- --target ${target} --replay ${file}`);
    return false;
  }
  const { executions, characters, corpus } = answer;
  console.log(
    `${target}: ${executions} inputs in ${seconds.toFixed(1)} s (seed ${seed}), ${characters} characters of code reached by ${corpus.length} of them`,
  );
  if (options.save) for (const input of corpus) if (input.length <= longestSaved) write(corpusFolder(target), input);
  return true;
}

const chosen = options.target ? [options.target] : targets;
const seed = Number(options.seed);
// With a number of executions a run is the same every time, however fast the machine is.
const executions = options.executions ? Number(options.executions) : Number.POSITIVE_INFINITY;
const seconds = options.seconds ? Number(options.seconds) : options.executions ? Number.POSITIVE_INFINITY : 60;
for (const target of chosen) {
  const start = performance.now();
  const replay = options.replay ? new Uint8Array(readFileSync(resolve(root, options.replay))) : undefined;
  const share = seconds / chosen.length;
  const answer = await fuzz({ target, seed, executions, seconds: share, corpus: readCorpus(target), replay });
  if (!report(target, seed, answer, (performance.now() - start) / 1000)) process.exitCode = 1;
}
