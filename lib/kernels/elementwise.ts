import { optionError } from '../base/errors.js';
import { type Expression, inOrder, type Opcode, opcodes } from './expression.js';
import { addressOf, type Flat, type Strided } from './operand.js';
import { elementWork, operation } from './operation.js';
import { struct } from './struct.js';

// Those of native/structs/elementwise.h.
const mostDims = 4;
const mostOperands = 12;
export const mostConstants = 24;
export const mostInstructions = 72;
const mostTemporaries = 20;

/** Instructions for one kernel: lib/kernels/expression.ts as native/structs/elementwise.h has it. */
export interface Program {
  readonly inputs: number;
  /** By constant its number, or the index of the scalar that a call gives. */
  readonly constants: readonly { readonly value?: number; readonly scalar?: number }[];
  readonly instructions: readonly number[];
  /** By output the register that it is made of. */
  readonly results: readonly number[];
}

const numberOf = new Map<string, number>(opcodes.map((name, code) => [name, code]));

const isRandom = (e: Expression) => e.op === 'uniform' || e.op === 'normal';
const isStep = (e: Expression) => e.args.length > 0 || isRandom(e);

interface CompileOptions {
  /** As messages call what is compiled. */
  readonly formula?: string;
  /** Whether its kernel has tables to look things up in. Default false. */
  readonly lookups?: boolean;
  /** How many intermediate results its kernel keeps at one time. */
  readonly temporaries?: number;
}

/**
 * Compiles formulas of `inputs` inputs, an output each; the instructions of the first come first.
 *
 * @throws ERR_OPTION when they are more than a kernel holds
 */
export function compile(
  roots: readonly Expression[],
  inputs: number,
  { formula = 'the expression', lookups = false, temporaries: most = mostTemporaries }: CompileOptions = {},
): Program {
  const { order, same } = inOrder(roots);
  const results = roots.map((root) => same.get(root) as Expression);
  const steps = order.filter(isStep);
  if (!lookups && steps.some(({ op }) => op === 'lookup'))
    throw optionError(`${formula} has a lookup, which only scoreMod of attention can have`);
  const lastUse = new Map<Expression, number>();
  for (const [at, step] of steps.entries()) for (const arg of step.args) lastUse.set(same.get(arg) as Expression, at);
  for (const result of results) lastUse.set(result, Number.POSITIVE_INFINITY);

  const constants = order.filter((e) => e.op === 'constant' || e.op === 'scalar');
  const register = new Map<Expression, number>();
  for (const e of order) if (e.op === 'input') register.set(e, e.value);
  for (const [at, e] of constants.entries()) register.set(e, inputs + at);
  const first = inputs + constants.length;
  const free: number[] = [];
  let temporaries = 0;
  const instructions = steps.map((step, at) => {
    const args = step.args.map((arg) => same.get(arg) as Expression);
    const [a = 0, b = 0, c = 0] = isRandom(step) ? [0, step.value] : args.map((arg) => register.get(arg) as number);
    const second = step.op === 'lookup' ? step.value : b;
    for (const arg of new Set(args)) if (isStep(arg) && lastUse.get(arg) === at) free.push(register.get(arg) as number);
    const to = free.pop() ?? first + temporaries++;
    register.set(step, to);
    // Whoever is never read again is a result; nothing else is left.
    return ((numberOf.get(step.op as Opcode) as number) | (to << 8) | (a << 14) | (second << 20) | (c << 26)) >>> 0;
  });
  const limits = [
    [inputs + results.length, mostOperands, 'inputs and outputs'],
    [constants.length, mostConstants, 'constants'],
    [instructions.length, mostInstructions, 'instructions'],
    [temporaries, most, 'intermediate results at one time'],
  ] as const;
  for (const [count, limit, what] of limits)
    if (count > limit) throw optionError(`${formula} has ${count} ${what}; one kernel holds at most ${limit}`);
  return {
    inputs,
    constants: constants.map((e) => (e.op === 'scalar' ? { scalar: e.value } : { value: e.value })),
    instructions,
    results: results.map((result) => register.get(result) as number),
  };
}

/** `rest`: of an int32 array what the float nearest to each number is short of, instead of that float. */
export type ProgramInput = Strided & { readonly rest?: true };

