/**
 * Systems with a memory beyond a segment, and what is retrieved, in float64 and pair by pair: Transformer-XL, recurrent memory,
 * Unlimiformer and RETRO. Tensors are row-major.
 */

type Vector = readonly number[];

const at = (v: ArrayLike<number> | undefined, i: number): number => v?.[i] ?? Number.NaN;
const dot = (a: Vector, b: Vector): number => a.reduce((total, x, i) => total + x * at(b, i), 0);
const plus = (a: Vector, b: Vector): Vector => a.map((x, i) => x + at(b, i));
const rowOf = (t: Float64Array, row: number, width: number): Vector => [...t.subarray(row * width, (row + 1) * width)];
/** x W^T of W [outputs, x.length] */
const through = (x: Vector, w: Float64Array): Vector =>
  Array.from({ length: w.length / x.length }, (_, o) => dot(x, rowOf(w, o, x.length)));

/** Softmax over scores, of which -Infinity hides; 0 of nothing. */
function attend(scores: Vector, values: readonly Vector[], width: number): Vector {
  const most = Math.max(...scores);
  if (most === Number.NEGATIVE_INFINITY) return new Array<number>(width).fill(0);
  const powers = scores.map((s) => Math.exp(s - most));
  const total = powers.reduce((sum, p) => sum + p, 0);
  return Array.from({ length: width }, (_, c) =>
    values.reduce((sum, v, j) => sum + (at(powers, j) === 0 ? 0 : (at(powers, j) / total) * at(v, c)), 0),
  );
}

export interface XLShape {
  readonly batch: number;
  readonly queries: number;
  readonly keys: number;
  readonly heads: number;
  readonly dim: number;
  readonly valueDim: number;
}

export interface XLInputs {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  /** [keys, heads, dim], of distances from keys - 1 to 0 */
  readonly r: Float64Array;
  readonly u: Float64Array;
  readonly w: Float64Array;
}

/** Transformer-XL's attention: equation of its section 3.3, with a distance for each pair. */
export function transformerXL(d: XLShape, { q, k, v, r, u, w }: XLInputs): Float64Array {
  const out: number[] = [];
  for (let b = 0; b < d.batch; b++)
    for (let i = 0; i < d.queries; i++)
      for (let h = 0; h < d.heads; h++) {
        const query = rowOf(q, (b * d.queries + i) * d.heads + h, d.dim);
        const position = i + d.keys - d.queries;
        const seen = Array.from({ length: position + 1 }, (_, j) => j);
        const scores = seen.map((j) => {
          const content = dot(plus(query, rowOf(u, h, d.dim)), rowOf(k, (b * d.keys + j) * d.heads + h, d.dim));
          const row = d.keys - 1 - (position - j);
          return (
            (content + dot(plus(query, rowOf(w, h, d.dim)), rowOf(r, row * d.heads + h, d.dim))) / Math.sqrt(d.dim)
          );
        });
        const values = seen.map((j) => rowOf(v, (b * d.keys + j) * d.heads + h, d.valueDim));
        out.push(...attend(scores, values, d.valueDim));
      }
  return Float64Array.from(out);
}

export interface XLLayerShape {
  readonly batch: number;
  readonly seq: number;
  readonly width: number;
  readonly heads: number;
  readonly headDim: number;
  readonly segment: number;
  readonly memory: number;
  readonly preNorm: boolean;
}

/** Weights of the layer by their names there. */
export type XLWeights = Readonly<Record<string, Float64Array>>;

function layerNorm(x: Vector, gain: Float64Array, bias: Float64Array): Vector {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const spread = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  return x.map((value, i) => ((value - mean) / Math.sqrt(spread + 1e-5)) * at(gain, i) + at(bias, i));
}

/**
 * The layer over all segments. Memory is read from `frozen`, the same numbers as x, so that differences of x do not go
 * through it.
 */
