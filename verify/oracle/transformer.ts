/**
 * A decoder-only transformer in float64, with the gradients of all its weights: plain loops over [batch * length, features],
 * from Vaswani et al. (2017), Radford et al. (2019) and, for rotary positions, Su et al. (2021).
 */
import { type UnaryName, unary } from './elementwise.js';
import { philox4x32, type Words2 } from './philox.js';
import { apply2, Variable } from './tape.js';

export interface GptShape {
  readonly vocabulary: number;
  readonly width: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly hidden: number;
  readonly norm: 'layer' | 'rms';
  readonly epsilon: number;
  readonly activation: 'gelu' | 'geluTanh' | 'relu' | 'silu' | 'swiglu';
  /** Turns the first `dims` dims of each head. */
  readonly rope?: { readonly base: number; readonly dims: number; readonly pairs: 'half' | 'interleaved' };
  /** By head: scores lose slope times the distance. */
  readonly alibi?: readonly number[];
  /** `seeds`: of the embeddings, then of attention and MLP of each block. */
  readonly dropout?: { readonly p: number; readonly seeds: readonly bigint[] };
}

export interface Weight {
  readonly shape: readonly number[];
  readonly data: ArrayLike<number>;
}

export type Weights = Readonly<Record<string, Weight>>;

export interface GptResult {
  /** [batch, length, vocabulary] */
  readonly logits: Float64Array;
  /** The mean over all tokens, in nats. */
  readonly loss: number;
  /** Of the loss, by weight. */
  readonly gradients: Readonly<Record<string, Float64Array>>;
}

const range = (n: number) => Array.from({ length: n }, (_, i) => i);

const accumulate = (v: Variable, at: number, x: number) => {
  v.gradient[at] = (v.gradient[at] as number) + x;
};

/** x [rows, inputs] by weight [outputs, inputs], transposed; plus a bias [outputs]. */
function linear(x: Variable, weight: Variable, bias?: Variable): Variable {
  const [outputs, inputs] = weight.shape as [number, number];
  const rows = x.data.length / inputs;
  const data = new Float64Array(rows * outputs);
  const [a, w] = [x.data, weight.data];
  for (let r = 0; r < rows; r++)
    for (let o = 0; o < outputs; o++) {
      let sum = bias ? (bias.data[o] as number) : 0;
      for (let i = 0; i < inputs; i++) sum += (a[r * inputs + i] as number) * (w[o * inputs + i] as number);
      data[r * outputs + o] = sum;
    }
  return new Variable([rows, outputs], data, bias ? [x, weight, bias] : [x, weight], (g) => {
    for (let r = 0; r < rows; r++)
      for (let o = 0; o < outputs; o++) {
        const each = g[r * outputs + o] as number;
        if (bias) accumulate(bias, o, each);
        for (let i = 0; i < inputs; i++) {
          accumulate(x, r * inputs + i, each * (w[o * inputs + i] as number));
          accumulate(weight, o * inputs + i, each * (a[r * inputs + i] as number));
        }
      }
  });
}

/** Rows of a table. */
function lookUp(table: Variable, ids: ArrayLike<number>): Variable {
  const [, width] = table.shape as [number, number];
  const places = range(ids.length * width).map((at) => (ids[Math.floor(at / width)] as number) * width + (at % width));
  const data = Float64Array.from(places, (place) => table.data[place] as number);
  return new Variable([ids.length, width], data, [table], (g) =>
    places.forEach((place, at) => {
      accumulate(table, place, g[at] as number);
    }),
  );
}

