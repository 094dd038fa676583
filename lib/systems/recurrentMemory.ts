import { checkFunction, checkInteger, checkOptions, checkWord, mustBe } from '../base/check.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick } from '../nn/initial.js';
import { type Layer, Module } from '../nn/module.js';
import { concat } from '../ops/concat.js';
import { split } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { sameShape } from '../tensor/shape.js';
import { checkTensor, type Tensor } from '../tensor/tensor.js';
import { narrow } from './inputs.js';

export interface RecurrentMemoryOptions {
  /** Tokens of a segment; the last one may be shorter. */
  readonly segment: number;
  /**
   * 'decoder' (default), for causal models: the memory stands before the tokens to be read, and once more behind them, where it
   * sees all of them and is written. 'encoder', for models that see everything: it stands before them, read and written at once.
   */
  readonly kind?: 'decoder' | 'encoder';
}

export interface RecurrentMemoryResult {
  /** [batch, seq, width] */
  readonly out: Tensor;
  /** After the last segment: [batch, memory tokens, width] */
  readonly memory: Tensor;
}

const kinds = ['decoder', 'encoder'] as const;

function checkTokens(x: unknown, memory: unknown): void {
  checkTensor(x, 'x');
  checkTensor(memory, 'memory');
  const [own, of] = [x.shape, memory.shape];
  if (own.length !== 3) throw shapeError(`x has shape ${show(own)}; it must be [batch, seq, width]`);
  const fits = of[of.length - 1] === own[2] && (of.length === 2 || (of.length === 3 && of[0] === own[0]));
  if (!fits || of[of.length - 2] < 1)
    throw shapeError(
      `memory has shape ${show(of)}; it must be [memory tokens, ${own[2]}] or [${own[0]}, memory tokens, ${own[2]}]`,
    );
  memory.operand('memory', x.backend);
}

/** One segment with the memory that it begins with. */
function step(tokens: Tensor, memory: Tensor, model: (z: Tensor) => Tensor, isDecoder: boolean): RecurrentMemoryResult {
  const z = concat(isDecoder ? [memory, tokens, memory] : [memory, tokens], 1);
  const y: unknown = model(z);
  checkTensor(y, 'model()');
  if (!sameShape(y.shape, z.shape) || y.dtype !== z.dtype)
    throw new FlashAttnError(
      'ERR_SHAPE',
      `model() gives ${y.dtype} ${show(y.shape)}; it must be ${z.dtype} ${show(z.shape)}, as what it is given`,
    );
  const [read, seq] = [memory.shape[1], tokens.shape[1]];
  const [first, out, last] = split(y, isDecoder ? [read, seq, read] : [read, seq], 1) as [Tensor, Tensor, Tensor];
  return { out, memory: isDecoder ? last : first };
}

/**
 * Recurrent memory: a model reads a sequence segment by segment, with memory tokens among its own that it hands on from one to
 * the next. Bulatov, Kuratov and Burtsev, "Recurrent Memory Transformer" (2022), arXiv:2207.06881, as
 * booydar/recurrent-memory-transformer has it. Gradients flow through all segments; `detach()` the memory between calls where
 * they are not to reach back that far.
 *
 * @param x [batch, seq, width]
 * @param memory that the first segment begins with: [memory tokens, width] for all batch entries, or that of a call before
 *   [batch, memory tokens, width]; of any float dtype
 * @param model of [batch, tokens, width], which it keeps: a layer or several, such as `TransformerBlock`, causal for a decoder
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY, and what the model throws
 */
export function recurrentMemory(
  x: Tensor,
  memory: Tensor,
  model: (z: Tensor) => Tensor,
  options: RecurrentMemoryOptions,
): RecurrentMemoryResult {
  checkTokens(x, memory);
  checkFunction(model, 'model');
  checkOptions(options, ['segment', 'kind']);
  const { segment, kind = 'decoder' } = options;
  checkInteger(segment, 'segment', 1);
  checkWord(kind, 'kind', kinds);
  return scope(() => {
    const [batch, seq] = x.shape;
    const own = narrow(memory, x) as Tensor;
    let state: Tensor = own.shape.length === 2 ? own.expand([batch, ...own.shape]) : own;
    if (seq === 0) return { out: x.contiguous(), memory: state.contiguous() };
    const outs: Tensor[] = [];
    for (const tokens of split(x, segment, 1)) {
      const { out, memory: next } = step(tokens, state, model, kind === 'decoder');
      outs.push(out);
      state = next;
    }
    return { out: concat(outs, 1), memory: state.contiguous() };
  });
}

export interface RecurrentMemoryLayerOptions<M extends Layer> extends ModuleOptions, RecurrentMemoryOptions {
  readonly width: number;
  /** How many memory tokens there are. */
  readonly memoryTokens: number;
  /** What reads each segment: see `recurrentMemory`. The layer owns it from then on. */
  readonly model: M;
  /** Of the memory. Default normal with a deviation of 0.02. */
  readonly initial?: Initial;
}

/** A model with a recurrent memory around it, whose first state is learned: see `recurrentMemory`. */
export class RecurrentMemoryTransformer<M extends Layer = Layer> extends Module {
  readonly model: M;
  /** [memory tokens, width] */
  memory: Tensor;
  readonly segment: number;
  readonly kind: 'decoder' | 'encoder';

  constructor(options: RecurrentMemoryLayerOptions<M>) {
    super();
    checkOptions(options, [...moduleOptionNames, 'width', 'memoryTokens', 'model', 'segment', 'kind', 'initial']);
    const { width, memoryTokens, model, segment, kind = 'decoder', initial = { kind: 'normal', std: 0.02 } } = options;
    checkInteger(width, 'width', 1);
    checkInteger(memoryTokens, 'memoryTokens', 1);
    this.segment = checkInteger(segment, 'segment', 1);
    this.kind = checkWord(kind, 'kind', kinds);
    if (!(model instanceof Module) || typeof model.forward !== 'function')
      throw mustBe('model', model, 'a module with a forward');
    this.model = model;
    this.memory = makeWeight([memoryTokens, width], initial, pick(options, moduleOptionNames));
  }

  /** x [batch, seq, width] from the start of a sequence. */
  forward(x: Tensor): Tensor {
    return scope(() => this.next(x).out);
  }

  /** @param memory that `next` has returned for the tokens before; the learned one at the start. @throws as `recurrentMemory` */
  next(x: Tensor, memory?: Tensor): RecurrentMemoryResult {
    const { segment, kind } = this;
    return recurrentMemory(x, memory ?? this.memory, (z) => this.model.forward(z), { segment, kind });
  }
}
