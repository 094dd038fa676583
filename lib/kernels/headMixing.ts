import type { DeviceBuffer } from './memory.js';
import { addressOf, type Flat, type Operand, refOf, tensorRef, type View } from './operand.js';
import { operation } from './operation.js';
import { struct } from './struct.js';

/** Tiles of pairs, and how wide vectors and rows of a tile are at most: native/structs/head_mixing.h, native/cpu/attention. */
const [queryTile, keyTile, queryGroup] = [32, 64, 2];
const [mostLanes, mostDim] = [16, 256];
const headTile = keyTile * queryTile + mostLanes;
const rowStride = mostDim + mostLanes;

/** Probabilities of a tile of queries are kept rather than computed again up to so many, 5 MB: also a third cache is faster. */
const mostKept = 5 * 2 ** 18;
/** Walkers take their memory from so many elements, but there are always some, and never more than a machine has use for. */
const mostMemory = 2 ** 23;
const [leastWalkers, mostWalkers] = [8, 64];
/** Ranges of keys, over all batch entries, that backward goes through side by side. */
const keyRanges = 8;

const mix = struct('HeadMix', {
  matrix: 'address',
  bias: 'address',
  down: 'address',
  up: 'address',
  diagonal: 'address',
  dMatrix: 'address',
  dBias: 'address',
  dDown: 'address',
  dUp: 'address',
  dDiagonal: 'address',
  sums: 'address',
  own: 'int32',
  rank: 'int32',
});

const params = struct('HeadMixingParams', {
  query: tensorRef,
  key: tensorRef,
  value: tensorRef,
  out: tensorRef,
  dOut: tensorRef,
  dQuery: tensorRef,
  dKey: tensorRef,
  dValue: tensorRef,
  logits: mix,
  weights: mix,
  rows: 'address',
  deltas: 'address',
  memory: 'address',
  dQuerySum: 'address',
  walkerFloats: 'int64',
  batch: 'int32',
  queries: 'int32',
  keys: 'int32',
  heads: 'int32',
  softmaxHeads: 'int32',
  valueHeads: 'int32',
  headDim: 'int32',
  valueDim: 'int32',
  windowLeft: 'int32',
  windowRight: 'int32',
  walkers: 'int32',
  keptTiles: 'int32',
  keySplits: 'int32',
  scale: 'float32',
});

const unbounded = 0x3fffffff;

/** How a mixture is made: not at all, by one matrix, or by one for each query; and by factors of each key besides. */
export interface MixProblem {
  readonly kind: 'none' | 'shared' | 'own';
  /** Of the factors of keys; 0: there are none. */
  readonly rank: number;
  readonly hasDiagonal: boolean;
}

export interface HeadMixingProblem {
  readonly batch: number;
  readonly queries: number;
  readonly keys: number;
  /** Of q and k, of the softmax and of v. */
  readonly heads: number;
  readonly softmaxHeads: number;
  readonly valueHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  /** How many keys a query sees before its own position and behind it; undefined: all. */
  readonly left: number | undefined;
  readonly right: number | undefined;
  readonly scale: number;
  readonly logits: MixProblem;
  readonly weights: MixProblem;
}

/** Contiguous float32: see native/structs/head_mixing.h. */
export interface MixOperands {
  readonly matrix: Flat | undefined;
  readonly bias: Flat | undefined;
  readonly down: Flat | undefined;
  readonly up: Flat | undefined;
  readonly diagonal: Flat | undefined;
}

export interface MixGradients {
  readonly dMatrix: Flat | undefined;
  readonly dBias: Flat | undefined;
  readonly dDown: Flat | undefined;
  readonly dUp: Flat | undefined;
  readonly dDiagonal: Flat | undefined;
}

interface Inputs {
  readonly problem: HeadMixingProblem;
  readonly query: View;
  readonly key: View;
  readonly value: View;
  readonly logits: MixOperands;
  readonly weights: MixOperands;
  /** `rowElements`, for the gradient; undefined: not wanted. */
  readonly rows: Flat | undefined;
  /** Of `forwardScratch` or `backwardScratch`. */
  readonly memory: DeviceBuffer;
}

export interface HeadMixingOperands extends Inputs {
  readonly out: View;
}

export interface HeadMixingBackwardOperands extends Inputs {
  readonly rows: Flat;
  readonly dOut: View;
  readonly dQuery: View;
  readonly dKey: View;
  readonly dValue: View;
  readonly dLogits: MixGradients;
  readonly dWeights: MixGradients;
  readonly deltas: DeviceBuffer;
  readonly dQuerySum: DeviceBuffer;
  readonly logitsSums: DeviceBuffer;
  readonly weightsSums: DeviceBuffer;
}

