/**
 * Random programs of arithmetic on arrays of any shape, layout and dtype, on every device, against an interpreter in float64
 * that knows how far float32 may be from it.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { cast, type DType, tensor } from '../../lib/index.js';
import { compile } from '../../lib/kernels/elementwise.js';
import { Expression, inOrder, type Opcode, opcodes } from '../../lib/kernels/expression.js';
import { broadcast, launchElementwise } from '../../lib/tape/arithmetic.js';
import type { AnyTensor } from '../../lib/tensor/tensor.js';
import { ulp } from '../../verify/oracle/float16.js';
import { philox4x32 } from '../../verify/oracle/philox.js';
import { uniform } from '../../verify/oracle/random.js';
import { testDevices } from '../support/devices.js';

/** A number, and how far from it float32 may come out. An infinite error: anything may. */
interface Approximate {
  readonly value: number;
  readonly error: number;
}

const unknown: Approximate = { value: 0, error: Number.POSITIVE_INFINITY };
const exact = (value: number): Approximate => ({ value, error: 0 });

const largest = 3.4e38;
const rounding = 2 ** -23;
/** Of functions; that they are better than this is for their own tests. */
const functionRounding = 4e-6;
/** What is subnormal may be 0. */
const smallest = 1.2e-38;

/** A result in float64 with the error that its arguments bring, rounded to float32. */
function rounded(value: number, error: number, args: readonly Approximate[], relative = rounding): Approximate {
  const isExact = args.every((arg) => arg.error === 0);
  if (!Number.isFinite(value)) return isExact ? exact(value) : unknown;
  if (!(Math.abs(value) + error < largest)) return unknown;
  return { value, error: error + relative * Math.abs(value) + smallest };
}

/** erf, all of whose terms are positive. */
function erf(x: number): number {
  if (Number.isNaN(x) || Math.abs(x) > 6) return Number.isNaN(x) ? x : Math.sign(x);
  let [term, sum] = [x, x];
  for (let n = 1; n < 200; n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return ((2 / Math.sqrt(Math.PI)) * sum) / Math.exp(x * x);
}

/** By a continued fraction where 1 - erf would cancel. */
function erfc(x: number): number {
  if (!(x > 2)) return 1 - erf(x);
  let fraction = 0;
  for (let n = 200; n > 0; n--) fraction = n / 2 / (x + fraction);
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + fraction);
}

const monotone: Partial<Record<Opcode, (x: number) => number>> = {
  sqrt: Math.sqrt,
  rsqrt: (x) => 1 / Math.sqrt(x),
  exp: Math.exp,
  expm1: Math.expm1,
  log: Math.log,
  log1p: Math.log1p,
  tanh: Math.tanh,
  sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  erf,
  normalCdf: (x) => erfc(-x / Math.SQRT2) / 2,
};

function roundEven(x: number): number {
  const low = Math.floor(x);
  return x - low === 0.5 ? 2 * Math.round(low / 2) : Math.round(x);
}

/** Of what jumps: certain where both ends say the same. */
function step({ value, error }: Approximate, f: (x: number) => number): Approximate {
  const result = f(value);
  return error === 0 || (f(value - error) === result && f(value + error) === result) ? exact(result) : unknown;
}

function compare(a: Approximate, b: Approximate, f: (a: number, b: number) => boolean): Approximate {
  const certain = a.error + b.error === 0 || Math.abs(a.value - b.value) > a.error + b.error;
  return certain ? exact(f(a.value, b.value) ? 1 : 0) : unknown;
}

function extreme(a: Approximate, b: Approximate, f: (...values: number[]) => number): Approximate {
  const value = f(a.value, b.value);
  return Number.isNaN(value) && a.error + b.error > 0 ? unknown : { value, error: Math.max(a.error, b.error) };
}

