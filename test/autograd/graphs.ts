/** Random graphs of operations, which the library and the float64 tape both walk. */
import fc from 'fast-check';
import type { Tensor } from '../../lib/index.js';
import * as fa from '../../lib/index.js';
import type { BinaryName, UnaryName } from '../../verify/oracle/elementwise.js';
import * as tape from '../../verify/oracle/tape.js';
import { broadcastShape, Variable } from '../../verify/oracle/tape.js';

/** What both can do. */
export interface Engine<T> {
  shapeOf(t: T): readonly number[];
  unary(name: UnaryName, x: T): T;
  binary(name: BinaryName, a: T, b: T): T;
  times(x: T, factor: number): T;
  /** Where a number of the same pattern for both says so. */
  where(pattern: number, a: T, b: T): T;
  matmul(a: T, b: T): T;
  reduce(
    name: 'sum' | 'mean' | 'max' | 'min' | 'variance' | 'logSumExp',
    x: T,
    axes: readonly number[],
    keepDims: boolean,
  ): T;
  reshape(x: T, shape: readonly number[]): T;
  permute(x: T, order: readonly number[]): T;
  transpose(x: T, a: number, b: number): T;
  slice(x: T, axis: number, start: number, end: number, step: number): T;
  select(x: T, axis: number, index: number): T;
  expand(x: T, shape: readonly number[]): T;
  concat(parts: readonly T[], axis: number): T;
  contiguous(x: T): T;
  /** Whether numbers have grown: the oracle decides, the library follows. */
  isLarge(x: T): boolean;
}

const count = (shape: readonly number[]) => shape.reduce((x, n) => x * n, 1);
const holds = (pattern: number, at: number) => ((pattern * 2654435761 + at * 40503) >>> 7) % 3 !== 0;

export function oracleEngine(decisions: boolean[]): Engine<Variable> {
  return {
    shapeOf: (t) => t.shape,
    unary: tape.apply,
    binary: tape.apply2,
    times: (x, factor) => tape.apply2('mul', x, Variable.of([factor], [])),
    where: (pattern, a, b) => {
      const shape = broadcastShape(a.shape, b.shape) as number[];
      const condition = Array.from({ length: count(shape) }, (_, at) => holds(pattern, at));
      return tape.where(condition, tape.expand(a, shape), tape.expand(b, shape));
    },
    matmul: tape.matmul,
    reduce: (name, x, axes, keepDims) => {
      if (name === 'max' || name === 'min') return tape.extreme(name, x, axes, keepDims);
      if (name === 'variance') return tape.variance(x, axes, keepDims, 0);
      const { sum, mean, logSumExp } = tape;
      return { sum, mean, logSumExp }[name](x, axes, keepDims);
    },
    reshape: tape.reshape,
    permute: tape.permute,
    transpose: tape.transpose,
    slice: tape.slice,
    select: tape.select,
    expand: tape.expand,
    concat: tape.concat,
    contiguous: (x) => x,
    isLarge: (x) => {
      const is = x.data.some((value) => Math.abs(value) > 3);
      decisions.push(is);
      return is;
    },
  };
}

const { sum, mean, max, min, logSumExp } = fa;
const reducing = { sum, mean, max, min, logSumExp };

