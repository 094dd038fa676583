// RETRO's chunked cross-attention with a head that copies: its queries and keys say which words come before a place, its values
// which word comes there. A model that is trained has projections in their stead.
import { add, cast, concat, matmul, mul, pad, scope, type Tensor, tensor, zeros } from 'flashattn';
import { retroCrossAttention } from 'flashattn/systems';
import type { Neighbour } from './database.js';
import { type Chunk, wordOf } from './documents.js';
import type { WordVectors } from './vectors.js';

/** How much a word counts by how far before a place it stands. */
const context = [1, 0.5, 0.25];
/** Sharp: the best place of all should get nearly all of the weight. */
const scale = 32;
/** As much as the null counts that every token may attend to: less than the word itself, and more than what is alike by chance. */
const nullLikeness = 0.8;
/** Of what comes next: below, the null has won. */
const least = 0.5;

type Words = readonly string[];

/** [places, dim + 1]: of the words up to each place, the nearest most; `last` meets the null. */
function contexts(words: Words, vectors: WordVectors, last: 0 | 1): Tensor {
  const shifted = context.map((weight, back) => {
    const before = [...Array<string>(back).fill(''), ...words].slice(0, words.length);
    return mul(vectors.ofWords(before), weight) as Tensor;
  });
  const own = shifted.reduce((total, t) => add(total, t) as Tensor);
  return pad(own, [none, [0, 1]], last) as Tensor;
}

const none = [0, 0] as const;

export interface Prompt {
  /** As many as fill whole chunks, and those that have been written since. */
  readonly tokens: readonly string[];
  /** Tokens of a chunk. */
  readonly chunk: number;
  /** Of each whole chunk. */
  readonly neighbours: readonly (readonly Neighbour[])[];
  /** Of each chunk at most. */
  readonly count: number;
}

/** The token that comes next, as the neighbours have it; undefined where none of them goes on from here. */
export async function nextToken({ tokens, chunk, neighbours, count }: Prompt, vectors: WordVectors) {
  const { dim, device } = vectors;
  const length = 2 * chunk;
  const empty = { chunk: [], continuation: [] } as const;
  const retrieved = neighbours.flatMap((own) =>
    Array.from({ length: count }, (_, i) => own[i] ?? empty).map((n): Chunk => [...n.chunk, ...n.continuation]),
  );
  const filled = retrieved.map((own) => [...own, ...Array<string>(length - own.length).fill('')]);
  // The last token of a neighbour is followed by nothing that could be copied.
  const real = retrieved.flatMap((own) => Array.from({ length }, (_, i) => (i + 1 < own.length ? 1 : 0)));
  const words = filled.map((own) => own.map(wordOf));
  const following = words.flatMap((own) => [...own.slice(1), '']);
  // As it is written in the nearest neighbour of the latest chunk that has it.
  const candidates = new Map<string, string>();
  for (let first = filled.length - count; first >= 0; first -= count)
    for (const text of filled.slice(first, first + count).flatMap((own) => own.slice(1)))
      if (text !== '' && !candidates.has(wordOf(text))) candidates.set(wordOf(text), text);
  if (candidates.size === 0) return undefined;
  const likeness = scope(() => {
    const shape = [1, neighbours.length, count, length, 1];
    const query = contexts(tokens.map(wordOf), vectors, 1).reshape([1, tokens.length, 1, dim + 1]);
    const keys = words.map((own) => contexts(own, vectors, 0));
    const key = (concat(keys, 0) as Tensor).reshape([...shape, dim + 1]);
    const value = vectors.ofWords(following).reshape([...shape, dim]);
    const mask = cast(tensor(Int32Array.from(real), shape.slice(0, 4), { device }) as never, 'bool');
    const nullKey = pad(zeros([1, dim], { device }) as Tensor, [none, [0, 1]], nullLikeness) as Tensor;
    const nullValue = zeros([1, dim], { device }) as Tensor;
    const out = retroCrossAttention(query as Tensor, key as Tensor, value as Tensor, {
      chunk,
      scale,
      mask: mask as never,
      nullKey,
      nullValue,
    });
    const last = out.slice(1, tokens.length - 1, tokens.length).reshape([1, dim]);
    return matmul(last as Tensor, vectors.ofWords([...candidates.keys()]).transpose(0, 1));
  });
  const numbers = await likeness.toFloat32();
  likeness.dispose();
  const best = numbers.indexOf(Math.max(...numbers));
  return (numbers[best] as number) < least ? undefined : [...candidates.values()][best];
}
