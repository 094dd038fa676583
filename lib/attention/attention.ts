import { backward, forward } from '../backends/shared/attention.js';
import { checkBoolean, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError } from '../base/errors.js';
import type { AttentionProblem, BackwardOperands, ForwardOperands } from '../kernels/attention.js';
import { filled } from '../tape/arithmetic.js';
import { refuseCapture } from '../tape/captures.js';
import { needsRecord, record, withoutRecording } from '../tape/tape.js';
import { sameShape } from '../tensor/shape.js';
import { type Allocate, type AnyTensor, allocating, isTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';
import { checkAgreement } from './agreement.js';
import { lseShape, outShape, viewOf } from './layout.js';
import { checkInputs, expect, inputOperands } from './operands.js';
import { type AttentionOptions, type DenseOptions, optionNames, type VarlenOptions } from './options.js';
import { readProblem } from './problem.js';
import { gradientsOfTurned, rotaryTables, turned, withTables } from './rotary.js';
import { checkTables, tablesOf } from './scoreMod.js';

export type Shape2 = readonly [number, number];
export type Shape3 = readonly [number, number, number];
export type Shape4 = readonly [number, number, number, number];

/** Nothing fits it when TypeScript knows the rank: then the overload for that rank is the one to satisfy. */
type OfUnknownRank<S extends Shape> = number extends S['length'] ? unknown : never;

export interface AttentionResult<D extends FloatDType = FloatDType, S extends Shape = Shape> {
  /** The shape of q with v's head dim; rows that see no key are 0. */
  readonly out: Tensor<D, S>;
  /**
   * log sum_j e^logit_ij of every row, natural logarithm, sink included; -Infinity for rows that see nothing
   * and have no sink (with one, it is the sink itself).
   * [batch, heads, Nq], or [heads, total q] when varlen.
   */
  readonly lse: Tensor<'float32', S extends Shape4 ? Shape3 : S extends Shape3 ? Shape2 : Shape>;
  /** The options of the call, frozen: with them `{ q, k, v, ...result }` is all that `attentionBackward` needs. */
  readonly options: Readonly<AttentionOptions>;
}

/** What `attentionBackward` needs of the forward pass: `{ q, k, v, ...attention(q, k, v, options) }`. */
export interface Saved<D extends FloatDType = FloatDType, S extends Shape = Shape> {
  readonly q: Tensor<D, S>;
  readonly k: Tensor<D, S>;
  readonly v: Tensor<D, S>;
  readonly out: Tensor<D, S>;
  readonly lse: Tensor<'float32', Shape>;
  /** The options of the forward pass; they may be given to `attentionBackward` instead. */
  readonly options?: Readonly<AttentionOptions>;
}

export interface BackwardExtras {
  /** The gradient of the loss with respect to lse, if it depends on it. float32, the shape of lse. */
  readonly dLse?: Tensor<'float32', Shape>;
}

export interface Gradients<D extends FloatDType = FloatDType, S extends Shape = Shape> {
  readonly dq: Tensor<D, S>;
  readonly dk: Tensor<D, S>;
  readonly dv: Tensor<D, S>;
  /** Of `bias`, in its shape and dtype: summed over what it was broadcast to. */
  readonly dBias?: Tensor<FloatDType, Shape>;
  /** Of `relativeBias.table`, in its shape and dtype. */
  readonly dRelativeBias?: Tensor<FloatDType, Shape>;
  /** Of `sink`, in its shape and dtype. */
  readonly dSink?: Tensor<FloatDType, Shape>;
}

/** A problem, and the shapes that it was read from. */
interface ReadProblem {
  readonly problem: AttentionProblem;
  readonly q: Shape;
  readonly k: Shape;
  readonly v: Shape;
}

/** What the options of forward passes were read as: backward needs no second reading, which could find other values. */
const problems = new WeakMap<AttentionOptions, ReadProblem>();

interface Inputs {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
}

function problemOf({ q, k, v }: Inputs, options: AttentionOptions): AttentionProblem {
  const known = problems.get(options);
  const same =
    known &&
    known.problem.dtype === q.dtype &&
    sameShape(known.q, q.shape) &&
    sameShape(known.k, k.shape) &&
    sameShape(known.v, v.shape);
  return same ? known.problem : readProblem(q.shape, k.shape, v.shape, q.dtype, options);
}

/** @internal Options that nobody can change any more. What is no object is left for `readProblem` to refuse. */
export function frozenCopy(options: AttentionOptions): Readonly<AttentionOptions> {
  if (!isRecord(options)) return options;
  const copy = { ...options };
  // Backward reads it once more.
  if (isRecord(copy.rope)) {
    const { keys } = copy.rope;
    copy.rope = Object.freeze({ ...copy.rope, ...(isRecord(keys) && { keys: Object.freeze({ ...keys }) }) });
  }
  return Object.freeze(copy);
}

const isRecord = (value: unknown): value is object =>
  value !== null && typeof value === 'object' && !Array.isArray(value);

/** The shapes of out and lse. */
function outputShapes(p: AttentionProblem): { out: Shape; lse: Shape } {
  const dims = { batch: p.batch, rows: p.queryRows, heads: p.heads, dim: p.valueDim };
  return { out: outShape(dims, p.layout), lse: lseShape(dims, p.layout) };
}

type Outputs = Pick<AttentionResult, 'out' | 'lse'>;

/** @internal Uninitialised results of a problem. */
export function allocateOutputs(problem: AttentionProblem, allocate: Allocate): Outputs {
  const shapes = outputShapes(problem);
  return { out: allocate(shapes.out, problem.dtype), lse: allocate(shapes.lse, 'float32') as AttentionResult['lse'] };
}

/**
 * @internal Checks the inputs, and then builds what a forward pass is given; the outputs come from `outputs`.
 *
 * @param tables what scoreMod looks up, where they are not the tensors that it has captured
 */
export function forwardOperands(
  problem: AttentionProblem,
  inputs: Inputs,
  options: AttentionOptions,
  tables?: readonly AnyTensor[],
): (outputs: Outputs) => ForwardOperands {
  const { backend } = inputs.q;
  const { query, key, value, extras } = inputOperands(problem, inputs, options, tables);
  // Field by field, here and below: an object that a spread begins and more fields follow takes V8 a microsecond a field.
  return ({ out, lse }) => ({
    query,
    key,
    value,
    out: viewOf(out, problem.layout, 'out', backend),
    lse: lse.flat('lse', backend),
    bias: extras.bias,
    alibi: extras.alibi,
    relativeTable: extras.relativeTable,
    sink: extras.sink,
    scoreTables: extras.scoreTables,
    angles: extras.angles,
  });
}

/**
 * Exact attention: out = dropout(softmax(mask(scoreMod(softcap(scale * q k^T) + biases)))) v, without ever holding the
 * Nq x Nk matrix. Dao et al., FlashAttention (2022) and FlashAttention-2 (2023).
 *
 * q [batch, Nq, heads, dim], k [batch, Nk, kv heads, dim], v [batch, Nk, kv heads, value dim], or in the order of
 * `options.layout`; packed sequences [total, heads, dim] with `cuSeqlensQ`. One dtype; any strides with the last dim
 * contiguous; dims from 1 to 256; heads a multiple of kv heads, query head h reads kv head floor(h / (heads / kv heads)).
 *
 * Returns at once: wait by reading the results.
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY before anything is computed
 */
export function attention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options?: DenseOptions,
): AttentionResult<D, Shape4>;
export function attention<D extends FloatDType>(
  q: Tensor<D, Shape3>,
  k: Tensor<NoInfer<D>, Shape3>,
  v: Tensor<NoInfer<D>, Shape3>,
  options: VarlenOptions,
): AttentionResult<D, Shape3>;
export function attention<D extends FloatDType, S extends Shape = Shape>(
  q: Tensor<D, S> & OfUnknownRank<S>,
  k: Tensor<NoInfer<D>, Shape>,
  v: Tensor<NoInfer<D>, Shape>,
  options?: AttentionOptions,
): AttentionResult<D, Shape>;
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): AttentionResult {
  checkInputs(q, k, v);
  const kept = frozenCopy(options);
  const problem = readProblem(q.shape, k.shape, v.shape, q.dtype, kept);
  checkWithoutGradient(kept);
  if (problem.dropout) refuseCapture('dropout of attention');
  problems.set(kept, { problem, q: q.shape, k: k.shape, v: v.shape });
  // Inputs are checked before the outputs are allocated: an error leaves nothing behind.
  const operands = forwardOperands(problem, { q, k, v }, kept);
  const { rope } = kept;
  if (!rope || q.backend.turnsRows) return { ...run(problem, { q, k, v }, kept, operands), options: kept };
  const { problem: behind, options: others } = behindRope(problem, kept);
  const { out, lse } = tidying(
    () => {
      const inputs = { ...turned(problem, { q, k }, rope), v };
      return run(behind, inputs, others, forwardOperands(behind, inputs, others));
    },
    ({ out, lse }) => [out, lse],
  );
  return { out, lse, options: kept };
}

