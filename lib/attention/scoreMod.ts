// A function of scores, traced once into the program that the kernels run.
import { checkFunction } from '../base/check.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import type { Backend } from '../kernels/device.js';
import { Expression, type Term, term } from '../kernels/expression.js';
import type { Flat } from '../kernels/operand.js';
import { compileScore, mostTables, type ScoreProgram, scoreInputs } from '../kernels/scoreProgram.js';
import { needsRecord } from '../tape/tape.js';
import { type AnyTensor, checkAnyTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/**
 * What the score of a pair becomes, as an expression of the score and of where it is: `score` is scale * q.k after softcap,
 * bias, relative positions and ALiBi; b is the batch entry or the sequence, h the query head, i and j the positions of the
 * query and the key in their sequence, whole numbers from 0. Dong et al., "Flex Attention" (2024), arXiv:2412.05496.
 *
 * `(score, b, h, i, j) => score.div(20).tanh().mul(20)`
 * `(score, b, h, i, j) => lookup(doc, i).equal(lookup(doc, j)).where(score, -Infinity)`
 *
 * It is called once and must be pure: numbers that it captures are constants from then on, and what else it captures is read
 * with `lookup`. One function for all calls is traced and uploaded once; a new one for each call is traced each time.
 * Gradients of float16 on CUDA hold derivatives of up to 1024 in size.
 */
export type ScoreMod = (score: Expression, b: Expression, h: Expression, i: Expression, j: Expression) => Term;

type Table = Tensor<'float32' | 'int32', Shape>;

/** @internal */
export interface TracedScoreMod {
  readonly program: ScoreProgram;
  /** What it looks up, by number. */
  readonly tables: readonly Table[];
}

// Indices are float32 numbers.
const mostElements = 2 ** 24;

/** The tables of the function that is being traced. */
let tracing: Table[] | undefined;

/** A whole number from 0 to count - 1. */
function axisIndex(index: Expression, count: number): Expression {
  if (index.op === 'constant') return term(Math.min(Math.max(Math.floor(index.value), 0), count - 1));
  const whole = index.op === 'input' ? index : index.floor();
  return whole.maximum(0).minimum(count - 1);
}

/**
 * An element of a tensor, within the function that `scoreMod` of `attention` is: lookup(t, i, j) is t[i, j] for each pair.
 *
 * An index outside of its axis stands for the nearest one within; one that is no whole number is rounded down. Values of int32
 * tensors become float32, which is exact up to 2^24 in size. The tensor is read when attention runs, forward and backward,
 * and gets no gradient.
 *
 * @param t float32 or int32, contiguous, of rank 1 or more with 1 to 2^24 elements; at most four tensors in one function
 * @param indices an expression or a number for each axis
 * @throws ERR_OPTION outside of a scoreMod; ERR_SHAPE, ERR_DTYPE. The call of `attention` throws ERR_DEVICE, ERR_DISPOSED,
 *   and ERR_AUTOGRAD when the tensor needs a gradient and something would record it: `bias` has one
 */
export function lookup(t: Tensor<'float32' | 'int32', Shape>, ...indices: Term[]): Expression {
  if (!tracing) throw optionError('lookup is called outside of a scoreMod: it is for the function given to attention');
  checkAnyTensor(t, 'the tensor of lookup');
  const { shape, dtype } = t as AnyTensor;
  if (dtype !== 'float32' && dtype !== 'int32')
    throw new FlashAttnError(
      'ERR_DTYPE',
      `the tensor of lookup is ${dtype}; it must be float32 or int32: cast() converts`,
    );
  if (shape.length === 0 || t.size === 0 || t.size > mostElements)
    throw shapeError(
      `the tensor of lookup has shape ${show(shape)}; it must have rank 1 or more, and from 1 to 2^24 elements`,
    );
  if (!t.isContiguous) throw shapeError('the tensor of lookup must be contiguous, this is a strided view');
  if (indices.length !== shape.length)
    throw shapeError(
      `lookup has ${indices.length} indices for a tensor of shape ${show(shape)}; it needs one for each axis`,
    );
  let number = tracing.indexOf(t);
  if (number < 0) number = tracing.push(t) - 1;
  if (number >= mostTables)
    throw optionError(
      `scoreMod looks things up in more than ${mostTables} tensors; one kernel reads at most ${mostTables}`,
    );
  const [first, ...others] = indices.map((index, axis) => indexTerm(index, axis));
  // The kernels clamp the index of an element, which is that of a single axis.
  if (shape.length === 1) return Expression.lookup(number, first);
  const flat = others.reduce(
    (row, index, at) => row.mul(shape[at + 1]).add(axisIndex(index, shape[at + 1])),
    axisIndex(first, shape[0]),
  );
  return Expression.lookup(number, flat);
}

function indexTerm(index: unknown, axis: number): Expression {
  if (typeof index === 'number' || index instanceof Expression) return term(index);
  throw optionError(`index ${axis} of lookup is ${show(index)}; it must be an expression or a number`);
}

/** Programs by what they do: functions that are written anew for each call share theirs, and its memory on devices. */
const programs = new Remember<ScoreProgram>(undefined, 64);
const traced = new WeakMap<ScoreMod, TracedScoreMod>();

function checkResult(result: unknown): Expression {
  if (typeof result !== 'number' && !(result instanceof Expression))
    throw optionError(
      `scoreMod returned ${show(result)}; it must return an expression of its arguments or a number (operators do not ` +
        'work on expressions: score.add(1), i.less(j), condition.where(score, -Infinity))',
    );
  const value = term(result);
  const visited = new Set<Expression>();
  const visit = (e: Expression): void => {
    if (visited.has(e)) return;
    visited.add(e);
    // Equal to an argument of this function is not enough: another's first would be taken for the score.
    const foreign = e.op === 'input' ? !scoreInputs.includes(e) : ['scalar', 'uniform', 'normal'].includes(e.op);
    if (foreign) throw optionError('scoreMod returned an expression of the arguments of another function');
    e.args.forEach(visit);
  };
  visit(value);
  return value;
}

function trace(scoreMod: ScoreMod): TracedScoreMod {
  const outer = tracing;
  const tables: Table[] = [];
  tracing = tables;
  try {
    const value = checkResult((scoreMod as (...inputs: readonly Expression[]) => unknown)(...scoreInputs));
    const program = compileScore(value, 'scoreMod, with its derivative,');
    const constants = program.constants.map((c) => (Object.is(c, -0) ? '-0' : String(c)));
    return { program: programs.get([{ ...program, constants }], () => program), tables };
  } finally {
    tracing = outer;
  }
}

/**
 * @internal What a function of scores has been traced to.
 *
 * @throws ERR_OPTION where it is none, or more than a kernel holds; what the function throws
 */
export function traceScoreMod(scoreMod: ScoreMod | undefined): TracedScoreMod | undefined {
  if (scoreMod === undefined) return undefined;
  checkFunction(scoreMod, 'scoreMod');
  let known = traced.get(scoreMod);
  if (!known) {
    known = trace(scoreMod);
    traced.set(scoreMod, known);
  }
  return known;
}

/** @internal The tensors that a function of scores reads. */
export const tablesOf = (scoreMod: ScoreMod | undefined): readonly Table[] => traceScoreMod(scoreMod)?.tables ?? [];

/** @internal @throws ERR_DEVICE, ERR_DISPOSED */
export const tableOperands = (tables: readonly AnyTensor[], backend: Backend): readonly Flat[] | undefined =>
  tables.length === 0 ? undefined : tables.map((t, n) => t.flat(tableName(n), backend));

/** @internal As messages call it. */
export const tableName = (number: number): string => `tensor ${number} that scoreMod looks up`;

/** @internal @throws ERR_AUTOGRAD */
export function checkTables(tables: readonly AnyTensor[]): void {
  for (const [number, t] of tables.entries())
    if (needsRecord([t]))
      throw new FlashAttnError(
        'ERR_AUTOGRAD',
        `${tableName(number)} needs a gradient, and lookups have none: give it as the option bias, or detach() it`,
      );
}
