/**
 * References of 16-bit runs. A file holds results of inputs that 16 bits cannot hold, so the oracle computes those of the
 * rounded inputs, once it has shown with the inputs as they are that it computes what the file holds.
 */
import { type AttentionOptions, BlockMask, blockMask, type Integers, type Tensor } from 'flashattn';
import { LowPrecisionJudge } from '../cases/check.js';
import { widen } from '../cases/library.js';
import type { LowDType } from '../oracle/float16.js';
import type { LowPrecisionVerdict } from '../oracle/lowPrecision.js';
import type { Broadcast, Problem, RelativeTable } from '../oracle/problem.js';
import { solve } from '../oracle/sensitivity.js';
import type { TensorSource } from './file.js';

export interface LowPrecisionReference {
  judge(values: ArrayLike<number>): LowPrecisionVerdict;
  /** What the file should hold. */
  readonly unrounded: Float64Array;
}

interface Inputs {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly dOut: Tensor;
}

type Sizes = Pick<
  Problem,
  'layout' | 'batch' | 'queryLength' | 'keyLength' | 'queryHeads' | 'kvHeads' | 'headDim' | 'valueDim'
>;

function sizesOf({ q, k, v }: Inputs, { layout = 'bshd', cuSeqlensQ }: AttentionOptions): Sizes {
  const packed = cuSeqlensQ !== undefined;
  const [batch = 0, ...rest] = packed ? [cuSeqlensQ.length - 1, ...q.shape] : q.shape;
  const [headAxis, seqAxis] = packed ? [1, 0] : layout === 'bshd' ? [2, 1] : [1, 2];
  return {
    layout: packed ? 'varlen' : layout,
    batch,
    queryLength: q.shape[seqAxis] ?? 0,
    keyLength: k.shape[seqAxis] ?? 0,
    queryHeads: q.shape[headAxis] ?? 0,
    kvHeads: k.shape[headAxis] ?? 0,
    headDim: rest.at(-1) ?? 0,
    valueDim: v.shape.at(-1) ?? 0,
  };
}

type Four = readonly [number, number, number, number];

/** The elements that a mask shows. That they are those of the file is for the float32 run to show. */
function elementsOf(mask: NonNullable<AttentionOptions['mask']>, s: Sizes): Broadcast<Uint8Array> {
  const [nq, nk] = [s.queryLength, s.keyLength];
  const compiled = mask instanceof BlockMask ? mask : blockMask(mask, { batch: s.batch, heads: s.queryHeads, nq, nk });
  const shape: Four = [s.batch, s.queryHeads, nq, nk];
  const values = Uint8Array.from({ length: shape.reduce((a, b) => a * b) }, (_, n) => {
    const [row, j] = [Math.floor(n / nk), n % nk];
    const [head, i] = [Math.floor(row / nq), row % nq];
    return compiled.visible(Math.floor(head / s.queryHeads), head % s.queryHeads, i, j) ? 1 : 0;
  });
  return { values, shape };
}

function relativeOf({ table, ...rest }: NonNullable<AttentionOptions['relativeBias']>): RelativeTable {
  return { ...rest, table: widen(table), bucketCount: table.shape[0] ?? 0 };
}

function problemOf(inputs: Inputs, options: AttentionOptions): Omit<Problem, 'query' | 'key' | 'value'> {
  const sizes = sizesOf(inputs, options);
  const { scale, causal, align, window, softcap, bias, alibi, relativeBias, sink, mask } = options;
  const list = (integers: Integers | undefined) => integers && Array.from(integers as ArrayLike<number>, Number);
  return {
    ...sizes,
    scale,
    causal,
    align,
    window,
    softcap,
    bias: bias && { values: widen(bias), shape: bias.shape as readonly number[] as Four },
    alibi: alibi && ('shape' in alibi ? widen(alibi) : Float64Array.from(alibi)),
    relative: relativeBias && relativeOf(relativeBias),
    sink: sink && widen(sink),
    mask: mask && elementsOf(mask, sizes),
    qLens: list(options.qLens),
    kLens: list(options.kLens),
    cuSeqlensQ: list(options.cuSeqlensQ),
    cuSeqlensK: list(options.cuSeqlensK),
  };
}

/** Names of results of attention -> names of the oracle. */
const NAMES = {
  out: 'out',
  lse: 'lse',
  dq: 'dQuery',
  dk: 'dKey',
  dv: 'dValue',
  dBias: 'dBias',
  dRelativeBias: 'dRelativeBias',
  dSink: 'dSink',
} as const;

/** By the names of results of attention. */
export function lowPrecisionReferences(
  file: TensorSource,
  inputs: Inputs,
  options: AttentionOptions,
  dtype: LowDType,
): Readonly<Record<string, LowPrecisionReference>> {
  const problem = problemOf(inputs, options);
  const { values: query } = file.tensor('q');
  const { values: key } = file.tensor('k');
  const { values: value } = file.tensor('v');
  const unrounded = solve({ ...problem, query, key, value }, file.tensor('dout').values);
  const [q, k, v] = [widen(inputs.q), widen(inputs.k), widen(inputs.v)];
  const judge = new LowPrecisionJudge(
    { problem: { ...problem, query: q, key: k, value: v }, dOut: widen(inputs.dOut) },
    dtype,
  );
  const references = Object.entries(NAMES).flatMap(([name, oracle]) => {
    const own = unrounded[oracle];
    return own ? [[name, { judge: (values: ArrayLike<number>) => judge.judge(oracle, values), unrounded: own }]] : [];
  });
  return Object.fromEntries(references) as Record<string, LowPrecisionReference>;
}