export function transformerXLLayer(d: XLLayerShape, x: Float64Array, frozen: Float64Array, w: XLWeights): Float64Array {
  const of = (name: string): Float64Array => w[name] ?? new Float64Array();
  const norm = (row: Vector) => layerNorm(row, of('norm.weight'), of('norm.bias'));
  const out: number[] = [];
  const half = d.width / 2;
  const inner = d.heads * d.headDim;
  for (let b = 0; b < d.batch; b++)
    for (let t = 0; t < d.seq; t++) {
      const start = Math.floor(t / d.segment) * d.segment;
      const own = rowOf(x, b * d.seq + t, d.width);
      const read = (j: number) => {
        const row = rowOf(j < start ? frozen : x, b * d.seq + j, d.width);
        return d.preNorm ? norm(row) : row;
      };
      const first = Math.max(0, start - d.memory);
      const seen = Array.from({ length: t - first + 1 }, (_, n) => first + n);
      const queries = through(read(t), of('qkv.weight')).slice(0, inner);
      const made = seen.map((j) => through(read(j), of('qkv.weight')));
      const distances = seen.map((j) =>
        through(
          Array.from({ length: d.width }, (_, c) => {
            const angle = (t - j) / 10_000 ** ((c % half) / half);
            return c < half ? Math.sin(angle) : Math.cos(angle);
          }),
          of('r.weight'),
        ),
      );
      const attended: number[] = [];
      for (let h = 0; h < d.heads; h++) {
        const part = (row: Vector, from: number) => row.slice(from + h * d.headDim, from + (h + 1) * d.headDim);
        const query = part(queries, 0);
        const scores = seen.map((_, n) => {
          const content = dot(plus(query, rowOf(of('contentBias'), h, d.headDim)), part(made[n] as Vector, inner));
          const distance = dot(plus(query, rowOf(of('distanceBias'), h, d.headDim)), part(distances[n] as Vector, 0));
          return (content + distance) / Math.sqrt(d.headDim);
        });
        const values = made.map((row) => part(row, 2 * inner));
        attended.push(...attend(scores, values, d.headDim));
      }
      const sum = plus(own, through(attended, of('out.weight')));
      out.push(...(d.preNorm ? sum : norm(sum)));
    }
  return Float64Array.from(out);
}

export interface RmtShape {
  readonly batch: number;
  readonly seq: number;
  readonly width: number;
  readonly tokens: number;
  readonly segment: number;
  readonly kind: 'decoder' | 'encoder';
}

/** out and then the last memory, around a model of the rows of one batch entry. */
export function recurrentMemory(
  d: RmtShape,
  x: Float64Array,
  memory: Float64Array,
  model: (z: readonly Vector[]) => readonly Vector[],
): Float64Array {
  const out: number[] = [];
  const last: number[] = [];
  for (let b = 0; b < d.batch; b++) {
    const all = Array.from({ length: d.seq }, (_, t) => rowOf(x, b * d.seq + t, d.width));
    let state: readonly Vector[] = Array.from({ length: d.tokens }, (_, m) => rowOf(memory, m, d.width));
    for (let from = 0; from < d.seq; from += d.segment) {
      const tokens = all.slice(from, from + d.segment);
      const y = model([...state, ...tokens, ...(d.kind === 'decoder' ? state : [])]);
      for (const row of y.slice(d.tokens, d.tokens + tokens.length)) out.push(...row);
      state = d.kind === 'decoder' ? y.slice(d.tokens + tokens.length) : y.slice(0, d.tokens);
    }
    for (const row of state) last.push(...row);
  }
  return Float64Array.from([...out, ...last]);
}

/** Places of the `count` largest scores, the largest first, of equal ones the lowest place; NaN is the largest. */
export function largest(scores: Vector, count: number): number[] {
  const key = (x: number) => (Number.isNaN(x) ? Number.POSITIVE_INFINITY : x);
  const order = (i: number, j: number) => {
    const [a, b] = [at(scores, i), at(scores, j)];
    if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? -1 : 1;
    return key(a) === key(b) ? i - j : key(b) - key(a);
  };
  return [...scores.keys()].sort(order).slice(0, count);
}

export interface RetrievalShape {
  readonly batch: number;
  readonly queries: number;
  readonly keys: number;
  readonly heads: number;
  readonly dim: number;
  readonly valueDim: number;
  readonly neighbours: number;
  /** By key of each batch entry. */
  readonly real?: readonly boolean[];
}

