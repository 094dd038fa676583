/** What the runner asks of an adapter: compute the tensors of a file with the library. */
import {
  type AttentionOptions,
  attention,
  attentionBackward,
  type DeviceName,
  type FloatDType,
  type Tensor,
  tensor,
} from 'flashattn';
import { make } from '../cases/views.js';
import type { GoldenFile, TensorSource } from './file.js';
import { type LowPrecisionReference, lowPrecisionReferences } from './lowPrecision.js';

/** In the order of elements that the file has; the shape may differ by axes that are joined or of size 1. */
export interface ComputedTensor {
  readonly values: ArrayLike<number>;
  /** Compared without tolerance: indices and the like. */
  readonly exact?: boolean;
  /** What a 16-bit result is held against instead of the file. */
  readonly reference?: LowPrecisionReference | undefined;
}

export type Outcome = { readonly tensors: Readonly<Record<string, ComputedTensor>> } | { readonly unsupported: string };

export interface Adapter {
  /** Names of the systems, as files have them in their metadata. */
  readonly systems: readonly string[];
  compute(file: GoldenFile, workspace: Workspace): Promise<Outcome>;
}

/** Tensors on the device under test; whatever it made or was told to keep is disposed of with it. */
export class Workspace {
  private readonly owned: Tensor[] = [];

  /** `dtype` is that of q, k, v and dout; whatever else an attention takes stays float32. */
  constructor(
    readonly device: DeviceName,
    readonly dtype: FloatDType = 'float32',
  ) {}

  tensor(values: Float64Array, shape: readonly number[]): Tensor<'float32'> {
    return this.keep(tensor(Float32Array.from(values), shape, { device: this.device }));
  }

  /** A tensor of the file, in its own shape or in another one of the same size. */
  load(file: TensorSource, name: string, shape?: readonly number[]): Tensor<'float32'> {
    const stored = file.tensor(name);
    return this.tensor(stored.values, shape ?? stored.shape);
  }

  /** The same, rounded to the dtype of the run. */
  loadInput(file: TensorSource, name: string, shape?: readonly number[]): Tensor {
    const stored = file.tensor(name);
    return this.keep(make(stored.values, shape ?? stored.shape, this.dtype, this.device));
  }

  keep<T extends Tensor>(value: T): T {
    this.owned.push(value);
    return value;
  }

  dispose(): void {
    for (const value of this.owned) value.dispose();
  }
}

/** Shapes that q, k, v and out of a file take in the library, where they differ from those in the file. */
export interface Shapes {
  readonly q?: readonly number[];
  readonly k?: readonly number[];
  readonly v?: readonly number[];
  readonly out?: readonly number[];
}

/**
 * Runs q, k, v and dout of a file through attention and its gradient. Results have the names of the file;
 * `extra` names the gradients beyond dq, dk and dv: file name -> result of attentionBackward.
 */
export async function solveAttention(
  file: TensorSource,
  workspace: Workspace,
  options: AttentionOptions,
  { shapes = {}, extra = {} }: { shapes?: Shapes; extra?: Record<string, 'dBias' | 'dRelativeBias' | 'dSink'> } = {},
): Promise<Record<string, ComputedTensor>> {
  const q = workspace.loadInput(file, 'q', shapes.q);
  const k = workspace.loadInput(file, 'k', shapes.k);
  const v = workspace.loadInput(file, 'v', shapes.v);
  const dOut = workspace.loadInput(file, 'dout', shapes.out);
  const { out, lse } = attention(q, k, v, options);
  const gradients = attentionBackward(dOut, { q, k, v, out, lse }, options);
  const results: Record<string, Tensor | undefined> = {
    out,
    lse,
    dq: gradients.dq,
    dk: gradients.dk,
    dv: gradients.dv,
    ...Object.fromEntries(Object.entries(extra).map(([name, field]) => [name, gradients[field]])),
  };
  for (const result of Object.values(results)) if (result) workspace.keep(result);
  const references =
    workspace.dtype === 'float32' ? {} : lowPrecisionReferences(file, { q, k, v, dOut }, options, workspace.dtype);
  const computed: Record<string, ComputedTensor> = {};
  for (const [name, result] of Object.entries(results)) {
    if (result) computed[name] = { values: await result.toFloat32(), reference: references[extra[name] ?? name] };
  }
  return computed;
}
