export interface Model {
  readonly layers: number;
  readonly heads: number;
  readonly width: number;
  readonly context: number;
  readonly vocabulary: number;
}

export interface Batch {
  readonly size: number;
  /** size * context tokens, and those that come after each. */
  readonly ids: readonly number[];
  readonly targets: readonly number[];
}

export interface Training {
  readonly model: Model;
  /** The path of a safetensors file; null: what the library begins with by itself. */
  readonly weights: string | null;
  readonly batch: Batch;
}

export interface Prepared {
  step(): (() => Promise<number>) | Promise<() => Promise<number>>;
  settle(): Promise<void>;
  dispose(): void;
}

export const lossCount: number;
export const adamW: {
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly weightDecay: number;
};
export const normEpsilon: number;

/** [name, shape, values] of all tensors of a safetensors file in float32. */
export function readWeights(path: string): [string, number[], Float32Array][];

export function serveTraining(
  start: (threads: number) => number | Promise<number>,
  prepare: (training: Training) => Prepared | Promise<Prepared>,
  peak?: () => Promise<number>,
): void;
