/** A golden file: the tensors of one case, and the system and parameters that it was made with. */
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { parseSafetensors, type StoredTensor } from './safetensors.js';

export class GoldenError extends Error {
  override readonly name = 'GoldenError';
}

/** Parameters of a case, checked as they are read. An absent or null parameter is undefined. */
export class Params {
  constructor(private readonly values: Readonly<Record<string, unknown>>) {}

  number(name: string): number | undefined {
    const value = this.values[name] ?? undefined;
    if (value === undefined || typeof value === 'number') return value;
    throw new GoldenError(`parameter ${name} is not a number: ${JSON.stringify(value)}`);
  }

  boolean(name: string): boolean | undefined {
    const value = this.values[name] ?? undefined;
    if (value === undefined || typeof value === 'boolean') return value;
    throw new GoldenError(`parameter ${name} is not a boolean: ${JSON.stringify(value)}`);
  }

  numbers(name: string): number[] | undefined {
    const value = this.values[name] ?? undefined;
    if (value === undefined) return undefined;
    if (Array.isArray(value) && value.every((element) => typeof element === 'number')) return value;
    throw new GoldenError(`parameter ${name} is not a list of numbers: ${JSON.stringify(value)}`);
  }

  /** A number, or a list of them. */
  numberOrList(name: string): number | number[] | undefined {
    return Array.isArray(this.values[name]) ? this.numbers(name) : this.number(name);
  }

  /** A list of lists of numbers. */
  lists(name: string): number[][] | undefined {
    const value = this.values[name] ?? undefined;
    if (value === undefined) return undefined;
    const isList = (list: unknown) => Array.isArray(list) && list.every((element) => typeof element === 'number');
    if (Array.isArray(value) && value.every(isList)) return value;
    throw new GoldenError(`parameter ${name} is not a list of lists of numbers: ${JSON.stringify(value)}`);
  }

  strings(name: string): string[] | undefined {
    const value = this.values[name] ?? undefined;
    if (value === undefined) return undefined;
    if (Array.isArray(value) && value.every((element) => typeof element === 'string')) return value;
    throw new GoldenError(`parameter ${name} is not a list of strings: ${JSON.stringify(value)}`);
  }

  string(name: string): string | undefined {
    const value = this.values[name] ?? undefined;
    if (value === undefined || typeof value === 'string') return value;
    throw new GoldenError(`parameter ${name} is not a string: ${JSON.stringify(value)}`);
  }
}

/** Where an adapter takes its inputs from. */
export interface TensorSource {
  tensor(name: string): NumericTensor;
}

export interface NumericTensor {
  readonly shape: readonly number[];
  readonly values: Float64Array;
}

/** "out" and "grad" of the sensitivity to input rounding, where the file has it. */
export interface Sensitivity {
  readonly out?: number;
  readonly grad?: number;
}

export class GoldenFile implements TensorSource {
  readonly name: string;
  readonly system: string;
  /** Which case of the system: what the parameters leave open. */
  readonly caseName: string;
  readonly params: Params;
  readonly sensitivity: Sensitivity;
  private readonly tensors: ReadonlyMap<string, StoredTensor>;

  constructor(path: string) {
    const { metadata, tensors } = parseSafetensors(readFileSync(path));
    const system = metadata.get('system');
    if (!system) throw new GoldenError('__metadata__ names no system');
    this.name = basename(path);
    this.system = system;
    this.caseName = metadata.get('case') ?? '';
    this.params = new Params(parseParams(metadata.get('params') ?? '{}'));
    this.sensitivity = parseSensitivity(metadata.get('input_rounding_sensitivity'));
    this.tensors = tensors;
  }

  get names(): string[] {
    return [...this.tensors.keys()];
  }

  has(name: string): boolean {
    return this.tensors.has(name);
  }

  /** A tensor as float64, which holds every stored float and every index of a case exactly. */
  tensor(name: string): NumericTensor {
    const stored = this.tensors.get(name);
    if (!stored) throw new GoldenError(`file has no tensor ${name}`);
    if (stored.dtype === 'F16' || stored.dtype === 'BF16') {
      throw new GoldenError(`tensor ${name} is ${stored.dtype}, which no golden file uses`);
    }
    const { values } = stored;
    const numbers =
      values instanceof BigInt64Array || values instanceof BigUint64Array
        ? Float64Array.from(values, Number)
        : Float64Array.from(values);
    return { shape: stored.shape, values: numbers };
  }

  integers(name: string): Int32Array {
    return Int32Array.from(this.tensor(name).values);
  }

  /** Whether gradients are named grad_<input>: then d<output> is the cotangent of an output. Otherwise d<input> is a gradient. */
  get namesCotangents(): boolean {
    return this.names.some((name) => name.startsWith('grad_'));
  }

  /**
   * What a run has to reproduce: the outputs, and the gradient of every input that has one. Of the outputs beside out and
   * lse, those with a cotangent.
   */
  get expected(): string[] {
    const { namesCotangents } = this;
    return this.names.filter((name) => {
      if (name === 'out' || name === 'lse' || name.startsWith('grad_')) return true;
      if (namesCotangents) return this.has(`d${name}`);
      return name !== 'dout' && name.startsWith('d') && this.has(name.slice(1));
    });
  }
}

/** A parameter that a file must have. */
export function numberOf({ params }: GoldenFile, name: string): number {
  const value = params.number(name);
  if (value === undefined) throw new GoldenError(`parameter ${name} is missing`);
  return value;
}

export function isGradient(name: string, file: GoldenFile): boolean {
  if (file.namesCotangents) return name.startsWith('grad_');
  return name.startsWith('d') && file.has(name.slice(1));
}

function parseParams(text: string): Record<string, unknown> {
  const value: unknown = JSON.parse(text);
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return { ...value };
  throw new GoldenError(`params is not a JSON object: ${text}`);
}

/** The metadata holds a JSON object with a remark behind it. */
function parseSensitivity(text: string | undefined): Sensitivity {
  const json = text?.match(/^\{[^}]*\}/)?.[0];
  if (!json) return {};
  const params = new Params(parseParams(json));
  const [out, grad] = [params.number('out'), params.number('grad')];
  return { ...(out !== undefined && { out }), ...(grad !== undefined && { grad }) };
}
