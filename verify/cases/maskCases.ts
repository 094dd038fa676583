/** Attention under random mask expressions. What a case is follows from its number alone. */
import { type AttentionOptions, blockMask } from 'flashattn';
import { uniform } from '../oracle/random.js';
import { type Case, type CaseMask, maskDims } from './case.js';
import { type Dims, type Expression, randomExpression, toMask } from './maskExpression.js';
import type { CaseDType } from './views.js';

export interface DrawnMask {
  readonly random: () => number;
  readonly dims: Dims;
  readonly expression: Expression;
  readonly blockSize: 64 | 128;
}

/** A mask over up to `longest` queries and keys. */
export function drawMask(number: number, longest = 300): DrawnMask {
  const random = uniform(number * 7919 + 1);
  const length = () => 1 + Math.floor(random() ** 2 * longest);
  const queries = length();
  const dims = { heads: 1 + Math.floor(random() * 3), queries, keys: random() < 0.5 ? queries : length() };
  return { random, dims, expression: randomExpression(random, dims, 4), blockSize: random() < 0.5 ? 64 : 128 };
}

/** A problem for the mask of that number, with random options. */
export function drawMaskedCase(number: number, dtype: CaseDType = 'float32', longest = 300): Case {
  const { random, dims, expression, blockSize } = drawMask(number, longest);
  const maybe = <T>(chance: number, value: T): T | undefined => (random() < chance ? value : undefined);
  const batch = 1 + Math.floor(random() * 2);
  const group = dims.heads % 2 === 0 && random() < 0.5 ? 2 : 1;
  const lengths = (limit: number) => Array.from({ length: batch }, () => Math.floor(random() * (limit + 1)));
  const drawn = {
    causal: maybe(0.2, true),
    align: maybe(0.5, 'topLeft' as const),
    window: maybe(0.2, [Math.floor(random() * 60), Math.floor(random() * 60)] as const),
    softcap: maybe(0.2, 2),
    bias: maybe(0.3, [random() < 0.5, random() < 0.5, random() < 0.5, random() < 0.5] as const),
    alibi: maybe(0.2, 'heads' as const),
    relative: maybe(0.2, 'distance' as const),
    sink: maybe(0.3, true),
    dropout: maybe(0.2, { p: 0.3, seed: number }),
    dLse: maybe(0.3, true),
    qLens: maybe(0.15, lengths(dims.queries)),
    kLens: maybe(0.15, lengths(dims.keys)),
  };
  const options = Object.fromEntries(Object.entries(drawn).filter(([, value]) => value !== undefined));
  // Packed sequences see the mask at their own positions; the longest of them spans it.
  const packed = {
    layout: 'varlen' as const,
    qLens: [dims.queries, ...lengths(dims.queries)],
    kLens: [...lengths(dims.keys), dims.keys],
  };
  const dense = {
    layout: random() < 0.5 ? ('bshd' as const) : ('bhsd' as const),
    batch,
    queryLength: dims.queries,
    keyLength: dims.keys,
  };
  return {
    seed: number,
    dtype,
    ...(random() < 0.75 ? { ...dense, ...options } : { ...options, ...packed }),
    kvHeads: dims.heads / group,
    group,
    headDim: 1 + Math.floor(random() * 24),
    valueDim: 1 + Math.floor(random() * 24),
    blockMask: { expression, blockSize, compiled: random() >= 0.3 },
  };
}

/** The mask of a case as the library takes it. */
export function compiledMask(c: Case, { expression, blockSize, compiled = true }: CaseMask): AttentionOptions['mask'] {
  const dims = maskDims(c);
  const mask = toMask(expression, dims);
  return compiled ? blockMask(mask, { heads: dims.heads, nq: dims.queries, nk: dims.keys, blockSize }) : mask;
}
