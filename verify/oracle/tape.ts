/**
 * Reverse-mode differentiation in float64, for graphs of small arrays: each operation computes its value with plain loops
 * and says how a gradient goes back. Everything moves through index maps, so that no view is more than a list of places.
 */
import { type BinaryName, binary, type UnaryName, unary } from './elementwise.js';

type Shape = readonly number[];

const count = (shape: Shape) => shape.reduce((x, n) => x * n, 1);

/** The row-major place of an index. */
const placeOf = (index: Shape, shape: Shape) =>
  index.reduce((place, i, axis) => place * (shape[axis] as number) + i, 0);

/** The index at a row-major place. */
function indexAt(place: number, shape: Shape): number[] {
  const index: number[] = [];
  let rest = place;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    index[axis] = rest % (shape[axis] as number);
    rest = Math.floor(rest / (shape[axis] as number));
  }
  return index;
}

const indices = (shape: Shape) => Array.from({ length: count(shape) }, (_, at) => indexAt(at, shape));

function forAll<T>(list: ArrayLike<T>, use: (value: T, at: number) => void): void {
  for (let at = 0; at < list.length; at++) use(list[at] as T, at);
}

/** An array with its gradient. */
export class Variable {
  static #made = 0;
  readonly gradient: Float64Array;
  readonly id = Variable.#made++;

  constructor(
    readonly shape: Shape,
    readonly data: Float64Array,
    readonly parents: readonly Variable[] = [],
    /** Adds to the gradients of the parents. */
    readonly back: (gradient: Float64Array) => void = () => {},
  ) {
    if (data.length !== count(shape)) throw new Error(`${data.length} numbers for the shape ${shape}`);
    this.gradient = new Float64Array(data.length);
  }

  static of(values: ArrayLike<number>, shape: Shape): Variable {
    return new Variable(shape, Float64Array.from(values));
  }

  /** How close to a kink some function was that has one: there float32 may see the other side. */
  static nearestKink = Number.POSITIVE_INFINITY;

  /** Adds the gradients of everything that this depends on. */
  backward(gradient: ArrayLike<number> = [1]): void {
    const all = new Set<Variable>();
    const open: Variable[] = [this];
    for (let v = open.pop(); v; v = open.pop()) {
      if (all.has(v)) continue;
      all.add(v);
      open.push(...v.parents);
    }
    const own = new Map<Variable, Float64Array>();
    for (const v of all) own.set(v, v.gradient.slice());
    for (const v of all) v.gradient.fill(0);
    for (let at = 0; at < this.gradient.length; at++) this.gradient[at] = gradient[at] as number;
    for (const v of [...all].sort((a, b) => b.id - a.id)) v.back(v.gradient);
    // Of earlier passes.
    for (const v of all)
      for (let at = 0; at < v.gradient.length; at++) (v.gradient[at] as number) += own.get(v)?.[at] ?? 0;
  }
}

const add = (to: Variable, at: number, x: number) => {
  (to.gradient[at] as number) += x;
};

/** An array whose elements are those of another at these places. */
function moved(x: Variable, shape: Shape, places: readonly number[]): Variable {
  const data = Float64Array.from(places, (place) => x.data[place] as number);
  return new Variable(shape, data, [x], (g) => forAll(places, (place, at) => add(x, place, g[at] as number)));
}

export function broadcastShape(a: Shape, b: Shape): number[] | undefined {
  const rank = Math.max(a.length, b.length);
  const shape: number[] = [];
  for (let axis = 0; axis < rank; axis++) {
    const n = a[axis - rank + a.length] ?? 1;
    const m = b[axis - rank + b.length] ?? 1;
    if (n !== m && n !== 1 && m !== 1) return undefined;
    shape.push(n === 1 ? m : n);
  }
  return shape;
}

/** Repeated to a larger shape. */
export function expand(x: Variable, shape: Shape): Variable {
  const missing = shape.length - x.shape.length;
  const place = (index: Shape) =>
    placeOf(
      index.slice(missing).map((i, axis) => (x.shape[axis] === 1 ? 0 : i)),
      x.shape,
    );
  return moved(x, shape, indices(shape).map(place));
}

export const reshape = (x: Variable, shape: Shape): Variable => moved(x, shape, [...x.data.keys()]);

