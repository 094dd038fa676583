// Weights in safetensors files by the names of another library, and how they become a model's.
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import { sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { fileError } from './file.js';
import type { SafetensorsFile, StoredTensor } from './safetensors.js';

/** A tensor of a file, under whatever name it is looked for. */
export interface ForeignWeight extends StoredTensor {
  readonly file: SafetensorsFile;
  /** Its name in the file. */
  readonly fullName: string;
}

export type ForeignWeights = ReadonlyMap<string, ForeignWeight>;

const dtypes: Readonly<Record<string, FloatDType>> = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' };

/** The shape of a matrix that every `model` has. @throws ERR_FILE, ERR_SHAPE */
export function matrixOf(path: string, stored: ForeignWeights, model: string, name: string): readonly [number, number] {
  const found = stored.get(name);
  if (!found) throw fileError(path, `tensor ${show(name)} is missing: these are no weights of ${model}`);
  if (found.shape.length !== 2)
    throw shapeError(`${path}: tensor ${show(name)} has shape ${show(found.shape)}; it must be a matrix`);
  return found.shape as readonly [number, number];
}

/** How many layers there are whose names begin with `prefix` and their number. */
export function layersOf(stored: ForeignWeights, prefix: string): number {
  let layers = 1;
  for (const name of stored.keys()) {
    const [, number] = /^(\d{1,4})\./.exec(name.startsWith(prefix) ? name.slice(prefix.length) : '') ?? [];
    if (number !== undefined) layers = Math.max(layers, 1 + Number(number));
  }
  return layers;
}

/** @throws ERR_FILE, ERR_SHAPE, ERR_DTYPE, naming the first difference */
export function checkWeights(
  path: string,
  stored: ForeignWeights,
  model: string,
  places: ReadonlyMap<string, { readonly shape: readonly number[] }>,
): void {
  for (const [name, { shape }] of places) {
    const found = stored.get(name);
    if (!found) throw fileError(path, `tensor ${show(name)} is missing`);
    if (!sameShape(found.shape, shape))
      throw shapeError(`${path}: tensor ${show(name)} has shape ${show(found.shape)}; it must be ${show(shape)}`);
    if (!Object.hasOwn(dtypes, found.dtype))
      throw new FlashAttnError(
        'ERR_DTYPE',
        `${path}: tensor ${show(name)} is ${found.dtype}; it must be one of ${Object.keys(dtypes).join(', ')}`,
      );
  }
  for (const name of stored.keys())
    if (!places.has(name)) throw fileError(path, `tensor ${show(name)} is unexpected; ${model} has none of this name`);
}

/** Copies a weight, or what `turn` makes of it, into one of a model. */
export async function fillWeight(
  { file, fullName, dtype, shape }: ForeignWeight,
  target: Tensor,
  turn: (loaded: Tensor) => Tensor = (loaded) => loaded,
): Promise<void> {
  const data = (await file.read(fullName)) as Uint16Array & Float32Array;
  const options = { device: target.device as 'cpu', dtype: dtypes[dtype] as 'float32' };
  const loaded = tensor(data, shape, options) as Tensor;
  try {
    const turned = turn(loaded);
    turned.copyInto(target);
    turned.dispose();
  } finally {
    loaded.dispose();
  }
}