/** What is left of a call whose q and k have been turned. */
function behindRope(problem: AttentionProblem, { rope: _, ...options }: AttentionOptions) {
  return { problem: { ...problem, rotary: undefined }, options };
}

function run(
  problem: AttentionProblem,
  inputs: Inputs,
  options: Readonly<AttentionOptions>,
  operands: (outputs: Outputs) => ForwardOperands,
): Outputs {
  const { q, k, v } = inputs;
  const { backend } = q;
  return allocating(backend, (allocate) => {
    const { out, lse } = allocateOutputs(problem, allocate);
    forward(backend, problem, operands({ out, lse }));
    recordAttention(problem, { q, k, v, out, lse, options });
    return { out, lse };
  });
}

/** What is given and has no gradient must not need one. @throws ERR_AUTOGRAD */
function checkWithoutGradient({ attnMask, alibi, rope, scoreMod }: AttentionOptions): void {
  for (const [name, t, instead] of [
    ['attnMask', attnMask, 'give it as bias, or '],
    ['alibi', alibi, 'give it as bias, or '],
    ...Object.entries(rotaryTables(rope)).map(([name, t]) => [name, t, ''] as const),
  ] as const)
    if (isTensor(t) && needsRecord([t]))
      throw new FlashAttnError('ERR_AUTOGRAD', `${name} needs a gradient, and has none: ${instead}detach() it`);
  checkTables(tablesOf(scoreMod));
}

