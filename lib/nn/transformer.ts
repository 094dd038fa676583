// Attention and MLP layers, and the block that is made of them.
import { attention } from '../attention/attention.js';
import type { DenseOptions } from '../attention/options.js';
import { checkpoint } from '../autograd/checkpoint.js';
import {
  checkBoolean,
  checkFunction,
  checkInteger,
  checkNumber,
  checkOptions,
  checkWord,
  mustBe,
} from '../base/check.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { Operand } from '../ops/elementwise.js';
import { add, fused, gelu, relu, silu } from '../ops/elementwise.js';
import type { RopeAngles, RopeOptions } from '../ops/rope.js';
import { split } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { type Initial, type ModuleOptions, moduleOptionNames, pick, Seeds } from './initial.js';
import { Dropout, LayerNorm, Linear, linearOptionNames, normOptionNames, RMSNorm } from './layers.js';
import { type Layer, Module } from './module.js';

/** Rotary positions: see `rope`. */
export interface RotaryOptions {
  /** Of the wavelengths. Default 10,000. */
  readonly base?: number;
  /** How many of a head's dims are turned. Default all. */
  readonly dims?: number;
  readonly pairs?: 'half' | 'interleaved';
}

/** @internal Cosines and sines of rotary positions on a device, made once for the longest sequence so far. */
export class RotaryTables {
  #angles: RopeAngles | undefined;

  /** @param frequency what a pair of dims is turned by at each position */
  constructor(
    readonly pairs: number,
    readonly frequency: (pair: number) => number,
  ) {}

  /** Angles [positions, pairs] of at least `length` positions, on the device of x. */
  anglesFor(x: Tensor, length: number): RopeAngles {
    const known = this.#angles;
    if (known && known.cos.shape[0] >= length && known.cos.backend === x.backend) return known;
    this.dispose();
    const { pairs, frequency } = this;
    // Twice as many as before at least: a text that grows by a token would make them anew each time.
    const rows = Math.max(length, Math.min(2 * (known?.cos.shape[0] ?? 0), 2 ** 20));
    const tableOf = (f: (angle: number) => number) => {
      const table = new Float32Array(rows * pairs);
      for (let at = 0; at < table.length; at++) table[at] = f(Math.floor(at / pairs) * frequency(at % pairs));
      return unwatched(() => tensor(table, [rows, pairs], { device: x.device as 'cpu' }));
    };
    this.#angles = { cos: tableOf(Math.cos), sin: tableOf(Math.sin) };
    return this.#angles;
  }

  dispose(): void {
    this.#angles?.cos.dispose();
    this.#angles?.sin.dispose();
    this.#angles = undefined;
  }
}

/** @internal Rotary positions as `attention` takes them. */
export class Rotary {
  readonly #tables: RotaryTables;
  readonly #pairs: 'half' | 'interleaved';

  constructor(options: RotaryOptions, headDim: number) {
    checkOptions(options, ['base', 'dims', 'pairs'], 'rope');
    const { base = 10_000, dims = headDim, pairs = 'half' } = options;
    if (checkNumber(base, 'rope.base', 0) === 0) throw mustBe('rope.base', base, 'a finite number > 0');
    if (checkInteger(dims, 'rope.dims', 2, headDim) % 2 === 1) throw mustBe('rope.dims', dims, 'even');
    this.#pairs = checkWord(pairs, 'rope.pairs', ['half', 'interleaved']);
    const half = dims / 2;
    this.#tables = new RotaryTables(half, (pair) => base ** (-pair / half));
  }

  /** With at least `length` positions on the device of x. */
  optionFor(x: Tensor, length: number): RopeAngles & RopeOptions {
    const { cos, sin } = this.#tables.anglesFor(x, length);
    return { cos, sin, pairs: this.#pairs };
  }

  dispose(): void {
    this.#tables.dispose();
  }
}

const patternNames = ['causal', 'window', 'mask', 'softcap', 'alibi', 'scoreMod', 'scale', 'deterministic'] as const;

/** Options of `attention` that are the same in every call. */
type AttentionPattern = Pick<DenseOptions, (typeof patternNames)[number]>;

export interface MultiHeadAttentionOptions extends ModuleOptions, AttentionPattern {
  readonly width: number;
  readonly heads: number;
  /** Heads of keys and values, which divide `heads`. Default as many. */
  readonly kvHeads?: number;
  /** Default width / heads. */
  readonly headDim?: number;
  readonly rope?: RotaryOptions;
  /** Whether the projections have biases. Default true. */
  readonly bias?: boolean;
  readonly initial?: Initial;
  /** Of the projection back to the width. Default `initial`. */
  readonly initialOut?: Initial;
}

const attentionNames = [
  ...linearOptionNames,
  ...patternNames,
  ...(['width', 'heads', 'kvHeads', 'headDim', 'rope', 'initialOut'] as const),
] as const satisfies readonly (keyof MultiHeadAttentionOptions)[];

/** @internal How a layer attends whose keys and values are kept: see `GPT.logitsWith`. */
export interface CachedAttention {
  /** Positions that rotary angles have to reach. */
  readonly positions: number;
  /** q, k and v [batch, length, heads, dim] of new positions to out. */
  attend(q: Tensor, k: Tensor, v: Tensor, rope: (RopeAngles & RopeOptions) | undefined): Tensor;
}

/** Self-attention of x [batch, length, width] with projections before and after it. Vaswani et al. (2017). */
export class MultiHeadAttention extends Module {
  /** To queries, keys and values, in this order. */
  readonly qkv: Linear;
  readonly out: Linear;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly #pattern: AttentionPattern;
  readonly #rotary: Rotary | undefined;

