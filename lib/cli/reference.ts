// Attention of one head in float64, straight from its definition: what self-tests compare a device with.

import type { DenseOptions } from '../attention/options.js';
import type { FloatDType } from '../base/dtype.js';

export interface Case {
  readonly name: string;
  readonly dtype: FloatDType;
  readonly queries: number;
  readonly keys: number;
  readonly dim: number;
  readonly options: DenseOptions;
}

export interface Reference {
  readonly out: Float64Array;
  readonly dq: Float64Array;
  readonly dk: Float64Array;
  readonly dv: Float64Array;
}

export function reference(c: Case, q: Float32Array, k: Float32Array, v: Float32Array, dOut: Float32Array): Reference {
  const { queries, keys, dim, options } = c;
  const { causal = false, window = [-1, -1], softcap = 0 } = options;
  const scale = 1 / Math.sqrt(dim);
  const result = {
    out: new Float64Array(queries * dim),
    dq: new Float64Array(queries * dim),
    dk: new Float64Array(keys * dim),
    dv: new Float64Array(keys * dim),
  };
  const dot = (a: ArrayLike<number>, i: number, b: ArrayLike<number>, j: number) => {
    let sum = 0;
    for (let d = 0; d < dim; d++) sum += a[i * dim + d] * b[j * dim + d];
    return sum;
  };
  const add = (to: Float64Array, i: number, factor: number, from: ArrayLike<number>, j: number) => {
    for (let d = 0; d < dim; d++) to[i * dim + d] = to[i * dim + d] + factor * from[j * dim + d];
  };
  for (let i = 0; i < queries; i++) {
    const distance = (j: number) => j - i - (keys - queries);
    const visible = (j: number) =>
      (!causal || distance(j) <= 0) &&
      (window[0] < 0 || distance(j) >= -window[0]) &&
      (window[1] < 0 || distance(j) <= window[1]);
    const seen = Array.from({ length: keys }, (_, j) => j).filter(visible);
    const raw = seen.map((j) => scale * dot(q, i, k, j));
    const logits = raw.map((s) => (softcap ? softcap * Math.tanh(s / softcap) : s));
    const top = Math.max(...logits);
    const sum = logits.reduce((total, s) => total + Math.exp(s - top), 0);
    const p = logits.map((s) => Math.exp(s - top) / sum);
    for (const [at, j] of seen.entries()) add(result.out, i, p[at], v, j);
    const delta = dot(result.out, i, dOut, i);
    for (const [at, j] of seen.entries()) {
      const slope = softcap ? 1 - Math.tanh(raw[at] / softcap) ** 2 : 1;
      const dScore = p[at] * (dot(dOut, i, v, j) - delta) * slope * scale;
      add(result.dv, j, p[at], dOut, i);
      add(result.dq, i, dScore, k, j);
      add(result.dk, j, dScore, q, i);
    }
  }
  return result;
}
