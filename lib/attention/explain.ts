import { describeKernels } from '../backends/shared/attention.js';
import { bytesPerElement, type FloatDType } from '../base/dtype.js';
import type { BlockMask } from '../blockmask/blockMask.js';
import type { AttentionProblem } from '../kernels/attention.js';
import type { MatmulKernels } from '../kernels/device.js';
import { countBits, setBits } from '../masks/mask.js';
import { type Problem, resolveProblem } from './plan.js';
import { bandOf } from './visibility.js';

/** What a problem will cost, before anything runs. */
export interface Explanation {
  readonly device: string;
  readonly kernel: string;
  /** On CUDA, what multiplies matrices around attention (`matmul`, layers); attention itself is always `kernel`. */
  readonly matmul?: MatmulKernels;
  /** Operations that make what the kernel reads, each with results in memory: see the option `rope`, on CUDA. */
  readonly composed: readonly ('rope(q)' | 'rope(k)')[];
  readonly dtype: FloatDType;
  /** Queries and keys that meet at a time. */
  readonly tiles: { readonly query: number; readonly key: number };
  /** Independent pieces of work, forward: for the threads of WebAssembly, or thread blocks of CUDA. */
  readonly items: number;
  /** On CUDA, what each thread block takes, forward. */
  readonly block?: {
    readonly threads: number;
    readonly sharedMemoryBytes: number;
    /**
     * How rows of contiguous q, k and v get to shared memory: in pieces of so many bytes. 16 unless dim x bytes of an element
     * is no multiple of it; 8 and 4 take two and four times as many instructions, with 2 nothing is copied ahead.
     */
    readonly copyBytes: 16 | 8 | 4 | 2;
  };
  /** Of the visible pairs: 2 (dim + value dim) forward, 2 (3 dim + 2 value dim) backward. */
  readonly flops: { readonly forward: number; readonly backward: number };
  /** Of q, k, v, out and lse; with `backward`, also of dOut and the gradients. */
  readonly bytes: number;
  /** What unfused attention would hold besides: the float32 scores and probabilities. */
  readonly unfusedBytes: number;
  /** The share of query-key pairs that the mask hides, 0 to 1. */
  readonly sparsity: number;
  /** Instructions of `scoreMod` that run for each visible pair: forward, and backward with its derivative. */
  readonly scoreMod?: { readonly forward: number; readonly backward: number };
  /**
   * Memory besides the tensors: the threads' tiles on WebAssembly, with `backward` the scratch of one run, and on CUDA with
   * `rope` q and k as they were turned.
   */
  readonly workspaceBytes: number;
}

/** The keys that a query may see: [begin, end). */
type KeyRange = (query: number) => readonly [begin: number, end: number];

const overlap = (a: number, b: number, begin: number, end: number) =>
  Math.max(0, Math.min(b, end) - Math.max(a, begin));

/** How many keys of a range a row of a partial block shows. */
function countRow(mask: BlockMask, block: number, row: number, begin: number, end: number): number {
  const words = mask.blockSize / 32;
  const first = block * mask.wordsPerBlock + row * words;
  const shown = mask.bits.slice(first, first + words);
  const wanted = new Uint32Array(words);
  if (begin < end) setBits(wanted, begin, end);
  return countBits(shown.map((word, at) => word & wanted[at]));
}

/** Visible pairs of one head under a block mask, within the keys that each query may see anyway. */
function countMasked(mask: BlockMask, list: number, row: number, queries: number, range: KeyRange): number {
  const { blockSize, full, partial } = mask;
  let pairs = 0;
  for (let i = row * blockSize; i < Math.min(queries, (row + 1) * blockSize); i++) {
    const [begin, end] = range(i);
    for (let at = full.offsets[list]; at < full.offsets[list + 1]; at++) {
      const key = full.indices[at] * blockSize;
      pairs += overlap(key, key + blockSize, begin, end);
    }
    for (let at = partial.offsets[list]; at < partial.offsets[list + 1]; at++) {
      const key = partial.indices[at] * blockSize;
      const [from, to] = [Math.max(0, begin - key), Math.min(blockSize, end - key)];
      pairs += countRow(mask, at, i - row * blockSize, from, to);
    }
  }
  return pairs;
}

