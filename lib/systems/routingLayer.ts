import { attention, type Shape4 } from '../attention/attention.js';
import { noGrad } from '../autograd/autograd.js';
import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { cast } from '../ops/cast.js';
import { concat } from '../ops/concat.js';
import { where } from '../ops/elementwise.js';
import { normal } from '../ops/random.js';
import { split } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { checkPositions, type Sequence } from './inputs.js';
import { checkTokens, headDimOf } from './recurrentLayer.js';
import { type RoutingMeansOptions, routingAttention, unit, updateRoutingMeans } from './routing.js';

export interface RoutingLayerOptions extends ModuleOptions {
  readonly width: number;
  readonly heads: number;
  /** How many of the heads, the first ones, attend in a window of neighbours instead. Default 0. */
  readonly localHeads?: number;
  /** Tokens on each side that these see, with `causal` only those before. Default `window`. */
  readonly localWindow?: number;
  readonly clusters: number;
  /** Queries, and keys, of a cluster; of a shorter sequence all. */
  readonly window: number;
  /** Default false. */
  readonly causal?: boolean;
  /** Learned keys and values that all queries of a cluster see. Default 1 with `causal`, where a query may see nothing else, else 0. */
  readonly memories?: number;
  /** Of the projections, which have no biases. Default PyTorch's. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...(['width', 'heads', 'localHeads', 'localWindow', 'clusters', 'window', 'causal', 'memories', 'initial'] as const),
] as const satisfies readonly (keyof RoutingLayerOptions)[];

interface Mask {
  /** Which positions are real, [batch, seq]. */
  readonly mask?: Tensor<'bool', Shape>;
}

/**
 * Self-attention of a routing transformer (Roy et al. 2020, arXiv:2003.05997): some heads attend to neighbours, the others by
 * `routingAttention`, between projections. The centroids, `means`, have no gradient: after each step of training `updateMeans` moves
 * them to the tokens of that step.
 */
export class RoutingAttention extends Module {
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly outProj: Linear;
  /** [routed heads, clusters, head dim], float32 */
  means: Tensor;
  /** [routed heads, clusters, memories, head dim]; undefined of none */
  memoryKeys: Tensor | undefined;
  memoryValues: Tensor | undefined;
  readonly width: number;
  readonly heads: number;
  readonly localHeads: number;
  readonly headDim: number;
  readonly window: number;
  readonly localWindow: number;
  readonly causal: boolean;

  constructor(options: RoutingLayerOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, localHeads = 0, clusters, window, localWindow = window, causal = false, initial } = options;
    this.width = checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    this.localHeads = checkInteger(localHeads, 'localHeads', 0, heads - 1);
    this.headDim = headDimOf(width, 'width', heads);
    this.window = checkInteger(window, 'window', 1);
    this.localWindow = checkInteger(localWindow, 'localWindow', 0);
    this.causal = checkBoolean(causal, 'causal');
    checkInteger(clusters, 'clusters', 1);
    const memories = checkInteger(options.memories ?? (causal ? 1 : 0), 'memories', 0);
    const seed = Seeds.of(options.seed);
    const all = { ...pick(options, moduleOptionNames), seed };
    const linear = () => new Linear(width, width, { ...all, bias: false, ...(initial && { initial }) });
    try {
      this.qProj = linear();
      this.kProj = linear();
      this.vProj = linear();
      this.outProj = linear();
      const shape = [heads - localHeads, clusters, this.headDim] as const;
      const device = options.device === undefined ? {} : { device: options.device };
      this.means = unwatched(() => scope(() => unit(normal(shape, { ...device, seed: seed.next() }) as Sequence)));
      const memory = () =>
        memories === 0
          ? undefined
          : makeWeight([shape[0], clusters, memories, this.headDim], { kind: 'normal', std: 1 }, all);
      this.memoryKeys = memory();
      this.memoryValues = memory();
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** [batch, seq, heads, head dim] of the local heads, if there are any, and of the routed ones. */
  #heads(projection: Linear, x: Tensor): readonly [local: Tensor, routed: Tensor] {
    const [batch, seq] = x.shape;
    const all = projection.forward(x).reshape([batch, seq, this.heads, this.headDim]);
    return split(all, [this.localHeads, this.heads - this.localHeads], 2) as [Tensor, Tensor];
  }

  /**
   * @param x [batch, seq, width]
   * @returns [batch, seq, width]
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  forward(x: Tensor, options: Mask = {}): Tensor {
    const [batch, seq] = checkTokens(x, this.width);
    checkOptions(options, ['mask']);
    const { mask } = options;
    if (mask !== undefined) checkPositions(mask, x);
    return scope(() => {
      const [q, k, v] = [this.qProj, this.kProj, this.vProj].map((projection) => this.#heads(projection, x));
      const parts: Tensor[] = [];
      if (this.localHeads > 0) {
        const window = [this.localWindow, this.causal ? 0 : this.localWindow] as const;
        const bias = mask && where(mask.reshape([batch, 1, 1, seq]), 0, Number.NEGATIVE_INFINITY);
        parts.push(attention(q[0], k[0], v[0], { window, ...(bias && { bias }) }).out as Tensor);
      }
      const { memoryKeys, memoryValues, causal } = this;
      const memory = memoryKeys &&
        memoryValues && { keys: cast(memoryKeys, x.dtype), values: cast(memoryValues, x.dtype) };
      const tokens = (t: Tensor) => t as unknown as Tensor<FloatDType, Shape4>;
      const { out } = routingAttention(tokens(q[1]), tokens(k[1]), tokens(v[1]), {
        means: this.means,
        window: Math.max(1, Math.min(this.window, seq)),
        causal,
        ...(memory && { memory }),
        ...(mask && { mask }),
      });
      const joined = concat([...parts, out as unknown as Tensor], 2);
      return this.outProj.forward(joined.reshape([batch, seq, this.width]));
    });
  }

  /**
   * Moves the centroids to what queries and keys of these tokens are now: a step of `updateRoutingMeans`, in place.
   *
   * @param x [batch, seq, width]
   * @throws as `forward`
   */
  updateMeans(x: Tensor, options: RoutingMeansOptions = {}): void {
    checkTokens(x, this.width);
    checkOptions(options, ['decay', 'mask']);
    const { mask, ...rest } = options;
    if (mask !== undefined) checkPositions(mask, x);
    noGrad(() =>
      scope(() => {
        const tokens = concat([this.#heads(this.qProj, x)[1], this.#heads(this.kProj, x)[1]], 1);
        const real = mask && cast(mask, 'float32');
        const both = real && { mask: cast(concat([real, real], 1), 'bool') };
        updateRoutingMeans(tokens, this.means, { ...rest, ...both }).copyInto(this.means as never);
      }),
    );
  }
}
