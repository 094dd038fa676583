/**
 * Attention as the formulas say it, with no fusion: S = scale Q K^T - slope (i - j) and P = softmax(S) are written out as whole
 * [batch, heads, context, context] arrays, P is kept for backward, and backward writes out dP as well. It is what
 * flashattn is compared with while training, and what the tests check the model against. It uses the same blocked
 * matrix product as the rest of the model and runs on one thread.
 */
import { type Matrix, matmul, matrix, transpose } from './matmul.js';
import type { Attention, AttentionMemory, AttentionShape } from './model.js';

/** dP [batch, heads, context, context], then dS in its place. Of no use after backward, so that all layers share it. */
let dWeights = new Float32Array();

export class UnfusedAttention implements Attention {
  readonly #scale: number;
  /** P [batch, heads, context, context] */
  readonly #weights: Float32Array;
  #qkv: Float32Array = new Float32Array();

  constructor(readonly shape: AttentionShape) {
    this.#scale = 1 / Math.sqrt(shape.headDim);
    this.#weights = new Float32Array(shape.batch * shape.heads * shape.context ** 2);
  }

  get memory(): AttentionMemory {
    return { perLayer: this.#weights.byteLength, shared: this.#weights.byteLength };
  }

  async forward(qkv: Float32Array, output: Float32Array): Promise<void> {
    this.#qkv = qkv;
    this.#eachHead((b, h) => {
      const P = this.#square(this.#weights, b, h);
      matmul(P, this.#part(qkv, 0, b, h), transpose(this.#part(qkv, 1, b, h)));
      softmaxRows(P, this.#scale, this.shape.slopes[h]);
      matmul(this.#head(output, b, h), P, this.#part(qkv, 2, b, h));
    });
  }

  async backward(dOutput: Float32Array, dQkv: Float32Array): Promise<void> {
    const qkv = this.#qkv;
    if (dWeights.length < this.#weights.length) dWeights = new Float32Array(this.#weights.length);
    this.#eachHead((b, h) => {
      const P = this.#square(this.#weights, b, h);
      const dS = this.#square(dWeights, b, h);
      const dO = this.#head(dOutput, b, h);
      matmul(this.#part(dQkv, 2, b, h), transpose(P), dO);
      matmul(dS, dO, transpose(this.#part(qkv, 2, b, h)));
      softmaxRowsBackward(P, dS, this.#scale);
      matmul(this.#part(dQkv, 0, b, h), dS, this.#part(qkv, 1, b, h));
      matmul(this.#part(dQkv, 1, b, h), transpose(dS), this.#part(qkv, 0, b, h));
    });
  }

  dispose(): void {}

  #eachHead(visit: (batch: number, head: number) => void): void {
    for (let b = 0; b < this.shape.batch; b++) for (let h = 0; h < this.shape.heads; h++) visit(b, h);
  }

  /** Q, K or V (part 0, 1, 2) of one head: [context, headDim] inside [batch, context, 3, heads, headDim] */
  #part(qkv: Float32Array, part: number, b: number, h: number): Matrix {
    const { context, heads, headDim } = this.shape;
    const width = heads * headDim;
    return matrix(qkv, context, headDim, 3 * width, b * context * 3 * width + part * width + h * headDim);
  }

  /** One head of the output: [context, headDim] inside [batch, context, heads, headDim] */
  #head(output: Float32Array, b: number, h: number): Matrix {
    const { context, heads, headDim } = this.shape;
    const width = heads * headDim;
    return matrix(output, context, headDim, width, b * context * width + h * headDim);
  }

  #square(weights: Float32Array, b: number, h: number): Matrix {
    const { context, heads } = this.shape;
    return matrix(weights, context, context, context, (b * heads + h) * context * context);
  }
}

/** Q K^T -> P in place; query i sees key j where j <= i. */
function softmaxRows(scores: Matrix, scale: number, slope: number): void {
  const { data, rows } = scores;
  for (let i = 0; i < rows; i++) {
    const row = scores.offset + i * scores.rowStride;
    let max = -Infinity;
    for (let j = 0; j <= i; j++) {
      const score = scale * data[row + j] - slope * (i - j);
      data[row + j] = score;
      if (score > max) max = score;
    }
    let sum = 0;
    for (let j = 0; j <= i; j++) {
      const e = Math.exp(data[row + j] - max);
      data[row + j] = e;
      sum += e;
    }
    const inverse = 1 / sum;
    for (let j = 0; j <= i; j++) data[row + j] *= inverse;
    data.fill(0, row + i + 1, row + rows);
  }
}

/** dP -> dS in place: dS = scale * P * (dP - rowsum(P * dP)), zero where P is. */
function softmaxRowsBackward(weights: Matrix, dWeights: Matrix, scale: number): void {
  const P = weights.data;
  const dP = dWeights.data;
  for (let i = 0; i < weights.rows; i++) {
    const row = weights.offset + i * weights.rowStride;
    let dot = 0;
    for (let j = 0; j <= i; j++) dot += P[row + j] * dP[row + j];
    for (let j = 0; j <= i; j++) dP[row + j] = scale * P[row + j] * (dP[row + j] - dot);
    dP.fill(0, row + i + 1, row + weights.rows);
  }
}
