import { checkInteger, checkNumber, checkOptions } from '../base/check.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { RotaryTables } from '../nn/transformer.js';
import { scope } from '../tape/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { type MlaCache, multiHeadLatentAttention } from './mla.js';
import { checkTokens, type LayerStep, RecurrentLayer } from './recurrentLayer.js';
import { ropeFrequencies, type YarnOptions, yarnScale } from './yarn.js';

export interface MultiHeadLatentAttentionOptions extends ModuleOptions {
  readonly width: number;
  readonly heads: number;
  /** Dims of a head's queries and keys without positions. Default 128, as of DeepSeek-V2 and V3. */
  readonly nopeDim?: number;
  /** And with rotary positions, even. Default 64. */
  readonly ropeDim?: number;
  /** Of a head's values. Default 128. */
  readonly valueDim?: number;
  /** Of the latent that keys and values are made of. Default 512. */
  readonly kvRank?: number;
  /** Of the latent that queries are made of. Default none: they are made of x. */
  readonly qRank?: number;
  /** Of the rotary wavelengths. Default 10,000. */
  readonly ropeBase?: number;
  /** For sequences longer than those of training; logits are scaled by `yarnScale` too. */
  readonly yarn?: YarnOptions;
  /** Of the norms. Default 1e-6. */
  readonly epsilon?: number;
  /** Of the matrices. Default normal with a deviation of 0.006, as of DeepSeek-V3. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...(['width', 'heads', 'nopeDim', 'ropeDim', 'valueDim', 'kvRank', 'qRank', 'ropeBase', 'yarn'] as const),
  ...(['epsilon', 'initial'] as const),
] as const satisfies readonly (keyof MultiHeadLatentAttentionOptions)[];

/**
 * Multi-head latent attention of DeepSeek-V2 (2024, arXiv:2405.04434) and V3, causal: see `multiHeadLatentAttention`. From
 * the start of a sequence it makes keys and values of the latents; `next` with a state brings queries to the latents instead,
 * which is what decoding reads.
 */
export class MultiHeadLatentAttention extends RecurrentLayer<MlaCache> {
  qDown: Tensor | undefined;
  qNorm: Tensor | undefined;
  /** To queries, of x or of the normed latent. */
  q: Tensor;
  kvDown: Tensor;
  kvNorm: Tensor;
  kvUp: Tensor;
  readonly out: Linear;
  readonly width: number;
  readonly heads: number;
  readonly scale: number;
  readonly epsilon: number;
  readonly #tables: RotaryTables;

  constructor(options: MultiHeadLatentAttentionOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, nopeDim = 128, ropeDim = 64, valueDim = 128, kvRank = 512, qRank, ropeBase, yarn } = options;
    this.width = checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    checkInteger(ropeDim, 'ropeDim', 2, 254);
    checkInteger(nopeDim, 'nopeDim', 1, 256 - ropeDim);
    checkInteger(valueDim, 'valueDim', 1, 256);
    checkInteger(kvRank, 'kvRank', 1);
    if (qRank !== undefined) checkInteger(qRank, 'qRank', 1);
    this.epsilon = checkNumber(options.epsilon ?? 1e-6, 'epsilon', 0);
    const frequencies = ropeFrequencies({
      dims: ropeDim,
      ...(ropeBase !== undefined && { base: ropeBase }),
      ...(yarn && { yarn }),
    });
    this.scale = (yarn ? yarnScale(yarn) : 1) / Math.sqrt(nopeDim + ropeDim);
    this.#tables = new RotaryTables(ropeDim / 2, (pair) => frequencies[pair]);
    const { initial = { kind: 'normal', std: 0.006 } } = options;
    const own = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    const matrix = (outputs: number, inputs: number) => makeWeight([outputs, inputs], initial, own);
    const gains = (count: number) => makeWeight([count], { kind: 'ones' }, own);
    try {
      if (qRank !== undefined) {
        this.qDown = matrix(qRank, width);
        this.qNorm = gains(qRank);
      }
      this.q = matrix(heads * (nopeDim + ropeDim), qRank ?? width);
      this.kvDown = matrix(kvRank + ropeDim, width);
      this.kvNorm = gains(kvRank);
      this.kvUp = matrix(heads * (nopeDim + valueDim), kvRank);
      this.out = new Linear(heads * valueDim, width, { ...own, initial, bias: false });
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  next(x: Tensor, state?: MlaCache): LayerStep<MlaCache> {
    const [, seq] = checkTokens(x, this.width);
    const { heads, scale, epsilon, q, qDown, qNorm, kvDown, kvNorm, kvUp } = this;
    return scope(() => {
      const positions = (state?.latent?.shape[1] ?? 0) + seq;
      const options = { heads, scale, epsilon, angles: this.#tables.anglesFor(x, positions) };
      const weights = { q, qDown, qNorm, kvDown, kvNorm, kvUp };
      const { out, cache } = multiHeadLatentAttention(
        x,
        weights,
        state === undefined ? options : { ...options, form: 'absorbed', cache: state },
      );
      return { out: this.out.forward(out), state: cache };
    });
  }

  override dispose(): void {
    this.#tables?.dispose();
    super.dispose();
  }
}
