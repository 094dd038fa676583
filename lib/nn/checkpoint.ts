import { checkArray, checkInteger, checkObject, checkOptions, mustBe } from '../base/check.js';
import type { DataOf, DType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { sameShape } from '../tensor/shape.js';
import { checkTensor, type Tensor } from '../tensor/tensor.js';
import { checkPath, type FilePath, fileError } from './file.js';
import {
  openSafetensors,
  type SafetensorsDType,
  type SafetensorsEntry,
  type SafetensorsFile,
  writeSafetensors,
} from './safetensors.js';

/** What JSON can say exactly. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

export type NamedTensors = Readonly<Record<string, Tensor>>;

export interface Checkpoint {
  /** The weights, by their names. */
  readonly model: NamedTensors;
  /** What the optimizer keeps of each, by names of its own. */
  readonly optimizer?: NamedTensors;
  /** How many steps are done. */
  readonly step: number;
  /** The state of random numbers. */
  readonly random?: Json;
  /** Whatever else training goes on from: the state of batches, the configuration of the model, the best loss. */
  readonly extra?: Json;
}

/** What `loadCheckpoint` gives beside the tensors. */
export interface Restored {
  readonly step: number;
  /** null if none was saved, as is `extra`. */
  readonly random: Json;
  readonly extra: Json;
}

const dtypes: Readonly<Record<DType, SafetensorsDType>> = {
  float32: 'F32',
  float16: 'F16',
  bfloat16: 'BF16',
  int32: 'I32',
  bool: 'BOOL',
};

/** Marks a file as a checkpoint, and says what this code has to understand. */
const versionKey = 'flashattn.checkpoint';
const version = '1';

type Part = 'model' | 'optimizer';

/** The tensors of both parts under the names that they have in a file. */
function named(parts: { readonly [part in Part]?: NamedTensors }): Map<string, Tensor> {
  const tensors = new Map<string, Tensor>();
  for (const part of ['model', 'optimizer'] as const) {
    const own = parts[part] ?? {};
    checkObject(own, part);
    for (const [name, tensor] of Object.entries(own)) {
      const full = `${part}.${name}`;
      checkTensor(tensor, full);
      if (tensor.disposed) throw new FlashAttnError('ERR_DISPOSED', `${full} has been disposed`);
      tensors.set(full, tensor);
    }
  }
  return tensors;
}

const deepestJson = 100;

/** A copy of what JSON gives back as it was: NaN would come back as null, a Map as {}. */
function checkJson(value: unknown, argument: string, depth = 0): Json {
  if (depth > deepestJson) throw optionError(`${argument} lies deeper than ${deepestJson} levels`);
  if (value === null || typeof value === 'boolean' || Number.isFinite(value)) return value as Json;
  if (typeof value === 'string') return value;
  const inner = (entry: unknown, name: string) => checkJson(entry, name, depth + 1);
  if (Array.isArray(value)) return checkArray(value, argument, 'an array', inner);
  const prototype = typeof value === 'object' && Object.getPrototypeOf(value);
  if (typeof value !== 'object' || (prototype !== null && Object.getPrototypeOf(prototype) !== null))
    throw mustBe(argument, value, 'what JSON can say: null, booleans, finite numbers, strings, arrays, plain objects');
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, inner(entry, `${argument}.${key}`)]));
}

/**
 * Saves a training run: the model as tensors `model.NAME`, the optimizer as `optimizer.NAME`, the rest as metadata of one
 * safetensors file with checksums. Tensors are read from the device and written one by one, so that no more than one is in
 * memory; until the promise resolves none of them may be changed. The checkpoint that was there before stays whole until
 * the new one is on disk, also when the program is killed.
 *
 * @throws ERR_OPTION, ERR_DISPOSED, ERR_FILE
 */