/** @param made told of every tensor */
export function libraryEngine(decisions: readonly boolean[], made: (t: Tensor) => void): Engine<Tensor> {
  let decided = 0;
  const noted = (t: Tensor): Tensor => {
    made(t);
    return t;
  };
  return {
    shapeOf: (t) => t.shape,
    unary: (name, x) =>
      noted(
        name === 'geluTanh'
          ? fa.gelu(x, { approximate: 'tanh' })
          : (fa as unknown as Record<string, (x: Tensor) => Tensor>)[name](x),
      ),
    binary: (name, a, b) => noted((fa as unknown as Record<string, (a: Tensor, b: Tensor) => Tensor>)[name](a, b)),
    times: (x, factor) => noted(fa.mul(x, factor) as Tensor),
    where: (pattern, a, b) => {
      const shape = broadcastShape(a.shape, b.shape) as number[];
      const values = Uint8Array.from({ length: count(shape) }, (_, at) => Number(holds(pattern, at)));
      const condition = fa.tensor(values, shape, { dtype: 'bool', device: a.device as 'wasm' });
      made(condition as unknown as Tensor);
      return noted(fa.where(condition, a, b) as Tensor);
    },
    matmul: (a, b) => noted(fa.matmul(a, b)),
    reduce: (name, x, axes, keepDims) =>
      noted(
        name === 'variance' ? fa.variance(x, axes, { keepDims, correction: 0 }) : reducing[name](x, axes, { keepDims }),
      ),
    reshape: (x, shape) => noted((x.isContiguous ? x : noted(x.contiguous())).reshape(shape) as Tensor),
    permute: (x, order) => noted(x.permute(order) as Tensor),
    transpose: (x, a, b) => noted(x.transpose(a, b)),
    slice: (x, axis, start, end, step) => noted(x.slice(axis, start, end, step)),
    select: (x, axis, index) => noted(x.select(axis, index) as Tensor),
    expand: (x, shape) => noted(x.expand(shape) as Tensor),
    concat: (parts, axis) => noted(fa.concat(parts as Tensor[], axis)),
    contiguous: (x) => noted(x.contiguous()),
    isLarge: () => decisions[decided++] as boolean,
  };
}

const smooth = [
  'tanh',
  'sigmoid',
  'sin',
  'cos',
  'erf',
  'gelu',
  'geluTanh',
  'silu',
  'softplus',
  'square',
  'neg',
  'expm1',
] as const;
const kinked = ['relu', 'abs'] as const;
const positive = ['sqrt', 'rsqrt', 'log', 'log1p', 'exp'] as const;
const binaries = ['add', 'sub', 'mul', 'maximum', 'minimum', 'div', 'pow'] as const;
const reducers = ['sum', 'mean', 'max', 'min', 'variance', 'logSumExp'] as const;

const kinds = [
  ...['unary', 'kinked', 'positive', 'binary', 'binary', 'binary', 'matmul', 'matmul', 'reduce', 'reduce'],
  ...['reshape', 'permute', 'transpose', 'slice', 'select', 'expand', 'concat', 'contiguous', 'where'],
] as const;

/** One operation: which it is, on which of the arrays so far (from the last), and numbers that say how. */
export interface Step {
  readonly kind: (typeof kinds)[number];
  readonly from: number;
  readonly other: number;
  readonly a: number;
  readonly b: number;
}

export const stepsArbitrary = (most: number): fc.Arbitrary<Step[]> =>
  fc.array(
    fc.record({
      kind: fc.constantFrom(...kinds),
      from: fc.nat(3),
      other: fc.nat(7),
      a: fc.nat(1000),
      b: fc.nat(1000),
    }),
    { minLength: 1, maxLength: most, size: 'max' },
  );

const mostElements = 400;

function axesOf(shape: readonly number[], bits: number): number[] {
  return [...shape.keys()].filter((axis) => (bits >> axis) & 1);
}

