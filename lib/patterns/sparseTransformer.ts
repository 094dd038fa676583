/**
 * Child et al. 2019, "Generating Long Sequences with Sparse Transformers", as published twice: the code
 * (openai/sparse_attention, attention.py) and the formulas of the paper, which differ. All of them are causal.
 */

import { checkInteger, checkOptions } from '../base/check.js';
import { optionError } from '../base/errors.js';
import { and, causal, documents, fixed, or, perHead, slidingWindow, strided } from '../masks/index.js';
import { checkTokens, type Mask } from '../masks/mask.js';
import { BlockGrid } from './blockGrid.js';

/** 'local' of the code: query i sees keys i - bandwidth + 1 to i. @throws ERR_OPTION */
export const sparseTransformerLocal = (bandwidth: number): Mask =>
  slidingWindow(checkInteger(bandwidth, 'bandwidth', 1) - 1, 0);

/** 'strided' of the code: query i sees keys i, i - stride, i - 2 * stride, ... @throws ERR_OPTION */
export const sparseTransformerStrided = (stride: number): Mask => strided(checkInteger(stride, 'stride', 1));

export interface SparseTransformerFixedOptions {
  /** Tokens of the sequence. */
  readonly length: number;
  /** Tokens of a local run; a multiple of `block`. */
  readonly localAttnCtx: number;
  /** Tokens of a block. Default 32. */
  readonly block?: number;
  /** Different summaries: head h takes number h % numVerts, counted from the end of a run. Default 4. */
  readonly numVerts?: number;
  /** Blocks of a summary; must divide the blocks of a run. Default 1. */
  readonly vertSize?: number;
  /** A multiple of numVerts, which is the default. */
  readonly heads?: number;
}

/**
 * 'fixed' of the code, in blocks. With s = localAttnCtx / block, block row r of head h sees column c <= r when
 * floor(c / s) = floor(r / s) or when c mod s is in a summary: [s - (v + 1) * vertSize, s - v * vertSize) with
 * v = h mod numVerts. Diagonal blocks are causal by token.
 *
 * @throws ERR_OPTION
 */
export function sparseTransformerFixed(options: SparseTransformerFixedOptions): Mask {
  checkOptions(options, ['length', 'localAttnCtx', 'block', 'numVerts', 'vertSize', 'heads']);
  const { length, localAttnCtx, block = 32, numVerts = 4, vertSize = 1 } = options;
  const { heads = numVerts } = options;
  const size = Math.ceil(checkTokens(length, 'length', 1) / checkInteger(block, 'block', 1));
  checkInteger(localAttnCtx, 'localAttnCtx', block);
  const run = localAttnCtx / block;
  if (!Number.isInteger(run)) throw optionError(`localAttnCtx is ${localAttnCtx}; it must be a multiple of ${block}`);
  checkInteger(vertSize, 'vertSize', 1, run);
  if (run % vertSize !== 0) throw optionError(`vertSize is ${vertSize}; it must divide the ${run} blocks of a run`);
  checkInteger(numVerts, 'numVerts', 1, run / vertSize);
  checkInteger(heads, 'heads', 1);
  if (heads % numVerts !== 0) throw optionError(`heads is ${heads}; it must be a multiple of numVerts ${numVerts}`);

  const grid = new BlockGrid(numVerts === 1 ? 1 : heads, size);
  for (let head = 0; head < grid.heads; head++) {
    const summary = run - ((head % numVerts) + 1) * vertSize;
    for (let begin = 0; begin < size; begin += run) {
      grid.show(head, begin, begin + run, begin, begin + run);
      grid.show(head, 0, size, begin + summary, begin + summary + vertSize);
    }
    grid.hideFuture(head);
  }
  return and(grid.toMask(block), causal());
}

export interface SparseTransformerPaperOptions {
  /** l of the paper. */
  readonly stride: number;
  /** Gives the two halves to the heads in turn. Default: merged, every head sees what either of them shows. */
  readonly heads?: number;
}

export interface SparseTransformerPaperFixedOptions extends SparseTransformerPaperOptions {
  /** Tokens of the sequence. */
  readonly length: number;
  /** c of the paper: the last tokens of a run, which summarise it. Default 1. */
  readonly summary?: number;
}

const join = (halves: readonly [Mask, Mask], heads: number | undefined): Mask =>
  heads === undefined
    ? or(...halves)
    : perHead(Array.from({ length: checkInteger(heads, 'heads', 1) }, (_, head) => halves[head % 2]));

/**
 * Strided attention of the paper, with l = stride: keys i - l to i (one more than in the code), and keys j <= i with
 * (i - j) mod l = 0. @throws ERR_OPTION
 */
export function sparseTransformerPaperStrided(options: SparseTransformerPaperOptions): Mask {
  checkOptions(options, ['stride', 'heads']);
  const { stride, heads } = options;
  checkInteger(stride, 'stride', 1);
  return join([slidingWindow(stride, 0), strided(stride)], heads);
}

/**
 * Fixed attention of the paper, with l = stride and c = summary: keys j <= i with floor(j / l) = floor(i / l), and keys
 * j <= i with j mod l >= l - c. As a head of its own the second half hides everything from the queries before the
 * first summary: their output is 0.
 *
 * @throws ERR_OPTION
 */
export function sparseTransformerPaperFixed(options: SparseTransformerPaperFixedOptions): Mask {
  checkOptions(options, ['length', 'stride', 'summary', 'heads']);
  const { length, stride, summary = 1, heads } = options;
  checkInteger(stride, 'stride', 1);
  const runs = Array.from({ length: Math.ceil(checkTokens(length, 'length', 1) / stride) }, (_, run) =>
    Math.min(stride, length - run * stride),
  );
  const summaries = fixed(stride, checkInteger(summary, 'summary', 1, stride));
  return join([and(documents(runs), causal()), and(summaries, causal())], heads);
}