function apply(op: Opcode, args: readonly Approximate[]): Approximate {
  if (args.some(({ error }) => error === Number.POSITIVE_INFINITY)) {
    if (op !== 'where' || args[0].error === Number.POSITIVE_INFINITY) return unknown;
  }
  const [a, b, c] = args as [Approximate, Approximate, Approximate];
  const f = monotone[op];
  if (f) {
    if (op === 'rsqrt' && a.value === 0) return unknown;
    const value = f(a.value);
    const ends = [f(a.value - a.error), f(a.value + a.error)];
    const error = a.error === 0 ? 0 : Math.max(...ends.map((end) => Math.abs(end - value)));
    return Number.isNaN(error) ? unknown : rounded(value, error, [a], functionRounding);
  }
  switch (op) {
    case 'add':
    case 'sub':
      return rounded(op === 'add' ? a.value + b.value : a.value - b.value, a.error + b.error, args);
    case 'mul':
      return product(a, b);
    case 'div': {
      // Which zero it is depends on the order of equal ones.
      if (Math.abs(b.value) <= 2 * b.error && a.value !== 0) return unknown;
      const value = a.value / b.value;
      const error = a.error + b.error === 0 ? 0 : (a.error + Math.abs(value) * b.error) / (Math.abs(b.value) - b.error);
      return rounded(value, error, args);
    }
    case 'minimum':
      return extreme(a, b, Math.min);
    case 'maximum':
      return extreme(a, b, Math.max);
    case 'pow': {
      if (b.value === 0 && b.error === 0) return exact(1);
      if (a.value === 0) return unknown;
      const value = a.value ** b.value;
      if (a.error + b.error === 0) return rounded(a.value === 1 ? 1 : value, 0, args, functionRounding);
      if (a.value - a.error <= 0) return unknown;
      const corners = [-1, 1].flatMap((i) => [-1, 1].map((j) => (a.value + i * a.error) ** (b.value + j * b.error)));
      return rounded(value, Math.max(...corners.map((corner) => Math.abs(corner - value))), args, functionRounding);
    }
    case 'less':
      return compare(a, b, (x, y) => x < y);
    case 'lessEqual':
      return compare(a, b, (x, y) => x <= y);
    case 'equal':
      return compare(a, b, (x, y) => x === y);
    case 'neg':
      return { value: -a.value, error: a.error };
    case 'abs':
      return { value: Math.abs(a.value), error: a.error };
    case 'sign':
      return step(a, (x) => Math.sign(x) + 0);
    case 'sin':
    case 'cos': {
      if (!(Math.abs(a.value) < 2 ** 29)) return unknown;
      return { value: op === 'sin' ? Math.sin(a.value) : Math.cos(a.value), error: a.error + functionRounding };
    }
    case 'floor':
      return step(a, Math.floor);
    case 'round':
      return step(a, roundEven);
    case 'where': {
      const chosen = step(a, (x) => (x === 0 ? 0 : Math.sign(x) || 1));
      if (chosen.error > 0) return unknown;
      return chosen.value !== 0 ? b : c;
    }
    case 'multiplyAdd':
      return apply('add', [product(a, b), c]);
    default:
      throw new Error(op);
  }
}

function product(a: Approximate, b: Approximate): Approximate {
  const error = Math.abs(a.value) * b.error + Math.abs(b.value) * a.error + a.error * b.error;
  return rounded(a.value * b.value, a.error + b.error === 0 ? 0 : error, [a, b]);
}

function randomNumber(e: Expression, index: number, seed: readonly [number, number]): Approximate {
  const [first, second] = philox4x32([index % 2 ** 32, Math.floor(index / 2 ** 32), e.value, 0], seed);
  if (e.op === 'uniform') return exact((first >>> 8) * 2 ** -24);
  const radius = Math.sqrt(-2 * Math.log(((first >>> 8) + 1) * 2 ** -24));
  return { value: radius * Math.cos(2 * Math.PI * (second >>> 8) * 2 ** -24), error: 1e-5 };
}

interface Element {
  readonly inputs: readonly number[];
  readonly scalars: readonly number[];
  readonly index: number;
  readonly seed: readonly [number, number];
}

function evaluate(roots: readonly Expression[], { inputs, scalars, index, seed }: Element): Approximate[] {
  const { order, same } = inOrder(roots);
  const values = new Map<Expression, Approximate>();
  for (const e of order) {
    if (e.op === 'input') values.set(e, exact(inputs[e.value]));
    else if (e.op === 'scalar') values.set(e, exact(Math.fround(scalars[e.value])));
    else if (e.op === 'constant') values.set(e, exact(Math.fround(e.value)));
    else if (e.op === 'uniform' || e.op === 'normal') values.set(e, randomNumber(e, index, seed));
    else {
      const args = e.args.map((arg) => values.get(same.get(arg) as Expression) as Approximate);
      values.set(e, apply(e.op, args));
    }
  }
  return roots.map((root) => values.get(same.get(root) as Expression) as Approximate);
}