export async function saveCheckpoint(path: FilePath, checkpoint: Checkpoint): Promise<void> {
  checkPath(path);
  checkOptions(checkpoint, ['model', 'optimizer', 'step', 'random', 'extra'], 'checkpoint');
  const { step, random = null, extra = null } = checkpoint;
  checkObject(checkpoint.model, 'model');
  const entries = Array.from(named(checkpoint), ([name, tensor]): SafetensorsEntry => {
    return { name, dtype: dtypes[tensor.dtype], shape: tensor.shape, data: () => tensor.data() };
  });
  const metadata = {
    [versionKey]: version,
    step: String(checkInteger(step, 'step', 0)),
    random: JSON.stringify(checkJson(random, 'random')),
    extra: JSON.stringify(checkJson(extra, 'extra')),
  };
  await writeSafetensors(path, entries, { metadata, checksums: true });
}

/** What the metadata says beside the tensors. @throws ERR_FILE */
function readRest({ path, metadata }: SafetensorsFile): Restored {
  const found = metadata[versionKey];
  if (found === undefined) throw fileError(path, 'this is no checkpoint, but other safetensors: see openSafetensors');
  if (found !== version)
    throw fileError(path, `this is a checkpoint of version ${show(found)}; this package reads version ${version}`);
  const parse = (key: string): unknown => {
    try {
      return JSON.parse(metadata[key]);
    } catch (error) {
      throw fileError(path, `${key} of its metadata is ${show(metadata[key])}, which is not JSON`, error);
    }
  };
  const step = parse('step');
  if (!(Number.isSafeInteger(step) && (step as number) >= 0))
    throw fileError(path, `step of its metadata is ${show(step)}, not an integer >= 0`);
  return { step: step as number, random: parse('random') as Json, extra: parse('extra') as Json };
}

/** The first difference between what a file holds and what is to be filled from it. @throws ERR_FILE, ERR_SHAPE, ERR_DTYPE */
function compare({ path, tensors }: SafetensorsFile, into: ReadonlyMap<string, Tensor>, parts: readonly Part[]): void {
  for (const [name, tensor] of into) {
    const stored = tensors.get(name);
    if (!stored) throw fileError(path, `tensor ${show(name)} is missing; the file has ${tensors.size} tensors`);
    if (!sameShape(stored.shape, tensor.shape))
      throw shapeError(
        `${path}: tensor ${show(name)} has shape ${show(stored.shape)}; it must be ${show(tensor.shape)}`,
      );
    if (stored.dtype !== dtypes[tensor.dtype])
      throw new FlashAttnError(
        'ERR_DTYPE',
        `${path}: tensor ${show(name)} is ${stored.dtype}; it must be ${dtypes[tensor.dtype]}, for ${tensor.dtype}`,
      );
    if (!tensor.isContiguous) throw shapeError(`${name} must be contiguous to be filled, this is a strided view`);
  }
  for (const name of tensors.keys())
    if (!into.has(name) && parts.some((part) => name.startsWith(`${part}.`)))
      throw fileError(path, `tensor ${show(name)} is unexpected; ${into.size} others are to be filled`);
}

/**
 * Fills tensors from a checkpoint. Names, shapes, dtypes and checksums of all are compared before the first is written, so
 * that a file which does not fit, or is damaged, leaves every tensor as it is. One tensor at a time is in memory.
 *
 * @param into what to fill. Without `optimizer` that part of the file is left out, as for inference.
 * @throws ERR_FILE, ERR_SHAPE, ERR_DTYPE, which name the first difference; ERR_OPTION, ERR_DISPOSED
 */
export async function loadCheckpoint(path: FilePath, into: Pick<Checkpoint, 'model' | 'optimizer'>): Promise<Restored> {
  checkPath(path);
  checkOptions(into, ['model', 'optimizer'], 'into');
  checkObject(into.model, 'model');
  const tensors = named(into);
  await using file = await openSafetensors(path);
  const rest = readRest(file);
  compare(file, tensors, into.optimizer === undefined ? ['model'] : ['model', 'optimizer']);
  await file.verify();
  for (const [name, tensor] of tensors) tensor.write((await file.read(name)) as DataOf[DType]);
  return rest;
}
