import { checkBoolean, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { type AttentionProblem, maxHeadDim } from '../kernels/attention.js';
import type { Shape } from '../tensor/tensor.js';
import { dimsOf, type Layout, orders, rankOf } from './layout.js';
import { type AttentionOptions, optionNames } from './options.js';
import { readRope } from './rotary.js';
import { traceScoreMod } from './scoreMod.js';
import { readSequences } from './sequences.js';
import { readAlibi, readBias, readDropout, readRelative, readScaling, readSink } from './terms.js';
import { readBand, readMask } from './visibility.js';

type ProblemDims = Pick<
  AttentionProblem,
  'batch' | 'queryRows' | 'keyRows' | 'heads' | 'kvHeads' | 'headDim' | 'valueDim'
>;

function checkRank(shape: Shape, argument: string, layout: Layout): void {
  if (shape.length === rankOf(layout)) return;
  const packed = layout === 'varlen' ? 'with cuSeqlensQ it' : 'it';
  throw shapeError(
    `${argument} has shape ${show(shape)}; ${packed} must have rank ${rankOf(layout)}, ${orders[layout]}`,
  );
}

function checkHeadDim(dim: number, of: string, context: () => string): void {
  if (dim < 1 || dim > maxHeadDim)
    throw shapeError(`the head dim of ${of} is ${dim}; it must be from 1 to ${maxHeadDim} in ${context()}`);
}

/** Splits q, k and v's shapes into named dims and checks that they agree. */
function readDims(q: Shape, k: Shape, v: Shape, layout: Layout): ProblemDims {
  checkRank(q, 'q', layout);
  checkRank(k, 'k', layout);
  checkRank(v, 'v', layout);
  const query = dimsOf(q, layout);
  const key = dimsOf(k, layout);
  const value = dimsOf(v, layout);
  const context = () => `q ${show(q)}, k ${show(k)}, v ${show(v)} (${orders[layout]})`;
  if (query.batch !== key.batch || key.batch !== value.batch)
    throw shapeError(`the batch sizes differ: ${query.batch}, ${key.batch} and ${value.batch} in ${context()}`);
  if (query.dim !== key.dim)
    throw shapeError(`q and k must have the same head dim, got ${query.dim} and ${key.dim} in ${context()}`);
  if (key.rows !== value.rows)
    throw shapeError(`k and v must have the same length, got ${key.rows} and ${value.rows} in ${context()}`);
  if (key.heads !== value.heads)
    throw shapeError(`k and v must have the same number of heads, got ${key.heads} and ${value.heads} in ${context()}`);
  if (key.heads < 1 || query.heads < 1 || query.heads % key.heads !== 0)
    throw shapeError(
      `the ${query.heads} query heads must be a positive multiple of the ${key.heads} key/value heads in ${context()}`,
    );
  checkHeadDim(query.dim, 'q and k', context);
  checkHeadDim(value.dim, 'v', context);
  return {
    batch: query.batch,
    queryRows: query.rows,
    keyRows: key.rows,
    heads: query.heads,
    kvHeads: key.heads,
    headDim: query.dim,
    valueDim: value.dim,
  };
}

function readLayout({ layout, cuSeqlensQ, cuSeqlensK }: AttentionOptions): Layout {
  if (layout !== undefined) checkWord(layout, 'layout', ['bshd', 'bhsd']);
  if (cuSeqlensQ === undefined && cuSeqlensK === undefined) return layout ?? 'bshd';
  if (cuSeqlensQ === undefined || cuSeqlensK === undefined)
    throw optionError('cuSeqlensQ and cuSeqlensK must be given together');
  if (layout !== undefined) throw optionError('layout has no meaning together with cuSeqlensQ');
  return 'varlen';
}

/** @throws ERR_SHAPE, ERR_DTYPE or ERR_OPTION, naming the argument. */
export function readProblem(
  q: Shape,
  k: Shape,
  v: Shape,
  dtype: FloatDType,
  options: AttentionOptions,
): AttentionProblem {
  checkOptions(options, optionNames);
  const layout = readLayout(options);
  const { deterministic = false } = options;
  checkBoolean(deterministic, 'deterministic');
  const dims = readDims(q, k, v, layout);
  const { heads } = dims;
  const sequences = readSequences(options, dims);
  const { batch, queryLength, keyLength } = sequences;
  const { scale, softcap } = readScaling(options, dims.headDim);
  const { windowLeft, windowRight, topLeft, offset } = readBand(options, sequences);
  const problem = {
    dtype,
    layout,
    batch,
    heads,
    kvHeads: dims.kvHeads,
    headDim: dims.headDim,
    valueDim: dims.valueDim,
    queryLength,
    keyLength,
    queryRows: dims.queryRows,
    keyRows: dims.keyRows,
    sequences: sequences.sequences,
    scale,
    softcap,
    windowLeft,
    windowRight,
    topLeft,
    offset,
    hasSink: readSink(options.sink, heads),
    dropout: readDropout(options.dropout),
    biasShape: readBias(options, heads, sequences),
    alibi: readAlibi(options, heads, sequences),
    relative: readRelative(options.relativeBias, heads, sequences),
    scoreMod: traceScoreMod(options.scoreMod)?.program,
    blockMask: readMask(options, heads, sequences),
    deterministic,
    rotary: undefined,
  };
  const rotary = readRope(options.rope, problem);
  return rotary ? { ...problem, rotary } : problem;
}
