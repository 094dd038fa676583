// Arithmetic on elements. An operation is a formula; its gradient is derived from it, and both are programs of one kernel.

import { checkFunction, checkOptions, checkWord, mustBe } from '../base/check.js';
import { type DType, type FloatDType, isFloat } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import { compile, type Program, type ProgramInput } from '../kernels/elementwise.js';
import { type Expression, gradientsOf, input, inputsOf, scalar, type Term, term } from '../kernels/expression.js';
import { broadcast, launchElementwise, sumTo } from '../tape/arithmetic.js';
import { needsRecord, record } from '../tape/tape.js';
import { type AnyTensor, allocating, checkAnyTensor, isTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/** An argument that may be a number: it stands for a tensor of it, of whatever shape. */
export type Operand<D extends DType = FloatDType> = Tensor<D, Shape> | number;

/** A formula with its names, and the programs that it has been compiled to. */
interface Formula {
  readonly name: string;
  readonly names: readonly string[];
  readonly build: (args: readonly Expression[]) => Term;
  /** 'bool' of a comparison. */
  readonly dtype?: 'bool';
}

/** Gradients of some of the tensor arguments. */
interface CompiledGradients {
  /** By tensor argument whether they are read from it. */
  readonly saved: readonly boolean[];
  /** Those that have to be computed, and which arguments they are of. */
  readonly program: Program;
  readonly which: readonly number[];
  /** Those that are the gradient of the result itself. */
  readonly same: readonly number[];
}

/** A formula with some arguments tensors and the others numbers. */
interface Compiled {
  readonly forward: Program;
  /** Of the tensor arguments whose gradients are wanted. */
  readonly backward: (wanted: readonly boolean[]) => CompiledGradients;
}

function compileFormula({ build }: Formula, isTensorArgument: readonly boolean[]): Compiled {
  let tensors = 0;
  let scalars = 0;
  const args = isTensorArgument.map((is) => (is ? input(tensors++) : scalar(scalars++)));
  const formula = term(build(args));
  const ofResult = input(tensors);
  const gradients = gradientsOf(formula, ofResult, tensors);
  const programs = new Map<string, CompiledGradients>();
  return {
    forward: compile([formula], tensors),
    backward: (wanted) => {
      const key = wanted.join();
      let known = programs.get(key);
      if (!known) {
        const all = gradients.flatMap((gradient, i) => (gradient && wanted[i] ? [i] : []));
        const which = all.filter((i) => gradients[i] !== ofResult);
        const computed = which.map((i) => gradients[i] as Expression);
        known = {
          saved: inputsOf(computed, tensors + 1).slice(0, tensors),
          program: compile(computed, tensors + 1),
          which,
          same: all.filter((i) => gradients[i] === ofResult),
        };
        programs.set(key, known);
      }
      return known;
    },
  };
}

/** The shape that all broadcast to, as in NumPy. @throws ERR_SHAPE */
function broadcastShapes(tensors: readonly AnyTensor[], names: readonly string[]): Shape {
  const [first] = tensors as [AnyTensor];
  let shape: Shape = first.shape;
  for (let k = 1; k < tensors.length; k++) {
    const other = tensors[k].shape;
    if (other === shape) continue;
    const rank = Math.max(shape.length, other.length);
    const joined = new Array<number>(rank);
    for (let axis = 0; axis < rank; axis++) {
      const [i, j] = [axis - rank + shape.length, axis - rank + other.length];
      const [n, m] = [i < 0 ? 1 : shape[i], j < 0 ? 1 : other[j]];
      if (n !== m && n !== 1 && m !== 1)
        throw shapeError(
          `${names[k]} has shape ${show(other)}, which does not broadcast with ${show(shape)} of ${k === 1 ? names[0] : 'those before it'}: axis ${axis - rank} has ${m} where it must have ${n} or 1`,
        );
      joined[axis] = n === 1 ? m : n;
    }
    shape = joined;
  }
  return shape;
}

/** float32 where the floating-point dtypes differ. */
function commonDType(tensors: readonly AnyTensor[], names: readonly string[], name: string): FloatDType {
  let common: FloatDType | undefined;
  for (let k = 0; k < tensors.length; k++) {
    const { dtype } = tensors[k];
    if (dtype === 'int32')
      throw new FlashAttnError(
        'ERR_DTYPE',
        `${names[k]} is int32; ${name} is for floating-point numbers: cast() converts`,
      );
    if (isFloat(dtype)) common = common === undefined || common === dtype ? dtype : 'float32';
  }
  return common ?? 'float32';
}

/** Makes an operation of a formula. Arguments are tensors or numbers, at least one a tensor. */
function operationOf(formula: Formula): (args: readonly unknown[]) => AnyTensor {
  const compiled = new Map<number, Compiled>();
  const { name, names } = formula;
  return (args) => {
    const tensors: AnyTensor[] = [];
    const called: string[] = [];
    const scalars: number[] = [];
    let kinds = 0;
    for (let i = 0; i < args.length; i++) {
      const arg = args[i];
      if (typeof arg === 'number') {
        scalars.push(arg);
        continue;
      }
      checkAnyTensor(arg, names[i]);
      kinds |= 1 << i;
      tensors.push(arg);
      called.push(names[i]);
    }
    if (tensors.length === 0) throw mustBe(names[0], args[0], `a tensor, or one of the others of ${name}`);
    let programs = compiled.get(kinds);
    if (!programs) {
      programs = compileFormula(
        formula,
        names.map((_, i) => (kinds & (1 << i)) !== 0),
      );
      compiled.set(kinds, programs);
    }
    const { backend } = tensors[0];
    const common = commonDType(tensors, called, name);
    const shape = tensors.length === 1 ? tensors[0].shape : broadcastShapes(tensors, called);
    const { forward, backward } = programs;
    // Compiled here: a gradient that is more than a kernel holds is refused before anything is computed.
    const gradients = !formula.dtype && needsRecord(tensors) ? backward(tensors.map((t) => t.requiresGrad)) : undefined;
    return allocating(backend, (allocate) => {
      const inputs = tensors.map((t, i) => broadcast(t, called[i], shape, backend));
      const result: AnyTensor = allocate(shape, formula.dtype ?? common);
      launchElementwise(backend, {
        program: forward,
        inputs,
        outputs: [result.strided('the result', backend)],
        scalars,
      });
      if (gradients) recordFormula(name, gradients, tensors, scalars, result);
      return result;
    });
  };
}

function recordFormula(
  name: string,
  { saved, program, which, same }: CompiledGradients,
  tensors: readonly AnyTensor[],
  scalars: readonly number[],
  result: AnyTensor,
): void {
  const likes = tensors.map(({ shape, dtype }) => ({ shape, dtype }));
  const kept = tensors.filter((_, i) => saved[i]);
  const { backend } = result;
  record(name, tensors, [result], kept, ([gradient], values) => {
    if (!gradient) return [];
    const gradients: (Tensor | undefined)[] = [];
    const give = (i: number, part: Tensor) => {
      gradients[i] = sumTo(part, likes[i].shape, likes[i].dtype as FloatDType);
    };
    for (const i of same) give(i, gradient);
    if (which.length === 0) return gradients;
    let next = 0;
    const inputs: AnyTensor[] = saved.map((is) => (is ? values[next++] : gradient));
    const parts = launchGradients(backend, program, [...inputs, gradient], gradient, scalars, which.length);
    for (const [k, i] of which.entries()) give(i, parts[k]);
    return gradients;
  });
}

/** Every gradient in the shape of the result, in one launch. */
function launchGradients(
  backend: Backend,
  program: Program,
  inputs: readonly AnyTensor[],
  { shape, dtype }: Tensor,
  scalars: readonly number[],
  count: number,
): Tensor[] {
  return allocating(backend, (allocate) => {
    const operands = inputs.map((t) => broadcast(t, 'a gradient', shape, backend));
    const results = Array.from({ length: count }, () => allocate(shape, dtype));
    launchElementwise(backend, {
      program,
      inputs: operands,
      outputs: results.map((result) => result.strided('a gradient', backend)),
      scalars,
    });
    return results;
  });
}

/** The dtype of a result of these: theirs, or float32 where they differ. */
type Common<A, B> =
  A extends Tensor<infer D extends FloatDType, Shape>
    ? B extends Tensor<infer E extends FloatDType, Shape>
      ? [D] extends [E]
        ? D
        : FloatDType
      : D
    : B extends Tensor<infer E extends FloatDType, Shape>
      ? E
      : FloatDType;

type Unary = <D extends FloatDType, S extends Shape>(x: Tensor<D, S>) => Tensor<D, S>;
type Conditional = Tensor<'bool', Shape>;
type Argument = Operand<FloatDType | 'bool'>;
type Comparable = Operand<DType>;
type Binary = <A extends Argument, B extends Argument>(a: A, b: B) => Tensor<Common<A, B>, Shape>;
type Comparison = (a: Comparable, b: Comparable) => Tensor<'bool', Shape>;

/** Stack traces, and what reads them, then know the function by the name that users call it by. */
const named = <F extends (...args: never[]) => unknown>(name: string, f: F): F =>
  Object.defineProperty(f, 'name', { value: name });

const unary = (name: string, f: (x: Expression) => Expression): Unary => {
  const run = operationOf({ name, names: ['x'], build: ([x]) => f(x as Expression) });
  return named(name, (x: AnyTensor) => run([x])) as unknown as Unary;
};

const binary = (name: string, f: (a: Expression, b: Expression) => Expression): Binary => {
  const run = operationOf({ name, names: ['a', 'b'], build: ([a, b]) => f(a as Expression, b as Expression) });
  return named(name, (a: Argument, b: Argument) => run([a, b])) as unknown as Binary;
};

/** A number as the float nearest to it, and what that is short of. Floats are monotone: where they differ they decide. */
interface Parts {
  readonly value: Expression;
  readonly rest: Expression;
}

/** A number beside whole ones, exactly: a rest of a half for all that lies between two of them. */
function partsOf(x: number): readonly [value: number, rest: number] {
  const value = Math.fround(x);
  // Devices may take smaller numbers for 0.
  if (x !== 0 && Math.abs(value) < 2 ** -126) return [0, Math.sign(x) / 2];
  if (!Number.isFinite(value)) return [value, 0];
  const rest = x - value;
  return [value, Number.isInteger(rest) ? rest : Math.floor(rest) + 0.5];
}

const isInt32 = (arg: unknown): boolean => isTensor(arg) && arg.dtype === 'int32';

/** A comparison of arguments among which are int32 tensors, whose numbers float32 does not hold. */
function exactly(f: (a: Parts, b: Parts) => Expression): (args: readonly unknown[]) => AnyTensor {
  const names = ['a', 'b'];
  const programs = new Map<string, Program>();
  return (args) => {
    const tensors: AnyTensor[] = [];
    const called: string[] = [];
    const scalars: number[] = [];
    for (const [i, arg] of args.entries()) {
      if (typeof arg === 'number') {
        scalars.push(...partsOf(arg));
        continue;
      }
      checkAnyTensor(arg, names[i]);
      tensors.push(arg);
      called.push(names[i]);
    }
    const kinds = args.map((arg) => (isInt32(arg) ? 'whole' : typeof arg === 'number' ? 'number' : 'float'));
    let program = programs.get(kinds.join());
    if (!program) {
      let [inputs, numbers] = [0, 0];
      const parts = kinds.map((kind): Parts => {
        if (kind === 'number') return { value: scalar(numbers++), rest: scalar(numbers++) };
        return { value: input(inputs++), rest: kind === 'whole' ? input(inputs++) : term(0) };
      });
      program = compile([f(parts[0], parts[1])], inputs);
      programs.set(kinds.join(), program);
    }
    const { backend } = tensors[0];
    const shape = tensors.length === 1 ? tensors[0].shape : broadcastShapes(tensors, called);
    return allocating(backend, (allocate) => {
      const inputs = tensors.flatMap((t, i): ProgramInput[] => {
        const array = broadcast(t, called[i], shape, backend);
        if (t.dtype !== 'int32') return [array];
        const { buffer, offset, dtype, strides } = array;
        return [array, { buffer, offset, dtype, shape, strides, rest: true }];
      });
      const result = allocate(shape, 'bool');
      launchElementwise(backend, { program, inputs, outputs: [result.strided('the result', backend)], scalars });
      return result;
    });
  };
}

const comparison = (
  name: string,
  f: (a: Expression, b: Expression) => Expression,
  exact: (a: Parts, b: Parts) => Expression,
): Comparison => {
  const run = operationOf({
    name,
    names: ['a', 'b'],
    build: ([a, b]) => f(a as Expression, b as Expression),
    dtype: 'bool',
  });
  const runExactly = exactly(exact);
  return named(
    name,
    (a: Comparable, b: Comparable) =>
      (isInt32(a) || isInt32(b) ? runExactly : run)([a, b]) as unknown as Tensor<'bool', Shape>,
  );
};

const bothEqual = (a: Parts, b: Parts) => a.value.equal(b.value).mul(a.rest.equal(b.rest));
const isLess = (a: Parts, b: Parts) => a.value.less(b.value).add(a.value.equal(b.value).mul(a.rest.less(b.rest)));
const isAtMost = (a: Parts, b: Parts) =>
  a.value.less(b.value).add(a.value.equal(b.value).mul(a.rest.lessEqual(b.rest)));

/** a + b, broadcast. @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY */
export const add: Binary = binary('add', (a, b) => a.add(b));
/** a - b, broadcast. */
export const sub: Binary = binary('sub', (a, b) => a.sub(b));
/** a * b, broadcast. */
export const mul: Binary = binary('mul', (a, b) => a.mul(b));
/** a / b, broadcast. */
export const div: Binary = binary('div', (a, b) => a.div(b));
/** a to the power of b, broadcast; NaN for a negative a and a b that is not whole. */
export const pow: Binary = binary('pow', (a, b) => a.pow(b));
/** The smaller of both, broadcast; NaN where either is. Equal ones share the gradient. */
export const minimum: Binary = binary('minimum', (a, b) => a.minimum(b));
/** The larger of both, broadcast; NaN where either is. Equal ones share the gradient. */
export const maximum: Binary = binary('maximum', (a, b) => a.maximum(b));

/**
 * Whether a = b, broadcast. Comparisons also take int32 and bool, and mixtures: each number is what it is, not rounded.
 *
 * @throws ERR_SHAPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export const equal: Comparison = comparison('equal', (a, b) => a.equal(b), bothEqual);
/** Whether a differs from b, broadcast; NaN differs from everything. */
export const notEqual: Comparison = comparison(
  'notEqual',
  (a, b) => a.notEqual(b),
  (a, b) => term(1).sub(bothEqual(a, b)),
);
/** Whether a < b, broadcast. */
export const less: Comparison = comparison('less', (a, b) => a.less(b), isLess);
/** Whether a <= b, broadcast. */
export const lessEqual: Comparison = comparison('lessEqual', (a, b) => a.lessEqual(b), isAtMost);
/** Whether a > b, broadcast. */
export const greater: Comparison = comparison(
  'greater',
  (a, b) => a.greater(b),
  (a, b) => isLess(b, a),
);
/** Whether a >= b, broadcast. */
export const greaterEqual: Comparison = comparison(
  'greaterEqual',
  (a, b) => a.greaterEqual(b),
  (a, b) => isAtMost(b, a),
);

/** -x */
export const neg: Unary = unary('neg', (x) => x.neg());
/** |x| */
export const abs: Unary = unary('abs', (x) => x.abs());
/** -1, 0 or 1; NaN of NaN. */
export const sign: Unary = unary('sign', (x) => x.sign());
/** e^x */
export const exp: Unary = unary('exp', (x) => x.exp());
/** e^x - 1, also where that is small. */
export const expm1: Unary = unary('expm1', (x) => x.expm1());
/** The natural logarithm. */
export const log: Unary = unary('log', (x) => x.log());
/** log(1 + x), also where x is small. */
export const log1p: Unary = unary('log1p', (x) => x.log1p());
/** The square root. */
export const sqrt: Unary = unary('sqrt', (x) => x.sqrt());
/** 1 / sqrt(x) */
export const rsqrt: Unary = unary('rsqrt', (x) => x.rsqrt());
/** x * x */
export const square: Unary = unary('square', (x) => x.square());
/** sin(x), for |x| < 2^30. */
export const sin: Unary = unary('sin', (x) => x.sin());
/** cos(x), for |x| < 2^30. */
export const cos: Unary = unary('cos', (x) => x.cos());
/** The hyperbolic tangent. */
export const tanh: Unary = unary('tanh', (x) => x.tanh());
/** 1 / (1 + e^-x) */
export const sigmoid: Unary = unary('sigmoid', (x) => x.sigmoid());
/** The error function. */
export const erf: Unary = unary('erf', (x) => x.erf());
/** The largest whole number that is not above x. */
export const floor: Unary = unary('floor', (x) => x.floor());
/** The nearest whole number, ties to even. */
export const round: Unary = unary('round', (x) => x.round());
/** x where it is positive, else 0; NaN stays. */
export const relu: Unary = unary('relu', (x) => x.lessEqual(0).where(0, x));
/** x * sigmoid(x). Elfwing, Uchibe and Doya (2017); Ramachandran, Zoph and Le (2017). */
export const silu: Unary = unary('silu', (x) => x.mul(x.sigmoid()));
/** log(1 + e^x), without overflow. */
export const softplus: Unary = unary('softplus', (x) => x.maximum(0).add(x.abs().neg().exp().log1p()));

const geluByErf: Unary = unary('gelu', (x) => x.mul(x.normalCdf()));
/** 0.5 x (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3): one function less, and exact far below 0. */
const geluByTanh: Unary = unary('gelu', (x) => {
  const scale = 2 * Math.sqrt(2 / Math.PI);
  const twice = x
    .square()
    .mul(scale * 0.044715)
    .add(scale)
    .mul(x);
  return twice.sigmoid().mul(x);
});

/**
 * x times the share of a standard normal distribution below x; with `approximate: 'tanh'` the approximation that GPT-2
 * uses. Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
 */
export function gelu<D extends FloatDType, S extends Shape>(
  x: Tensor<D, S>,
  options: { readonly approximate?: 'none' | 'tanh' } = {},
): Tensor<D, S> {
  checkOptions(options, ['approximate']);
  const { approximate = 'none' } = options;
  checkWord(approximate, 'approximate', ['none', 'tanh']);
  return (approximate === 'tanh' ? geluByTanh : geluByErf)(x);
}

const clampBetween = operationOf({
  name: 'clamp',
  names: ['x', 'least', 'most'],
  build: ([x, least, most]) => {
    const [value, from, to] = [x as Expression, least as Expression, most as Expression];
    return value.less(from).where(from, to.less(value).where(to, value));
  },
});

/** x, but at least `least` and at most `most`; NaN stays. The gradient is that of x where it lies between them. */
export const clamp = <D extends FloatDType, S extends Shape>(
  x: Tensor<D, S>,
  least: number,
  most: number,
): Tensor<D, S> => clampBetween([x, least, most]) as unknown as Tensor<D, S>;

const choose = operationOf({
  name: 'where',
  names: ['condition', 'a', 'b'],
  build: ([condition, a, b]) => (condition as Expression).where(a as Expression, b as Expression),
});

/** a where the condition holds (is not 0), else b; all broadcast. */
export const where = <A extends Operand, B extends Operand>(
  condition: Conditional | Tensor,
  a: A,
  b: B,
): Tensor<Common<A, B>, Shape> => choose([condition, a, b]) as unknown as Tensor<Common<A, B>, Shape>;

/**
 * Compiles a formula to an operation on tensors: one pass over memory however long it is, with its gradient, on every
 * device. Inputs broadcast; the result has their dtype, or float32 where they differ.
 *
 * `const swiglu = fused((gate, x) => gate.mul(gate.sigmoid()).mul(x))`
 *
 * @throws ERR_OPTION when the formula, or its gradient, is more than one kernel holds
 */
export function fused(f: (...args: Expression[]) => Expression): (...args: Operand<FloatDType | 'bool'>[]) => Tensor {
  checkFunction(f, 'f');
  if (f.length === 0)
    throw optionError('f has no arguments: it must name each of them, without defaults and rest parameters');
  const names = Array.from({ length: f.length }, (_, i) => `argument ${i}`);
  const run = operationOf({ name: f.name || 'fused', names, build: (args) => f(...args) });
  return named(f.name || 'fused', (...args: Operand<FloatDType | 'bool'>[]) => {
    if (args.length !== names.length) throw optionError(`${args.length} arguments; the formula has ${names.length}`);
    return run(args) as Tensor;
  });
}
