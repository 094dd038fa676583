// Attention whose heads are mixed, before the softmax and after it.
import type { FloatDType } from '../base/dtype.js';
import type { Backend } from '../kernels/device.js';
import {
  backwardScratch,
  forwardScratch,
  type HeadMixingProblem,
  headMixingBackward,
  headMixing as headMixingOperation,
  type MixGradients,
  type MixOperands,
  type MixProblem,
  rowElements,
} from '../kernels/headMixing.js';
import type { DeviceBuffer } from '../kernels/memory.js';
import type { Flat, View } from '../kernels/operand.js';
import { Operands } from '../ops/operands.js';
import { filled } from '../tape/arithmetic.js';
import { needsRecord, record } from '../tape/tape.js';
import { type Allocate, allocating, type Shape, type Tensor } from '../tensor/tensor.js';

type Wide = Tensor<'float32', Shape>;

/**
 * What makes heads of a pair of query i and key j out of others: out_g = bias_g + sum_h matrix_i,gh in_h + sum_r up_j,rg sum_h
 * down_j,rh in_h + diagonal_j,g in_g.
 */
export interface HeadMixture {
  /** [out heads, in heads], or of each query [batch, Nq, out heads, in heads] */
  readonly matrix: Wide;
  /** [out heads] */
  readonly bias?: Wide | undefined;
  /** What keys add. */
  readonly ofKeys?:
    | {
        /** [batch, Nk, rank, in heads] */
        readonly down: Wide;
        /** [batch, Nk, rank, out heads] */
        readonly up: Wide;
        /** [batch, Nk, heads], where as many come out as go in. */
        readonly diagonal: Wide;
      }
    | undefined;
}

export interface HeadMixingOptions {
  /** Of q . k. Default: they stay as they are. */
  readonly logits?: HeadMixture | undefined;
  /** Of probabilities. Default: they stay as they are. */
  readonly weights?: HeadMixture | undefined;
  /** How many keys a query sees before its own position and behind it, aligned at the bottom right. Default: all. */
  readonly left?: number | undefined;
  readonly right?: number | undefined;
  readonly scale: number;
}

const parts = ['matrix', 'bias', 'down', 'up', 'diagonal'] as const;
type Part = (typeof parts)[number];
type Parts = Readonly<Record<Part, Wide | undefined>>;

const partsOf = (mixture: HeadMixture | undefined): Parts => ({
  matrix: mixture?.matrix,
  bias: mixture?.bias,
  down: mixture?.ofKeys?.down,
  up: mixture?.ofKeys?.up,
  diagonal: mixture?.ofKeys?.diagonal,
});

const mixProblem = ({ matrix, down, diagonal }: Parts): MixProblem => ({
  kind: !matrix ? 'none' : matrix.shape.length === 2 ? 'shared' : 'own',
  rank: down?.shape[2] ?? 0,
  hasDiagonal: diagonal !== undefined,
});

interface Inputs {
  readonly problem: HeadMixingProblem;
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly logits: Parts;
  readonly weights: Parts;
}

class MixingOperands extends Operands {
  /** [batch, seq, heads, dim], where it lies if its last axis is contiguous. */
  rows(given: Tensor, argument: string): View {
    given.operand(argument, this.backend);
    const t = given.strides[3] === 1 || given.shape[3] === 1 ? given : this.keep(given.contiguous());
    const [batchStride, seqStride, headStride] = t.strides;
    return { ...t.operand(argument, this.backend), dtype: t.dtype, batchStride, seqStride, headStride };
  }

  mix(t: Parts): MixOperands {
    const flat = (part: Part) => t[part] && this.flat(t[part], part);
    return {
      matrix: flat('matrix'),
      bias: flat('bias'),
      down: flat('down'),
      up: flat('up'),
      diagonal: flat('diagonal'),
    };
  }

  inputs({ problem, q, k, v, logits, weights }: Inputs) {
    return {
      problem,
      query: this.rows(q, 'q'),
      key: this.rows(k, 'k'),
      value: this.rows(v, 'v'),
      logits: this.mix(logits),
      weights: this.mix(weights),
    };
  }

  memory(elements: number): DeviceBuffer {
    return this.scratch(Math.max(1, elements)) as DeviceBuffer;
  }
}

function forward(x: Inputs, records: boolean): { out: Tensor; rows: Tensor | undefined } {
  const { problem, q } = x;
  const { backend } = q;
  const operands = new MixingOperands(backend);
  try {
    return allocating(backend, (allocate) => {
      const out = allocate([problem.batch, problem.queries, problem.valueHeads, problem.valueDim], q.dtype);
      const rows = records ? allocate([rowElements(problem)], 'float32') : undefined;
      backend.launch(headMixingOperation, {
        ...operands.inputs(x),
        out: operands.rows(out, 'out'),
        rows: rows?.flat('rows', backend),
        memory: operands.memory(forwardScratch(problem)),
      });
      return { out, rows };
    });
  } finally {
    operands.dispose();
  }
}

type Gradients = Partial<Record<Part, Tensor>>;

/** Room for gradients: of a matrix and a bias where they are wanted, of what keys add always. */
function gradientsOf(t: Parts, wanted: Readonly<Record<Part, boolean>>, allocate: Allocate): Gradients {
  const gradients: Gradients = {};
  for (const part of parts) {
    const like = t[part];
    const isOptional = part === 'matrix' || part === 'bias';
    if (like && (wanted[part] || !isOptional)) gradients[part] = allocate(like.shape, 'float32') as Tensor;
  }
  return gradients;
}

