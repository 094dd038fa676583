import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { mostCodes } from '../kernels/codeMatmul.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick } from '../nn/initial.js';
import { Module } from '../nn/module.js';
import { areExact, type Codes, codeMatmul } from '../ops/codes.js';
import { add, fused, square, sub } from '../ops/elementwise.js';
import { rmsNorm } from '../ops/norm.js';
import { mean, sum } from '../ops/reduce.js';
import { scope } from '../tape/scope.js';
import { needsRecord, withoutRecording } from '../tape/tape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { checkShaped, narrow, wide } from './inputs.js';
import {
  absMean,
  meanSize,
  type PackingQuantiser,
  packSigns,
  perToken,
  type Quantised,
  quantisedProduct,
  signs,
} from './quantise.js';
import { checkRows, type Weight } from './weights.js';

const toLength = fused(function toLength(x, squares, least, length) {
  return x.div(squares.maximum(least).sqrt()).mul(length);
});

/** sqrt(dim) x / max(|x|, 1e-12). */
const unitRows = (x: Tensor): Tensor =>
  toLength(x, sum(square(x), -1, { keepDims: true }), 1e-24, Math.sqrt(x.shape[x.shape.length - 1]));

const everyAxis = (t: Tensor) => t.shape.map((_, axis) => axis);

const centered = (weight: Tensor): Quantised =>
  signs(sub(weight, mean(weight, everyAxis(weight), { keepDims: true })) as Tensor, meanSize(weight));

/** sign(W - mean(W)) with one scale, 1 / mean|W|. */
const centeredSigns: PackingQuantiser = { quantise: centered, pack: (weight) => packSigns(centered(weight)) };

/** Of BitNet b1.58: x / sqrt(mean of x^2 + 1e-6). */
const rms = (x: Tensor): Tensor => rmsNorm(x, undefined, { epsilon: 1e-6 });

/** By bits of a weight: what is done to x before it is quantised, and to the weight. */
const layers = {
  1.58: { normalise: rms, ofWeight: absMean },
  1: { normalise: unitRows, ofWeight: centeredSigns },
} as const;

type Bits = keyof typeof layers;

function checkBits(bits: unknown): asserts bits is Bits {
  if (bits !== 1.58 && bits !== 1) throw optionError(`bits is ${show(bits)}; it must be 1.58 or 1`);
}

/**
 * A weight as the layers multiply it, in 2 bits an element: see `packBitLinear`. A copy: later changes of the weight do not reach
 * it. To be disposed.
 */
export class PackedBitWeight implements Disposable {
  /** int32 [outputs, words]: code 16w + 4q + i of a row, plus 1, is bits 8i + 2q and 8i + 2q + 1 of its word w. */
  readonly words: Tensor<'int32', Shape>;
  /** float32 [1]: the weight is about codes / scale. */
  readonly scale: Tensor<'float32', Shape>;
  readonly inputs: number;
  readonly outputs: number;

  /** @internal */
  constructor(
    readonly bits: Bits,
    { words, scale, inner }: Codes,
  ) {
    this.words = words;
    this.scale = scale;
    this.inputs = inner;
    this.outputs = words.shape[0];
  }

