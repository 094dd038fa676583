/** [batch, queries, keys, heads, dim, causal] */
export type Problem = readonly [number, number, number, number, number, 0 | 1];

export function waves(length: number): Float32Array<ArrayBuffer>;
export function sample(data: ArrayLike<number>): number[];
export function serve(
  start: (threads: number) => number | Promise<number>,
  prepare: (problem: Problem) => () => Promise<ArrayLike<number>>,
): void;