function mixGradients(d: Gradients, backend: Backend): MixGradients {
  const flat = (part: Part): Flat | undefined => d[part]?.flat(part, backend);
  return {
    dMatrix: flat('matrix'),
    dBias: flat('bias'),
    dDown: flat('down'),
    dUp: flat('up'),
    dDiagonal: flat('diagonal'),
  };
}

function backward(x: Inputs, rows: Tensor, dOut: Tensor, needed: readonly boolean[]): readonly (Tensor | undefined)[] {
  const { problem, q, k, v } = x;
  const { backend } = q;
  const wanted = (first: number) =>
    Object.fromEntries(parts.map((part, i) => [part, needed[first + i] === true])) as Record<Part, boolean>;
  const [ofLogits, ofWeights] = [wanted(3), wanted(3 + parts.length)];
  if (problem.batch * problem.queries * problem.keys * problem.valueHeads * problem.valueDim === 0)
    return [q, k, v, ...parts.map((part) => x.logits[part]), ...parts.map((part) => x.weights[part])].map((t, i) =>
      t && needed[i] ? (filled(backend, t.shape, t.dtype as FloatDType, 0) as Tensor) : undefined,
    );
  const operands = new MixingOperands(backend);
  try {
    return allocating(backend, (allocate) => {
      const [dQuery, dKey, dValue] = [q, k, v].map((t) => allocate(t.shape, t.dtype)) as [Tensor, Tensor, Tensor];
      // The softmax does not see what is added to all logits of a head: the kernel has no gradient of it.
      const dLogits = gradientsOf(x.logits, { ...ofLogits, bias: false }, allocate);
      const dWeights = gradientsOf(x.weights, ofWeights, allocate);
      const scratch = backwardScratch(problem);
      backend.launch(headMixingBackward, {
        ...operands.inputs(x),
        rows: rows.flat('rows', backend),
        dOut: operands.rows(dOut, 'dOut'),
        dQuery: operands.rows(dQuery, 'dQuery'),
        dKey: operands.rows(dKey, 'dKey'),
        dValue: operands.rows(dValue, 'dValue'),
        dLogits: mixGradients(dLogits, backend),
        dWeights: mixGradients(dWeights, backend),
        memory: operands.memory(scratch.memory),
        deltas: operands.memory(scratch.deltas),
        dQuerySum: operands.memory(scratch.dQuerySum),
        logitsSums: operands.memory(scratch.logitsSums),
        weightsSums: operands.memory(scratch.weightsSums),
      });
      const { bias } = x.logits;
      if (bias && ofLogits.bias) dLogits.bias = filled(backend, bias.shape, 'float32', 0) as Tensor;
      return [dQuery, dKey, dValue, ...parts.map((part) => dLogits[part]), ...parts.map((part) => dWeights[part])];
    });
  } finally {
    operands.dispose();
  }
}

/**
 * Attention across heads: logits of all heads of a pair are mixed, then go through the softmax over keys, and the probabilities
 * are mixed again before they weight the values. Pairs that a query does not see have weight 0, whatever a bias says, and what
 * hidden keys hold, NaN included, reaches nobody. The matrices of all pairs never exist: a tile of queries meets tiles of keys
 * with all heads at a time, twice in forward and three times with the gradient.
 *
 * Arguments have been checked; mixtures are float32.
 *
 * @internal
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, heads, dim], of the dtype of q
 * @param v [batch, Nk, value heads, value dim], of the dtype of q
 * @returns out [batch, Nq, value heads, value dim] of the dtype of q; 0 of queries that see no key
 */
export function headMixing<D extends FloatDType>(
  q: Tensor<D, Shape>,
  k: Tensor<D, Shape>,
  v: Tensor<D, Shape>,
  { logits: ofLogits, weights: ofWeights, left, right, scale }: HeadMixingOptions,
): Tensor<D, Shape> {
  const [batch, queries, heads, headDim] = q.shape;
  const [, keys, valueHeads, valueDim] = v.shape;
  const [logits, weights] = [partsOf(ofLogits), partsOf(ofWeights)];
  const problem: HeadMixingProblem = {
    batch,
    queries,
    keys,
    heads,
    softmaxHeads: logits.matrix ? logits.matrix.shape[logits.matrix.shape.length - 2] : heads,
    valueHeads,
    headDim,
    valueDim,
    left,
    right,
    scale,
    logits: mixProblem(logits),
    weights: mixProblem(weights),
  };
  const mixtures = [...parts.map((part) => logits[part]), ...parts.map((part) => weights[part])] as (
    | Tensor
    | undefined
  )[];
  const inputs = [q as Tensor, k as Tensor, v as Tensor, ...mixtures];
  const records = needsRecord(inputs);
  const own: Inputs = { problem, q: q as Tensor, k: k as Tensor, v: v as Tensor, logits, weights };
  const { out, rows } = forward(own, records);
  if (rows) {
    const kept = [...inputs.filter((t) => t !== undefined), rows] as Tensor[];
    record('headMixing', inputs, [out], kept, ([dOut], saved, needed) => {
      const rest = [...saved] as Tensor[];
      const take = () => rest.shift() as Tensor;
      const [ownQ, ownK, ownV] = [take(), take(), take()];
      const takeParts = (t: Parts): Parts =>
        Object.fromEntries(parts.map((part) => [part, t[part] && take()])) as Parts;
      const again: Inputs = {
        problem,
        q: ownQ,
        k: ownK,
        v: ownV,
        logits: takeParts(logits),
        weights: takeParts(weights),
      };
      return backward(again, take(), dOut as Tensor, needed);
    });
    rows.dispose();
  }
  return out as Tensor<D, Shape>;
}