/** What storing does to a number, with how far off it may be. */
function stored({ value, error }: Approximate, dtype: DType): Approximate {
  if (error === Number.POSITIVE_INFINITY) return unknown;
  if (dtype === 'bool') return step({ value, error }, (x) => (x !== 0 ? 1 : 0));
  if (dtype === 'int32') {
    const whole = (x: number) => (Number.isNaN(x) ? 0 : Math.max(-(2 ** 31), Math.min(2 ** 31 - 1, Math.trunc(x))) + 0);
    // From 2^24 on float32 has no room for the last bits.
    return Math.abs(value) < 2 ** 24 || error === 0 ? step({ value: Math.fround(value), error }, whole) : unknown;
  }
  if (dtype === 'float32' || !Number.isFinite(value)) return { value, error };
  if (dtype === 'float16' && Math.abs(value) + error > 65000) return unknown;
  return { value, error: error + ulp(Math.abs(value) + error, dtype) };
}

function agrees(got: number, { value, error }: Approximate): boolean {
  if (error === Number.POSITIVE_INFINITY) return true;
  return Number.isNaN(value) ? Number.isNaN(got) : got === value || Math.abs(got - value) <= error;
}

// Cases ---------------------------------------------------------------------------------------------------------------

/** How an array of the shape lies in memory. */
const fullLayouts = ['contiguous', 'shifted', 'permuted', 'every second'] as const;
const layouts = [...fullLayouts, 'repeated rows', 'repeated columns', 'one number'] as const;
type Layout = (typeof layouts)[number];
const dtypes: readonly DType[] = ['float32', 'float16', 'bfloat16', 'int32', 'bool'];

interface ArrayCase {
  readonly dtype: DType;
  readonly layout: Layout;
}

interface Case {
  readonly shape: readonly number[];
  readonly inputs: readonly ArrayCase[];
  readonly outputs: readonly ArrayCase[];
  /** Opcodes with what they take: numbers that say which of the terms before them. */
  readonly steps: readonly { readonly op: number; readonly args: readonly number[] }[];
  /** By output which term it is. */
  readonly roots: readonly number[];
  readonly inPlace: boolean;
  readonly seed: number;
}

const arrays = (layout: fc.Arbitrary<Layout>) =>
  fc.record({ dtype: fc.constantFrom(...dtypes, 'float32' as const, 'float32' as const), layout });

const cases: fc.Arbitrary<Case> = fc.record({
  shape: fc.oneof(
    fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 4 }),
    fc.tuple(fc.integer({ min: 1, max: 5 }), fc.constantFrom(8, 16, 33, 64, 65, 256, 300)),
    fc.tuple(fc.constantFrom(7, 1024, 2051)),
  ),
  inputs: fc.array(arrays(fc.constantFrom(...layouts)), { maxLength: 5 }),
  outputs: fc.array(arrays(fc.constantFrom(...fullLayouts)), { minLength: 1, maxLength: 3 }),
  steps: fc.array(
    fc.record({ op: fc.nat(opcodes.indexOf('lookup') - 1), args: fc.tuple(fc.nat(40), fc.nat(40), fc.nat(40)) }),
    {
      maxLength: 30,
    },
  ),
  roots: fc.array(fc.nat(60), { minLength: 3, maxLength: 3 }),
  inPlace: fc.boolean(),
  seed: fc.nat(),
});

const operandCount = (op: Opcode): number =>
  op === 'where' || op === 'multiplyAdd'
    ? 3
    : op === 'uniform' || op === 'normal'
      ? 0
      : opcodes.indexOf(op) < 10
        ? 2
        : 1;

const constants = [0, 1, -0.5, 3, 1e-3, Number.POSITIVE_INFINITY, Number.NaN];
const scalars = [0.7, -2];

/** Most take one of those before them that is new. */
const termOf = (terms: readonly Expression[], number: number) =>
  terms[number < 25 ? terms.length - 1 - (number % Math.min(5, terms.length)) : number % terms.length];

