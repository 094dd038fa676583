/** What layers are made of, in float64 and element by element. Matrices are row-major. */
export type Numbers = ArrayLike<number>;

export const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i);
export const total = (values: readonly number[]): number => values.reduce((sum, x) => sum + x, 0);
export const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
export const silu = (x: number): number => x * sigmoid(x);

/** Row r of a matrix with so many columns. */
export const row = (values: Numbers, r: number, columns: number): number[] =>
  range(columns).map((c) => values[r * columns + c]);

export const dot = (a: Numbers, b: Numbers): number => total(Array.from(a, (x, i) => x * b[i]));

/** x W^T + b of one row, with W [out, in]. */
export const linear = (x: readonly number[], weight: Numbers, bias?: Numbers): number[] =>
  range(weight.length / x.length).map((o) => dot(x, row(weight, o, x.length)) + (bias?.[o] ?? 0));

export function softmax(logits: readonly number[]): number[] {
  const most = Math.max(...logits);
  if (most === Number.NEGATIVE_INFINITY) return logits.map(() => 0);
  const powers = logits.map((x) => Math.exp(x - most));
  const sum = total(powers);
  return powers.map((p) => p / sum);
}

/** What a query gets from keys and values; 0 where it sees none. */
export function attend(
  query: readonly number[],
  keys: readonly (readonly number[])[],
  values: readonly (readonly number[])[],
  scale: number,
  sees: (j: number) => boolean = () => true,
): number[] {
  const weights = softmax(keys.map((key, j) => (sees(j) ? scale * dot(query, key) : Number.NEGATIVE_INFINITY)));
  return range(values[0]?.length ?? 0).map((d) => total(values.map((value, j) => weights[j] * value[d])));
}

/** The dims of one head among those of all. */
export const head = (x: readonly number[], h: number, heads: number): number[] => {
  const dim = x.length / heads;
  return x.slice(h * dim, (h + 1) * dim);
};

export function layerNorm(x: readonly number[], gain: Numbers, bias: Numbers, epsilon = 1e-5): number[] {
  const mean = total([...x]) / x.length;
  const variance = total(x.map((each) => (each - mean) ** 2)) / x.length;
  return x.map((each, i) => ((each - mean) / Math.sqrt(variance + epsilon)) * gain[i] + bias[i]);
}

/** Round half to even. */
export function roundEven(x: number): number {
  const below = Math.floor(x);
  const part = x - below;
  if (part !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}