export function permute(x: Variable, order: readonly number[]): Variable {
  const shape = order.map((axis) => x.shape[axis] as number);
  const place = (index: Shape) => {
    const own: number[] = [];
    forAll(order, (axis, at) => {
      own[axis] = index[at] as number;
    });
    return placeOf(own, x.shape);
  };
  return moved(x, shape, indices(shape).map(place));
}

export function transpose(x: Variable, a: number, b: number): Variable {
  const order = [...x.shape.keys()];
  [order[a], order[b]] = [b, a];
  return permute(x, order);
}

export function slice(x: Variable, axis: number, start: number, end: number, step = 1): Variable {
  const shape = x.shape.map((n, at) => (at === axis ? Math.ceil((end - start) / step) : n));
  const place = (index: Shape) =>
    placeOf(
      index.map((i, at) => (at === axis ? start + i * step : i)),
      x.shape,
    );
  return moved(x, shape, indices(shape).map(place));
}

export function select(x: Variable, axis: number, index: number): Variable {
  const one = slice(x, axis, index, index + 1);
  return reshape(
    one,
    x.shape.filter((_, at) => at !== axis),
  );
}

export function concat(parts: readonly Variable[], axis: number): Variable {
  const [first] = parts as [Variable];
  const total = parts.reduce((sum, part) => sum + (part.shape[axis] as number), 0);
  const shape = first.shape.map((n, at) => (at === axis ? total : n));
  const sources = indices(shape).map((index) => {
    const own = [...index];
    let which = 0;
    while ((own[axis] as number) >= ((parts[which] as Variable).shape[axis] as number))
      (own[axis] as number) -= (parts[which++] as Variable).shape[axis] as number;
    const part = parts[which] as Variable;
    return { part, place: placeOf(own, part.shape) };
  });
  const data = Float64Array.from(sources, ({ part, place }) => part.data[place] as number);
  return new Variable(shape, data, parts, (g) =>
    forAll(sources, ({ part, place }, at) => add(part, place, g[at] as number)),
  );
}

const kinks: Partial<Record<string, (x: number) => number>> = {
  abs: Math.abs,
  relu: Math.abs,
  sign: Math.abs,
  floor: (x) => Math.abs(x - Math.round(x)),
  round: (x) => Math.abs(x - Math.floor(x) - 0.5),
};

const notice = (distance: number) => {
  Variable.nearestKink = Math.min(Variable.nearestKink, distance);
};

export function apply(name: UnaryName, x: Variable): Variable {
  const { f, slope } = unary[name];
  const kink = kinks[name];
  if (kink) for (const value of x.data) notice(kink(value));
  return new Variable(x.shape, x.data.map(f), [x], (g) =>
    forAll(g, (each, at) => add(x, at, each * slope(x.data[at] as number))),
  );
}

export function apply2(name: BinaryName, a: Variable, b: Variable): Variable {
  const shape = broadcastShape(a.shape, b.shape);
  if (!shape) throw new Error(`${a.shape} and ${b.shape}`);
  const [x, y] = [expand(a, shape), expand(b, shape)];
  const { f, slopes } = binary[name];
  if (name === 'minimum' || name === 'maximum')
    forAll(x.data, (value, at) => notice(Math.abs(value - (y.data[at] as number))));
  const data = x.data.map((value, at) => f(value, y.data[at] as number));
  return new Variable(shape, data, [x, y], (g) =>
    forAll(g, (each, at) => {
      const [left, right] = slopes(x.data[at] as number, y.data[at] as number);
      add(x, at, each * left);
      add(y, at, each * right);
    }),
  );
}

/** a where a fixed condition holds, else b; of one shape. */
export function where(condition: readonly boolean[], a: Variable, b: Variable): Variable {
  const data = a.data.map((value, at) => (condition[at] ? value : (b.data[at] as number)));
  return new Variable(a.shape, data, [a, b], (g) => forAll(g, (each, at) => add(condition[at] ? a : b, at, each)));
}

