import { checkBoolean, checkInteger, checkNumber, checkOptions } from '../base/check.js';
import { eluPlusOne } from '../linear/featureMaps.js';
import { recurrence } from '../linear/recurrence.js';
import { type Initial, type ModuleOptions, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { fused } from '../ops/elementwise.js';
import { unsqueeze } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkFloat32State, narrow, wide } from './inputs.js';
import { checkTokens, headDimOf, type LayerStep, RecurrentLayer } from './recurrentLayer.js';

export interface LinearAttentionLayerOptions extends ModuleOptions {
  readonly width: number;
  readonly heads: number;
  /** Added to what a row is divided by. Default 1e-6. */
  readonly epsilon?: number;
  /** Whether the projections have biases. Default true, as the authors'. */
  readonly bias?: boolean;
  /** Of the projections. Default PyTorch's. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...(['width', 'heads', 'epsilon', 'bias', 'initial'] as const),
] as const satisfies readonly (keyof LinearAttentionLayerOptions)[];

/** Sums of phi(k) v^T and, in the last column, of phi(k): float32 [batch, heads, head dim, head dim + 1] */
export type LinearAttentionState = Tensor<'float32', Shape>;

const divided = fused(function divided(sums, weights, epsilon) {
  return sums.div(weights.add(epsilon));
});

/**
 * Self-attention of a linear transformer (Katharopoulos et al., "Transformers are RNNs", 2020, arXiv:2006.16236): causal
 * `linearAttention` with elu(x) + 1, and projections before and after it. It knows no positions but what comes first.
 */
export class LinearAttention extends RecurrentLayer<LinearAttentionState> {
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly outProj: Linear;
  readonly width: number;
  readonly heads: number;
  readonly headDim: number;
  readonly epsilon: number;

  constructor(options: LinearAttentionLayerOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, epsilon = 1e-6, bias = true, initial } = options;
    this.width = checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    this.headDim = headDimOf(width, 'width', heads);
    this.epsilon = checkNumber(epsilon, 'epsilon', 0);
    checkBoolean(bias, 'bias');
    const all = {
      ...pick(options, moduleOptionNames),
      seed: Seeds.of(options.seed),
      bias,
      ...(initial && { initial }),
    };
    try {
      this.qProj = new Linear(width, width, all);
      this.kProj = new Linear(width, width, all);
      this.vProj = new Linear(width, width, all);
      this.outProj = new Linear(width, width, all);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  next(x: Tensor, state?: LinearAttentionState): LayerStep<LinearAttentionState> {
    const [batch, seq] = checkTokens(x, this.width);
    if (state) checkFloat32State(state, 'state');
    const { heads, headDim } = this;
    return scope(() => {
      const byHead = (projection: Linear) => projection.forward(x).reshape([batch, seq, heads, headDim]);
      const {
        out,
        normalizer,
        state: after,
      } = recurrence(
        eluPlusOne(byHead(this.qProj)),
        eluPlusOne(byHead(this.kProj)),
        wide(byHead(this.vProj)) as Tensor<'float32', Shape>,
        { scale: 1, normalizer: true, initialState: state },
      );
      const rows = narrow(divided(out, unsqueeze(normalizer, -1), this.epsilon), x).reshape([batch, seq, this.width]);
      return { out: this.outProj.forward(rows), state: after };
    });
  }
}
