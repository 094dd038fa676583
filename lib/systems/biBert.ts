import { checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { abs, add, clamp, fused, mul, sub } from '../ops/elementwise.js';
import { mean } from '../ops/reduce.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { narrow, wide } from './inputs.js';
import { clippedTo, type Quantiser, quantisedProduct, signs } from './quantise.js';
import { checkSequence, type Weight, weightsOf } from './weights.js';

/** Matrices are [out, in] and binarised; biases are not. */
export interface BiBertWeights {
  /** [dim, dim] and [dim] each. */
  readonly query: Weight;
  readonly queryBias: Weight;
  readonly key: Weight;
  readonly keyBias: Weight;
  readonly value: Weight;
  readonly valueBias: Weight;
}

const weightNames = ['query', 'queryBias', 'key', 'keyBias', 'value', 'valueBias'] as const;

export interface BiBertOptions {
  /** A divisor of dim. */
  readonly heads: number;
  /** Added to scores, and without a gradient: broadcasts to [batch, heads, seq, seq]. A key that none sees has -10,000. */
  readonly attentionMask?: Tensor<FloatDType, Shape>;
}

const one = (like: Tensor): Tensor => filled(like.backend, new Array<number>(like.shape.length).fill(1), 'float32', 1);

const plainSigns: Quantiser = { quantise: (x) => signs(x, one(x)) };

const above0 = fused(function above0(x) {
  return x.greater(0);
});
/** 1 where x is above 0, else 0. */
const steps: Quantiser = { quantise: (x) => ({ codes: above0(x), scale: one(x) }) };

/** x Wb^T + bias: signs of x, and of W without the means of its rows, each row with the mean of its |W| as its size. */
function binaryLinear(x: Tensor, weight: Weight, bias: Weight): Tensor {
  const [batch, seq, dim] = x.shape;
  const full = wide(weight);
  const size = mean(abs(full.detach()), -1, { keepDims: true });
  const centered = sub(full, mean(full, -1, { keepDims: true })) as Tensor;
  const rows = clamp(x, -1, 1).reshape([batch * seq, dim]);
  const product = quantisedProduct(rows, clamp(centered, -1, 1), plainSigns, {
    quantise: (w) => signs(w, size),
  });
  return add(product, wide(bias)).reshape([batch, seq, weight.shape[0]]);
}

/**
 * The self-attention of BiBERT (Qin et al. 2022, arXiv:2203.06390) as htqin/BiBERT has it, with weights and activations of one
 * bit. q, k and v are linear layers of sign(x) and a sign(W - the mean of its row), a = the mean |W| of the row, with biases;
 * of their signs S = sign(q) sign(k)^T / sqrt(head dim) + attentionMask, and out = A sign(v) with A = 1 where S > 0, else 0: no
 * softmax. sign(0) = 0. Gradients go straight through: to x and W - mean where they are from -1 to 1, to q, k, v and S strictly
 * between, a being constant. A is in memory, [batch, heads, seq, seq]. Computed in float32.
 *
 * @param x [batch, seq, dim]
 * @param weights of any floating-point dtype
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function biBertSelfAttention<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: BiBertWeights,
  options: BiBertOptions,
): Tensor<D, Shape> {
  checkSequence(x, 'x');
  const source = x as Tensor;
  const [batch, seq, dim] = source.shape;
  checkOptions(options, ['heads', 'attentionMask']);
  const { heads, attentionMask } = options;
  checkInteger(heads, 'heads', 1);
  if (dim % heads !== 0)
    throw shapeError(`x has shape ${show(source.shape)}; dim must be a multiple of ${heads} heads`);
  const check = weightsOf(weights, weightNames, source);
  for (const name of ['query', 'key', 'value'] as const) {
    check(name, [dim, dim], 'dim, dim');
    check(`${name}Bias`, [dim], 'dim');
  }
  if (attentionMask !== undefined) checkMask(attentionMask, [batch, heads, seq, seq], source);
  return scope(() => {
    const binary = (name: 'query' | 'key' | 'value') =>
      clippedTo(
        binaryLinear(wide(source), weights[name], weights[`${name}Bias`])
          .reshape([batch, seq, heads, dim / heads])
          .transpose(1, 2),
        1,
      );
    const products = quantisedProduct(binary('query'), binary('key'), plainSigns, plainSigns);
    const scaled = mul(products, 1 / Math.sqrt(dim / heads)) as Tensor;
    const scores = attentionMask ? (add(scaled, wide(attentionMask.detach())) as Tensor) : scaled;
    const out = quantisedProduct(clippedTo(scores, 1), binary('value').transpose(-2, -1), steps, plainSigns);
    return narrow(out.transpose(1, 2).contiguous().reshape([batch, seq, dim]), source);
  }) as Tensor<D, Shape>;
}

function checkMask(mask: unknown, wanted: Shape, like: Tensor): void {
  checkTensor(mask, 'attentionMask');
  const { shape } = mask;
  const fits = shape.length <= 4 && shape.every((n, i) => n === 1 || n === wanted[i + 4 - shape.length]);
  if (!fits)
    throw shapeError(
      `attentionMask has shape ${show(shape)}; it must broadcast to [batch, heads, seq, seq], ${show(wanted)}`,
    );
  mask.operand('attentionMask', like.backend);
}