/** The result of a step, or the array itself where its shape does not allow it. */
function run<T>(e: Engine<T>, step: Step, x: T, y: T): T {
  const { a, b } = step;
  const shape = e.shapeOf(x);
  const rank = shape.length;
  const pick = <U>(list: readonly U[], n: number) => list[n % list.length] as U;
  const axis = rank === 0 ? 0 : a % rank;
  switch (step.kind) {
    case 'unary':
      return e.unary(pick(smooth, a), x);
    case 'kinked':
      return e.unary(pick(kinked, a), x);
    case 'positive':
      return e.unary(pick(positive, a), e.binary('add', e.unary('sigmoid', x), e.unary('sigmoid', x)));
    case 'binary': {
      const name = pick(binaries, a);
      const joined = broadcastShape(shape, e.shapeOf(y));
      const other = joined && count(joined) <= mostElements ? y : e.reduce('mean', y, [...e.shapeOf(y).keys()], false);
      if (name === 'div')
        return e.binary('div', x, e.binary('add', e.unary('softplus', other), e.unary('sigmoid', other)));
      if (name === 'pow') return e.binary('pow', e.unary('softplus', x), e.unary('tanh', other));
      return e.binary(name, x, other);
    }
    case 'where': {
      const joined = broadcastShape(shape, e.shapeOf(y));
      return joined && count(joined) <= mostElements ? e.where(a, x, y) : e.where(a, x, e.unary('tanh', x));
    }
    case 'matmul': {
      if (rank < 2) return e.unary('tanh', x);
      const of = e.shapeOf(y);
      const fits =
        of.length >= 2 && of[of.length - 2] === shape[rank - 1] && broadcastShape(shape.slice(0, -2), of.slice(0, -2));
      if (fits && count(fits) * (shape[rank - 2] as number) * (of.at(-1) as number) <= mostElements)
        return e.times(e.matmul(x, y), 0.5);
      // With itself turned, or a part of it for all of a batch.
      const self = e.transpose(x, rank - 2, rank - 1);
      const one = a % 2 && rank > 2 ? firstMatrix(e, self) : self;
      return e.times(e.matmul(x, one), 0.3);
    }
    case 'reduce': {
      const name = pick(reducers, a);
      return e.reduce(name, x, axesOf(shape, b), b % 3 === 0);
    }
    case 'reshape': {
      const n = count(shape);
      const options = [
        [n],
        [1, n],
        [n, 1],
        ...(n % 2 === 0
          ? [
              [2, n / 2],
              [n / 2, 2],
              [2, 1, n / 2],
            ]
          : []),
        ...(n % 3 === 0 ? [[n / 3, 3]] : []),
      ];
      return e.reshape(x, pick(options, a));
    }
    case 'permute': {
      const order = [...shape.keys()].sort(
        (i, j) => ((a >> i) & 3) - ((a >> j) & 3) || ((b >> i) & 1) - ((b >> j) & 1),
      );
      return e.permute(x, order);
    }
    case 'transpose':
      return rank < 1 ? x : e.transpose(x, axis, b % rank);
    case 'slice': {
      if (rank === 0) return x;
      const n = shape[axis] as number;
      const start = b % n;
      return e.slice(x, axis, start, start + 1 + ((a >> 3) % (n - start)), 1 + (b % 2));
    }
    case 'select':
      return rank === 0 ? x : e.select(x, axis, b % (shape[axis] as number));
    case 'expand': {
      const larger = [...(a % 3 === 0 ? [2] : []), ...shape.map((n) => (n === 1 && b % 2 ? 3 : n))];
      return count(larger) <= mostElements && larger.length <= 6 ? e.expand(x, larger) : x;
    }
    case 'concat': {
      if (rank === 0) return x;
      const of = e.shapeOf(y);
      const fits = of.length === rank && of.every((n, at) => at === axis || n === shape[at]);
      const parts = fits ? [x, y, x] : [x, x];
      return count(shape) * 3 <= mostElements ? e.concat(parts, axis) : x;
    }
    case 'contiguous':
      return e.contiguous(x);
  }
}

function firstMatrix<T>(e: Engine<T>, x: T): T {
  let one = x;
  while (e.shapeOf(one).length > 2) one = e.select(one, 0, 0);
  return one;
}

/** A number that depends on the last arrays of the graph, some of them more than once. */
export function evaluate<T>(e: Engine<T>, inputs: readonly T[], steps: readonly Step[]): T {
  const all = [...inputs];
  for (const step of steps) {
    const x = all[all.length - 1 - (step.from % all.length)] as T;
    const y = all[step.other % all.length] as T;
    const result = run(e, step, x, y);
    all.push(e.isLarge(result) ? e.unary('tanh', e.times(result, 0.4)) : result);
  }
  const last = all.slice(-3).map((t, i) => {
    const weighed = e.unary('sin', e.times(t, 1 + i));
    return e.reduce('mean', weighed, [...e.shapeOf(t).keys()], false);
  });
  return last.reduce((sum, each) => e.binary('add', sum, each));
}

/** Parameters of shapes that often go together. */
export const inputShapes = fc.array(
  fc.constantFrom([3, 4], [4, 3], [4], [2, 3, 4], [1, 4], [2, 1, 3], [], [4, 4], [2, 4, 3]),
  {
    minLength: 1,
    maxLength: 4,
  },
);