/** Each row by its deviation (or, without `bias`, by its root mean square), times a gain, plus a bias. */
function norm(x: Variable, kind: 'layer' | 'rms', epsilon: number, gain: Variable, bias?: Variable): Variable {
  const [rows, width] = x.shape as [number, number];
  const normed = new Float64Array(x.data.length);
  const scales = new Float64Array(rows);
  for (let r = 0; r < rows; r++) {
    const row = x.data.subarray(r * width, (r + 1) * width);
    const mean = kind === 'layer' ? row.reduce((sum, value) => sum + value, 0) / width : 0;
    scales[r] = 1 / Math.sqrt(row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / width + epsilon);
    for (let i = 0; i < width; i++) normed[r * width + i] = ((row[i] as number) - mean) * (scales[r] as number);
  }
  const data = normed.map((y, at) => y * (gain.data[at % width] as number) + (bias?.data[at % width] ?? 0));
  return new Variable(x.shape, data, bias ? [x, gain, bias] : [x, gain], (g) => {
    for (let r = 0; r < rows; r++) {
      let [mean, product] = [0, 0];
      for (let i = 0; i < width; i++) {
        const [d, y] = [g[r * width + i] as number, normed[r * width + i] as number];
        accumulate(gain, i, d * y);
        if (bias) accumulate(bias, i, d);
        mean += (d * (gain.data[i] as number)) / width;
        product += (d * (gain.data[i] as number) * y) / width;
      }
      for (let i = 0; i < width; i++) {
        const at = r * width + i;
        const own = (g[at] as number) * (gain.data[i] as number) - (kind === 'layer' ? mean : 0);
        accumulate(x, at, (scales[r] as number) * (own - (normed[at] as number) * product));
      }
    }
  });
}

function activated(x: Variable, name: UnaryName): Variable {
  const { f, slope } = unary[name];
  return new Variable(x.shape, x.data.map(f), [x], (g) =>
    g.forEach((each, at) => {
      accumulate(x, at, each * slope(x.data[at] as number));
    }),
  );
}

/** Columns [begin, end) of each row. */
function columns(x: Variable, begin: number, end: number): Variable {
  const [rows, width] = x.shape as [number, number];
  const n = end - begin;
  const place = (at: number) => Math.floor(at / n) * width + begin + (at % n);
  const data = Float64Array.from({ length: rows * n }, (_, at) => x.data[place(at)] as number);
  return new Variable([rows, n], data, [x], (g) =>
    g.forEach((each, at) => {
      accumulate(x, place(at), each);
    }),
  );
}

/** Pairs of dims of x [batch * length, heads * dim], turned by position / base^(2 i / dims). */
function turned(
  x: Variable,
  length: number,
  dim: number,
  { base, dims, pairs }: NonNullable<GptShape['rope']>,
): Variable {
  const half = dims / 2;
  const data = x.data.slice();
  const visit = (use: (first: number, second: number, cos: number, sin: number) => void) => {
    const [rows, width] = x.shape as [number, number];
    for (let r = 0; r < rows; r++)
      for (let begin = 0; begin < width; begin += dim)
        for (let i = 0; i < half; i++) {
          const angle = (r % length) * base ** (-i / half);
          const at = r * width + begin;
          const [first, second] = pairs === 'half' ? [at + i, at + i + half] : [at + 2 * i, at + 2 * i + 1];
          use(first, second, Math.cos(angle), Math.sin(angle));
        }
  };
  visit((a, b, cos, sin) => {
    data[a] = (x.data[a] as number) * cos - (x.data[b] as number) * sin;
    data[b] = (x.data[a] as number) * sin + (x.data[b] as number) * cos;
  });
  return new Variable(x.shape, data, [x], (g) => {
    const back = g.slice();
    visit((a, b, cos, sin) => {
      back[a] = (g[a] as number) * cos + (g[b] as number) * sin;
      back[b] = (g[b] as number) * cos - (g[a] as number) * sin;
    });
    back.forEach((each, at) => {
      accumulate(x, at, each);
    });
  });
}