const padded = (n: number): number => Math.ceil(n / mostLanes) * mostLanes;
const queryTiles = ({ queries }: HeadMixingProblem): number => Math.ceil(queries / queryTile);
const paddedQueries = (p: HeadMixingProblem): number => queryTiles(p) * queryTile;

/** What forward keeps for the gradient. */
export const rowElements = (p: HeadMixingProblem): number => 2 * p.batch * p.softmaxHeads * paddedQueries(p);

function keptTiles(p: HeadMixingProblem): number {
  const { keys, left, right } = p;
  const seen = left === undefined || right === undefined ? keys : Math.min(keys, queryGroup * queryTile + left + right);
  const tiles = Math.ceil(seen / keyTile);
  return tiles * p.softmaxHeads * (headTile + queryTile) <= mostKept ? tiles : 0;
}

const ownElements = ({ logits, weights, heads, softmaxHeads, valueHeads }: HeadMixingProblem): number =>
  queryTile * softmaxHeads * ((logits.kind === 'own' ? heads : 0) + (weights.kind === 'own' ? valueHeads : 0));

/** Elements that a walker works with: the parts of native/cpu/attention/head_mixing.h. */
function forwardElements(p: HeadMixingProblem): number {
  const { heads, softmaxHeads, valueHeads } = p;
  const tile =
    ownElements(p) +
    queryTile * (heads * padded(p.headDim) + valueHeads * padded(p.valueDim)) +
    headTile * (heads + softmaxHeads + valueHeads) +
    softmaxHeads * 5 * queryTile +
    keptTiles(p) * softmaxHeads * (headTile + queryTile);
  return queryGroup * tile;
}

/** The same of head_mixing_backward.h, whose two walks use the same memory. */
function backwardElements(p: HeadMixingProblem): number {
  const { heads, softmaxHeads, valueHeads } = p;
  const [dim, valueDim] = [padded(p.headDim), padded(p.valueDim)];
  const tiles = headTile * (heads + 2 * softmaxHeads + valueHeads);
  const deltas =
    ownElements(p) +
    queryTile * (heads * dim + valueHeads * valueDim) +
    tiles +
    queryTile * valueHeads * (softmaxHeads + 1);
  const strides = (n: number) => Math.ceil(n / mostDim) * rowStride;
  const keyElements = (m: MixProblem, ins: number, outs: number) => m.rank * (ins + outs) + (m.hasDiagonal ? outs : 0);
  const keys =
    ownElements(p) +
    (keyTile + queryTile) * (heads * strides(p.headDim) + valueHeads * strides(p.valueDim)) +
    queryTile * Math.max(dim, valueDim) +
    keyTile * (heads * dim + valueHeads * valueDim) +
    tiles +
    softmaxHeads * heads * queryTile +
    keyTile *
      mostLanes *
      (keyElements(p.logits, heads, softmaxHeads) + keyElements(p.weights, softmaxHeads, valueHeads));
  return Math.max(queryGroup * deltas, keys);
}

/** The same whatever runs them, so that sums do not depend on the number of threads. */
function walkersOf(p: HeadMixingProblem, elements: number): number {
  const affordable = Math.max(leastWalkers, Math.min(mostWalkers, Math.floor(mostMemory / elements)));
  return Math.max(1, Math.min(affordable, Math.max(p.batch * queryTiles(p), p.batch * keySplits(p))));
}

const keySplits = ({ batch, keys }: HeadMixingProblem): number =>
  Math.max(1, Math.min(Math.ceil(keys / (2 * keyTile)), Math.ceil(keyRanges / Math.max(1, batch))));

export const forwardScratch = (p: HeadMixingProblem): number => walkersOf(p, forwardElements(p)) * forwardElements(p);

/** Elements of the arrays of a backward launch, by their names. */
export function backwardScratch(
  p: HeadMixingProblem,
): Record<'memory' | 'deltas' | 'dQuerySum' | 'logitsSums' | 'weightsSums', number> {
  const elements = backwardElements(p);
  const walkers = walkersOf(p, elements);
  const rows = p.batch * paddedQueries(p);
  const [ofLogits, ofWeights] = [p.heads * p.softmaxHeads, p.softmaxHeads * p.valueHeads];
  return {
    memory: walkers * elements,
    deltas: p.softmaxHeads * rows,
    dQuerySum: keySplits(p) * rows * p.heads * padded(p.headDim),
    logitsSums: p.logits.kind === 'own' ? keySplits(p) * rows * ofLogits : walkers * ofLogits,
    weightsSums: walkers * (ofWeights + p.valueHeads),
  };
}

