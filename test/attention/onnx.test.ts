/** The node test cases of ONNX Attention, with their fourth output (see onnx/README.md). */
import { readdirSync, readFileSync } from 'node:fs';
import {
  type AttentionOptions,
  attention,
  attentionWeights,
  type BooleanMask,
  type DeviceName,
  type FloatDType,
  type Shape,
  type Tensor,
  tensor,
} from 'flashattn';
import { describe, expect, it } from 'vitest';
import { parseSafetensors, type StoredTensor } from '../../verify/golden/safetensors.js';
import { testDevice } from '../support/device.js';

const folder = new URL('onnx/', import.meta.url);
const files = readdirSync(folder).filter((name) => name.endsWith('.safetensors'));

const dtypes: Readonly<Record<string, FloatDType>> = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' };

interface Attributes {
  readonly is_causal?: number;
  readonly scale?: number;
  readonly softcap?: number;
  readonly q_num_heads?: number;
  readonly kv_num_heads?: number;
  readonly qk_matmul_output_mode?: number;
}

/** Joins [batch, heads, seq, dim] along seq. */
function joined(past: StoredTensor | undefined, now: StoredTensor): StoredTensor {
  if (!past) return now;
  const [batch, heads, before, dim] = past.shape as [number, number, number, number];
  const [, , after] = now.shape as [number, number, number];
  const rows = before + after;
  const Elements = now.values.constructor as Float32ArrayConstructor;
  const values = new Elements(batch * heads * rows * dim);
  const part = (t: StoredTensor, from: number, count: number) =>
    (t.values as Float32Array).subarray(from, from + count);
  for (let head = 0; head < batch * heads; head++) {
    values.set(part(past, head * before * dim, before * dim), head * rows * dim);
    values.set(part(now, head * after * dim, after * dim), (head * rows + before) * dim);
  }
  return { dtype: now.dtype, shape: [batch, heads, rows, dim], values };
}

/** [batch, seq, heads * dim] -> [batch, heads, seq, dim] */
function split(t: StoredTensor, heads: number | undefined): StoredTensor {
  if (t.shape.length === 4) return t;
  const [batch, rows, width] = t.shape as [number, number, number];
  const count = heads ?? 1;
  const dim = width / count;
  const values = (t.values as Float32Array).slice();
  for (let b = 0; b < batch; b++)
    for (let i = 0; i < rows; i++)
      for (let h = 0; h < count; h++) {
        const from = ((b * rows + i) * count + h) * dim;
        values.set((t.values as Float32Array).subarray(from, from + dim), ((b * count + h) * rows + i) * dim);
      }
  return { dtype: t.dtype, shape: [batch, count, rows, dim], values };
}

/** The mask with columns for all keys. */
function padded(mask: StoredTensor, keys: number): StoredTensor {
  const width = mask.shape.at(-1) ?? 0;
  if (width === keys) return mask;
  const rows = mask.values.length / width;
  const Elements = mask.values.constructor as Float32ArrayConstructor;
  const values = new Elements(rows * keys).fill(mask.dtype === 'BOOL' ? 0 : Number.NEGATIVE_INFINITY);
  for (let row = 0; row < rows; row++)
    values.set((mask.values as Float32Array).subarray(row * width, (row + 1) * width), row * keys);
  return { dtype: mask.dtype, shape: [...mask.shape.slice(0, -1), keys], values };
}

interface Loaded {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly options: AttentionOptions;
  readonly mode: number;
  readonly expected: (n: number) => StoredTensor | undefined;
  readonly dtype: FloatDType;
}

function load(file: string, device: DeviceName): Loaded {
  const { metadata, tensors } = parseSafetensors(readFileSync(new URL(file, folder)));
  const attributes = JSON.parse(metadata.get('attributes') ?? '{}') as Attributes;
  const input = (n: number) => tensors.get(`input.${n}`);
  const upload = ({ values, shape, dtype }: StoredTensor) =>
    tensor(values as Uint16Array, shape, { dtype: dtypes[dtype] as 'float16', device }) as Tensor;
  const kvHeads = attributes.kv_num_heads;
  const query = split(input(0) as StoredTensor, attributes.q_num_heads);
  const key = joined(input(4), split(input(1) as StoredTensor, kvHeads));
  const value = joined(input(5), split(input(2) as StoredTensor, kvHeads));
  for (const [n, whole] of [
    [1, key],
    [2, value],
  ] as const) {
    const present = tensors.get(`output.${n}`);
    if (present) expect(whole.values).toEqual(present.values);
  }
  const lengths = input(6)?.values as BigInt64Array | undefined;
  const mask = input(3) && padded(input(3) as StoredTensor, key.shape[2] ?? 0);
  const attnMask: Tensor | BooleanMask | undefined =
    mask && (mask.dtype === 'BOOL' ? { data: mask.values as Uint8Array, shape: mask.shape } : upload(mask));
  const causal = attributes.is_causal === 1;
  return {
    q: upload(query),
    k: upload(key),
    v: upload(value),
    options: {
      layout: 'bhsd',
      causal,
      ...(causal && !lengths && { offset: input(4)?.shape[2] ?? 0 }),
      ...(lengths && { kLens: lengths }),
      ...(attributes.scale !== undefined && { scale: attributes.scale }),
      ...(attributes.softcap !== undefined && { softcap: attributes.softcap }),
      ...(attnMask && { attnMask }),
    },
    mode: attributes.qk_matmul_output_mode ?? 0,
    expected: (n) => tensors.get(`output.${n}`),
    dtype: dtypes[query.dtype] as FloatDType,
  };
}

/** How many numbers break ONNX's own rule. */
function broken(got: Float32Array, want: ArrayLike<number>): number {
  expect(got.length).toBe(want.length);
  return got.filter((x, at) => {
    const wanted = want[at] as number;
    return !(Object.is(x, wanted) || Math.abs(x - wanted) <= 1e-7 + 1e-3 * Math.abs(wanted));
  }).length;
}

/** A stored tensor as float32, also where its bits are those of 16-bit numbers. */
const widened = ({ values, shape, dtype }: StoredTensor): Float32Array =>
  tensor(values as Uint16Array, shape, { dtype: dtypes[dtype] as 'float16' }).toFloat32Sync();

function matrix({ q, k, options, mode }: Loaded): Float32Array {
  if (mode >= 2) {
    const { masked, probabilities } = attentionWeights<FloatDType>(q, k, options as object);
    return (mode === 2 ? masked : probabilities).toFloat32Sync();
  }
  const { layout, scale, softcap } = options;
  const unmasked = {
    ...(layout && { layout }),
    ...(scale !== undefined && { scale }),
    ...(mode === 1 && softcap !== undefined && { softcap }),
  };
  return attentionWeights<FloatDType>(q, k, unmasked).logits.toFloat32Sync();
}

describe('ONNX Attention', () => {
  it('has all cases', () => expect(files.length).toBe(76));

  it.each(files)('%s', (file) => {
    const loaded = load(file, testDevice);
    const { q, k, v, options, expected } = loaded;
    const { out } = attention<FloatDType, Shape>(q, k, v, options);
    const y = expected(0) as StoredTensor;
    expect(broken(out.toFloat32Sync(), widened(split(y, y.shape.length === 3 ? q.shape[1] : undefined)))).toBe(0);
    const scores = expected(3);
    if (scores) expect(broken(matrix(loaded), widened(scores))).toBe(0);
  });
});
