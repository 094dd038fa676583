/** What is measured: batch * length = tokens, heads * dim = width. */
import type { FloatDType } from 'flashattn';
import { type Column, number, text } from '../../lib/cli/table.js';

export interface Sizes {
  readonly tokens: number;
  readonly width: number;
  readonly dims: readonly number[];
  readonly lengths: readonly number[];
  readonly sparseDims: readonly number[];
  readonly blockSizes: readonly (64 | 128)[];
  /** Of query-key pairs that a block mask shows. */
  readonly densities: readonly number[];
  /** Inputs take turns until this many bytes have been read in between. */
  readonly cacheBytes: number;
  /** How long a sample takes at least. */
  readonly sampleMilliseconds: number;
}

/** Twice the L2 of an H200, with room. */
const pastTheCache = 128 * 2 ** 20;

export const fullSizes: Sizes = {
  tokens: 16384,
  width: 2048,
  dims: [64, 128, 256],
  lengths: [512, 1024, 2048, 4096, 8192, 16384],
  sparseDims: [64, 128],
  blockSizes: [64, 128],
  densities: [0.5, 0.25, 0.1],
  cacheBytes: pastTheCache,
  sampleMilliseconds: 3,
};

/** Every path once, for devices on which speed is no matter. */
export const tinySizes: Sizes = {
  tokens: 128,
  width: 64,
  dims: [32, 64],
  lengths: [64, 128],
  sparseDims: [64],
  blockSizes: [64],
  densities: [0.5],
  cacheBytes: 0,
  sampleMilliseconds: 0,
};

/** One problem. */
export interface Shape {
  readonly dtype: FloatDType;
  readonly batch: number;
  readonly length: number;
  readonly heads: number;
  readonly dim: number;
  readonly causal: boolean;
}

export function shapeOf(sizes: Sizes, dtype: FloatDType, dim: number, length: number, causal: boolean): Shape {
  return { dtype, batch: sizes.tokens / length, length, heads: sizes.width / dim, dim, causal };
}

export function denseShapes(sizes: Sizes, dtypes: readonly FloatDType[]): Shape[] {
  const shapes: Shape[] = [];
  for (const dtype of dtypes)
    for (const dim of sizes.dims)
      for (const causal of [false, true])
        for (const length of sizes.lengths) shapes.push(shapeOf(sizes, dtype, dim, length, causal));
  return shapes;
}

/** 4 B H N M D forward, 2.5 times that backward, half of it when causal. */
export const forwardFlops = ({ batch, heads, length, dim, causal }: Shape) =>
  4 * batch * heads * length ** 2 * dim * (causal ? 0.5 : 1);

export const backwardFlops = (shape: Shape) => 2.5 * forwardFlops(shape);

export const tflops = (flops: number, milliseconds: number) => flops / milliseconds / 1e9;

export const sameShape = (a: Shape, b: Shape) =>
  (['dtype', 'batch', 'length', 'heads', 'dim', 'causal'] as const).every((key) => a[key] === b[key]);

/** The columns that name a shape in every table. */
export const shapeColumns: readonly Column<Shape>[] = [
  text('dtype', 8, (shape) => shape.dtype),
  number('D', 3, (shape) => shape.dim),
  number('N', 6, (shape) => shape.length),
  number('B', 4, (shape) => shape.batch),
  number('H', 3, (shape) => shape.heads),
  text('mask', 6, (shape) => (shape.causal ? 'causal' : 'full')),
];
