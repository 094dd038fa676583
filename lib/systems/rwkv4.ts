import { checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { wkv } from '../linear/wkv.js';
import { concat } from '../ops/concat.js';
import { zerosLike } from '../ops/create.js';
import { fused, mul, sigmoid } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { unsqueeze } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/** Weights of a time-mixing block, by the names of RWKV-LM. W... are [out, in]: y = x W^T. */
export interface Rwkv4Weights<D extends FloatDType = FloatDType> {
  /** [channels], from 0 to 1: how much of a position's own x goes into k, v and r; the rest is of the one before. */
  readonly timeMixK: Tensor<D, Shape>;
  readonly timeMixV: Tensor<D, Shape>;
  readonly timeMixR: Tensor<D, Shape>;
  /** [channels]: what the exponent of a position itself has besides k. */
  readonly timeFirst: Tensor<FloatDType, Shape>;
  /** [channels], below 0: -e^w of a checkpoint's w. */
  readonly timeDecay: Tensor<FloatDType, Shape>;
  readonly Wr: Tensor<D, Shape>;
  readonly Wk: Tensor<D, Shape>;
  readonly Wv: Tensor<D, Shape>;
  readonly Wo: Tensor<D, Shape>;
}

/** What the next tokens need of those before. */
export interface Rwkv4State<D extends FloatDType = FloatDType> {
  /** [batch, channels]: x of the last position. */
  readonly x: Tensor<D, Shape>;
  /** float32 [batch, 3, channels]: aa, bb and pp, as `wkv` has them. */
  readonly wkv: Tensor<'float32', Shape>;
}

export interface Rwkv4Options<D extends FloatDType = FloatDType> {
  readonly state?: Rwkv4State<D>;
}

export interface Rwkv4Result<D extends FloatDType = FloatDType> {
  /** [batch, length, channels] */
  readonly out: Tensor<D, Shape>;
  readonly state: Rwkv4State<D>;
}

const mixed = fused((x, before, share) => x.mul(share).add(before.mul(share.neg().add(1))));
const linear = (x: Tensor, weight: Tensor) => matmul(x, weight.transpose(0, 1) as Tensor) as Tensor;

/**
 * The time mixing of RWKV-4 (Peng et al., "RWKV: Reinventing RNNs for the Transformer Era", 2023): k, v and r of x mixed with
 * that of the position before (zeros before the first), out = Wo (sigmoid(r) wkv), with `wkv` the weighted average.
 *
 * @param x [batch, length, channels], length at least 1
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function rwkv4TimeMixing<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: Rwkv4Weights<D>,
  options: Rwkv4Options<D> = {},
): Rwkv4Result<D> {
  const input = x as Tensor as unknown;
  checkTensor(input, 'x');
  if (input.shape.length !== 3 || input.shape[1] === 0)
    throw shapeError(`x has shape ${show(input.shape)}; it must be [batch, length, channels] of at least one position`);
  const names = ['timeMixK', 'timeMixV', 'timeMixR', 'timeFirst', 'timeDecay', 'Wr', 'Wk', 'Wv', 'Wo'] as const;
  checkOptions(weights, names, 'weights');
  for (const name of names) checkTensor(weights[name], `weights.${name}`);
  checkOptions(options, ['state']);
  const { state } = options;
  if (state !== undefined) checkOptions(state, ['x', 'wkv'], 'state');
  const w = weights as unknown as Rwkv4Weights;
  const length = input.shape[1];
  return scope(() => {
    const first = input.slice(1, 0, 1);
    const last = state === undefined ? zerosLike(first) : unsqueeze(state.x as Tensor as Tensor, 1);
    const before = length === 1 ? last : concat([last as Tensor, input.slice(1, 0, length - 1)], 1);
    const k = linear(mixed(input, before as Tensor, w.timeMixK), w.Wk);
    const v = linear(mixed(input, before as Tensor, w.timeMixV), w.Wv);
    const r = sigmoid(linear(mixed(input, before as Tensor, w.timeMixR), w.Wr));
    const average = wkv(
      k,
      { v, decay: w.timeDecay, bonus: w.timeFirst },
      state === undefined ? {} : { initialState: state.wkv },
    );
    const out = linear(mul(r, average.out) as Tensor, w.Wo);
    return { out, state: { x: input.select(1, length - 1), wkv: average.state } };
  }) as unknown as Rwkv4Result<D>;
}
