import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import { optionError } from '../base/errors.js';
import type { DeviceName } from '../devices/registry.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { LayerNorm, Linear } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { concat } from '../ops/concat.js';
import { add } from '../ops/elementwise.js';
import { split } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { checkAlike, narrow, type Sequence } from './inputs.js';
import { checkTokens } from './recurrentLayer.js';
import { distanceSinusoids, transformerXLAttention } from './transformerXL.js';

export interface TransformerXLLayerOptions extends ModuleOptions {
  /** Even. */
  readonly width: number;
  readonly heads: number;
  /** Default width / heads. */
  readonly headDim?: number;
  /** How many tokens before a segment it sees, at most. */
  readonly memory: number;
  /** Tokens of a segment in `forward`. Default all of them. */
  readonly segment?: number;
  /** Whether the layer norm comes before, of the memory too, and not behind the sum. Default false. */
  readonly preNorm?: boolean;
  /** Of the norm. Default 1e-5. */
  readonly epsilon?: number;
  /** Of the projections and biases. Default normal with a deviation of 0.02, as the authors'. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...(['width', 'heads', 'headDim', 'memory', 'segment', 'preNorm', 'epsilon', 'initial'] as const),
] as const satisfies readonly (keyof TransformerXLLayerOptions)[];

export interface TransformerXLStep {
  /** [batch, seq, width] */
  readonly out: Tensor;
  /** The last tokens of what this layer has been given, for the next segment: [batch, up to memory, width], without a gradient. */
  readonly memory: Tensor;
}

/** The last `length` rows of sinusoids, made once for the longest context so far. */
class DistanceTable {
  #table: Tensor<'float32', Shape> | undefined;

  constructor(readonly width: number) {}

  rowsFor(x: Tensor, length: number): Tensor<'float32', Shape> {
    const known = this.#table;
    if (known && known.shape[0] >= length && known.backend === x.backend)
      return known.slice(0, known.shape[0] - length, known.shape[0]);
    this.dispose();
    const { width } = this;
    this.#table = unwatched(() => distanceSinusoids({ length, width, device: x.device as DeviceName }));
    return this.#table.slice(0, 0, length);
  }

  dispose(): void {
    this.#table?.dispose();
    this.#table = undefined;
  }
}

/**
 * Self-attention of Transformer-XL (Dai et al. 2019, arXiv:1901.02860) with its residual and norm, as kimiyoung/transformer-xl has
 * it: LayerNorm(x + attention(x)), or x + attention(LayerNorm(x)). A segment sees itself up to each token and the tokens before
 * it in the memory, through which no gradient flows.
 */
export class TransformerXLAttention extends Module {
  /** To queries, keys and values, in this order. */
  readonly qkv: Linear;
  /** Of distances. */
  readonly r: Linear;
  readonly out: Linear;
  readonly norm: LayerNorm;
  /** u and v of the paper: [heads, head dim] */
  contentBias: Tensor;
  distanceBias: Tensor;
  readonly width: number;
  readonly heads: number;
  readonly headDim: number;
  readonly memory: number;
  readonly segment: number | undefined;
  readonly preNorm: boolean;
  readonly #distances: DistanceTable;

  constructor(options: TransformerXLLayerOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, memory, segment, preNorm = false, epsilon = 1e-5 } = options;
    this.width = checkInteger(width, 'width', 1);
    if (width % 2 === 1) throw optionError(`width is ${width}; sinusoids need an even one`);
    this.heads = checkInteger(heads, 'heads', 1);
    this.memory = checkInteger(memory, 'memory', 0);
    this.segment = segment === undefined ? undefined : checkInteger(segment, 'segment', 1);
    this.preNorm = checkBoolean(preNorm, 'preNorm');
    if (options.headDim === undefined && width % heads !== 0)
      throw optionError(`width ${width} is no multiple of heads ${heads}; give headDim`);
    this.headDim = checkInteger(options.headDim ?? width / heads, 'headDim', 1, 256);
    this.#distances = new DistanceTable(width);
    const inner = heads * this.headDim;
    const initial = options.initial ?? { kind: 'normal', std: 0.02 };
    const own = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    const linear = { ...own, initial, bias: false };
    try {
      this.qkv = new Linear(width, 3 * inner, linear);
      this.r = new Linear(width, inner, linear);
      this.out = new Linear(inner, width, linear);
      this.norm = new LayerNorm(width, { ...own, epsilon });
      this.contentBias = makeWeight([heads, this.headDim], initial, own);
      this.distanceBias = makeWeight([heads, this.headDim], initial, own);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** x [batch, seq, width] from the start of a sequence, segment by segment. */
  forward(x: Tensor): Tensor {
    const [, seq] = checkTokens(x, this.width);
    const { segment = seq } = this;
    if (seq <= segment) return scope(() => this.next(x).out);
    return scope(() => {
      const outs: Tensor[] = [];
      let memory: Tensor | undefined;
      for (const part of split(x, segment, 1)) {
        const step: TransformerXLStep = this.next(part, memory);
        outs.push(step.out);
        memory = step.memory;
      }
      return concat(outs, 1);
    });
  }

  /**
   * The next segment.
   *
   * @param x [batch, seq, width]
   * @param memory that `next` has returned for the segment before; none at the start
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  next(x: Tensor, memory?: Tensor): TransformerXLStep {
    const [batch, seq] = checkTokens(x, this.width);
    if (memory !== undefined) checkAlike(memory, 'memory', [batch, -1, this.width], 'batch, tokens, width', x);
    const { heads, headDim } = this;
    return scope(() => {
      const context = memory ? concat([memory.detach(), x], 1) : x;
      const keys = context.shape[1];
      const read = this.preNorm ? this.norm.forward(context) : context;
      const all = this.qkv.forward(read).reshape([batch, keys, 3 * heads, headDim]);
      const [q, k, v] = split(all, [heads, heads, heads], 2) as [Sequence, Sequence, Sequence];
      const distances = narrow(this.#distances.rowsFor(x, keys), x);
      const r = this.r.forward(distances).reshape([keys, heads, headDim]);
      const { contentBias, distanceBias } = this;
      const own = q.slice(1, keys - seq, keys);
      const attended = transformerXLAttention(own, k, v, r, { contentBias, distanceBias });
      const sum = add(x, this.out.forward(attended.reshape([batch, seq, heads * headDim]))) as Tensor;
      return {
        out: this.preNorm ? sum : this.norm.forward(sum),
        memory: context
          .detach()
          .slice(1, Math.max(0, keys - this.memory), keys)
          .contiguous(),
      };
    });
  }

  override dispose(): void {
    this.#distances?.dispose();
    super.dispose();
  }
}