/** Lets gradients of out and lse find their way to q, k, v and what was added to the logits. */
function recordAttention(problem: AttentionProblem, saved: Saved & { readonly options: AttentionOptions }): void {
  const { q, k, v, out, lse, options } = saved;
  const { bias, relativeBias, sink, attnMask, alibi } = options;
  const inputs = [q, k, v, bias, relativeBias?.table, sink];
  if (!needsRecord(inputs)) return;
  const extras = { bias, table: relativeBias?.table, sink, attnMask, alibi };
  const names = (Object.keys(extras) as (keyof typeof extras)[]).filter((name) => isTensor(extras[name]));
  const angles = Object.values(rotaryTables(options.rope)) as Tensor[];
  const tables = tablesOf(options.scoreMod);
  const kept = [q, k, v, out, lse, ...names.map((name) => extras[name] as Tensor), ...angles, ...tables];
  record('attention', inputs, [out, lse], kept, ([dOut, dLse], tensors, needed) => {
    const [q, k, v, out, lse, ...others] = tensors as [Tensor, Tensor, Tensor, Tensor, Saved['lse'], ...Tensor[]];
    const ownTables = others.splice(names.length + angles.length);
    const ownAngles = others.splice(names.length);
    // The user may have disposed what the options hold; these are handles of the recorder's.
    const { table, ...own } = Object.fromEntries(names.map((name, i) => [name, others[i]])) as Partial<
      Record<keyof typeof extras, Tensor>
    >;
    const used = {
      ...options,
      ...own,
      ...(relativeBias && table && { relativeBias: { ...relativeBias, table } }),
      ...(options.rope && { rope: withTables(options.rope, ownAngles) }),
    };
    const gradient = dOut ? readable(dOut) : filled(out.backend, out.shape, out.dtype, 0);
    const lseGradient = { ...(dLse && { dLse: dLse.contiguous() as Saved['lse'] }) };
    const savedOwn = { q, k, v, out, lse };
    const operands = backwardOperands(problem, gradient, savedOwn, used as AttentionOptions, lseGradient, ownTables);
    return allocating(q.backend, (allocate) => {
      const wanted = {
        ...(bias && needed[3] && { bias }),
        ...(relativeBias && needed[4] && { relativeBias }),
        ...(sink && needed[5] && { sink }),
      };
      const gradients = allocateGradients({ q, k, v }, wanted, allocate);
      backward(q.backend, problem, operands(gradients));
      const { dq, dk, dv, dBias, dRelativeBias, dSink } = gradients;
      return [dq, dk, dv, dBias, dRelativeBias, dSink];
    });
  });
}