/** Multiplications and additions, forward. */
function workOf(p: HeadMixingProblem): number {
  const seen = p.left === undefined && p.right === undefined ? 1 : 0.5;
  const mixing = p.softmaxHeads * (p.heads + p.valueHeads);
  return 2 * seen * p.batch * p.queries * p.keys * (p.heads * p.headDim + mixing + p.valueHeads * p.valueDim);
}

type Results = Partial<Omit<HeadMixingOperands & HeadMixingBackwardOperands, keyof Inputs>>;

const mixOf = (problem: MixProblem, m: MixOperands, d: MixGradients | undefined, sums: DeviceBuffer | undefined) => ({
  matrix: addressOf(m.matrix),
  bias: addressOf(m.bias),
  down: addressOf(m.down),
  up: addressOf(m.up),
  diagonal: addressOf(m.diagonal),
  dMatrix: addressOf(d?.dMatrix),
  dBias: addressOf(d?.dBias),
  dDown: addressOf(d?.dDown),
  dUp: addressOf(d?.dUp),
  dDiagonal: addressOf(d?.dDiagonal),
  sums: sums?.address ?? 0,
  own: problem.kind === 'own' ? 1 : 0,
  rank: problem.rank,
});

const valuesOf = (inputs: Inputs, results: Results, walkerFloats: number) => {
  const { problem: p } = inputs;
  return {
    query: refOf(inputs.query),
    key: refOf(inputs.key),
    value: refOf(inputs.value),
    out: refOf(results.out),
    dOut: refOf(results.dOut),
    dQuery: refOf(results.dQuery),
    dKey: refOf(results.dKey),
    dValue: refOf(results.dValue),
    logits: mixOf(p.logits, inputs.logits, results.dLogits, results.logitsSums),
    weights: mixOf(p.weights, inputs.weights, results.dWeights, results.weightsSums),
    rows: addressOf(inputs.rows),
    deltas: results.deltas?.address ?? 0,
    memory: inputs.memory.address,
    dQuerySum: results.dQuerySum?.address ?? 0,
    walkerFloats,
    batch: p.batch,
    queries: p.queries,
    keys: p.keys,
    heads: p.heads,
    softmaxHeads: p.softmaxHeads,
    valueHeads: p.valueHeads,
    headDim: p.headDim,
    valueDim: p.valueDim,
    windowLeft: p.left ?? unbounded,
    windowRight: p.right ?? unbounded,
    walkers: walkersOf(p, walkerFloats),
    keptTiles: keptTiles(p),
    keySplits: keySplits(p),
    scale: p.scale,
  };
};

function buffersOf(...operands: readonly (Operand | undefined)[]): DeviceBuffer[] {
  const buffers: DeviceBuffer[] = [];
  for (const operand of operands) if (operand) buffers.push(operand.buffer);
  return buffers;
}

const inputBuffers = ({ query, key, value, logits, weights }: Inputs): DeviceBuffer[] =>
  buffersOf(query, key, value, ...Object.values(logits), ...Object.values(weights));

/** out_g = sum over keys of weights_g v_g, weights mixed from probabilities, and their logits from q . k, over heads. */
export const headMixing = operation('headMixing', params, (operands: HeadMixingOperands) => {
  const { problem, out, rows, memory } = operands;
  if (problem.batch * problem.queries * problem.valueHeads * problem.valueDim === 0) return undefined;
  return {
    params: valuesOf(operands, { out }, forwardElements(problem)),
    reads: inputBuffers(operands),
    writes: [...buffersOf(out, rows), memory],
    work: workOf(problem),
  };
});

export const headMixingBackward = operation('headMixingBackward', params, (operands: HeadMixingBackwardOperands) => {
  const { problem, dOut, rows, dQuery, dKey, dValue, dLogits, dWeights } = operands;
  const { memory, deltas, dQuerySum, logitsSums, weightsSums } = operands;
  if (problem.batch * problem.queries * problem.keys === 0) return undefined;
  return {
    params: valuesOf(operands, operands, backwardElements(problem)),
    reads: [...inputBuffers(operands), ...buffersOf(dOut, rows)],
    writes: [
      ...buffersOf(dQuery, dKey, dValue, ...Object.values(dLogits), ...Object.values(dWeights)),
      ...[memory, deltas, dQuerySum, logitsSums, weightsSums],
    ],
    work: 3.5 * workOf(problem),
  };
});