  dispose(): void {
    this.words.dispose();
    this.scale.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Quantises a weight once, for inference: `bitLinear158` and `bitLinear1` take the result in the place of the weight, and give the
 * same bits. It is 2 bits an element in memory.
 *
 * @param weight [outputs, inputs], of any floating-point dtype
 * @param options.bits 1.58 (default): for `bitLinear158`; 1: for `bitLinear1`
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function packBitLinear(weight: Weight, options: { readonly bits?: 1.58 | 1 } = {}): PackedBitWeight {
  checkTensor(weight, 'weight');
  const { shape } = weight;
  if (shape.length !== 2 || shape[1] === 0 || !areExact(shape[1]))
    throw shapeError(`weight has shape ${show(shape)}; it must be [outputs, inputs] with 1 to ${mostCodes} inputs`);
  checkOptions(options, ['bits']);
  const { bits = 1.58 } = options;
  checkBits(bits);
  weight.operand('weight', weight.backend);
  return scope(() =>
    withoutRecording(() => new PackedBitWeight(bits, layers[bits].ofWeight.pack(wide(weight as Tensor)))),
  );
}

/** x W^T of quantised rows and weights, of any leading axes. */
function times(x: Tensor, weight: Weight | PackedBitWeight, bits: Bits, bias?: Tensor): Tensor {
  const { normalise, ofWeight } = layers[bits];
  const rows = normalise(wide(x));
  if (weight instanceof PackedBitWeight) {
    const { words, scale, inputs } = weight;
    const codes = perToken.pack(rows);
    const ofBias = bias && (wide(bias) as Tensor<'float32', Shape>);
    return codeMatmul(codes, { words, scale, inner: inputs, format: 'trits' }, x.dtype, ofBias) as Tensor;
  }
  const { shape } = x;
  const features = shape[shape.length - 1];
  const flat = rows.reshape([shape.slice(0, -1).reduce((product, n) => product * n, 1), features]);
  const out = quantisedProduct(flat, wide(weight), perToken, ofWeight);
  const narrowed = narrow(out.reshape([...shape.slice(0, -1), weight.shape[0]]), x) as Tensor;
  return bias ? (add(narrowed, narrow(bias, x)) as Tensor) : narrowed;
}

function checkLinear(x: unknown, weight: unknown, bits: Bits): void {
  checkRows(x, 'x');
  const inputs = x.shape[x.shape.length - 1];
  if (inputs === 0) throw shapeError(`x has shape ${show(x.shape)}; a token needs at least one feature`);
  if (!(weight instanceof PackedBitWeight)) {
    checkShaped(weight, 'weight', [-1, inputs], 'outputs, inputs', x);
    return;
  }
  if (weight.bits !== bits)
    throw optionError(`weight has been packed with bits ${weight.bits}; this layer has ${bits}`);
  if (weight.inputs !== inputs)
    throw shapeError(
      `x has shape ${show(x.shape)}; its last axis must have ${weight.inputs} features, those of weight`,
    );
  weight.words.operand('weight', x.backend);
  if (needsRecord([x]))
    throw new FlashAttnError(
      'ERR_AUTOGRAD',
      'a packed weight cannot be differentiated: call the layer within noGrad(), or with the weight itself',
    );
}

/**
 * The linear layer of BitNet b1.58 (Ma et al., "The Era of 1-bit LLMs", 2024, arXiv:2402.17764) as its authors' training notes
 * list it: with xn = x / sqrt(mean of x^2 + 1e-6), activations of 8 bits for each token, round(xn s), s = 127 / max(max|xn|,
 * 1e-5), and ternary weights, round(W g) within -1 and 1, g = 1 / max(mean|W|, 1e-5): out = (codes of x codes of W^T) / (s g).
 * Gradients go straight through both roundings. Codes are multiplied as integers, exactly for up to 131,071 inputs; the rest is
 * float32.
 *
 * @param x [..., inputs] of rank 2 or more
 * @param weight [outputs, inputs], of any floating-point dtype, or what `packBitLinear` made of one, for inference
 * @returns [..., outputs] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY, and ERR_AUTOGRAD where x needs a
 *   gradient and the weight is packed
 */
export function bitLinear158<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weight: Weight | PackedBitWeight,
): Tensor<D, Shape> {
  checkLinear(x, weight, 1.58);
  return scope(() => times(x as Tensor, weight, 1.58)) as Tensor<D, Shape>;
}

/**
 * The codes and scales that `bitLinear158` multiplies: of x round(xn s) with s [..., 1], of the weight -1, 0 or 1 with g [1, 1].
 *
 * @throws as `bitLinear158`
 */
export function bitLinear158Codes(
  x: Tensor<FloatDType, Shape>,
  weight: Weight,
): { readonly x: Quantised; readonly weight: Quantised } {
  checkLinear(x, weight, 1.58);
  return scope(() => ({
    x: perToken.quantise(rms(wide(x)).detach()),
    weight: absMean.quantise(wide(weight).detach()),
  }));
}

/**
 * The linear layer of the first BitNet (Wang et al., "BitNet", 2023, arXiv:2310.11453) as kyegomez/BitNet has it: with
 * xn = sqrt(inputs) x / max(|x|, 1e-12), activations of 8 bits for each token as in `bitLinear158`, and weights
 * sign(W - mean(W)) mean|W|. Gradients go straight through both, to all of W alike. Products as in `bitLinear158`.
 *
 * @param x [..., inputs] of rank 2 or more
 * @param weight [outputs, inputs], of any floating-point dtype, or what `packBitLinear` made of one, for inference
 * @returns [..., outputs] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY, and ERR_AUTOGRAD where x needs a
 *   gradient and the weight is packed
 */
export function bitLinear1<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weight: Weight | PackedBitWeight,
): Tensor<D, Shape> {
  checkLinear(x, weight, 1);
  return scope(() => times(x as Tensor, weight, 1)) as Tensor<D, Shape>;
}

