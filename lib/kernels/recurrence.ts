import type { DeviceBuffer } from './memory.js';
import { addressOf, type Flat, type Operand, refOf, tensorRef, type View } from './operand.js';
import { operation } from './operation.js';
import { struct } from './struct.js';

/** Positions between two states that backward keeps: native/structs/recurrence.h. */
const chunkLength = 64;
const roundedUp = (n: number) => Math.ceil(n / 16) * 16;

/** What the state decays with: nothing, or a logarithm for each of these. */
export const decayKinds = ['none', 'head', 'position', 'channel'] as const;
export type DecayKind = (typeof decayKinds)[number];

export const updateKinds = ['add', 'delta', 'lowRank'] as const;
export type UpdateKind = (typeof updateKinds)[number];

const params = struct('RecurrenceParams', {
  query: tensorRef,
  key: tensorRef,
  value: tensorRef,
  decay: tensorRef,
  beta: tensorRef,
  read: tensorRef,
  write: tensorRef,
  out: tensorRef,
  bonus: 'address',
  normalizer: 'address',
  offsets: 'address',
  initial: 'address',
  finalState: 'address',
  dOut: tensorRef,
  dQuery: tensorRef,
  dKey: tensorRef,
  dValue: tensorRef,
  dDecay: tensorRef,
  dBeta: tensorRef,
  dRead: tensorRef,
  dWrite: tensorRef,
  dBonus: 'address',
  dNormalizer: 'address',
  dFinalState: 'address',
  dInitial: 'address',
  chunkStates: 'address',
  chunkRows: 'int64',
  batch: 'int32',
  length: 'int32',
  heads: 'int32',
  queryHeads: 'int32',
  keyHeads: 'int32',
  valueHeads: 'int32',
  decayHeads: 'int32',
  betaHeads: 'int32',
  readHeads: 'int32',
  writeHeads: 'int32',
  keyDim: 'int32',
  valueDim: 'int32',
  decayKind: 'int32',
  update: 'int32',
  scale: 'float32',
  normalizes: 'int32',
});

export interface RecurrenceProblem {
  /** Sequences. */
  readonly batch: number;
  /** Rows of a batch entry; of packed sequences, all of them. */
  readonly length: number;
  /** Of the states. */
  readonly heads: number;
  readonly queryHeads: number;
  readonly keyHeads: number;
  readonly valueHeads: number;
  readonly decayHeads: number;
  readonly betaHeads: number;
  readonly readHeads: number;
  readonly writeHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  readonly decay: DecayKind;
  readonly update: UpdateKind;
  /** Whether there is a normalizer, which the last column of states is for. */
  readonly normalizes: boolean;
  readonly packed: boolean;
  readonly scale: number;
}

export const stateColumns = ({ valueDim, normalizes }: RecurrenceProblem): number => valueDim + (normalizes ? 1 : 0);

export const outHeads = ({ queryHeads, heads }: RecurrenceProblem): number => Math.max(queryHeads, heads);

interface Inputs {
  readonly query: View;
  readonly key: View;
  readonly value: View;
  /** [heads], [batch, seq, heads] or [batch, seq, heads, key dim] */
  readonly decay: View | undefined;
  /** [batch, seq, heads] */
  readonly beta: View | undefined;
  /** [batch, seq, heads, key dim] */
  readonly read: View | undefined;
  readonly write: View | undefined;
  /** float32 [heads, key dim] */
  readonly bonus: Flat | undefined;
  /** int32 [sequences + 1] */
  readonly offsets: Operand | undefined;
  /** float32 [sequences, heads, key dim, state columns] */
  readonly initial: Flat | undefined;
}

export interface RecurrenceOperands extends Inputs {
  readonly problem: RecurrenceProblem;
  readonly out: View;
  /** float32 [batch, seq, heads of out] */
  readonly normalizer: Flat | undefined;
  readonly finalState: Flat;
}

export interface RecurrenceBackwardOperands extends Inputs {
  readonly problem: RecurrenceProblem;
  readonly dOut: View;
  readonly dNormalizer: Flat | undefined;
  readonly dFinalState: Flat | undefined;
  /** [batch, seq, heads of out, key dim] */
  readonly dQuery: View;
  /** [batch, seq, heads, dim] */
  readonly dKey: View;
  readonly dValue: View;
  /** Of the shape of decay with the heads of the state; by head [sequences, 1, heads]. */
  readonly dDecay: View | undefined;
  readonly dBeta: View | undefined;
  readonly dRead: View | undefined;
  readonly dWrite: View | undefined;
  /** float32 [sequences, heads, key dim] */
  readonly dBonus: Flat | undefined;
  readonly dInitial: Flat | undefined;
  /** `chunkStateElements` floats. */
  readonly chunkStates: DeviceBuffer;
}

/** Chunks of all sequences: as many, or a few more. */
const chunkRows = ({ batch, length, packed }: RecurrenceProblem): number =>
  packed ? Math.floor(length / chunkLength) + batch : batch * Math.ceil(length / chunkLength);