/** Kernels read the last axis element by element. */
const readable = (t: Tensor) => (t.strides[t.strides.length - 1] === 1 ? t : t.contiguous());

/** @internal Checks the saved tensors of a backward pass against its problem. */
export function checkSaved(problem: AttentionProblem, dOut: unknown, saved: Saved, { dLse }: BackwardExtras): void {
  const shapes = outputShapes(problem);
  expect(saved.out, 'saved.out', shapes.out, problem.dtype);
  expect(saved.lse, 'saved.lse', shapes.lse, 'float32');
  expect(dOut, 'dOut', shapes.out, problem.dtype);
  if (dLse !== undefined) expect(dLse, 'dLse', shapes.lse, 'float32');
}

interface ShapedLike {
  readonly shape: Shape;
  readonly dtype: FloatDType;
}

/** @internal Uninitialised gradient tensors of a problem. */
export function allocateGradients(
  inputs: { readonly q: ShapedLike; readonly k: ShapedLike; readonly v: ShapedLike },
  { bias, relativeBias, sink }: AttentionOptions,
  allocate: Allocate,
): Gradients {
  const like = (t: ShapedLike) => allocate(t.shape, t.dtype);
  return {
    dq: like(inputs.q),
    dk: like(inputs.k),
    dv: like(inputs.v),
    ...(bias && { dBias: like(bias) }),
    ...(relativeBias && { dRelativeBias: like(relativeBias.table) }),
    ...(sink && { dSink: like(sink) }),
  };
}

/** @internal Checks the inputs, and then builds what a backward pass is given; the gradients come from `gradients`. */
export function backwardOperands(
  problem: AttentionProblem,
  dOut: Tensor,
  saved: Saved,
  options: AttentionOptions,
  { dLse }: BackwardExtras,
  tables?: readonly AnyTensor[],
): (gradients: Gradients) => BackwardOperands {
  const { backend } = saved.q;
  const { query, key, value, out, lse, bias, alibi, relativeTable, sink, scoreTables, angles } = forwardOperands(
    problem,
    saved,
    options,
    tables,
  )(saved as Outputs);
  const dOutView = viewOf(dOut, problem.layout, 'dOut', backend);
  const dLseFlat = dLse?.flat('dLse', backend);
  return ({ dq, dk, dv, dBias, dRelativeBias, dSink }) => ({
    query,
    key,
    value,
    out,
    lse,
    bias,
    alibi,
    relativeTable,
    sink,
    scoreTables,
    angles,
    dOut: dOutView,
    dLse: dLseFlat,
    dQuery: viewOf(dq, problem.layout, 'dq', backend),
    dKey: viewOf(dk, problem.layout, 'dk', backend),
    dValue: viewOf(dv, problem.layout, 'dv', backend),
    dBias: dBias?.flat('dBias', backend),
    dRelative: dRelativeBias?.flat('dRelativeBias', backend),
    dSink: dSink?.flat('dSink', backend),
  });
}