/** [..., m, k] by [..., k, n], with the batch axes broadcast. */
export function matmul(a: Variable, b: Variable): Variable {
  const batch = broadcastShape(a.shape.slice(0, -2), b.shape.slice(0, -2));
  const [m, inner] = a.shape.slice(-2) as [number, number];
  const [, n] = b.shape.slice(-2) as [number, number];
  if (!batch) throw new Error(`${a.shape} and ${b.shape}`);
  const [x, y] = [expand(a, [...batch, m, inner]), expand(b, [...batch, inner, n])];
  const entries = count(batch);
  const data = new Float64Array(entries * m * n);
  const each = (use: (out: number, left: number, right: number) => void) => {
    for (let e = 0; e < entries; e++)
      for (let i = 0; i < m; i++)
        for (let j = 0; j < n; j++)
          for (let k = 0; k < inner; k++) use((e * m + i) * n + j, (e * m + i) * inner + k, (e * inner + k) * n + j);
  };
  each((out, left, right) => {
    (data[out] as number) += (x.data[left] as number) * (y.data[right] as number);
  });
  return new Variable([...batch, m, n], data, [x, y], (g) =>
    each((out, left, right) => {
      add(x, left, (g[out] as number) * (y.data[right] as number));
      add(y, right, (g[out] as number) * (x.data[left] as number));
    }),
  );
}

/** By place of the input the place of the result that it goes to. */
function collected(x: Variable, axes: readonly number[], keepDims: boolean): { shape: number[]; to: number[] } {
  const kept = x.shape.map((n, axis) => (axes.includes(axis) ? 1 : n));
  const to = indices(x.shape).map((index) =>
    placeOf(
      index.map((i, axis) => (axes.includes(axis) ? 0 : i)),
      kept,
    ),
  );
  return { shape: keepDims ? kept : x.shape.filter((_, axis) => !axes.includes(axis)), to };
}

export function sum(x: Variable, axes: readonly number[], keepDims = false): Variable {
  const { shape, to } = collected(x, axes, keepDims);
  const data = new Float64Array(count(shape));
  forAll(to, (place, at) => {
    (data[place] as number) += x.data[at] as number;
  });
  return new Variable(shape, data, [x], (g) => forAll(to, (place, at) => add(x, at, g[place] as number)));
}

const scalar = (value: number) => Variable.of([value], []);

export function mean(x: Variable, axes: readonly number[], keepDims = false): Variable {
  const n = axes.reduce((product, axis) => product * (x.shape[axis] as number), 1);
  return apply2('mul', sum(x, axes, keepDims), scalar(1 / n));
}

/** Equal ones share the gradient. */
export function extreme(name: 'max' | 'min', x: Variable, axes: readonly number[], keepDims = false): Variable {
  const { shape, to } = collected(x, axes, keepDims);
  const sign = name === 'max' ? 1 : -1;
  const best = new Float64Array(count(shape)).fill(-Infinity);
  forAll(to, (place, at) => {
    best[place] = Math.max(best[place] as number, sign * (x.data[at] as number));
  });
  const winners = to.map((place, at) => best[place] === sign * (x.data[at] as number));
  const ties = new Float64Array(best.length);
  forAll(to, (place, at) => {
    if (winners[at]) (ties[place] as number)++;
    else notice((best[place] as number) - sign * (x.data[at] as number));
  });
  for (const n of ties) if (n > 1) notice(0);
  const data = best.map((value) => sign * value);
  return new Variable(shape, data, [x], (g) =>
    forAll(to, (place, at) => {
      if (winners[at]) add(x, at, (g[place] as number) / (ties[place] as number));
    }),
  );
}

export function variance(x: Variable, axes: readonly number[], keepDims: boolean, correction: number): Variable {
  const n = axes.reduce((product, axis) => product * (x.shape[axis] as number), 1);
  const squares = apply('square', apply2('sub', x, mean(x, axes, true)));
  return apply2('mul', sum(squares, axes, keepDims), scalar(1 / (n - correction)));
}

/** By the shifted exponentials; the shift has no influence on the gradient. */
export function logSumExp(x: Variable, axes: readonly number[], keepDims = false): Variable {
  const before = Variable.nearestKink;
  const shift = Variable.of(extreme('max', x, axes, true).data, collected(x, axes, true).shape);
  Variable.nearestKink = before;
  const logs = apply('log', sum(apply('exp', apply2('sub', x, shift)), axes, keepDims));
  return apply2('add', logs, reshape(shift, logs.shape));
}
