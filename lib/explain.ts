import { bytesPerElement, type DType } from './dtype.js';
import { type Problem, resolveProblem } from './plan.js';
import type { AttentionProblem } from './problem.js';

/** What a problem will cost, before anything runs. */
export interface Explanation {
  readonly device: string;
  readonly kernel: string;
  readonly dtype: DType;
  /** Queries and keys that meet at a time. */
  readonly tiles: { readonly query: number; readonly key: number };
  /** Independent pieces of work for the threads, forward. */
  readonly items: number;
  /** Of the visible pairs: 2 (dim + value dim) forward, 2 (3 dim + 2 value dim) backward. */
  readonly flops: { readonly forward: number; readonly backward: number };
  /** Of q, k, v, out and lse; with `backward`, also of dOut and the gradients. */
  readonly bytes: number;
  /** What unfused attention would hold besides: the float32 scores and probabilities. */
  readonly unfusedBytes: number;
  /** The share of query-key pairs that the mask hides, 0 to 1. */
  readonly sparsity: number;
  /** Memory besides the tensors: the threads' tiles and, with `backward`, the scratch of one run. */
  readonly workspaceBytes: number;
}

/** How many of the keys [0, keys) a band [low, high] around query i holds, summed over the queries. */
function bandPairs(queries: number, keys: number, low: number, high: number): number {
  let pairs = 0;
  for (let i = 0; i < queries; i++) pairs += Math.max(0, Math.min(keys, i + high + 1) - Math.max(0, i + low));
  return pairs;
}

function countPairs(p: AttentionProblem): { visible: number; all: number } {
  const whole = Int32Array.of(0, p.queryLength, 0, p.keyLength);
  let visible = 0;
  let all = 0;
  const count = (s: Int32Array) => {
    const [, queries, , keys] = s as unknown as [number, number, number, number];
    const diagonal = p.topLeft ? 0 : keys - queries;
    return {
      visible: bandPairs(queries, keys, diagonal - p.windowLeft, diagonal + p.windowRight),
      all: queries * keys,
    };
  };
  const { sequences } = p;
  const parts = sequences
    ? Array.from({ length: p.batch }, (_, b) => count(sequences.subarray(b * 4, b * 4 + 4)))
    : [count(whole)];
  for (const part of parts) {
    visible += part.visible;
    all += part.all;
  }
  const repeats = sequences ? 1 : p.batch;
  return { visible: visible * repeats, all: all * repeats };
}

/**
 * Tells which kernel will run and what it will cost, without running it.
 *
 * @throws as `attention`
 */
export function explain(description: Problem): Explanation {
  const { problem: p, backend, backward } = resolveProblem(description);
  const { visible, all } = countPairs(p);
  const choice = backend.describe(p, backward);
  const rows = p.layout === 'varlen' ? 1 : p.batch;
  const queries = rows * p.queryRows * p.heads;
  const keys = rows * p.keyRows * p.kvHeads;
  const elements = queries * (p.headDim + p.valueDim) + keys * (p.headDim + p.valueDim);
  const gradients = elements; // dq, dk, dv and dOut have the shapes of q, k, v and out
  return {
    device: backend.device,
    kernel: choice.kernel,
    dtype: p.dtype,
    tiles: { query: choice.queryTile, key: choice.keyTile },
    items: choice.items,
    flops: {
      forward: 2 * visible * p.heads * (p.headDim + p.valueDim),
      backward: 2 * visible * p.heads * (3 * p.headDim + 2 * p.valueDim),
    },
    bytes: bytesPerElement[p.dtype] * (elements + (backward ? gradients : 0)) + 4 * queries,
    unfusedBytes: 2 * 4 * all * p.heads,
    sparsity: all === 0 ? 0 : 1 - visible / all,
    workspaceBytes: choice.workspaceBytes,
  };
}