function rootsOf({ inputs, outputs, steps, roots }: Case): Expression[] {
  const terms = inputs.map((_, i) => Expression.leaf('input', i));
  terms.push(...scalars.map((_, i) => Expression.leaf('scalar', i)));
  terms.push(...constants.slice(0, 4 + (steps.length % 4)).map((value) => Expression.leaf('constant', value)));
  for (const { op, args } of steps) {
    const opcode = opcodes[op];
    const count = operandCount(opcode);
    const chosen = args.slice(0, count).map((arg) => termOf(terms, arg));
    terms.push(count === 0 ? Expression.leaf(opcode as 'uniform', args[0] % 3) : Expression.of(opcode, ...chosen));
  }
  return outputs.map((_, k) => termOf(terms, roots[k] as number));
}

interface Placed {
  /** Of the shape of the case, or one that broadcasts to it. */
  readonly view: AnyTensor;
  readonly whole: AnyTensor;
}

/** Memory with `values(count)` in it, and the view that the layout says. */
function place(
  { dtype, layout }: ArrayCase,
  shape: readonly number[],
  device: 'wasm',
  values: (n: number) => number[],
): Placed {
  const make = (sizes: readonly number[]) =>
    tensor(
      values(sizes.reduce((x, n) => x * n, 1)).map((x) =>
        dtype === 'int32' ? Math.trunc(x * 3) : dtype === 'bool' ? Number(x > 0) : x,
      ),
      sizes,
      { dtype, device },
    ) as AnyTensor;
  const rank = shape.length;
  const kept: Partial<Record<Layout, (axis: number) => boolean>> = {
    contiguous: () => true,
    'repeated rows': (axis) => axis === rank - 1,
    'repeated columns': (axis) => axis !== rank - 1,
    'one number': () => false,
  };
  const keeps = rank === 0 ? () => true : kept[layout];
  if (keeps) {
    const whole = make(shape.map((n, axis) => (keeps(axis) ? n : 1)));
    return { view: whole, whole };
  }
  if (layout === 'permuted') {
    const whole = make(shape.toReversed());
    return { view: whole.permute(shape.map((_, axis) => rank - 1 - axis)), whole };
  }
  const last = shape[rank - 1];
  const whole = make([...shape.slice(0, -1), layout === 'shifted' ? last + 3 : 2 * last]);
  const view = layout === 'shifted' ? whole.slice(-1, 1, 1 + last) : whole.slice(-1, 0, 2 * last, 2);
  return { view, whole };
}

/** The elements of the shape, row by row; those of 16 bits as numbers. */
function elementsOf(view: AnyTensor, shape: readonly number[] = view.shape) {
  const whole = view.expand([...shape]).contiguous() as AnyTensor;
  return (whole.dtype === 'float16' || whole.dtype === 'bfloat16' ? cast(whole, 'float32') : whole).dataSync();
}

interface Outcome {
  readonly compared: number;
  readonly all: number;
  readonly outputs: readonly ReturnType<AnyTensor['dataSync']>[];
}

