// The thread that fuzzes: run.ts watches it and ends it when an input hangs.
import { parentPort, workerData } from 'node:worker_threads';
import { Failure, fuzz } from './fuzzer.js';
import { type Answer, CurrentInput, type Job } from './messages.js';
import type { FuzzTarget } from './target.js';

const job = workerData as Job;
const current = new CurrentInput(job.current);
const root = new URL('../../', import.meta.url).href;

/** The library and the targets guide the search, the fuzzer itself does not. */
const watches = (url: string) =>
  (url.startsWith(`${root}dist/`) || url.startsWith(`${root}build/`)) && url !== import.meta.url;

function work(target: FuzzTarget): Answer {
  if (job.replay) {
    current.set(job.replay);
    target.run(job.replay);
    return { kind: 'done', executions: 1, characters: 0, corpus: [] };
  }
  const end = performance.now() + 1000 * job.seconds;
  const { executions, characters, corpus } = fuzz(target, {
    ...job,
    watches,
    running: (input) => current.set(input),
    done: (count) => count >= job.executions || performance.now() >= end,
  });
  return { kind: 'done', executions, characters, corpus: [...corpus] };
}

function answer(target: FuzzTarget): Answer {
  try {
    return work(target);
  } catch (error) {
    if (error instanceof Failure) return { kind: 'failure', message: error.message, input: error.input };
    if (!job.replay) throw error;
    return { kind: 'failure', message: (error as Error).stack ?? String(error), input: job.replay };
  }
}

const { target } = (await import(new URL(`targets/${job.target}.js`, import.meta.url).href)) as { target: FuzzTarget };
parentPort?.postMessage(answer(target));
