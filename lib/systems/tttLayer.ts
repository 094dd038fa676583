import type { Shape4 } from '../attention/attention.js';
import { checkInteger, checkNumber, checkOptions, mustBe } from '../base/check.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { LayerNorm, Linear, timesTransposed } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { Rotary } from '../nn/transformer.js';
import { add, fused } from '../ops/elementwise.js';
import { type RopeAngles, rope } from '../ops/rope.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { wide } from './inputs.js';
import {
  type TTTLinearWeights,
  type TTTMlpWeights,
  type TTTOptions,
  type TTTResult,
  type TTTState,
  tttLinear,
  tttMlp,
} from './ttt.js';
import { tttEpsilon } from './tttInner.js';

export interface TTTLayerOptions extends ModuleOptions {
  readonly width: number;
  /** A divisor of the width that leaves an even head dim. */
  readonly heads: number;
  /** Tokens that learn together. Default 16. */
  readonly miniBatch?: number;
  /** Multiplies the learned learning rates. Default 1; the authors train TTT-MLP with 0.1. */
  readonly baseLr?: number;
  /** Of the rotary wavelengths. Default 10,000. */
  readonly ropeTheta?: number;
  /** Of the projections. Default normal with standard deviation 0.02, as the authors'. */
  readonly initial?: Initial;
}

const names = [...moduleOptionNames, 'width', 'heads', 'miniBatch', 'baseLr', 'ropeTheta', 'initial'] as const;

const small: Initial = { kind: 'normal', std: 0.02 };

const rateOf = fused(function learningRate(x, scale) {
  return x.sigmoid().mul(scale);
});

type Any = Tensor<'float32', Shape4>;

/** What the layers of test-time training share: all but the inner model. */
abstract class TTTLayer<Weights> extends Module {
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly oProj: Linear;
  /** Added to 1 / (i + 1), the factor of token i of a mini-batch: [mini-batch]. */
  learnableTokenIdx: Tensor;
  /** The learning rate of head h is baseLr sigmoid(x.weight_h + bias_h) / head dim: [heads, 1, width] and [heads, 1]. */
  learnableTttLrWeight: Tensor;
  learnableTttLrBias: Tensor;
  /** The norm that ends the inner model, of each head: [heads, head dim]. */
  tttNormWeight: Tensor;
  tttNormBias: Tensor;
  readonly postNorm: LayerNorm;
  readonly width: number;
  readonly heads: number;
  readonly miniBatch: number;
  readonly baseLr: number;
  readonly #rotary: Rotary;
  #indices: Tensor | undefined;

  constructor(options: TTTLayerOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, miniBatch = 16, baseLr = 1, ropeTheta = 10_000, initial = small } = options;
    this.width = checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    this.miniBatch = checkInteger(miniBatch, 'miniBatch', 1);
    this.baseLr = checkNumber(baseLr, 'baseLr', 0);
    if (width % heads !== 0) throw optionError(`width ${width} is no multiple of heads ${heads}`);
    const dim = width / heads;
    if (dim % 2 !== 0) throw mustBe('width / heads', dim, 'even: rotary positions turn pairs of dims');
    this.#rotary = new Rotary({ base: ropeTheta, pairs: 'interleaved' }, dim);
    const all = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    const linear = () => new Linear(width, width, { ...all, bias: false, initial });
    try {
      this.qProj = linear();
      this.kProj = linear();
      this.vProj = linear();
      this.oProj = linear();
      this.learnableTokenIdx = makeWeight([miniBatch], { kind: 'zeros' }, all);
      this.learnableTttLrWeight = makeWeight([heads, 1, width], small, all);
      this.learnableTttLrBias = makeWeight([heads, 1], { kind: 'zeros' }, all);
      this.tttNormWeight = makeWeight([heads, dim], { kind: 'ones' }, all);
      this.tttNormBias = makeWeight([heads, dim], { kind: 'zeros' }, all);
      this.postNorm = new LayerNorm(width, { ...pick(all, moduleOptionNames), epsilon: tttEpsilon });
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** The inner model that a sequence begins with. */
  protected abstract get start(): Weights;

  protected abstract learn(
    q: Any,
    k: Any,
    v: Any,
    start: Weights | TTTState<Weights>,
    options: TTTOptions,
  ): TTTResult<'float32', Weights>;

  /** x [batch, seq, width] from the start of a sequence. */
  forward(x: Tensor): Tensor {
    return scope(() => this.next(x).out);
  }

  /**
   * The tokens that follow those that a state has been left by: as if both had come in one call.
   *
   * @param x [batch, seq, width]
   * @param state that `next` has returned for the tokens before; none at the start
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  next(x: Tensor, state?: TTTState<Weights>): { readonly out: Tensor; readonly state: TTTState<Weights> } {
    checkTensor(x, 'x');
    const { width, heads } = this;
    if (x.shape.length !== 3 || x.shape[2] !== width)
      throw shapeError(`x has shape ${show(x.shape)}; it must be [batch, seq, ${width}]`);
    const [batch, seq] = x.shape as readonly [number, number, number];
    const dim = width / heads;
    return scope(() => {
      const split = (projection: Linear) => projection.forward(x).reshape([batch, seq, heads, dim]);
      const angles = this.#anglesFrom(x, state?.position ?? 0, seq);
      const turned = (t: Tensor) => (seq > 0 ? rope(t, angles, { pairs: 'interleaved' }) : t) as unknown as Any;
      const logits = timesTransposed(
        x,
        this.learnableTttLrWeight.reshape([heads, width]),
        this.learnableTttLrBias.reshape([heads]),
      );
      const { out, state: after } = this.learn(
        turned(split(this.qProj)),
        turned(split(this.kProj)),
        split(this.vProj) as unknown as Any,
        state ?? this.start,
        {
          lr: rateOf(logits, this.baseLr / dim),
          tokenCoef: add(this.#indicesOn(x), wide(this.learnableTokenIdx)),
          norm: { gain: this.tttNormWeight, bias: this.tttNormBias },
        },
      );
      const joined = (out as unknown as Tensor).reshape([batch, seq, width]);
      return { out: this.oProj.forward(this.postNorm.forward(joined)), state: after };
    });
  }

  /** Angles of positions that begin anew with every mini-batch. */
  #anglesFrom(x: Tensor, position: number, seq: number): RopeAngles {
    const { cos, sin } = this.#rotary.optionFor(x, this.miniBatch);
    const size = this.miniBatch;
    const times = Math.ceil((position + seq) / size);
    const repeated = (t: Tensor<'float32', Shape>) => {
      const [, half] = t.shape as readonly [number, number];
      const all = t
        .slice(0, 0, size)
        .expand([times, size, half])
        .contiguous()
        .reshape([times * size, half]);
      return all.slice(0, position, position + seq);
    };
    return { cos: repeated(cos), sin: repeated(sin) };
  }