/**
 * Unlimiformer's attention.
 *
 * @param choice where the choice is not to change with q and k: which keys each query of each head had
 */
export function unlimiformer(
  d: RetrievalShape,
  { q, k, v }: { readonly q: Float64Array; readonly k: Float64Array; readonly v: Float64Array },
  choice?: Map<string, number[]>,
): Float64Array {
  const out: number[] = [];
  for (let b = 0; b < d.batch; b++)
    for (let i = 0; i < d.queries; i++)
      for (let h = 0; h < d.heads; h++) {
        const query = rowOf(q, (b * d.queries + i) * d.heads + h, d.dim);
        const scores = Array.from({ length: d.keys }, (_, j) =>
          d.real && !d.real[b * d.keys + j]
            ? Number.NEGATIVE_INFINITY
            : dot(query, rowOf(k, (b * d.keys + j) * d.heads + h, d.dim)),
        );
        const place = `${b} ${i} ${h}`;
        const chosen = choice?.get(place) ?? largest(scores, d.neighbours);
        choice?.set(place, chosen);
        out.push(
          ...attend(
            chosen.map((j) => at(scores, j) / Math.sqrt(d.dim)),
            chosen.map((j) => rowOf(v, (b * d.keys + j) * d.heads + h, d.valueDim)),
            d.valueDim,
          ),
        );
      }
  return Float64Array.from(out);
}

export interface RetroShape {
  readonly batch: number;
  readonly seq: number;
  readonly heads: number;
  readonly dim: number;
  readonly valueDim: number;
  readonly chunk: number;
  readonly chunks: number;
  readonly neighbours: number;
  readonly tokens: number;
  /** By [batch, chunk, neighbour, token]. */
  readonly real?: readonly boolean[];
  /** Position of query row w of its chunk; keys are at theirs within their neighbour. */
  readonly position?: (row: number) => number;
}

export interface RetroInputs {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  readonly nullKey: Float64Array;
  readonly nullValue: Float64Array;
}

/** The first half of the dims and the second, turned together. */
const turned = (x: Vector, position: number): Vector => {
  const half = x.length / 2;
  return x.map((value, i) => {
    const angle = position * 10_000 ** (-(i % half) / half);
    return i < half
      ? value * Math.cos(angle) - at(x, i + half) * Math.sin(angle)
      : value * Math.cos(angle) + at(x, i - half) * Math.sin(angle);
  });
};

/** Chunked cross-attention, token by token. */
export function retro(d: RetroShape, { q, k, v, nullKey, nullValue }: RetroInputs): Float64Array {
  const out: number[] = [];
  for (let b = 0; b < d.batch; b++)
    for (let t = 0; t < d.seq; t++)
      for (let h = 0; h < d.heads; h++) {
        const since = t - (d.chunk - 1);
        const chunk = Math.floor(since / d.chunk);
        if (since < 0 || chunk >= d.chunks) {
          out.push(...new Array<number>(d.valueDim).fill(0));
          continue;
        }
        const { position } = d;
        const own = rowOf(q, (b * d.seq + t) * d.heads + h, d.dim);
        const query = position ? turned(own, position(since % d.chunk)) : own;
        const scores = [dot(query, rowOf(nullKey, h, d.dim))];
        const values = [rowOf(nullValue, h, d.valueDim)];
        for (let n = 0; n < d.neighbours; n++)
          for (let j = 0; j < d.tokens; j++) {
            const place = ((b * d.chunks + chunk) * d.neighbours + n) * d.tokens + j;
            const key = rowOf(k, place * d.heads + h, d.dim);
            scores.push(
              d.real && !d.real[place] ? Number.NEGATIVE_INFINITY : dot(query, position ? turned(key, j) : key),
            );
            values.push(rowOf(v, place * d.heads + h, d.valueDim));
          }
        out.push(
          ...attend(
            scores.map((s) => s / Math.sqrt(d.dim)),
            values,
            d.valueDim,
          ),
        );
      }
  return Float64Array.from(out);
}
