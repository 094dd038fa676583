import { checkInteger, checkNumber, checkOptions } from '../base/check.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { gla } from './gatedLinear.js';
import { checkFloat32State, wide } from './inputs.js';
import { checkTokens, gatedNorm, headDimOf, type LayerStep, logSigmoid, RecurrentLayer } from './recurrentLayer.js';

export interface GatedLinearAttentionOptions extends ModuleOptions {
  readonly width: number;
  readonly heads: number;
  /** Of queries and keys: a multiple of heads. Default half the width. */
  readonly keyWidth?: number;
  /** Of values and output gates: a multiple of heads. Default the width. */
  readonly valueWidth?: number;
  /** The rank of the projection to decays. Default 16. */
  readonly gateRank?: number;
  /** What ln sigmoid of that projection is divided by, which keeps decays close to 1. Default 16. */
  readonly gateNormalizer?: number;
  /** Of the norm of each head. Default 1e-5. */
  readonly epsilon?: number;
  /** Of the projections. Default normal with standard deviation 0.02. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...(['width', 'heads', 'keyWidth', 'valueWidth', 'gateRank', 'gateNormalizer', 'epsilon', 'initial'] as const),
] as const satisfies readonly (keyof GatedLinearAttentionOptions)[];

/** float32 [batch, heads, key dim, value dim] */
export type GatedLinearAttentionState = Tensor<'float32', Shape>;

/**
 * The layer of gated linear attention (Yang et al. 2023, arXiv:2312.06635): `gla` with decays ln sigmoid(W2 W1 x + b) / 16 by
 * key channel, an RMS norm of each head with a gain, and a gate of SiLU before the projection back.
 */
export class GatedLinearAttention extends RecurrentLayer<GatedLinearAttentionState> {
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly gProj: Linear;
  /** To the decays, of low rank: first down, then up with a bias. */
  readonly gkProj: readonly [Linear, Linear];
  readonly oProj: Linear;
  /** Of the norm [value dim]. */
  normWeight: Tensor;
  readonly width: number;
  readonly heads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  readonly gateNormalizer: number;
  readonly epsilon: number;

  constructor(options: GatedLinearAttentionOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, gateRank = 16, gateNormalizer = 16, epsilon = 1e-5 } = options;
    this.width = checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    const keyWidth = checkInteger(options.keyWidth ?? width / 2, 'keyWidth', 1);
    const valueWidth = checkInteger(options.valueWidth ?? width, 'valueWidth', 1);
    this.keyDim = headDimOf(keyWidth, 'keyWidth', heads);
    this.valueDim = headDimOf(valueWidth, 'valueWidth', heads);
    checkInteger(gateRank, 'gateRank', 1);
    this.gateNormalizer = checkNumber(gateNormalizer, 'gateNormalizer', Number.MIN_VALUE);
    this.epsilon = checkNumber(epsilon, 'epsilon', 0);
    const initial: Initial = options.initial ?? { kind: 'normal', std: 0.02 };
    const own = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    const linear = (inputs: number, outputs: number, bias = false) =>
      new Linear(inputs, outputs, { ...own, bias, initial });
    const gate: Linear[] = [];
    this.gkProj = gate as unknown as [Linear, Linear];
    try {
      this.qProj = linear(width, keyWidth);
      this.kProj = linear(width, keyWidth);
      this.vProj = linear(width, valueWidth);
      this.gProj = linear(width, valueWidth);
      gate.push(linear(width, gateRank));
      gate.push(linear(gateRank, keyWidth, true));
      this.oProj = linear(valueWidth, width);
      this.normWeight = makeWeight([this.valueDim], { kind: 'ones' }, own);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  next(x: Tensor, state?: GatedLinearAttentionState): LayerStep<GatedLinearAttentionState> {
    const [batch, seq] = checkTokens(x, this.width);
    if (state) checkFloat32State(state, 'state');
    const { heads, keyDim, valueDim } = this;
    return scope(() => {
      const split = (t: Tensor, dim: number) => t.reshape([batch, seq, heads, dim]);
      const [down, up] = this.gkProj;
      const gk = logSigmoid(wide(up.forward(down.forward(x))), this.gateNormalizer);
      const { out, state: after } = gla(
        split(this.qProj.forward(x), keyDim),
        split(this.kProj.forward(x), keyDim),
        split(this.vProj.forward(x), valueDim),
        { gk: split(gk, keyDim), initialState: state },
      );
      const gated = gatedNorm(out, split(this.gProj.forward(x), valueDim), this.normWeight, this.epsilon);
      return { out: this.oProj.forward(gated.reshape([batch, seq, heads * valueDim])), state: after };
    });
  }
}