/** Causal attention: q [batch * length, heads * dim], k and v [batch * length, kvHeads * dim]. */
function attend(q: Variable, k: Variable, v: Variable, length: number, shape: GptShape): Variable {
  const { heads, kvHeads, headDim: dim, alibi } = shape;
  const [rows] = q.shape as [number];
  const scale = 1 / Math.sqrt(dim);
  const data = new Float64Array(rows * heads * dim);
  const weights = new Map<string, Float64Array>();
  const visit = (
    use: (query: number, key: (j: number) => number, row: number, head: number, position: number) => void,
  ) => {
    for (let row = 0; row < rows; row++)
      for (let head = 0; head < heads; head++) {
        const begin = row - (row % length);
        const ofKv = Math.floor(head / (heads / kvHeads));
        use((row * heads + head) * dim, (j) => ((begin + j) * kvHeads + ofKv) * dim, row, head, row % length);
      }
  };
  visit((query, key, row, head, position) => {
    const scores = Float64Array.from({ length: position + 1 }, (_, j) => {
      let dot = 0;
      for (let d = 0; d < dim; d++) dot += (q.data[query + d] as number) * (k.data[key(j) + d] as number);
      return dot * scale - (alibi?.[head] ?? 0) * (position - j);
    });
    const most = Math.max(...scores);
    const powers = scores.map((s) => Math.exp(s - most));
    const total = powers.reduce((sum, p) => sum + p, 0);
    const own = powers.map((p) => p / total);
    weights.set(`${row},${head}`, own);
    own.forEach((p, j) => {
      for (let d = 0; d < dim; d++) data[query + d] = (data[query + d] as number) + p * (v.data[key(j) + d] as number);
    });
  });
  return new Variable([rows, heads * dim], data, [q, k, v], (g) =>
    visit((query, key, row, head) => {
      const own = weights.get(`${row},${head}`) as Float64Array;
      const ofWeights = own.map((p, j) => {
        let dot = 0;
        for (let d = 0; d < dim; d++) {
          dot += (g[query + d] as number) * (v.data[key(j) + d] as number);
          accumulate(v, key(j) + d, p * (g[query + d] as number));
        }
        return dot;
      });
      const mean = own.reduce((sum, p, j) => sum + p * (ofWeights[j] as number), 0);
      own.forEach((p, j) => {
        const ofScore = scale * p * ((ofWeights[j] as number) - mean);
        for (let d = 0; d < dim; d++) {
          accumulate(q, query + d, ofScore * (k.data[key(j) + d] as number));
          accumulate(k, key(j) + d, ofScore * (q.data[query + d] as number));
        }
      });
    }),
  );
}

/** By element what it is multiplied by: 0 or 1 / (1 - p). Element i is dropped when the first word of Philox at i says so. */
export function dropoutFactors(count: number, p: number, seed: bigint): Float64Array {
  const key: Words2 = [Number(seed & 0xffffffffn), Number(seed >> 32n)];
  return Float64Array.from({ length: count }, (_, at) => {
    const [word] = philox4x32([at >>> 0, Math.floor(at / 2 ** 32), 0, 0], key);
    return (word >>> 8) / 2 ** 24 < Math.fround(p) ? 0 : 1 / (1 - p);
  });
}

/** The mean of -log softmax(logits)[target]. */
function crossEntropy(logits: Variable, targets: ArrayLike<number>): Variable {
  const [rows, classes] = logits.shape as [number, number];
  const shares = new Float64Array(logits.data.length);
  let sum = 0;
  for (let r = 0; r < rows; r++) {
    const row = logits.data.subarray(r * classes, (r + 1) * classes);
    const most = Math.max(...row);
    const total = row.reduce((all, x) => all + Math.exp(x - most), 0);
    row.forEach((x, c) => {
      shares[r * classes + c] = Math.exp(x - most) / total;
    });
    sum += most + Math.log(total) - (row[targets[r] as number] as number);
  }
  return new Variable([], Float64Array.of(sum / rows), [logits], ([g]) =>
    shares.forEach((share, at) => {
      const hit = at % classes === (targets[Math.floor(at / classes)] as number) ? 1 : 0;
      accumulate(logits, at, ((g as number) * (share - hit)) / rows);
    }),
  );
}

/**
 * One pass over ids and targets, both [batch, length]. The weights have the names of `flashattn/nn`: without
 * `positions.weight` there are no learned positions, without `head.weight` the head is the embedding, and biases that are
 * missing are none.
 */