/** Visible pairs and all pairs, over all batch entries and heads. */
function countPairs(p: AttentionProblem): { visible: number; all: number } {
  const { blockMask: mask, heads } = p;
  // What does not depend on the batch entry or the head is counted once.
  const batches = p.sequences || (mask && mask.batch > 1) ? p.batch : Math.min(1, p.batch);
  const maskHeads = mask?.heads ?? 1;
  let visible = 0;
  let all = 0;
  for (let b = 0; b < batches; b++) {
    const [, queries, , keys] = p.sequences?.subarray(b * 4, b * 4 + 4) ?? [0, p.queryLength, 0, p.keyLength];
    const range = bandOf(p, b);
    for (let h = 0; h < maskHeads; h++) {
      if (mask)
        for (let row = 0; row < mask.rows; row++)
          visible += countMasked(mask, mask.listOf(b, h, row), row, queries, range);
      else for (let i = 0; i < queries; i++) visible += Math.max(0, range(i)[1] - range(i)[0]);
    }
    all += queries * keys * maskHeads;
  }
  const repeats = (batches === 0 ? 0 : p.batch / batches) * (heads / maskHeads);
  return { visible: visible * repeats, all: all * repeats };
}

/** See Explanation.block. */
function copyBytesOf({ headDim, valueDim, dtype }: AttentionProblem): 16 | 8 | 4 | 2 {
  const rows = [headDim, valueDim].map((dim) => dim * bytesPerElement[dtype]);
  return ([16, 8, 4] as const).find((bytes) => rows.every((row) => row % bytes === 0)) ?? 2;
}

/**
 * Tells which kernel will run and what it will cost, without running it.
 *
 * @throws as `attention`
 */
export function explain(description: Problem): Explanation {
  const { problem: p, backend, backward, options } = resolveProblem(description);
  const { visible, all } = countPairs(p);
  const choice = describeKernels(backend, p, backward);
  const { matmulKernels } = backend;
  const rows = p.layout === 'varlen' ? 1 : p.batch;
  const queries = rows * p.queryRows * p.heads;
  const keys = rows * p.keyRows * p.kvHeads;
  const elements = queries * (p.headDim + p.valueDim) + keys * (p.headDim + p.valueDim);
  const composes = options.rope !== undefined && !backend.turnsRows;
  const turned = composes ? bytesPerElement[p.dtype] * p.headDim * (queries + keys) : 0;
  const gradients = elements; // dq, dk, dv and dOut have the shapes of q, k, v and out
  return {
    device: backend.device,
    kernel: choice.kernel,
    ...(matmulKernels && { matmul: matmulKernels }),
    composed: composes ? ['rope(q)', 'rope(k)'] : [],
    dtype: p.dtype,
    tiles: { query: choice.queryTile, key: choice.keyTile },
    items: choice.items,
    ...(choice.block && { block: { ...choice.block, copyBytes: copyBytesOf(p) } }),
    flops: {
      forward: 2 * visible * (p.headDim + p.valueDim),
      backward: 2 * visible * (3 * p.headDim + 2 * p.valueDim),
    },
    bytes: bytesPerElement[p.dtype] * (elements + (backward ? gradients : 0)) + 4 * queries,
    unfusedBytes: 2 * 4 * all,
    sparsity: all === 0 ? 0 : 1 - visible / all,
    ...(p.scoreMod && { scoreMod: { forward: p.scoreMod.valueCount, backward: p.scoreMod.count } }),
    workspaceBytes: choice.workspaceBytes + turned,
  };
}
