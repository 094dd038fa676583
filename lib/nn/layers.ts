// The layers that models are made of. Weights are in the dtype that they were made in, and are converted to that of what a
// layer is given: float32 weights with bfloat16 activations are mixed precision.
import { checkBoolean, checkInteger, checkNumber, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { cast } from '../ops/cast.js';
import { add } from '../ops/elementwise.js';
import { type Indices, embedding as lookUp } from '../ops/embedding.js';
import { matmul } from '../ops/matmul.js';
import { layerNorm, rmsNorm } from '../ops/norm.js';
import { dropout } from '../ops/random.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, Seeds } from './initial.js';
import { type Layer, Module } from './module.js';

/** A weight in the dtype of what it is used with. */
const inDType = <D extends FloatDType>(weight: Tensor, dtype: D): Tensor<D, Shape> =>
  (weight.dtype === dtype ? weight : cast(weight, dtype)) as Tensor<D, Shape>;

/** alpha x weight^T + bias, in the dtype of x; what it takes on the way is disposed. */
export function timesTransposed(x: Tensor, weight: Tensor, bias?: Tensor, alpha = 1): Tensor {
  const own = inDType(weight, x.dtype);
  const turned = own.transpose(0, 1);
  try {
    return matmul(x, turned, bias ? { alpha, bias } : { alpha });
  } finally {
    turned.dispose();
    if (own !== weight) own.dispose();
  }
}

/** What `make` returns; when it throws, a tensor that was made for the same module is disposed. */
function beside<T>(made: Tensor, make: () => T): T {
  try {
    return make();
  } catch (error) {
    made.dispose();
    throw error;
  }
}

/** x of shape [..., features]. @throws ERR_SHAPE */
function checkFeatures(x: Tensor, features: number, axes = 1): void {
  checkTensor(x, 'x');
  if (x.shape.length < axes)
    throw shapeError(`x has shape ${show(x.shape)}; it must have at least ${axes} ${axes === 1 ? 'axis' : 'axes'}`);
  if (x.shape[x.shape.length - 1] !== features)
    throw shapeError(`x has shape ${show(x.shape)}; its last axis must have ${features} features`);
}

export interface LinearOptions extends ModuleOptions {
  /** Default true. */
  readonly bias?: boolean;
  /** Of the weight. Default PyTorch's: uniform within 1 / sqrt(inputs); the bias likewise. */
  readonly initial?: Initial;
}

/** @internal */
export const linearOptionNames = [...moduleOptionNames, 'bias', 'initial'] as const satisfies (keyof LinearOptions)[];

/** out = x weight^T + bias, with the weight [outputs, inputs] as in PyTorch. x [..., inputs] of rank 2 or more. */
export class Linear extends Module {
  weight: Tensor;
  bias: Tensor | undefined;
  /** Gives what is added to the result, from the same x: see `addLoRA`. */
  adapter: Layer | undefined;

  constructor(
    readonly inputs: number,
    readonly outputs: number,
    options: LinearOptions = {},
  ) {
    super();
    checkInteger(inputs, 'inputs', 1);
    checkInteger(outputs, 'outputs', 1);
    checkOptions(options, linearOptionNames);
    const bound = 1 / Math.sqrt(inputs);
    const { bias = true, initial = { kind: 'uniform', bound } } = options;
    checkBoolean(bias, 'bias');
    const seed = Seeds.of(options.seed);
    const ofBias: Initial = options.initial ? { kind: 'zeros' } : { kind: 'uniform', bound };
    this.weight = makeWeight([outputs, inputs], initial, { ...options, seed });
    this.bias = bias ? beside(this.weight, () => makeWeight([outputs], ofBias, { ...options, seed })) : undefined;
  }

  forward(x: Tensor): Tensor {
    checkFeatures(x, this.inputs, 2);
    const { adapter } = this;
    if (!adapter) return timesTransposed(x, this.weight, this.bias);
    return scope(() => add(timesTransposed(x, this.weight, this.bias), adapter.forward(x)));
  }
}

/** Rows of a table by token: ids int32 [...] -> [..., width]. */
export class Embedding extends Module {
  weight: Tensor;

  constructor(
    readonly rows: number,
    readonly width: number,
    options: ModuleOptions & { readonly initial?: Initial } = {},
  ) {
    super();
    checkInteger(rows, 'rows', 1);
    checkInteger(width, 'width', 1);
    checkOptions(options, [...moduleOptionNames, 'initial']);
    this.weight = makeWeight([rows, width], options.initial ?? { kind: 'normal', std: 1 }, options);
  }

  forward(ids: Indices): Tensor {
    return lookUp(this.weight, ids);
  }
}

export interface NormLayerOptions extends ModuleOptions {
  readonly epsilon?: number;
}

/** @internal */
export const normOptionNames = [...moduleOptionNames, 'epsilon'] as const satisfies (keyof NormLayerOptions)[];

/** What both norms have. */
abstract class Norm extends Module {
  weight: Tensor;
  readonly epsilon: number;

  constructor(
    readonly width: number,
    options: NormLayerOptions,
    defaultEpsilon: number,
  ) {
    super();
    checkInteger(width, 'width', 1);
    checkOptions(options, normOptionNames);
    this.epsilon = checkNumber(options.epsilon ?? defaultEpsilon, 'epsilon', 0);
    this.weight = makeWeight([width], { kind: 'ones' }, options);
  }
}

/** Layer norm along the last axis, with a gain and a bias of its own: see `layerNorm`. */
export class LayerNorm extends Norm {
  bias: Tensor;

  constructor(width: number, options: NormLayerOptions = {}) {
    super(width, options, 1e-5);
    this.bias = beside(this.weight, () => makeWeight([width], { kind: 'zeros' }, options));
  }

  forward(x: Tensor): Tensor {
    checkFeatures(x, this.width);
    return layerNorm(x, this.weight, this.bias, { epsilon: this.epsilon });
  }
}

/** RMS norm along the last axis, with a gain of its own: see `rmsNorm`. */
export class RMSNorm extends Norm {
  constructor(width: number, options: NormLayerOptions = {}) {
    super(width, options, 1e-6);
  }

  forward(x: Tensor): Tensor {
    checkFeatures(x, this.width);
    return rmsNorm(x, this.weight, { epsilon: this.epsilon });
  }
}

/** Drops elements in training, other ones at every call; the identity otherwise. */
export class Dropout extends Module {
  readonly #seeds: Seeds;

  constructor(
    readonly p: number,
    options: Pick<ModuleOptions, 'seed'> = {},
  ) {
    super();
    checkOptions(options, ['seed']);
    if (!(typeof p === 'number' && p >= 0 && p < 1)) throw mustBe('p', p, 'from 0 to below 1');
    this.#seeds = new Seeds(Seeds.of(options.seed).next());
  }

  override get seeds(): Seeds {
    return this.#seeds;
  }

  forward(x: Tensor): Tensor {
    return this.training && this.p > 0 ? dropout(x, { p: this.p, seed: () => this.#seeds.next() }) : x;
  }
}