/**
 * Floats that backward keeps the states before chunks in. GPUs keep those behind the last ones and the gradients of all of
 * them too, with updates that read the state what they have of it at every position and the gradients of that, and sums of
 * chunks that are added up at the end (cuda/recurrence_backward.cu): so every chunk has a block of its own.
 */
export function chunkStateElements(problem: RecurrenceProblem, onProcessor: boolean): number {
  const { batch, length, heads, keyDim, valueDim, packed, update, decay } = problem;
  const state = heads * keyDim * roundedUp(stateColumns(problem));
  if (onProcessor) return chunkRows(problem) * state;
  const rows = chunkRows(problem) + batch;
  const values = update !== 'add' ? (packed ? 1 : batch) * length * heads * valueDim : 0;
  const sums = decay === 'channel' ? keyDim : decay === 'head' ? 1 : 0;
  return 2 * (rows * state + values) + rows * heads * sums;
}

/** Multiplications and additions of the products, forward. */
function workOf(problem: RecurrenceProblem): number {
  const columns = stateColumns(problem);
  const rows = problem.packed ? problem.length : problem.batch * problem.length;
  const scores = Math.min(chunkLength, problem.length) * (problem.keyDim + columns);
  return rows * (outHeads(problem) * scores + problem.heads * 4 * problem.keyDim * columns);
}

type Results = Partial<Omit<RecurrenceOperands & RecurrenceBackwardOperands, keyof Inputs | 'problem'>>;

/** In one literal: spreads are slow, and a step of decoding is made of little else. */
const valuesOf = (problem: RecurrenceProblem, inputs: Inputs, results: Results) => ({
  query: refOf(inputs.query),
  key: refOf(inputs.key),
  value: refOf(inputs.value),
  decay: refOf(inputs.decay),
  beta: refOf(inputs.beta),
  read: refOf(inputs.read),
  write: refOf(inputs.write),
  out: refOf(results.out),
  bonus: addressOf(inputs.bonus),
  normalizer: addressOf(results.normalizer),
  offsets: addressOf(inputs.offsets),
  initial: addressOf(inputs.initial),
  finalState: addressOf(results.finalState),
  dOut: refOf(results.dOut),
  dQuery: refOf(results.dQuery),
  dKey: refOf(results.dKey),
  dValue: refOf(results.dValue),
  dDecay: refOf(results.dDecay),
  dBeta: refOf(results.dBeta),
  dRead: refOf(results.dRead),
  dWrite: refOf(results.dWrite),
  dBonus: addressOf(results.dBonus),
  dNormalizer: addressOf(results.dNormalizer),
  dFinalState: addressOf(results.dFinalState),
  dInitial: addressOf(results.dInitial),
  chunkStates: results.chunkStates?.address ?? 0,
  chunkRows: chunkRows(problem),
  batch: problem.batch,
  length: problem.length,
  heads: problem.heads,
  queryHeads: problem.queryHeads,
  keyHeads: problem.keyHeads,
  valueHeads: problem.valueHeads,
  decayHeads: problem.decayHeads,
  betaHeads: problem.betaHeads,
  readHeads: problem.readHeads,
  writeHeads: problem.writeHeads,
  keyDim: problem.keyDim,
  valueDim: problem.valueDim,
  decayKind: decayKinds.indexOf(problem.decay),
  update: updateKinds.indexOf(problem.update),
  scale: problem.scale,
  normalizes: problem.normalizes ? 1 : 0,
});

function buffersOf(...operands: (Operand | undefined)[]): DeviceBuffer[] {
  const buffers: DeviceBuffer[] = [];
  for (const operand of operands) if (operand) buffers.push(operand.buffer);
  return buffers;
}

const inputBuffers = ({ query, key, value, decay, beta, read, write, bonus, offsets, initial }: Inputs) =>
  buffersOf(query, key, value, decay, beta, read, write, bonus, offsets, initial);

/** S_t = decay_t S_{t-1} + k_t u_t^T, out_t = scale q_t^T S_t. */
export const recurrence = operation('recurrence', params, (operands: RecurrenceOperands) => {
  const { problem, out, normalizer, finalState } = operands;
  if (problem.batch * problem.heads === 0) return undefined;
  return {
    params: valuesOf(problem, operands, operands),
    reads: inputBuffers(operands),
    writes: buffersOf(out, normalizer, finalState),
    work: workOf(problem),
  };
});

export const recurrenceBackward = operation('recurrenceBackward', params, (operands: RecurrenceBackwardOperands) => {
  const { problem, dOut, dNormalizer, dFinalState, dQuery, dKey, dValue, dDecay, dBeta, dRead, dWrite } = operands;
  const { dBonus, dInitial, chunkStates } = operands;
  if (problem.batch * problem.heads === 0) return undefined;
  return {
    params: valuesOf(problem, operands, operands),
    reads: [...inputBuffers(operands), ...buffersOf(dOut, dNormalizer, dFinalState)],
    writes: [...buffersOf(dQuery, dKey, dValue, dDecay, dBeta, dRead, dWrite, dBonus, dInitial), chunkStates],
    work: 2.5 * workOf(problem),
  };
});
