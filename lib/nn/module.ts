import { parameter } from '../autograd/autograd.js';
import { checkObject } from '../base/check.js';
import { isFloat } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { scope } from '../tape/scope.js';
import { checkDisjoint } from '../tensor/overlap.js';
import { sameShape } from '../tensor/shape.js';
import { type AnyTensor, isTensor, type Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { Seeds } from './initial.js';

/** Tensors by name. */
export type StateDict = Readonly<Record<string, Tensor>>;

/**
 * A part of a model: tensors and other parts as properties, alone or in arrays. Names follow the properties, as in PyTorch:
 * `blocks.0.attention.qkv.weight`.
 */
export abstract class Module {
  /** Whether `forward` is that of training: dropout drops. Set by `train` and `eval`. */
  training = true;

  /** Modules that are properties of this one, by name. */
  *children(): Generator<[name: string, module: Module]> {
    for (const [name, value] of this.#properties()) if (value instanceof Module) yield [name, value];
  }

  /** All tensors of this module and of those within it, by name; one that stands at two places comes once. */
  namedParameters(): Map<string, Tensor> {
    const found = new Map<string, Tensor>();
    this.#collect('', found, new Set());
    return found;
  }

  /** Properties, and the entries of those that are arrays. */
  *#properties(): Generator<[name: string, value: unknown]> {
    for (const [name, value] of Object.entries(this))
      if (Array.isArray(value)) for (const [i, each] of value.entries()) yield [`${name}.${i}`, each];
      else yield [name, value];
  }

  #collect(prefix: string, found: Map<string, Tensor>, seen: Set<unknown>): void {
    for (const [name, value] of this.#properties())
      if (isTensor(value) && !seen.has(value)) {
        seen.add(value);
        found.set(prefix + name, value as Tensor);
      }
    for (const [name, child] of this.children()) child.#collect(`${prefix}${name}.`, found, seen);
  }

  /** Those that are trained: not the frozen ones. */
  parameters(): Tensor[] {
    return [...this.namedParameters().values()].filter((t) => t.requiresGrad);
  }

  /** How many numbers the tensors hold. */
  get parameterCount(): number {
    let count = 0;
    for (const t of this.namedParameters().values()) count += t.size;
    return count;
  }

  train(mode = true): this {
    this.training = mode;
    for (const [, child] of this.children()) child.train(mode);
    return this;
  }

  eval(): this {
    return this.train(false);
  }

  /** No gradients for these tensors from now on; optimizers that have them are to be made again. */
  freeze(): this {
    return this.#replaceAll((t) => t.detach());
  }

  /** Gradients for all tensors of floating-point numbers; optimizers are to be made after it. */
  unfreeze(): this {
    return this.#replaceAll((t) => {
      const handle = t.detach();
      if (!isFloat(t.dtype)) return handle;
      const trained = parameter(handle as Tensor);
      handle.dispose();
      return trained;
    });
  }

  /** Replaces every tensor, of this module and of those within it, also where it is shared. */
  #replaceAll(f: (t: AnyTensor) => AnyTensor, replaced = new Map<AnyTensor, AnyTensor>()): this {
    const replace = (old: AnyTensor): AnyTensor => {
      const known = replaced.get(old);
      if (known) return known;
      if (old.requiresGrad) (old as Tensor).grad = undefined;
      const next = unwatched(() => f(old));
      replaced.set(old, next);
      // A module at two places is visited twice.
      replaced.set(next, next);
      old.dispose();
      return next;
    };
    for (const [name, value] of Object.entries(this)) {
      if (isTensor(value)) (this as Record<string, unknown>)[name] = replace(value);
      else if (Array.isArray(value))
        for (const [i, each] of value.entries()) if (isTensor(each)) (value as unknown[])[i] = replace(each);
    }
    for (const [, child] of this.children()) child.#replaceAll(f, replaced);
    return this;
  }

  /** The tensors by name, to be saved: no copies. */
  stateDict(): StateDict {
    return Object.fromEntries(this.namedParameters());
  }

  /**
   * Fills the tensors with others of the same names and shapes, of any floating-point dtype, on the same device. All of
   * them are compared before the first is written.
   *
   * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, naming the first difference
   */
  loadStateDict(state: StateDict): void {
    const own = this.namedParameters();
    for (const [name, t] of own) {
      const given: unknown = Object.hasOwn(state, name) ? state[name] : undefined;
      if (!isTensor(given)) throw optionError(`the state has no tensor ${show(name)}`);
      if (!sameShape(given.shape, t.shape))
        throw shapeError(`${name} has shape ${show(given.shape)} in the state; it must be ${show(t.shape)}`);
      if (given.dtype !== t.dtype && !(isFloat(given.dtype) && isFloat(t.dtype)))
        throw new FlashAttnError('ERR_DTYPE', `${name} is ${given.dtype} in the state; it must be ${t.dtype}`);
      t.operand(name, t.backend);
      given.operand(name, t.backend);
      if (given !== t) checkDisjoint({ [`${name} of the state`]: given }, { [name]: t });
    }
    for (const name of Object.keys(state))
      if (!own.has(name)) throw optionError(`the state has a tensor ${show(name)}, which the model has not`);
    for (const [name, t] of own) {
      const given = state[name] as Tensor;
      if (given !== t) given.copyInto(t);
    }
  }

  /** What random numbers of this module and of those within it are drawn from next, by name: as JSON, for a checkpoint. */
  randomState(): Record<string, string> {
    return Object.fromEntries(Array.from(this.#seeds(), ([name, seeds]) => [name, seeds.state]));
  }

  /** Goes on from there. @throws ERR_OPTION, with nothing restored, naming the first difference */
  restoreRandom(state: Readonly<Record<string, string>>): void {
    checkObject(state, 'state');
    const own = new Map(this.#seeds());
    for (const name of own.keys())
      if (!Object.hasOwn(state, name)) throw optionError(`the state has no seeds ${show(name)}`);
    for (const [name, seeds] of Object.entries(state)) {
      if (!own.has(name)) throw optionError(`the state has seeds ${show(name)}, which the model has not`);
      new Seeds().restore(seeds);
    }
    for (const [name, seeds] of own) seeds.restore(state[name]);
  }

  *#seeds(prefix = ''): Generator<[name: string, seeds: Seeds]> {
    if (this.seeds) yield [`${prefix}seeds`, this.seeds];
    for (const [name, child] of this.children()) yield* child.#seeds(`${prefix}${name}.`);
  }

  /** Of modules that draw random numbers: what the next call draws from. */
  get seeds(): Seeds | undefined {
    return undefined;
  }

  /** Sets all gradients to undefined, and frees them. */
  zeroGrad(): void {
    for (const t of this.parameters()) t.grad = undefined;
  }

  /** Frees all tensors with their gradients, and what modules within this one keep besides. */
  dispose(): void {
    for (const [, value] of this.#properties()) if (value instanceof Module || isTensor(value)) value.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** A list of modules that is one: each gets what the one before it gave. */
export class Sequential extends Module {
  readonly layers: readonly Layer[];

  constructor(...layers: readonly Layer[]) {
    super();
    for (const [i, layer] of layers.entries())
      if (!(layer instanceof Module))
        throw new FlashAttnError('ERR_OPTION', `layer ${i} is ${show(layer)}; it must be a module`);
    this.layers = layers;
  }

  forward(x: Tensor): Tensor {
    return scope(() => {
      let value = x;
      for (const layer of this.layers) value = layer.forward(value);
      return value;
    });
  }
}

/** A module from one tensor to another. */
export interface Layer extends Module {
  forward(x: Tensor): Tensor;
}