function runCase(one: Case, roots: readonly Expression[], device: 'wasm'): Outcome {
  const random = uniform(one.seed);
  const draw = (n: number) => Array.from({ length: n }, () => random() * 6 - 3);
  const program = compile(roots, one.inputs.length);
  const inputs = one.inputs.map((input) => place(input, one.shape, device, draw));
  const outputs = one.outputs.map((output) => place(output, one.shape, device, draw));
  const count = one.shape.reduce((x, n) => x * n, 1);
  const firstFull = one.inputs.findIndex(({ layout }) => (fullLayouts as readonly Layout[]).includes(layout));
  if (one.inPlace && firstFull >= 0) outputs[0] = inputs[firstFull];
  const { backend } = outputs[0].view;
  const seed: [number, number] = [one.seed >>> 0, 0x12345678];
  const read = inputs.map(({ view }) => elementsOf(view, one.shape));
  const before = outputs.map(({ whole }) => whole.dataSync().slice());
  launchElementwise(backend, {
    program,
    inputs: inputs.map(({ view }) => broadcast(view, 'an input', one.shape, backend)),
    outputs: outputs.map(({ view }) => view.strided('an output', backend)),
    scalars,
    seed,
  });
  const results = outputs.map(({ view }) => elementsOf(view));
  let compared = 0;
  for (let index = 0; index < count; index++) {
    const expected = evaluate(roots, { inputs: read.map((values) => values[index]), scalars, index, seed });
    for (const [k, result] of results.entries()) {
      const want = stored(expected[k], outputs[k].view.dtype);
      if (want.error < 1e-2 * Math.max(1, Math.abs(want.value)) || Number.isNaN(want.value)) compared++;
      if (!agrees(result[index], want))
        expect.fail(`output ${k} has ${result[index]} at ${index}, not ${want.value} +- ${want.error}`);
    }
  }
  // What lies between the elements of an output stays.
  for (const [k, { view, whole }] of outputs.entries()) {
    const rest = whole.dataSync();
    if (rest.length === count) continue;
    const inside = new Set<number>();
    const visit = (axis: number, at: number) => {
      if (axis === view.shape.length) inside.add(at);
      else for (let i = 0; i < view.shape[axis]; i++) visit(axis + 1, at + i * view.strides[axis]);
    };
    visit(0, view.strided('an output', backend).offset);
    for (const [at, value] of rest.entries()) if (!inside.has(at)) expect(value).toBe(before[k][at]);
  }
  for (const { whole, view } of new Set([...inputs, ...outputs])) for (const t of new Set([view, whole])) t.dispose();
  return { compared, all: count * roots.length, outputs: results };
}

const isTooLarge = (roots: readonly Expression[], inputs: number) => {
  try {
    compile(roots, inputs);
    return false;
  } catch {
    return true;
  }
};

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('random programs'), () => {
    it('are what float64 says', () => {
      let [compared, all] = [0, 0];
      fc.assert(
        fc.property(cases, (one) => {
          const roots = rootsOf(one);
          fc.pre(!isTooLarge(roots, one.inputs.length));
          const outcome = runCase(one, roots, device as 'wasm');
          compared += outcome.compared;
          all += outcome.all;
        }),
        { numRuns: runs(400) },
      );
      expect(compared).toBeGreaterThan(all / 4);
    });

    it('may be as long as a kernel holds', () => {
      const inputs = Array.from({ length: 9 }, (_, i) => Expression.leaf('input', i));
      const rows = Array.from({ length: 18 }, (_, i) => inputs[i % 9].mul(i + 0.5));
      let sum: Expression = rows[0];
      for (const row of rows.toReversed()) sum = sum.add(row).sub(0.25);
      const arrays = inputs.map((): ArrayCase => ({ dtype: 'float32', layout: 'contiguous' }));
      const one: Case = {
        shape: [5, 64],
        inputs: arrays,
        outputs: arrays.slice(0, 3),
        steps: [],
        roots: [],
        inPlace: false,
        seed: 3,
      };
      const roots = [sum, sum.neg(), rows[17]];
      expect(runCase(one, roots, device as 'wasm').compared).toBe(960);
    });

    it('give an input as it was beside what is stored in its place', () => {
      const x = Expression.leaf('input', 0);
      const arrays: ArrayCase[] = [0, 1].map(() => ({ dtype: 'float32', layout: 'contiguous' }));
      const one: Case = {
        shape: [64],
        inputs: arrays.slice(1),
        outputs: arrays,
        steps: [],
        roots: [],
        inPlace: true,
        seed: 5,
      };
      expect(runCase(one, [x.add(1), x], device as 'wasm').compared).toBe(128);
    });

    it.each(['float32', 'bool'] as const)('give random numbers by the place in the result, to %s', (dtype) => {
      const roots = [Expression.leaf('uniform', 1), Expression.leaf('normal', 2)];
      for (const [shape, layout] of [
        [[3, 4, 300], 'contiguous'],
        [[7, 33], 'permuted'],
        [[130], 'shifted'],
      ] as const) {
        const outputs = [{ dtype: 'float32', layout } as const, { dtype, layout } as const];
        const one: Case = { shape, inputs: [], outputs, steps: [], roots: [], inPlace: false, seed: 99 };
        const { outputs: got } = runCase(one, roots, device as 'wasm');
        // The same bits everywhere, not only nearly the same numbers.
        expect(got.map((values) => [...values])).toEqual(
          runCase(one, roots, 'wasm').outputs.map((values) => [...values]),
        );
      }
    });
  });
});
