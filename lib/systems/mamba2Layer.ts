import { checkInteger, checkNumber, checkOptions } from '../base/check.js';
import { optionError } from '../base/errors.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { fused } from '../ops/elementwise.js';
import { rmsNorm } from '../ops/norm.js';
import { split } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { mamba2Ssd } from './gatedLinear.js';
import { checkFloat32State, narrow, wide } from './inputs.js';
import {
  checkTokens,
  headDimOf,
  type LayerStep,
  logDecays,
  makeLogRates,
  makeStepBias,
  RecurrentLayer,
  ShortConvolution,
  stepSizes,
} from './recurrentLayer.js';

export interface Mamba2Options extends ModuleOptions {
  readonly width: number;
  /** A divisor of expand times the width. Default: as many as leave a head dim of 64. */
  readonly heads?: number;
  /** Default 128. */
  readonly stateDim?: number;
  /** Of the inner width. Default 2. */
  readonly expand?: number;
  /** Groups of heads that share B and C: a divisor of heads. Default 1. */
  readonly groups?: number;
  /** Tokens that the short convolution sees. Default 4. */
  readonly convolution?: number;
  /** Of the norm. Default 1e-5. */
  readonly epsilon?: number;
  /** Of the projections. Default PyTorch's. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...(['width', 'heads', 'stateDim', 'expand', 'groups', 'convolution', 'epsilon', 'initial'] as const),
] as const satisfies readonly (keyof Mamba2Options)[];

export interface Mamba2State {
  /** float32 [batch, heads, state dim, head dim] */
  readonly ssm: Tensor<'float32', Shape>;
  /** The last tokens before the convolution [batch, convolution - 1, inner + 2 groups * state dim] */
  readonly convolution: Tensor;
}

const timesSteps = fused(function timesSteps(x, steps) {
  return x.mul(steps);
});
const withSkip = fused(function withSkip(y, skip, x) {
  return skip.mul(x).add(y);
});
const gatedBySilu = fused(function gatedBySilu(y, z) {
  return z.mul(z.sigmoid()).mul(y);
});

/**
 * The Mamba-2 layer (Dao and Gu 2024, arXiv:2405.21060): one projection to a gate z, x, B, C and step sizes; a short causal
 * convolution and SiLU of x, B and C; `mamba2Ssd` of x dt, with decays e^(-e^logRates dt) and dt = softplus(. + stepBias); D x
 * added; an RMS norm of y SiLU(z) by groups; and a projection back.
 */
export class Mamba2 extends RecurrentLayer<Mamba2State> {
  /** To z, x, B, C and the step sizes, in this order. */
  readonly inProj: Linear;
  readonly convolution: ShortConvolution;
  /** [heads], float32: Mamba's A_log. */
  logRates: Tensor;
  /** [heads], float32: Mamba's dt_bias. */
  stepBias: Tensor;
  /** What x passes beside the state by, [heads]: Mamba's D. */
  skip: Tensor;
  /** Of the norm [inner]. */
  normWeight: Tensor;
  readonly outProj: Linear;
  readonly width: number;
  readonly inner: number;
  readonly heads: number;
  readonly headDim: number;
  readonly stateDim: number;
  readonly groups: number;
  readonly epsilon: number;

  constructor(options: Mamba2Options) {
    super();
    checkOptions(options, names);
    const { width, stateDim = 128, expand = 2, groups = 1, epsilon = 1e-5, initial } = options;
    this.width = checkInteger(width, 'width', 1);
    this.inner = checkInteger(checkNumber(expand, 'expand', 0) * width, 'expand * width', 1);
    this.heads = checkInteger(options.heads ?? this.inner / 64, 'heads', 1);
    this.headDim = headDimOf(this.inner, 'expand * width', this.heads);
    this.stateDim = checkInteger(stateDim, 'stateDim', 1, 256);
    this.groups = checkInteger(groups, 'groups', 1, this.heads);
    if (this.heads % groups !== 0) throw optionError(`groups is ${groups}; it must divide heads, ${this.heads}`);
    this.epsilon = checkNumber(epsilon, 'epsilon', 0);
    const { inner, heads } = this;
    const mixed = inner + 2 * groups * stateDim;
    const own = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    const linear = (inputs: number, outputs: number) =>
      new Linear(inputs, outputs, { ...own, bias: false, ...(initial && { initial }) });
    try {
      this.inProj = linear(width, inner + mixed + heads);
      this.convolution = new ShortConvolution(mixed, { ...own, size: options.convolution ?? 4, bias: true });
      this.logRates = makeLogRates(heads, 1, own);
      this.stepBias = makeStepBias(heads, own);
      this.skip = makeWeight([heads], { kind: 'ones' }, own);
      this.normWeight = makeWeight([inner], { kind: 'ones' }, own);
      this.outProj = linear(inner, width);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  next(x: Tensor, state?: Mamba2State): LayerStep<Mamba2State> {
    const [batch, seq] = checkTokens(x, this.width);
    if (state !== undefined) {
      checkOptions(state, ['ssm', 'convolution'], 'state');
      checkFloat32State(state.ssm, 'state.ssm');
    }
    const { inner, heads, headDim, stateDim, groups } = this;
    return scope(() => {
      const shared = groups * stateDim;
      const all = this.inProj.forward(x);
      const [z, mixed, steps] = split(all, [inner, inner + 2 * shared, heads], 2) as [Tensor, Tensor, Tensor];
      const convolved = this.convolution.next(mixed, state?.convolution);
      const [values, b, c] = split(convolved.out, [inner, shared, shared], 2) as [Tensor, Tensor, Tensor];
      const byGroup = (t: Tensor) => t.contiguous().reshape([batch, seq, groups, stateDim]);
      const byHead = values.contiguous().reshape([batch, seq, heads, headDim]);
      const logits = wide(steps);
      const sizes = stepSizes(logits, wide(this.stepBias)).reshape([batch, seq, heads, 1]);
      const ssd = mamba2Ssd(
        narrow(timesSteps(byHead, sizes), x),
        logDecays(logits, wide(this.stepBias), wide(this.logRates)),
        byGroup(b),
        byGroup(c),
        { initialState: state?.ssm },
      );
      const y = narrow(withSkip(ssd.out, this.skip.reshape([heads, 1]), byHead), x).reshape([batch, seq, inner]);
      const gated = gatedBySilu(y, z).reshape([batch, seq, groups, inner / groups]);
      const normed = narrow(
        timesSteps(
          rmsNorm(gated, undefined, { epsilon: this.epsilon }),
          this.normWeight.reshape([groups, inner / groups]),
        ),
        x,
      );
      const out = this.outProj.forward(normed.reshape([batch, seq, inner]));
      return { out, state: { ssm: ssd.state, convolution: convolved.state } };
    });
  }
}
