/**
 * A GPT in miniature: embeddings, then blocks of attention and MLP around a residual stream, then a linear head.
 *
 *   x  = embedding(characters)
 *   x += projection(attention(qkv(norm(x))))      \ every block
 *   x += contract(gelu(expand(norm(x))))          /
 *   loss = cross entropy(head(norm(x)), next character)
 */
import { addTo, CrossEntropy, Embedding, Gelu, LayerNorm, Linear } from './layers.js';
import type { BlockWeights, Weights } from './parameters.js';

export interface AttentionShape {
  readonly batch: number;
  readonly context: number;
  readonly heads: number;
  readonly headDim: number;
  /**
   * One a head: the logit of a key falls by its head's slope for every character between it and the query. This
   * (ALiBi, Press et al. 2022) is all the model knows of positions. Near characters matter most from the first step
   * on, so that it learns in minutes what learned position embeddings take far longer to show.
   */
  readonly slopes: readonly number[];
}

/** Bytes held besides inputs, outputs and their gradients. */
export interface AttentionMemory {
  /** By every layer, since it must last from forward to backward. */
  readonly perLayer: number;
  /** Once for all layers, which take turns. */
  readonly shared: number;
}

/**
 * Causal self-attention with ALiBi as a layer. Queries, keys and values come interleaved in one array, as one matrix product
 * makes them. It is an interface so that the fused and the unfused form can take each other's place.
 */
export interface Attention {
  readonly shape: AttentionShape;
  readonly memory: AttentionMemory;
  /** qkv [batch, context, 3, heads, headDim] -> output [batch, context, heads, headDim] */
  forward(qkv: Float32Array, output: Float32Array): Promise<void>;
  /** For the qkv of the latest forward: gradient of its output -> gradient of qkv. */
  backward(dOutput: Float32Array, dQkv: Float32Array): Promise<void>;
  dispose(): void;
}

export type AttentionFactory = (shape: AttentionShape) => Attention;

/** One block; its forward and backward add to the residual stream and to its gradient in place. */
class Block {
  readonly attention: Attention;
  readonly qkv: Linear;
  readonly attended: Float32Array;
  readonly dQkv: Float32Array;
  readonly #attentionNorm: LayerNorm;
  readonly #projection: Linear;
  readonly #mlpNorm: LayerNorm;
  readonly #expand: Linear;
  readonly #gelu: Gelu;
  readonly #contract: Linear;
  /** Time spent in attention, both ways, since it was last set to zero. */
  attentionMs = 0;

  constructor(weights: BlockWeights, shape: AttentionShape, makeAttention: AttentionFactory) {
    const rows = shape.batch * shape.context;
    this.attention = makeAttention(shape);
    this.#attentionNorm = new LayerNorm(weights.attentionNorm, rows);
    this.qkv = new Linear(weights.qkv, rows);
    this.attended = new Float32Array(rows * shape.heads * shape.headDim);
    this.dQkv = new Float32Array(this.qkv.output.length);
    this.#projection = new Linear(weights.projection, rows);
    this.#mlpNorm = new LayerNorm(weights.mlpNorm, rows);
    this.#expand = new Linear(weights.expand, rows);
    this.#gelu = new Gelu(rows * weights.expand.outputs);
    this.#contract = new Linear(weights.contract, rows);
  }

  /** The gradient that reached attention in the latest backward. */
  get dAttended(): Float32Array {
    return this.#projection.dInput;
  }

  async forward(stream: Float32Array): Promise<void> {
    const qkv = this.qkv.forward(this.#attentionNorm.forward(stream));
    const started = performance.now();
    await this.attention.forward(qkv, this.attended);
    this.attentionMs += performance.now() - started;
    addTo(stream, this.#projection.forward(this.attended));
    addTo(stream, this.#contract.forward(this.#gelu.forward(this.#expand.forward(this.#mlpNorm.forward(stream)))));
  }

  async backward(dStream: Float32Array): Promise<void> {
    const dMlp = this.#expand.backward(this.#gelu.backward(this.#contract.backward(dStream)));
    addTo(dStream, this.#mlpNorm.backward(dMlp));
    this.#projection.backward(dStream);
    const started = performance.now();
    await this.attention.backward(this.dAttended, this.dQkv);
    this.attentionMs += performance.now() - started;
    addTo(dStream, this.#attentionNorm.backward(this.qkv.backward(this.dQkv)));
  }
}

/** How many stretches of text go through the model at once, and how long they are. */
export interface BatchShape {
  readonly batch: number;
  readonly context: number;
}

export class Transformer {
  readonly blocks: readonly Block[];
  readonly #embedding: Embedding;
  readonly #finalNorm: LayerNorm;
  readonly #head: Linear;
  readonly #loss: CrossEntropy;
  /** The residual stream [batch * context, width]: layers keep their own copies, so that one array serves all depths. */
  readonly #stream: Float32Array;

  constructor(
    readonly weights: Weights,
    readonly batchShape: BatchShape,
    makeAttention: AttentionFactory,
  ) {
    const { heads, headDim, slopes, vocabulary } = weights.config;
    const rows = batchShape.batch * batchShape.context;
    this.#stream = new Float32Array(rows * heads * headDim);
    this.#embedding = new Embedding(weights.tokenEmbedding, heads * headDim);
    const shape = { ...batchShape, heads, headDim, slopes };
    this.blocks = weights.blocks.map((block) => new Block(block, shape, makeAttention));
    this.#finalNorm = new LayerNorm(weights.finalNorm, rows);
    this.#head = new Linear(weights.head, rows);
    this.#loss = new CrossEntropy(rows, vocabulary);
  }

  /** tokens [batch * context] -> logits [batch * context, vocabulary] of the character that follows each */
  async forward(tokens: Int32Array): Promise<Float32Array> {
    this.#embedding.forward(tokens, this.#stream);
    for (const block of this.blocks) await block.forward(this.#stream);
    return this.#head.forward(this.#finalNorm.forward(this.#stream));
  }

  async loss(tokens: Int32Array, targets: Int32Array): Promise<number> {
    return this.#loss.forward(await this.forward(tokens), targets);
  }

  /** Adds the gradients of the latest `loss` to every parameter. */
  async backward(): Promise<void> {
    const dStream = this.#finalNorm.backward(this.#head.backward(this.#loss.backward()));
    for (const block of this.blocks.toReversed()) await block.backward(dStream);
    this.#embedding.backward(dStream);
  }

  /** Time spent in attention since the last call, in milliseconds. */
  takeAttentionMs(): number {
    let total = 0;
    for (const block of this.blocks) {
      total += block.attentionMs;
      block.attentionMs = 0;
    }
    return total;
  }

  dispose(): void {
    for (const block of this.blocks) block.attention.dispose();
  }
}
