// Libraries side by side: each a process of its own, which is asked as bench/peers/serve.mjs says.
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Problem } from './peers/serve.mjs';

export interface Answer {
  readonly milliseconds: number;
  readonly out: readonly number[];
}
/** Why there is no answer. */
export interface Refusal {
  readonly reason: string;
}

export interface Contender {
  /** Sends a question, as the `serve` that the process runs knows it, and waits for the answer. */
  ask<T>(question: object): Promise<T | Refusal>;
  stop(): void;
}

export const peerNames = ['ort-node', 'ort-web', 'tfjs', 'jax-js'] as const;
export type PeerName = (typeof peerNames)[number];

interface Peer {
  /** The package whose version counts. */
  readonly package: string;
  /** The program in bench/peers, and its arguments. */
  readonly program: readonly [string, ...string[]];
  /** The major of Node.js that it needs, where that is a newer one than ours. */
  readonly node?: number;
  /** It holds all scores at once, and more than once. */
  readonly holdsScores?: boolean;
}

const peers: Readonly<Record<PeerName, Peer>> = {
  'ort-node': { package: 'onnxruntime-node', program: ['onnx.mjs', 'node'] },
  'ort-web': { package: 'onnxruntime-web', program: ['onnx.mjs', 'web'] },
  tfjs: { package: '@tensorflow/tfjs', program: ['tfjs.mjs'], holdsScores: true },
  'jax-js': { package: '@jax-js/jax', program: ['jax.mjs'], node: 24, holdsScores: true },
};

/** Milliseconds that an answer of a peer may take, unless it is told otherwise. */
const patience = 20_000;

/** Bytes of scores, in float32; a library that holds them needs a few times as many. */
const scoresLimit = 256 * 2 ** 20;

/** Whether numbers of results are the same but for rounding. */
export const agree = (a: readonly number[], b: readonly number[]): boolean =>
  a.every((value, i) => Math.abs(value - (b[i] as number)) < 1e-4);

export const isRefusal = (answer: object): answer is Refusal => 'reason' in answer;

/** Why not to ask a peer at all. */
export function tooLarge(name: PeerName, [batch, queries, keys, heads]: Problem): Refusal | undefined {
  const bytes = 4 * batch * heads * queries * keys;
  if (!peers[name].holdsScores || bytes < scoresLimit) return undefined;
  return { reason: `would need gigabytes, ${bytes / 2 ** 20} MiB for each copy of the scores` };
}

/** Sends a message and waits for the answer, or for what comes instead of one. */
async function exchange<T>(child: ChildProcess, message: object, milliseconds?: number): Promise<T | Refusal> {
  if (!child.connected) return { reason: 'ended' };
  const over = new AbortController();
  const { signal } = over;
  try {
    const outcomes = [
      once(child, 'message', { signal }).then(([answer]) => answer as T | Refusal),
      once(child, 'exit', { signal }).then(() => ({ reason: 'ends without an answer' })),
    ];
    if (milliseconds) {
      const reason = `has no answer after ${milliseconds / 1000} s`;
      outcomes.push(setTimeout(milliseconds, { reason }, { signal }));
    }
    child.send(message);
    return await Promise.race(outcomes);
  } catch (error) {
    return { reason: `fails: ${(error as Error).message}` };
  } finally {
    over.abort(); // the others
  }
}

async function begin(child: ChildProcess, threads: number, milliseconds?: number): Promise<Contender | Refusal> {
  child.on('error', () => {}); // exchange tells of them; one that comes late must not end this process
  const stop = () => void child.kill();
  const started = await exchange<{ threads: number }>(child, { threads }, milliseconds);
  if (!isRefusal(started) && started.threads === threads)
    return { ask: (question) => exchange(child, question, milliseconds), stop };
  stop();
  if (isRefusal(started)) return started;
  const had = started.threads === 1 ? 'no threads' : `${started.threads} threads`;
  return { reason: `has ${had} in Node.js` };
}

/** This library: the program that serves where FLASHATTN_BENCH_CHILD says what. */
export function startOwn(program: string, device: string, threads: number): Promise<Contender | Refusal> {
  const env = { ...process.env, FLASHATTN_THREADS: String(threads), FLASHATTN_BENCH_CHILD: device };
  return begin(fork(program, { env }), threads);
}

interface PeerOptions {
  /** In bench/peers, in the place of the one that computes attention. */
  readonly program?: string;
  /** Milliseconds that an answer may take. */
  readonly patience?: number;
}

/** @param root - of the repository: bundled, this file does not know where it is */
export async function startPeer(
  name: PeerName,
  threads: number,
  root: URL,
  options: PeerOptions = {},
): Promise<Contender | Refusal> {
  const { program, node } = peers[name];
  const [file, ...args] = options.program ? [options.program] : program;
  let execPath: string;
  try {
    execPath = await nodeOf(node ?? 0, root);
  } catch (error) {
    return { reason: `needs Node.js ${node}: ${(error as Error).message}` };
  }
  // What it cannot do it says at length.
  const child = fork(new URL(`bench/peers/${file}`, root), args, {
    execPath,
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  });
  return begin(child, threads, options.patience ?? patience);
}

/** What scripts/node-binary.mjs exports. */
interface NodeBinaries {
  readonly nodeVersions: readonly string[];
  nodeBinary(version: string): string;
}

const majorOf = (version: string) => Number(version.split('.')[0]);

/** Not bundled: the script finds the repository by its own place. */
const nodeBinaries = (root: URL): Promise<NodeBinaries> => import(new URL('scripts/node-binary.mjs', root).href);

/** The Node.js that runs this, or else the first that is new enough. */
async function nodeVersionOf(major: number, root: URL): Promise<string> {
  if (majorOf(process.versions.node) >= major) return process.versions.node;
  return (await nodeBinaries(root)).nodeVersions.find((version) => majorOf(version) >= major) as string;
}

/** Its program, installed into build/nodes if need be. */
async function nodeOf(major: number, root: URL): Promise<string> {
  const version = await nodeVersionOf(major, root);
  return version === process.versions.node ? process.execPath : (await nodeBinaries(root)).nodeBinary(version);
}

/** The versions that `npm run bench:peers` installs, and of Node.js where another one runs them. */
export async function peerVersions(root: URL): Promise<Readonly<Record<string, string>>> {
  const { dependencies } = JSON.parse(readFileSync(fileURLToPath(new URL('bench/peers/package.json', root)), 'utf8'));
  const versions: Record<string, string> = {};
  for (const name of peerNames) {
    const node = await nodeVersionOf(peers[name].node ?? 0, root);
    const on = node === process.versions.node ? '' : ` (node ${node})`;
    versions[name] = `${dependencies[peers[name].package]}${on}`;
  }
  return versions;
}