const backwardNames = [...optionNames, 'dLse'] as const;

interface BackwardProblem {
  readonly problem: AttentionProblem;
  readonly options: AttentionOptions;
  readonly extras: BackwardExtras;
}

/** Finds the problem of a backward pass: that of its forward pass, which what is given besides must agree with. */
function readBackward(saved: Saved, given: (AttentionOptions & BackwardExtras) | undefined): BackwardProblem {
  if (given !== undefined) checkOptions(given, backwardNames);
  const { dLse, ...others } = given ?? {};
  const extras = dLse === undefined ? {} : { dLse };
  const options = others as AttentionOptions;
  if (saved.options === undefined) {
    // Only extras: nobody said what the forward pass was.
    if (given === undefined || (dLse !== undefined && Object.keys(options).length === 0))
      throw optionError(
        'saved.options is undefined; backward needs the options of its forward pass: saved = { q, k, v, ...result }, or the options themselves',
      );
    return { problem: problemOf(saved, options), options, extras };
  }
  const problem = problemOf(saved, saved.options);
  checkAgreement(options, saved.options, 1 / Math.sqrt(problem.headDim));
  const { deterministic = problem.deterministic } = options;
  if (deterministic === problem.deterministic) return { problem, options: saved.options, extras };
  return {
    problem: { ...problem, deterministic: checkBoolean(deterministic, 'deterministic') },
    options: saved.options,
    extras,
  };
}

/**
 * The gradients of `attention`, given the gradient of its out (and of its lse: `options.dLse`).
 *
 * @param dOut the shape and dtype of out
 * @param saved the inputs and results of the forward pass: `{ q, k, v, ...attention(q, k, v, options) }`. Where the
 *   keys were a part of all keys, `out` and `lse` may be those of the merged result: the gradients are then exact.
 * @param options those of the forward pass, where `saved` has none; otherwise they must agree with `saved.options`.
 *   `dLse` and `deterministic` are backward's own.
 * @throws as `attention`
 */
export function attentionBackward<D extends FloatDType, S extends Shape>(
  dOut: Tensor<NoInfer<D>, NoInfer<S>>,
  saved: Saved<D, S>,
  options?: AttentionOptions & BackwardExtras,
): Gradients<D, S> {
  if (saved === null || typeof saved !== 'object') throw mustBe('saved', saved, '{ q, k, v, out, lse, options }');
  checkInputs(saved.q, saved.k, saved.v);
  const { problem, options: used, extras } = readBackward(saved, options);
  checkSaved(problem, dOut, saved, extras);
  const operands = backwardOperands(problem, dOut, saved, used, extras);
  const { rope } = used;
  if (!rope || saved.q.backend.turnsRows)
    return runBackward(saved as Saved, problem, used, operands) as Gradients<D, S>;
  const { problem: behind, options: others } = behindRope(problem, used);
  const all = () => {
    const { out, lse } = saved as Saved;
    const inputs = { ...withoutRecording(() => turned(problem, saved as Saved, rope)), v: saved.v as Tensor, out, lse };
    const gradients = runBackward(inputs, behind, others, backwardOperands(behind, dOut, inputs, others, extras));
    const { q, k } = gradientsOfTurned(problem, { q: gradients.dq, k: gradients.dk }, rope);
    return { ...gradients, dq: q, dk: k };
  };
  return tidying(all, (gradients) => Object.values(gradients) as Tensor[]) as Gradients<D, S>;
}

function runBackward(
  saved: Saved,
  problem: AttentionProblem,
  options: AttentionOptions,
  operands: (gradients: Gradients) => BackwardOperands,
): Gradients {
  const { backend } = saved.q;
  return allocating(backend, (allocate) => {
    const gradients = allocateGradients(saved, options, allocate);
    backward(backend, problem, operands(gradients));
    return gradients;
  });
}