  constructor(options: MultiHeadAttentionOptions) {
    super();
    checkOptions(options, attentionNames);
    const { width, heads, kvHeads = heads, rope, initialOut } = options;
    checkInteger(width, 'width', 1);
    checkInteger(heads, 'heads', 1);
    checkInteger(kvHeads, 'kvHeads', 1, heads);
    if (heads % kvHeads !== 0) throw mustBe('kvHeads', kvHeads, `a divisor of heads, ${heads}`);
    const headDim = options.headDim ?? width / heads;
    if (options.headDim === undefined && width % heads !== 0)
      throw optionError(`width ${width} is no multiple of heads ${heads}; give headDim`);
    checkInteger(headDim, 'headDim', 1, 256);
    const all = { ...pick(options, linearOptionNames), seed: Seeds.of(options.seed) };
    this.heads = heads;
    this.kvHeads = kvHeads;
    this.headDim = headDim;
    const pattern = Object.entries(pick(options, patternNames));
    this.#pattern = Object.fromEntries(pattern.filter(([, value]) => value !== undefined));
    this.#rotary = rope && new Rotary(rope, headDim);
    try {
      this.qkv = new Linear(width, (heads + 2 * kvHeads) * headDim, all);
      this.out = new Linear(heads * headDim, width, initialOut ? { ...all, initial: initialOut } : all);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    return this.forwardWith(x, undefined);
  }

  /** @internal What every call is told beside q, k, v and positions. */
  get pattern(): AttentionPattern {
    return this.#pattern;
  }

  /** @internal */
  forwardWith(x: Tensor, cached: CachedAttention | undefined): Tensor {
    checkTensor(x, 'x');
    if (x.shape.length !== 3)
      throw shapeError(`x has shape ${show(x.shape)}; it must be [batch, length, ${this.qkv.inputs}]`);
    const [batch, length] = x.shape as readonly [number, number, number];
    const { heads, kvHeads, headDim } = this;
    return scope(() => {
      const all = this.qkv.forward(x).reshape([batch, length, heads + 2 * kvHeads, headDim]);
      const [q, k, v] = split(all, [heads, kvHeads, kvHeads], 2) as [Tensor, Tensor, Tensor];
      const rope = this.#rotary?.optionFor(x, cached?.positions ?? length);
      const options = rope ? { ...this.#pattern, rope } : this.#pattern;
      const out = cached ? cached.attend(q, k, v, rope) : attention(q, k, v, options).out;
      return this.out.forward(out.reshape([batch, length, heads * headDim]));
    });
  }

  override dispose(): void {
    this.#rotary?.dispose();
    super.dispose();
  }
}

export type Activation = 'gelu' | 'geluTanh' | 'relu' | 'silu' | 'swiglu';

const gated = fused(function swiglu(gate, x) {
  return gate.mul(gate.sigmoid()).mul(x);
});

const activations: Readonly<Record<Exclude<Activation, 'swiglu'>, (x: Tensor) => Tensor>> = {
  gelu: (x) => gelu(x),
  geluTanh: (x) => gelu(x, { approximate: 'tanh' }),
  relu: (x) => relu(x),
  silu: (x) => silu(x),
};

export interface MLPOptions extends ModuleOptions {
  readonly width: number;
  /** Default 4 times the width. */
  readonly hidden?: number;
  /** 'swiglu' multiplies two projections, one through SiLU (Shazeer 2020). Default 'gelu'. */
  readonly activation?: Activation;
  readonly bias?: boolean;
  readonly initial?: Initial;
  readonly initialOut?: Initial;
}

const mlpNames = [
  ...linearOptionNames,
  ...(['width', 'hidden', 'activation', 'initialOut'] as const),
] as const satisfies readonly (keyof MLPOptions)[];

/** Two linear layers with an activation between them, at every position of x [..., width]. */
export class MLP extends Module {
  readonly up: Linear;
  readonly down: Linear;
  readonly activation: Activation;
  readonly hidden: number;

  constructor(options: MLPOptions) {
    super();
    checkOptions(options, mlpNames);
    const { width, hidden = 4 * width, activation = 'gelu', initialOut } = options;
    checkInteger(width, 'width', 1);
    checkInteger(hidden, 'hidden', 1);
    if (activation !== 'swiglu' && !Object.hasOwn(activations, activation))
      throw mustBe('activation', activation, "'gelu', 'geluTanh', 'relu', 'silu' or 'swiglu'");
    const all = { ...pick(options, linearOptionNames), seed: Seeds.of(options.seed) };
    this.hidden = hidden;
    this.activation = activation;
    try {
      this.up = new Linear(width, activation === 'swiglu' ? 2 * hidden : hidden, all);
      this.down = new Linear(hidden, width, initialOut ? { ...all, initial: initialOut } : all);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    return scope(() => {
      const wide = this.up.forward(x);
      if (this.activation !== 'swiglu') return this.down.forward(activations[this.activation](wide));
      const [gate, value] = split(wide, [this.hidden, this.hidden], -1) as [Operand, Operand];
      return this.down.forward(gated(gate, value));
    });
  }
}

/** What a block makes a layer in the place of its softmax attention with. */
export interface AttentionLayerOptions extends ModuleOptions {
  readonly width: number;
  readonly heads: number;
}

export interface TransformerBlockOptions<A extends Layer = MultiHeadAttention>
  extends MultiHeadAttentionOptions,
    Omit<MLPOptions, 'width'> {
  /**
   * Makes the layer that mixes tokens, of x [batch, length, width]. Default: `MultiHeadAttention`, whose options are none of
   * another one's.
   */
  readonly attention?: (options: AttentionLayerOptions) => A;
  /** Default 'layer'. */
  readonly norm?: 'layer' | 'rms';
  readonly epsilon?: number;
  /** Of what each half adds. Default 0. */
  readonly dropout?: number;
  /** Whether nothing but x is kept for gradients, and the block is computed again for them: see `checkpoint`. Default false. */
  readonly checkpoint?: boolean;
}

const blockNames = [
  ...new Set([...attentionNames, ...mlpNames, ...normOptionNames]),
  ...(['norm', 'dropout', 'checkpoint', 'attention'] as const),
] as const satisfies readonly (keyof TransformerBlockOptions)[];

const ofSoftmax = [...patternNames.filter((name) => name !== 'causal'), 'kvHeads', 'headDim', 'rope'] as const;

/** The layer that a caller makes. @throws ERR_OPTION for options that it knows nothing of, and for what is no layer */
function makeAttention<A extends Layer>(options: TransformerBlockOptions<A>): A {
  const make = checkFunction(options.attention, 'attention');
  const given = ofSoftmax.find((name) => options[name] !== undefined);
  if (given !== undefined)
    throw optionError(
      `${given} is given, and attention besides: it is an option of softmax attention, leave one of them out`,
    );
  const layer: unknown = make(pick(options, ['width', 'heads', ...moduleOptionNames]));
  if (layer instanceof Module && 'forward' in layer && typeof layer.forward === 'function') return layer as Layer as A;
  throw mustBe('attention()', layer, 'a module with a forward');
}

/** x + attention(norm(x)), then x + MLP(norm(x)). */
export class TransformerBlock<A extends Layer = MultiHeadAttention> extends Module {
  readonly norm1: LayerNorm | RMSNorm;
  readonly attention: A;
  readonly norm2: LayerNorm | RMSNorm;
  readonly mlp: MLP;
  readonly drop: Dropout;
  /** Whether the block is computed again for its gradients. */
  readonly checkpoint: boolean;

  constructor(options: TransformerBlockOptions<A>) {
    super();
    checkOptions(options, blockNames);
    this.checkpoint = checkBoolean(options.checkpoint ?? false, 'checkpoint');
    const all = { ...options, seed: Seeds.of(options.seed) };
    try {
      this.norm1 = makeNorm(all);
      this.attention =
        options.attention === undefined
          ? (new MultiHeadAttention(pick(all, attentionNames)) as Layer as A)
          : makeAttention(all);
      this.norm2 = makeNorm(all);
      this.mlp = new MLP(pick(all, mlpNames));
      this.drop = new Dropout(options.dropout ?? 0, { seed: all.seed });
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    return this.checkpoint ? checkpoint((t: Tensor) => this.#run(t), x) : this.#run(x);
  }

  /** @internal @throws ERR_OPTION where the layer is another one than softmax attention */
  forwardWith(x: Tensor, cached: CachedAttention): Tensor {
    const { attention } = this;
    if (!(attention instanceof MultiHeadAttention))
      throw optionError(
        `the attention of this block is ${show(attention)}; keys and values are those of MultiHeadAttention`,
      );
    return this.#run(x, (normed) => attention.forwardWith(normed, cached));
  }

  #run(x: Tensor, attend: (x: Tensor) => Tensor = (normed) => this.attention.forward(normed)): Tensor {
    return scope(() => {
      const attended = add(x, this.drop.forward(attend(this.norm1.forward(x))));
      return add(attended, this.drop.forward(this.mlp.forward(this.norm2.forward(attended))));
    });
  }
}

/** @internal */
export function makeNorm(
  options: { readonly norm?: 'layer' | 'rms'; readonly width: number; readonly epsilon?: number } & ModuleOptions,
): LayerNorm | RMSNorm {
  const { norm = 'layer', width } = options;
  if (norm !== 'layer' && norm !== 'rms') throw mustBe('norm', norm, "'layer' or 'rms'");
  const own = pick(options, normOptionNames);
  return norm === 'rms' ? new RMSNorm(width, own) : new LayerNorm(width, own);
}
