import { noGrad } from '../autograd/autograd.js';
import {
  checkArray,
  checkBoolean,
  checkInteger,
  checkNumber,
  checkOptions,
  checkString,
  mustBe,
} from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { matmul } from '../ops/matmul.js';
import type { Seed } from '../ops/random.js';
import { scope } from '../tape/scope.js';
import { sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { checkPath, type FilePath, fileError } from './file.js';
import { Seeds } from './initial.js';
import { Linear, timesTransposed } from './layers.js';
import { type Layer, Module } from './module.js';
import { adapterFiles, checkConfig, readConfig, writeConfig } from './peftConfig.js';
import { openSafetensors, type SafetensorsEntry, writeSafetensors } from './safetensors.js';

export interface LoRAOptions {
  /** Of the product that is added to a weight. */
  readonly rank: number;
  /** What is added is multiplied by alpha / rank. Default the rank. */
  readonly alpha?: number;
  /**
   * Which linear layers: the end of their paths in the model, such as 'qkv' or 'mlp.up', as PEFT's target_modules. Default
   * all.
   */
  readonly targets?: readonly string[];
  readonly seed?: Seed;
  /** Of the new weights. Default 'float32'. */
  readonly dtype?: FloatDType;
}

export interface SaveLoRAOptions {
  /** Whether `adapter_config.json` is written beside the weights, as PEFT needs it. Default: in a folder. */
  readonly config?: boolean;
  /** The name or path of the model that the adapters are for: `base_model_name_or_path`. Default null. */
  readonly baseModel?: string;
  /** What PEFT makes of the model, such as 'CAUSAL_LM': `task_type`. Default null. */
  readonly taskType?: string;
}

/** scale x A^T B^T, for a layer that x goes through besides. */
class Adapter extends Module implements Layer {
  /** [rank, inputs] */
  readonly lora_A: Linear;
  /** [outputs, rank], zeros at first. */
  readonly lora_B: Linear;

  constructor(
    layer: Linear,
    rank: number,
    readonly scale: number,
    { seed, dtype = 'float32' }: { readonly seed: Seeds; readonly dtype: FloatDType | undefined },
  ) {
    super();
    const options = { seed, dtype, device: layer.weight.device as DeviceName, bias: false };
    try {
      this.lora_A = new Linear(layer.inputs, rank, options);
      this.lora_B = new Linear(rank, layer.outputs, { ...options, initial: { kind: 'zeros' } });
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    return scope(() => timesTransposed(this.lora_A.forward(x), this.lora_B.weight, undefined, this.scale));
  }

  /** Adds `sign` times scale B A to a weight. */
  addTo(weight: Tensor, sign: number): void {
    const [a, b] = [this.lora_A.weight, this.lora_B.weight];
    const target = weight.detach();
    try {
      noGrad(() => matmul(b, a, { alpha: sign * this.scale, accumulateInto: target }));
    } finally {
      target.dispose();
    }
  }
}

interface Adapted {
  readonly path: string;
  readonly layer: Linear;
  readonly adapter: Adapter;
}

const fullName = (path: string, part: string) => `base_model.model.${path}.${part}.weight`;

/** The adapters of a model. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021). */
export class LoRA {
  readonly rank: number;
  readonly alpha: number;
  readonly #adapted: readonly Adapted[];
  readonly #targets: readonly string[] | undefined;
  #merged = false;

  /** @internal Use `addLoRA`. */
  constructor(rank: number, alpha: number, adapted: readonly Adapted[], targets: readonly string[] | undefined) {
    this.rank = rank;
    this.alpha = alpha;
    this.#targets = targets;
    this.#adapted = adapted;
  }

  /** The paths of the layers that have adapters. */
  get paths(): string[] {
    return this.#adapted.map(({ path }) => path);
  }

  /** What is trained. */
  parameters(): Tensor[] {
    return [...this.#weights().values()];
  }

  /** Whether the weights of the model have the adapters in them. */
  get merged(): boolean {
    return this.#merged;
  }

  /** Adds the adapters to the weights, which costs nothing when the model is used; they are not trained meanwhile. */
  merge(): void {
    if (this.#merged) throw optionError('the adapters have been merged already');
    for (const { layer, adapter } of this.#adapted) {
      adapter.addTo(layer.weight, 1);
      layer.adapter = undefined;
    }
    this.#merged = true;
  }

  /** Takes them off again: the weights are what they were, but for rounding. */
  unmerge(): void {
    if (!this.#merged) throw optionError('the adapters have not been merged');
    for (const { layer, adapter } of this.#adapted) {
      adapter.addTo(layer.weight, -1);
      layer.adapter = adapter;
    }
    this.#merged = false;
  }

  /** Takes the adapters away and frees them. Merged ones stay in the weights. */
  remove(): void {
    for (const { layer, adapter } of this.#adapted) {
      if (layer.adapter === adapter) layer.adapter = undefined;
      adapter.dispose();
    }
  }

  /**
   * Writes the adapters alone, as safetensors with PEFT's names: `base_model.model.PATH.lora_A.weight` and
   * `lora_B.weight`. Each file is replaced whole.
   *
   * @param path of the file, or of a folder that is there: then `adapter_model.safetensors` and `adapter_config.json` in it
   * @throws ERR_FILE, ERR_OPTION, ERR_DISPOSED
   */
  async save(path: FilePath, options: SaveLoRAOptions = {}): Promise<void> {
    const name = checkPath(path);
    checkOptions(options, ['config', 'baseModel', 'taskType']);
    const { config, baseModel, taskType } = options;
    if (config !== undefined) checkBoolean(config, 'config');
    if (baseModel !== undefined) checkString(baseModel, 'baseModel');
    if (taskType !== undefined) checkString(taskType, 'taskType');
    const files = await adapterFiles(name);
    const entries = Array.from(this.#weights(), ([name, t]): SafetensorsEntry => {
      return { name, dtype: 'F32', shape: t.shape, data: () => t.toFloat32() };
    });
    const { rank, alpha } = this;
    await writeSafetensors(files.weights, entries, { metadata: { r: String(rank), lora_alpha: String(alpha) } });
    if (config ?? files.weights !== name)
      await writeConfig(files.config, { rank, alpha, targets: this.#targets ?? this.paths, baseModel, taskType });
  }

  /**
   * Reads what `save` or PEFT has written. Names and shapes of all are compared before the first is written, and so are rank
   * and alpha: with what the file says, and with `adapter_config.json` in its folder where the file says nothing or is called
   * `adapter_model.safetensors`.
   *
   * @param path of the file, or of the folder with files of PEFT's names
   * @throws ERR_FILE, ERR_SHAPE, which name the first difference; ERR_OPTION when the adapters are merged
   */
  async load(path: FilePath): Promise<void> {
    if (this.#merged) throw optionError('the adapters are merged; unmerge() them first');
    const files = await adapterFiles(checkPath(path));
    await using file = await openSafetensors(files.weights);
    const own = this.#weights();
    const dtypes = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' } as const;
    for (const [name, { shape }] of own) {
      const stored = file.tensors.get(name);
      if (!stored) throw fileError(file.path, `tensor ${show(name)} is missing`);
      if (!sameShape(stored.shape, shape))
        throw shapeError(
          `${file.path}: tensor ${show(name)} has shape ${show(stored.shape)}; it must be ${show(shape)}`,
        );
      if (!Object.hasOwn(dtypes, stored.dtype))
        throw fileError(file.path, `tensor ${show(name)} is ${stored.dtype}; it must be F32, F16 or BF16`);
    }
    for (const name of file.tensors.keys())
      if (!own.has(name)) throw fileError(file.path, `tensor ${show(name)} is unexpected; no adapter is of this name`);
    const { r, lora_alpha } = file.metadata;
    const isTold = r !== undefined && lora_alpha !== undefined;
    if (isTold) checkConfig(file.path, { r: Number(r), lora_alpha: Number(lora_alpha) }, this);
    const config = isTold && !files.isPair ? undefined : await readConfig(files.config);
    if (config) checkConfig(files.config, config, this);
    const loaded: [Tensor, Tensor][] = [];
    try {
      for (const [name, t] of own) {
        const dtype = dtypes[file.tensors.get(name)?.dtype as keyof typeof dtypes];
        const data = (await file.read(name)) as Float32Array & Uint16Array;
        loaded.push([tensor(data, t.shape, { device: t.device as 'cpu', dtype: dtype as 'float32' }) as Tensor, t]);
      }
      for (const [from, to] of loaded) from.copyInto(to);
    } finally {
      for (const [from] of loaded) from.dispose();
    }
  }

  #weights(): Map<string, Tensor> {
    const found = new Map<string, Tensor>();
    for (const { path, adapter } of this.#adapted) {
      found.set(fullName(path, 'lora_A'), adapter.lora_A.weight);
      found.set(fullName(path, 'lora_B'), adapter.lora_B.weight);
    }
    return found;
  }
}

/** The linear layers of a model by their paths, but for those of adapters. */
function* linearLayers(module: Module, prefix = ''): Generator<[path: string, layer: Linear]> {
  for (const [name, child] of module.children()) {
    if (child instanceof Adapter) continue;
    if (child instanceof Linear) yield [prefix + name, child];
    yield* linearLayers(child, `${prefix}${name}.`);
  }
}

/**
 * Freezes a model and adds products of two narrow matrices to the weights of its linear layers, which alone are trained from
 * then on: `new AdamW(addLoRA(model, { rank: 8 }).parameters())`. As they begin, the model gives what it gave.
 *
 * @throws ERR_OPTION, also when no layer is meant by a target or one has an adapter already; ERR_DTYPE, ERR_OUT_OF_MEMORY.
 *   Then the model is as it was
 */
export function addLoRA(model: Module, options: LoRAOptions): LoRA {
  if (!(model instanceof Module)) throw mustBe('model', model, 'a module');
  checkOptions(options, ['rank', 'alpha', 'targets', 'seed', 'dtype']);
  const rank = checkInteger(options.rank, 'rank', 1);
  const alpha = checkNumber(options.alpha ?? rank, 'alpha');
  const targets =
    options.targets &&
    checkArray(options.targets, 'targets', 'an array of names', (each, name) => checkString(each, name));
  const layers = new Map<Linear, string>();
  const unused = new Set(targets);
  for (const [path, layer] of linearLayers(model)) {
    const meant = targets?.filter((target) => path === target || path.endsWith(`.${target}`));
    for (const target of meant ?? []) unused.delete(target);
    if (meant?.length === 0 || layers.has(layer)) continue;
    if (layer.adapter) throw optionError(`${path} has an adapter already`);
    layers.set(layer, path);
  }
  for (const target of unused) throw optionError(`targets has ${show(target)}; no linear layer of the model ends so`);
  if (layers.size === 0) throw optionError('the model has no linear layers');
  const seed = Seeds.of(options.seed);
  const adapted: Adapted[] = [];
  try {
    for (const [layer, path] of layers)
      adapted.push({ path, layer, adapter: new Adapter(layer, rank, alpha / rank, { seed, dtype: options.dtype }) });
  } catch (error) {
    for (const { adapter } of adapted) adapter.dispose();
    throw error;
  }
  model.freeze();
  for (const { layer, adapter } of adapted) layer.adapter = adapter;
  return new LoRA(rank, alpha, adapted, targets);
}
