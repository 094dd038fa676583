import { parameter } from '../autograd/autograd.js';
import { checkString, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { zeros } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { checkSeed, normal, type Seed, uniform } from '../ops/random.js';
import { drawn } from '../tape/draws.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';

/** Where and how the tensors of a module are made. */
export interface ModuleOptions {
  /** Default 'auto'. */
  readonly device?: DeviceName;
  /** Of the weights. Default 'float32'; modules compute in the dtype of what they are given. */
  readonly dtype?: FloatDType;
  /** Of the random numbers that the weights begin with: a number, or what several modules draw theirs from. Default 0. */
  readonly seed?: Seed | Seeds;
}

/** @internal */
export const moduleOptionNames = ['device', 'dtype', 'seed'] as const satisfies readonly (keyof ModuleOptions)[];

/** @internal The options of these names, as far as they are given: for a module that is a part of another one. */
export function pick<O extends object, K extends keyof O>(options: O, names: readonly K[]): Pick<O, K> {
  const picked: Partial<Pick<O, K>> = {};
  for (const name of names) if (Object.hasOwn(options, name)) picked[name] = options[name];
  return picked as Pick<O, K>;
}

/** Seeds, one after the other, for the random numbers of a whole model. */
export class Seeds {
  #next: bigint;

  constructor(seed: Seed = 0) {
    const [low, high] = checkSeed(seed, 'seed');
    this.#next = (BigInt(high) << 32n) | BigInt(low);
  }

  static of(seed: Seed | Seeds | undefined): Seeds {
    return seed instanceof Seeds ? seed : new Seeds(seed);
  }

  /** Within a function that `checkpoint` runs a second time, the same ones as in the first. */
  next(): bigint {
    return drawn(() => this.#take());
  }

  #take(): bigint {
    const seed = this.#next;
    // An odd step visits all of them: those of neighbouring models do not overlap soon.
    this.#next = (seed + 0x9e3779b97f4a7c15n) & 0xffffffffffffffffn;
    return seed;
  }

  /** To go on from here: `restore`. */
  get state(): string {
    return this.#next.toString();
  }

  /** @throws ERR_OPTION */
  restore(state: string): void {
    if (!/^\d{1,20}$/.test(checkString(state, 'state'))) throw mustBe('state', state, 'that of seeds');
    const [low, high] = checkSeed(BigInt(state), 'state');
    this.#next = (BigInt(high) << 32n) | BigInt(low);
  }
}

/** What a weight begins with. */
export type Initial =
  | { readonly kind: 'normal'; readonly std: number }
  | { readonly kind: 'uniform'; readonly bound: number }
  | { readonly kind: 'zeros' }
  | { readonly kind: 'ones' };

/** @internal */
export function makeWeight(shape: Shape, initial: Initial, { device, dtype, seed }: ModuleOptions): Tensor {
  const where = { ...(device !== undefined && { device }), dtype: dtype ?? 'float32' };
  return unwatched(() => {
    const t = ((): Tensor => {
      if (initial.kind === 'zeros') return zeros(shape, where);
      if (initial.kind === 'ones') return normal(shape, { ...where, seed: 0, mean: 1, std: 0 });
      const next = Seeds.of(seed).next();
      if (initial.kind === 'normal') return normal(shape, { ...where, seed: next, std: initial.std });
      return uniform(shape, { ...where, seed: next, low: -initial.bound, high: initial.bound });
    })();
    const weight = parameter(t);
    t.dispose();
    return weight;
  });
}