  /** 1 / (i + 1) */
  #indicesOn(x: Tensor): Tensor {
    if (this.#indices?.backend !== x.backend) {
      this.#indices?.dispose();
      const values = Float32Array.from({ length: this.miniBatch }, (_, i) => 1 / (i + 1));
      this.#indices = unwatched(() => tensor(values, [this.miniBatch], { device: x.device as DeviceName })) as Tensor;
    }
    return this.#indices as Tensor;
  }

  override dispose(): void {
    this.#rotary?.dispose();
    this.#indices?.dispose();
    super.dispose();
  }
}

/**
 * The TTT-Linear layer of Sun et al. (2024, arXiv:2407.04620) as its authors have it: projections without biases, rotary
 * positions on interleaved pairs of q and k that begin anew with every mini-batch, `tttLinear`, and a layer norm before the
 * projection back.
 */
export class TTTLinear extends TTTLayer<TTTLinearWeights> {
  /** [heads, head dim, head dim] */
  W1: Tensor;
  /** [heads, 1, head dim] */
  b1: Tensor;

  constructor(options: TTTLayerOptions) {
    const seed = Seeds.of(options?.seed);
    super({ ...options, seed });
    const dim = this.width / this.heads;
    const all = { ...pick(options, moduleOptionNames), seed };
    try {
      this.W1 = makeWeight([this.heads, dim, dim], small, all);
      this.b1 = makeWeight([this.heads, 1, dim], { kind: 'zeros' }, all);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  protected get start(): TTTLinearWeights {
    return { W: this.W1, b: this.b1 };
  }

  protected learn = tttLinear;
}

/** The TTT-MLP layer: as `TTTLinear`, with `tttMlp` and hidden layers of 4 times the head dim. */
export class TTTMlp extends TTTLayer<TTTMlpWeights> {
  /** [heads, head dim, 4 head dim] */
  W1: Tensor;
  /** [heads, 1, 4 head dim] */
  b1: Tensor;
  /** [heads, 4 head dim, head dim] */
  W2: Tensor;
  /** [heads, 1, head dim] */
  b2: Tensor;

  constructor(options: TTTLayerOptions) {
    const seed = Seeds.of(options?.seed);
    super({ ...options, seed });
    const { heads } = this;
    const dim = this.width / heads;
    const all = { ...pick(options, moduleOptionNames), seed };
    try {
      this.W1 = makeWeight([heads, dim, 4 * dim], small, all);
      this.b1 = makeWeight([heads, 1, 4 * dim], { kind: 'zeros' }, all);
      this.W2 = makeWeight([heads, 4 * dim, dim], small, all);
      this.b2 = makeWeight([heads, 1, dim], { kind: 'zeros' }, all);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  protected get start(): TTTMlpWeights {
    const { W1, b1, W2, b2 } = this;
    return { W1, b1, W2, b2 };
  }

  protected learn = tttMlp;
}