export interface BitLinearOptions extends ModuleOptions {
  /** 1.58 (default): `bitLinear158`; 1: `bitLinear1`. */
  readonly bits?: 1.58 | 1;
  /** Added to the result in full precision. Default false. */
  readonly bias?: boolean;
  /** Of the weight. Default PyTorch's: uniform within 1 / sqrt(inputs). */
  readonly initial?: Initial;
}

/**
 * A linear layer whose activations are quantised in every pass, and so are weights: once in `eval` for as long as they stay the
 * same, without gradients and outside of `capture`, and in every pass otherwise. x [..., inputs] of rank 2 or more.
 */
export class BitLinear extends Module {
  /** [outputs, inputs] */
  weight: Tensor;
  bias: Tensor | undefined;
  readonly bits: Bits;

  constructor(
    readonly inputs: number,
    readonly outputs: number,
    options: BitLinearOptions = {},
  ) {
    super();
    checkInteger(inputs, 'inputs', 1);
    checkInteger(outputs, 'outputs', 1);
    checkOptions(options, [...moduleOptionNames, 'bits', 'bias', 'initial']);
    const { bits = 1.58, bias = false, initial = { kind: 'uniform', bound: 1 / Math.sqrt(inputs) } } = options;
    checkBits(bits);
    checkBoolean(bias, 'bias');
    this.bits = bits;
    const all = pick(options, moduleOptionNames);
    try {
      this.weight = makeWeight([outputs, inputs], initial, all);
      this.bias = bias ? makeWeight([outputs], { kind: 'zeros' }, all) : undefined;
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    const { weight, bias, bits } = this;
    checkLinear(x, weight, bits);
    const used = this.#canKeep(x) ? this.#packed() : weight;
    return scope(() => times(x, used, bits, bias));
  }

  override dispose(): void {
    this.#release();
    super.dispose();
  }

  #kept: { readonly packed: PackedBitWeight; readonly of: Tensor; readonly version: number } | undefined;

  /** What is captured runs again with whatever the weight is then. */
  #canKeep(x: Tensor): boolean {
    const { training, weight, bias } = this;
    if (training) this.#release();
    return !training && !weight.backend.isRecording && areExact(this.inputs) && !needsRecord([x, weight, bias]);
  }

  #packed(): PackedBitWeight {
    const { weight, bits } = this;
    if (this.#kept?.of !== weight || this.#kept.version !== weight.version) {
      this.#release();
      const packed = unwatched(() => packBitLinear(weight, { bits }));
      this.#kept = { packed, of: weight, version: weight.version };
    }
    return this.#kept.packed;
  }

  #release(): void {
    this.#kept?.packed.dispose();
    this.#kept = undefined;
  }
}