export function gpt(
  shape: GptShape,
  weights: Weights,
  ids: ArrayLike<number>,
  targets: ArrayLike<number>,
  length: number,
): GptResult {
  const { width, heads, kvHeads, headDim, hidden, activation, rope, dropout } = shape;
  const all: Record<string, Variable> = {};
  for (const [name, { shape: own, data }] of Object.entries(weights)) all[name] = Variable.of(data, own);
  const get = (name: string) => {
    const found = all[name];
    if (!found) throw new Error(`no weight ${name}`);
    return found;
  };
  const seeds = [...(dropout?.seeds ?? [])];
  const dropped = (x: Variable): Variable => {
    if (!dropout) return x;
    const factors = dropoutFactors(x.data.length, dropout.p, seeds.shift() as bigint);
    return apply2('mul', x, Variable.of(factors, x.shape));
  };
  const normed = (x: Variable, name: string) =>
    norm(x, shape.norm, shape.epsilon, get(`${name}.weight`), shape.norm === 'layer' ? get(`${name}.bias`) : undefined);
  const projected = (x: Variable, name: string) => linear(x, get(`${name}.weight`), all[`${name}.bias`]);

  const table = get('tokens.weight');
  let x = lookUp(table, ids);
  if (all['positions.weight']) {
    const positions = range(ids.length).map((at) => at % length);
    x = apply2('add', x, lookUp(get('positions.weight'), positions));
  }
  // One seed of the embeddings; then a block has one for each half.
  x = dropped(x);
  for (let layer = 0; layer < shape.layers; layer++) {
    const block = `blocks.${layer}`;
    const qkv = projected(normed(x, `${block}.norm1`), `${block}.attention.qkv`);
    const [ofQ, ofK] = [heads * headDim, kvHeads * headDim];
    const turn = (t: Variable) => (rope ? turned(t, length, headDim, rope) : t);
    const q = turn(columns(qkv, 0, ofQ));
    const k = turn(columns(qkv, ofQ, ofQ + ofK));
    const v = columns(qkv, ofQ + ofK, ofQ + 2 * ofK);
    x = apply2('add', x, dropped(projected(attend(q, k, v, length, shape), `${block}.attention.out`)));
    const wide = projected(normed(x, `${block}.norm2`), `${block}.mlp.up`);
    const inner =
      activation === 'swiglu'
        ? apply2('mul', activated(columns(wide, 0, hidden), 'silu'), columns(wide, hidden, 2 * hidden))
        : activated(wide, activation);
    x = apply2('add', x, dropped(projected(inner, `${block}.mlp.down`)));
  }
  if (x.shape[1] !== width) throw new Error(`width ${x.shape[1]}`);
  const logits = linear(normed(x, 'norm'), all['head.weight'] ?? table);
  const loss = crossEntropy(logits, targets);
  loss.backward();
  const gradients = Object.fromEntries(Object.entries(all).map(([name, v]) => [name, v.gradient]));
  return { logits: logits.data, loss: loss.data[0] as number, gradients };
}

export interface AdamWHyper {
  readonly rate: number;
  readonly betas: readonly [number, number];
  readonly epsilon: number;
  readonly weightDecay: number;
}

export interface AdamWMoments {
  readonly mean: Float64Array;
  readonly meanSquare: Float64Array;
}

/** Step `step`, from 1 on, of Loshchilov and Hutter (2017), in place. */
export function adamW(
  weight: Float64Array,
  gradient: ArrayLike<number>,
  { mean, meanSquare }: AdamWMoments,
  step: number,
  { rate, betas: [beta1, beta2], epsilon, weightDecay }: AdamWHyper,
): void {
  weight.forEach((w, i) => {
    const g = gradient[i] as number;
    mean[i] = beta1 * (mean[i] as number) + (1 - beta1) * g;
    meanSquare[i] = beta2 * (meanSquare[i] as number) + (1 - beta2) * g * g;
    const direction = (mean[i] as number) / (1 - beta1 ** step);
    const size = Math.sqrt((meanSquare[i] as number) / (1 - beta2 ** step));
    weight[i] = w - rate * weightDecay * w - (rate * direction) / (size + epsilon);
  });
}

export interface SgdHyper {
  readonly rate: number;
  readonly momentum: number;
  readonly nesterov: boolean;
  readonly weightDecay: number;
}

/** As PyTorch has it, in place; `sum` is 0 before the first step. */
export function sgd(
  weight: Float64Array,
  gradient: ArrayLike<number>,
  sum: Float64Array,
  { rate, momentum, nesterov, weightDecay }: SgdHyper,
): void {
  weight.forEach((w, i) => {
    const g = (gradient[i] as number) + weightDecay * w;
    sum[i] = momentum * (sum[i] as number) + g;
    weight[i] = w - rate * (nesterov ? g + momentum * (sum[i] as number) : (sum[i] as number));
  });
}

/** The norm of all gradients together, and what they are multiplied by so that it is at most `most`. */
export function clipping(gradients: Iterable<ArrayLike<number>>, most: number): { norm: number; scale: number } {
  let squares = 0;
  for (const gradient of gradients) for (let i = 0; i < gradient.length; i++) squares += (gradient[i] as number) ** 2;
  const norm = Math.sqrt(squares);
  return { norm, scale: Math.min(1, most / (norm + 1e-6)) };
}