export interface ElementwiseOperands {
  readonly program: Program;
  /** Of the shape of the outputs, with strides of 0 where they broadcast. */
  readonly inputs: readonly ProgramInput[];
  /** Of one shape; each in memory of its own, or exactly where an input lies. */
  readonly outputs: readonly Strided[];
  readonly scalars?: readonly number[];
  /** Of random numbers: two words, or four halves of words in device memory, the lowest first. */
  readonly seed?: readonly [low: number, high: number] | Flat;
}

const operand = struct('ProgramOperand', {
  data: 'address',
  strides: { of: 'int64', count: mostDims },
  dtype: 'dtype',
  result: 'int32',
});

const params = struct('ElementwiseParams', {
  operands: { of: operand, count: mostOperands },
  sizes: { of: 'int64', count: mostDims },
  instructions: { of: 'uint32', count: mostInstructions },
  constants: { of: 'float32', count: mostConstants },
  seed: 'address',
  inputCount: 'int32',
  outputCount: 'int32',
  constantCount: 'int32',
  instructionCount: 'int32',
  seedLow: 'uint32',
  seedHigh: 'uint32',
});

interface Walk {
  readonly sizes: number[];
  /** By array. */
  readonly strides: number[][];
}

/** The same walk over all arrays with as few axes as possible: neighbours that lie behind one another in each become one. */
function joinAxes(shape: readonly number[], arrays: readonly Strided[]): Walk {
  const sizes: number[] = [];
  const strides: number[][] = arrays.map(() => []);
  for (let axis = 0; axis < shape.length; axis++) {
    const size = shape[axis];
    if (size === 1) continue;
    const last = sizes.length - 1;
    let joins = last >= 0;
    for (let k = 0; k < arrays.length && joins; k++) joins = strides[k][last] === size * arrays[k].strides[axis];
    if (joins) sizes[last] *= size;
    else sizes.push(size);
    for (let k = 0; k < arrays.length; k++) strides[k][joins ? last : last + 1] = arrays[k].strides[axis];
  }
  return { sizes, strides };
}

/** Whether one launch can walk these arrays. */
export const fitsOneLaunch = (shape: readonly number[], arrays: readonly Strided[]): boolean =>
  joinAxes(shape, arrays).sizes.length <= mostDims;

function padded(values: readonly number[], padding: number): number[] {
  const result = new Array<number>(mostDims).fill(padding);
  for (let at = 0; at < values.length; at++) result[mostDims - values.length + at] = values[at];
  return result;
}

/** outputs[k][i...] = a formula of inputs[...][i...]. */
export const elementwise = operation('elementwise', params, (operands: ElementwiseOperands) => {
  const { program, inputs, outputs, scalars = [], seed } = operands;
  const { shape } = outputs[0];
  let count = 1;
  for (let axis = 0; axis < shape.length; axis++) count *= shape[axis];
  if (count === 0) return undefined;
  const arrays: readonly ProgramInput[] = [...inputs, ...outputs];
  const inMemory = seed && 'buffer' in seed ? seed : undefined;
  const [seedLow, seedHigh] = seed && !('buffer' in seed) ? seed : [0, 0];
  const walk = joinAxes(shape, arrays);
  return {
    params: {
      operands: arrays.map((array, k) => ({
        data: addressOf(array),
        strides: padded(walk.strides[k], 0),
        dtype: array.rest ? 'int32Rest' : array.dtype,
        result: program.results[k - inputs.length] ?? 0,
      })),
      sizes: padded(walk.sizes, 1),
      instructions: program.instructions,
      constants: program.constants.map(({ value, scalar }) => value ?? scalars[scalar as number]),
      seed: addressOf(inMemory),
      inputCount: inputs.length,
      outputCount: outputs.length,
      constantCount: program.constants.length,
      instructionCount: program.instructions.length,
      seedLow,
      seedHigh,
    },
    reads: [...inputs, ...(inMemory ? [inMemory] : [])].map(({ buffer }) => buffer),
    writes: outputs.map(({ buffer }) => buffer),
    work: count * (elementWork + 2 * program.instructions.length),
  };
});
