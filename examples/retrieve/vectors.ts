// Vectors that stand for words and for chunks, without training: what has words in common has vectors that are alike.
import {
  cast,
  type DeviceName,
  div,
  embedding,
  maximum,
  mul,
  normal,
  scatterAdd,
  scope,
  sqrt,
  square,
  sum,
  type Tensor,
  tensor,
} from 'flashattn';
import { type Chunk, wordOf } from './documents.js';

/** Rows of the table: words share one where their hashes meet. */
const rows = 2 ** 13;

/** FNV-1a. */
function hashOf(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return (hash >>> 0) % rows;
}

/** Words of one or two letters are in all texts; pairs of words, in few. */
function gramsOf(chunk: Chunk): string[] {
  const words = chunk.map(wordOf);
  return [...words.filter((word) => word.length > 2), ...words.slice(1).map((word, i) => `${words[i]} ${word}`)];
}

/** Random vectors of about length 1, one for each hash; any two of them are nearly at right angles. */
export class WordVectors implements Disposable {
  readonly #table: Tensor;

  constructor(
    readonly dim: number,
    seed: number,
    readonly device: DeviceName,
  ) {
    this.#table = normal([rows, dim], { std: 1 / Math.sqrt(dim), seed, device }) as Tensor;
  }

  #ids(words: readonly string[]) {
    return tensor(Int32Array.from(words, hashOf), [words.length], { device: this.device });
  }

  /** One row for each word, [words, dim]; zeros for a place without one. */
  ofWords(words: readonly string[]): Tensor {
    const isWord = Int32Array.from(words, (word) => (word === '' ? 0 : 1));
    return scope(() => {
      const real = cast(tensor(isWord, [words.length, 1], { device: this.device }), 'float32');
      return mul(embedding(this.#table, this.#ids(words)), real) as Tensor;
    });
  }

  /** One row for each chunk, [chunks, dim], of length 1: the sum of those of its words and of pairs of words. */
  ofChunks(chunks: readonly Chunk[]): Tensor {
    const grams = chunks.map(gramsOf);
    const owners = grams.flatMap((own, at) => own.map(() => at));
    return scope(() => {
      const vectors = embedding(this.#table, this.#ids(grams.flat()));
      const ids = tensor(Int32Array.from(owners), [owners.length], { device: this.device });
      const sums = scatterAdd(chunks.length, ids, vectors);
      // A chunk without words stays at zero.
      const lengths = maximum(sqrt(sum(square(sums), -1, { keepDims: true })), 1e-6);
      return div(sums, lengths) as Tensor;
    });
  }

  [Symbol.dispose](): void {
    this.#table.dispose();
  }
}
