import { checkBoolean, checkInteger, checkNumber, checkOptions } from '../base/check.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { fused } from '../ops/elementwise.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { gatedDeltaRule, l2Normalized } from './deltaRule.js';
import { checkFloat32State, wide } from './inputs.js';
import {
  checkTokens,
  gatedNorm,
  type LayerStep,
  logDecays,
  makeLogRates,
  makeStepBias,
  RecurrentLayer,
  ShortConvolution,
} from './recurrentLayer.js';

export interface GatedDeltaNetOptions extends ModuleOptions {
  readonly width: number;
  readonly heads: number;
  /** Of queries and keys. Default 3/4 of the width over heads, rounded down. */
  readonly headDim?: number;
  /** The value dim over the head dim. Default 2. */
  readonly expandValues?: number;
  /** Tokens that the short convolutions see. Default 4. */
  readonly convolution?: number;
  /** Whether beta is up to 2, so that the state can flip along a key. Default false. */
  readonly negativeEigenvalues?: boolean;
  /** Of the norm of each head. Default 1e-5. */
  readonly epsilon?: number;
  /** Of the projections. Default normal with standard deviation 0.02. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...(['width', 'heads', 'headDim', 'expandValues', 'convolution'] as const),
  ...(['negativeEigenvalues', 'epsilon', 'initial'] as const),
] as const satisfies readonly (keyof GatedDeltaNetOptions)[];

export interface GatedDeltaNetState {
  /** float32 [batch, heads, head dim, value dim] */
  readonly memory: Tensor<'float32', Shape>;
  /** The last tokens before each convolution [batch, convolution - 1, channels] */
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
}

const betaOf = fused(function betaOf(x, most) {
  return x.sigmoid().mul(most);
});

/** What queries and keys are divided by the root of has this added, as in the authors' kernels. */
const unitEpsilon = 1e-6;

/**
 * The Gated DeltaNet layer (Yang et al. 2024, arXiv:2412.06464): short causal convolutions and SiLU of queries, keys and values,
 * queries and keys of length 1, `gatedDeltaRule` with beta = sigmoid(W x) and decays e^(-e^logRates softplus(W x + stepBias)), an
 * RMS norm of each head with a gain, and a gate of SiLU before the projection back.
 */
export class GatedDeltaNet extends RecurrentLayer<GatedDeltaNetState> {
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  /** To the decays. */
  readonly aProj: Linear;
  /** To beta. */
  readonly bProj: Linear;
  readonly gProj: Linear;
  readonly oProj: Linear;
  readonly qConvolution: ShortConvolution;
  readonly kConvolution: ShortConvolution;
  readonly vConvolution: ShortConvolution;
  /** [heads], float32: A_log. */
  logRates: Tensor;
  /** [heads], float32: dt_bias. */
  stepBias: Tensor;
  /** Of the norm [value dim]. */
  normWeight: Tensor;
  readonly width: number;
  readonly heads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly negativeEigenvalues: boolean;
  readonly epsilon: number;

  constructor(options: GatedDeltaNetOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, expandValues = 2, convolution = 4, negativeEigenvalues = false, epsilon = 1e-5 } = options;
    this.width = checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    const headDim = options.headDim ?? Math.max(1, Math.floor((0.75 * width) / heads));
    this.headDim = checkInteger(headDim, 'headDim', 1, 256);
    this.valueDim = checkInteger(
      checkNumber(expandValues, 'expandValues', 0) * headDim,
      'expandValues * headDim',
      1,
      256,
    );
    this.negativeEigenvalues = checkBoolean(negativeEigenvalues, 'negativeEigenvalues');
    this.epsilon = checkNumber(epsilon, 'epsilon', 0);
    const initial: Initial = options.initial ?? { kind: 'normal', std: 0.02 };
    const own = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    const [keys, values] = [heads * headDim, heads * this.valueDim];
    const linear = (inputs: number, outputs: number) => new Linear(inputs, outputs, { ...own, bias: false, initial });
    const convolve = (channels: number) => new ShortConvolution(channels, { ...own, size: convolution });
    try {
      this.qProj = linear(width, keys);
      this.kProj = linear(width, keys);
      this.vProj = linear(width, values);
      this.aProj = linear(width, heads);
      this.bProj = linear(width, heads);
      this.gProj = linear(width, values);
      this.oProj = linear(values, width);
      this.qConvolution = convolve(keys);
      this.kConvolution = convolve(keys);
      this.vConvolution = convolve(values);
      this.logRates = makeLogRates(heads, 0, own);
      this.stepBias = makeStepBias(heads, own);
      this.normWeight = makeWeight([this.valueDim], { kind: 'ones' }, own);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  next(x: Tensor, state?: GatedDeltaNetState): LayerStep<GatedDeltaNetState> {
    const [batch, seq] = checkTokens(x, this.width);
    if (state !== undefined) {
      checkOptions(state, ['memory', 'q', 'k', 'v'], 'state');
      checkFloat32State(state.memory, 'state.memory');
    }
    const { heads, headDim, valueDim } = this;
    return scope(() => {
      const byHead = (t: Tensor, dim: number) => t.contiguous().reshape([batch, seq, heads, dim]);
      const q = this.qConvolution.next(this.qProj.forward(x), state?.q);
      const k = this.kConvolution.next(this.kProj.forward(x), state?.k);
      const v = this.vConvolution.next(this.vProj.forward(x), state?.v);
      const { out, state: memory } = gatedDeltaRule(
        l2Normalized(byHead(q.out, headDim), unitEpsilon),
        byHead(k.out, headDim),
        byHead(v.out, valueDim),
        {
          beta: betaOf(wide(this.bProj.forward(x)), this.negativeEigenvalues ? 2 : 1),
          g: logDecays(wide(this.aProj.forward(x)), wide(this.stepBias), wide(this.logRates)),
          epsilon: unitEpsilon,
          initialState: state?.memory,
        },
      );
      const gated = gatedNorm(out, byHead(this.gProj.forward(x), valueDim), this.normWeight, this.epsilon);
      return {
        out: this.oProj.forward(gated.reshape([batch, seq, heads * valueDim])),
        state: { memory, q: q.state, k: k.state, v: v.state },
      };
    });
  }
}
