import * as masks from '../masks/index.js';
import type { Mask } from '../masks/mask.js';
import { bigBird } from './bigBird.js';
import {
  deepspeedBigBird,
  deepspeedBSLongformer,
  deepspeedFixed,
  deepspeedLocalSlidingWindow,
  deepspeedVariable,
} from './deepspeed.js';
import { longformer } from './longformer.js';
import { sparseTransformerPaperFixed, sparseTransformerPaperStrided } from './sparseTransformer.js';
import { sqrtN } from './sqrtN.js';
import { streamingLLM } from './streamingLLM.js';
import { atrous, local, localDilated, sparse } from './strides.js';

/** A pattern with parameters that suit a sequence length, to be drawn. */
export interface GalleryEntry {
  readonly name: string;
  readonly title: string;
  make(length: number): Mask;
}

const entry = (name: string, title: string, make: (length: number) => Mask): GalleryEntry => ({ name, title, make });

/** The length as a whole number of tokens times a fraction, at least 1. */
const part = (length: number, of: number) => Math.max(1, Math.round(length / of));

/** A binary tree in the order of its levels. */
const binaryTree = (length: number) => Array.from({ length }, (_, node) => (node === 0 ? -1 : (node - 1) >> 1));

/** DeepSpeed's own block of 16 tokens, so that a short sequence shows the pattern. */
const deepspeed = (length: number) => ({ length });

/** Every named pattern once, for `npx flashattn mask` and docs/masks.md. */
export const gallery: readonly GalleryEntry[] = [
  entry('causal', 'Causal', () => masks.causal()),
  entry('slidingwindow', 'Sliding window', (n) => masks.and(masks.causal(), masks.slidingWindow(part(n, 8), 0))),
  entry('circularwindow', 'Circular window', (n) => masks.circularWindow(part(n, 10), part(n, 10))),
  entry('prefixlm', 'Prefix language model', (n) => masks.prefixLM(part(n, 4))),
  entry('documents', 'Packed documents, causal', (n) => {
    const lengths = [part(n, 2), part(n, 8), part(n, 5)];
    return masks.and(masks.documents([...lengths, n - lengths.reduce((a, b) => a + b)]), masks.causal());
  }),
  entry('tree', 'Token tree', (n) => masks.tree(binaryTree(n))),
  entry('longformer', 'Longformer', (n) => longformer({ window: part(n, 16), globals: [0, 1] })),
  entry('longformerdilated', 'Longformer, dilated', (n) => longformer({ window: part(n, 64), dilation: 8 })),
  entry('bigbird', 'BigBird', (n) => bigBird({ length: n })),
  entry('atrous', 'Atrous', (n) => atrous(part(n, 8))),
  entry('local', 'Local', (n) => local(part(n, 8))),
  entry('sparse', 'Sparse (local and atrous)', (n) => sparse(part(n, 8))),
  entry('localdilated', 'Local dilated', (n) => localDilated(part(n, 32), 4)),
  entry('sqrtn', 'Square-root blocks', (n) => sqrtN({ length: n })),
  entry('sparsetransformerstrided', 'Sparse Transformer, strided', (n) =>
    sparseTransformerPaperStrided({ stride: part(n, 8) }),
  ),
  entry('sparsetransformerfixed', 'Sparse Transformer, fixed', (n) =>
    sparseTransformerPaperFixed({ length: n, stride: part(n, 8), summary: part(n, 64) }),
  ),
  entry('streamingllm', 'StreamingLLM', (n) => streamingLLM({ start: 4, recent: part(n, 8) })),
  entry('deepspeedfixed', 'DeepSpeed Fixed', (n) => deepspeedFixed(deepspeed(n))),
  entry('deepspeedvariable', 'DeepSpeed Variable', (n) => deepspeedVariable({ ...deepspeed(n), numRandomBlocks: 1 })),
  entry('deepspeedbigbird', 'DeepSpeed BigBird', (n) => deepspeedBigBird(deepspeed(n))),
  entry('deepspeedbslongformer', 'DeepSpeed BSLongformer', (n) => deepspeedBSLongformer(deepspeed(n))),
  entry('deepspeedlocalslidingwindow', 'DeepSpeed LocalSlidingWindow', (n) =>
    deepspeedLocalSlidingWindow(deepspeed(n)),
  ),
];
