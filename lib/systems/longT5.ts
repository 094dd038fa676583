import { attention, attentionBackward, type Shape3, type Shape4 } from '../attention/attention.js';
import { mergeStates } from '../attention/merge.js';
import type { DenseOptions, Integers } from '../attention/options.js';
import { t5RelativeBias } from '../attention/relative.js';
import { checkInteger, checkIntegers, checkOptions as checkNames, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { gatherRows, RowMap, releaseCopies } from '../ops/gather.js';
import { sameShape } from '../tensor/shape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import {
  checkGradient,
  checkInputs,
  checkOptions,
  type Regrouped,
  type RegroupedGradients,
  SavedAttention,
  type ScaleOption,
  scoped,
  shapesOf,
  sumOf,
  viewOfAll,
} from './saved.js';

export interface LongT5Options extends ScaleOption {
  /** How many tokens on each side a token sees. */
  readonly radius: number;
  /** T5 relative position bias, bidirectional: [buckets, heads]. */
  readonly biasTable?: Tensor<FloatDType, Shape>;
  /** Distances from here on share the last bucket. Default 128. */
  readonly maxDistance?: number;
  /** How many tokens of each batch entry are real. Others are seen by nobody, and their rows are 0. */
  readonly lens?: Integers;
}

export interface LongT5GlobalOptions extends LongT5Options {
  /** Tokens that a global token stands for. */
  readonly blockSize: number;
  /** T5 relative position bias between a token's block and the global tokens: [buckets, heads]. */
  readonly globalBiasTable?: Tensor<FloatDType, Shape>;
}

export interface LongT5Gradients<D extends FloatDType = FloatDType> extends RegroupedGradients<D, Shape4> {
  readonly dBiasTable?: Tensor<FloatDType, Shape>;
}

export interface LongT5GlobalGradients<D extends FloatDType = FloatDType> extends LongT5Gradients<D> {
  readonly dkGlobal: Tensor<D, Shape4>;
  readonly dvGlobal: Tensor<D, Shape4>;
  readonly dGlobalBiasTable?: Tensor<FloatDType, Shape>;
}

/** What `longT5GlobalAttentionBackward` needs: attention to the neighbours and to the global tokens. */
export class SavedLongT5<D extends FloatDType = FloatDType> implements Disposable {
  /** @internal */
  constructor(
    readonly local: SavedAttention<D>,
    /** One for each number of global tokens that a batch entry has. */
    readonly global: readonly SavedAttention<D>[],
  ) {}

  dispose(): void {
    for (const part of [this.local, ...this.global]) part.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

const pattern = 'longT5GlobalAttention';
const localNames = ['radius', 'biasTable', 'maxDistance', 'lens'];
const globalNames = [...localNames, 'blockSize', 'globalBiasTable'];

function readLens(lens: Integers | undefined, batch: number, tokens: number): readonly number[] {
  if (lens === undefined) return Array.from({ length: batch }, () => tokens);
  const list = checkIntegers(lens, 'lens', 0, tokens);
  if (list.length !== batch)
    throw mustBe('lens', list, `an integer from 0 to ${tokens} for each of the ${batch} batch entries`);
  return list;
}

/** T5 has no scale. */
const common = ({ scale = 1 }: ScaleOption, lens: readonly number[]): DenseOptions => ({ scale, qLens: lens });

function localOptions(q: Tensor, options: LongT5Options): DenseOptions {
  const [batch, tokens] = q.shape;
  const { radius, biasTable, maxDistance } = options;
  checkInteger(radius, 'radius', 0);
  const lens = readLens(options.lens, batch, tokens);
  const relative = { queryLength: tokens, keyLength: tokens, ...(maxDistance !== undefined && { maxDistance }) };
  if (biasTable !== undefined) checkTensor(biasTable, 'biasTable');
  return {
    ...common(options, lens),
    kLens: lens,
    window: [radius, radius],
    ...(biasTable && tokens > 0 && { relativeBias: t5RelativeBias(biasTable, relative) }),
  };
}

const order = ['batch', 'tokens', 'heads', 'dim'];

/**
 * Local attention of LongT5 (Guo et al. 2022): out_i = softmax_j(scale * q_i.k_j + biasTable[bucket(j - i)]) v over the
 * tokens |i - j| <= radius, with scale 1 by default, as in T5.
 *
 * @param q [batch, tokens, heads, dim]
 * @param k [batch, tokens, kv heads, dim]
 * @param v [batch, tokens, kv heads, value dim]
 * @returns out [batch, tokens, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function longT5LocalAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<D, Shape4>,
  v: Tensor<D, Shape4>,
  options: LongT5Options,
): Regrouped<D, Shape4, undefined> {
  checkInputs(q, k, v, order);
  checkOptions(options, localNames);
  const local = localOptions(q, options);
  return scoped(({ keep }) => {
    const views = { q: keep(viewOfAll(q)), k: keep(viewOfAll(k)), v: keep(viewOfAll(v)) };
    const { out, lse } = attention(q, k, v, local);
    const saved = new SavedAttention<D, undefined>(
      'longT5LocalAttention',
      { ...views, out: keep(out), lse: keep(lse) },
      local,
      shapesOf(q, k, v),
      undefined,
    );
    return { out: viewOfAll(out), saved };
  });
}

/**
 * The gradients of `longT5LocalAttention`.
 *
 * @param dOut the shape and dtype of out
 * @param saved what the forward pass saved
 * @throws as `longT5LocalAttention`
 */
export function longT5LocalAttentionBackward<D extends FloatDType>(
  dOut: Tensor<D, Shape4>,
  saved: SavedAttention<D, undefined>,
): LongT5Gradients<D> {
  checkGradient(dOut, saved, 'longT5LocalAttention');
  const { dq, dk, dv, dRelativeBias } = attentionBackward<D, Shape>(dOut, saved);
  const gradients = { dq, dk, dv } as RegroupedGradients<D, Shape> as RegroupedGradients<D, Shape4>;
  return { ...gradients, ...(dRelativeBias && { dBiasTable: dRelativeBias }) };
}

/** How many global tokens a batch entry with so many tokens has. */
const blocksOf = (length: number, blockSize: number) => Math.floor(length / blockSize);

const blockMaps = new Remember<RowMap>(releaseCopies);

/** The rows of x, of all batch entries one after the other, that make each global token. */
const blockMap = (batch: number, tokens: number, blockSize: number, lens: readonly number[]): RowMap =>
  blockMaps.get([batch, tokens, blockSize, lens], () => {
    const blocks = blocksOf(tokens, blockSize);
    const lists: number[][] = Array.from({ length: batch * blocks }, () => []);
    for (let b = 0; b < batch; b++) {
      const last = blocksOf(lens[b], blockSize) - 1;
      if (last < 0) continue;
      // Tokens after the last whole block join it.
      for (let i = 0; i < lens[b]; i++)
        lists[b * blocks + Math.min(Math.floor(i / blockSize), last)].push(b * tokens + i);
    }
    return RowMap.fromLists(lists, batch * tokens);
  });

export interface GlobalTokenOptions {
  readonly blockSize: number;
  /** As in `longT5GlobalAttention`. */
  readonly lens?: Integers;
}

/**
 * The sums that LongT5's transient global tokens are made of: row c of a batch entry adds up the tokens of block c, the
 * last whole block taking those after it along. Normalisation and projections to kGlobal and vGlobal come next.
 *
 * @param x [batch, tokens, ...rest], contiguous
 * @returns [batch, floor(tokens / blockSize), ...rest]
 * @throws ERR_SHAPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function longT5GlobalTokens<D extends FloatDType>(
  x: Tensor<D, Shape>,
  options: GlobalTokenOptions,
): Tensor<D, Shape> {
  checkTensor(x, 'x');
  if (x.shape.length < 3) throw shapeError(`x has shape ${show(x.shape)}; it must be [batch, tokens, ...]`);
  checkNames(options, ['blockSize', 'lens']);
  const blockSize = checkInteger(options.blockSize, 'blockSize', 1);
  const [batch, tokens, ...rest] = x.shape;
  const map = blockMap(batch, tokens, blockSize, readLens(options.lens, batch, tokens));
  return scoped(({ use }) => {
    const rows = use(x.reshape([1, batch * tokens, ...rest] as Shape));
    return use(gatherRows(rows, map)).reshape([batch, blocksOf(tokens, blockSize), ...rest] as Shape);
  });
}

/**
 * The gradient of `longT5GlobalTokens` with respect to x.
 *
 * @param dTokens the shape of its result
 * @param tokens the tokens of x
 * @throws as `longT5GlobalTokens`
 */
export function longT5GlobalTokensBackward<D extends FloatDType>(
  dTokens: Tensor<D, Shape>,
  tokens: number,
  options: GlobalTokenOptions,
): Tensor<D, Shape> {
  checkTensor(dTokens, 'dTokens');
  checkNames(options, ['blockSize', 'lens']);
  const blockSize = checkInteger(options.blockSize, 'blockSize', 1);
  const [batch, blocks, ...rest] = dTokens.shape;
  if (dTokens.shape.length < 3 || blocks !== blocksOf(checkInteger(tokens, 'tokens', 0), blockSize))
    throw shapeError(
      `dTokens has shape ${show(dTokens.shape)}; ${tokens} tokens make [batch, ${blocksOf(tokens, blockSize)}, ...]`,
    );
  const map = blockMap(batch, tokens, blockSize, readLens(options.lens, batch, tokens));
  return scoped(({ use }) => {
    const rows = use(dTokens.reshape([1, batch * blocks, ...rest] as Shape));
    return use(gatherRows(rows, map.transposed())).reshape([batch, tokens, ...rest] as Shape);
  });
}

/**
 * Attention to the global tokens. A token's place among them is its block, which for the tokens after the last whole
 * block depends on the length of their sequence: batch entries that agree on it go together, the others see nothing.
 */
function globalOptions(q: Tensor, options: LongT5GlobalOptions): DenseOptions[] {
  const [batch, tokens] = q.shape;
  const { blockSize, globalBiasTable, maxDistance } = options;
  const blocks = blocksOf(tokens, blockSize);
  const lens = readLens(options.lens, batch, tokens);
  const counts = lens.map((length) => blocksOf(length, blockSize));
  const relative = { queryLength: blocks, keyLength: blocks, ...(maxDistance !== undefined && { maxDistance }) };
  return [...new Set(counts)].map((count) => {
    const place = Int32Array.from({ length: tokens }, (_, i) =>
      Math.max(0, Math.min(Math.floor(i / blockSize), count - 1)),
    );
    return {
      ...common(options, lens),
      kLens: counts.map((own) => (own === count ? own : 0)),
      ...(globalBiasTable && {
        relativeBias: { ...t5RelativeBias(globalBiasTable, relative), queryPosition: place },
      }),
    };
  });
}

function checkGlobal(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  kGlobal: unknown,
  vGlobal: unknown,
  options: LongT5GlobalOptions,
) {
  checkOptions(options, globalNames);
  const blockSize = checkInteger(options.blockSize, 'blockSize', 1);
  const [batch, tokens] = q.shape;
  const blocks = blocksOf(tokens, blockSize);
  if (blocks < 1) throw shapeError(`q has ${tokens} tokens; blockSize ${blockSize} leaves no global token`);
  if (options.globalBiasTable !== undefined) checkTensor(options.globalBiasTable, 'globalBiasTable');
  for (const [name, t, like] of [
    ['kGlobal', kGlobal, k],
    ['vGlobal', vGlobal, v],
  ] as const) {
    checkTensor(t, name);
    const wanted = [batch, blocks, ...like.shape.slice(2)];
    if (!sameShape(t.shape, wanted)) throw shapeError(`${name} has shape ${show(t.shape)}; it must be ${show(wanted)}`);
  }
}

/**
 * Transient global attention of LongT5 (Guo et al. 2022): one softmax over the tokens |i - j| <= radius and over the
 * global tokens c of the sequence, with logits scale * q_i.k_j + biasTable[bucket(j - i)] and
 * scale * q_i.kGlobal_c + globalBiasTable[bucket(c - block of i)]. Tokens after the last whole block belong to it.
 *
 * @param q [batch, tokens, heads, dim]
 * @param k [batch, tokens, kv heads, dim]
 * @param v [batch, tokens, kv heads, value dim]
 * @param kGlobal [batch, floor(tokens / blockSize), kv heads, dim], made from `longT5GlobalTokens`
 * @param vGlobal [batch, floor(tokens / blockSize), kv heads, value dim]
 * @returns out [batch, tokens, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function longT5GlobalAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<D, Shape4>,
  v: Tensor<D, Shape4>,
  kGlobal: Tensor<D, Shape4>,
  vGlobal: Tensor<D, Shape4>,
  options: LongT5GlobalOptions,
): { readonly out: Tensor<D, Shape4>; readonly saved: SavedLongT5<D> } {
  checkInputs(q, k, v, order);
  checkGlobal(q, k, v, kGlobal, vGlobal, options);
  const shapes = shapesOf(q, k, v);
  const calls = [
    { k, v, options: localOptions(q, options) },
    ...globalOptions(q, options).map((each) => ({ k: kGlobal, v: vGlobal, options: each })),
  ];
  return scoped(({ use, keep }) => {
    const states = calls.map((call) => {
      const { out, lse } = attention(q, call.k, call.v, call.options);
      return { out: use(out), lse: use(lse as Tensor<'float32', Shape3>) };
    });
    const merged = mergeStates<D, Shape4>(states);
    use(merged.lse);
    keep(merged.out);
    // With the merged results in place of its own, each part has the gradients of the softmax over all of them.
    const [local, ...global] = calls.map((call) => {
      const [query, key, value, out] = [q, call.k, call.v, merged.out].map((t) => keep(viewOfAll(t)));
      const tensors = { q: query, k: key, v: value, out, lse: keep(viewOfAll(merged.lse)) };
      return new SavedAttention<D, undefined>(pattern, tensors, call.options, shapes, undefined);
    });
    return { out: merged.out, saved: new SavedLongT5(local, global) };
  });
}

/**
 * The gradients of `longT5GlobalAttention`.
 *
 * @param dOut the shape and dtype of out
 * @param saved what the forward pass saved
 * @throws as `longT5GlobalAttention`
 */
export function longT5GlobalAttentionBackward<D extends FloatDType>(
  dOut: Tensor<D, Shape4>,
  saved: SavedLongT5<D>,
): LongT5GlobalGradients<D> {
  if (!(saved instanceof SavedLongT5)) throw mustBe('saved', saved, `what ${pattern} saved`);
  checkGradient(dOut, saved.local, pattern);
  const backward = (part: SavedAttention<D>) => attentionBackward<D, Shape>(dOut, part, part.options);
  return scoped(({ keep }) => {
    const local = backward(saved.local);
    const global = saved.global.map(backward);
    const sum = (terms: readonly Tensor<D, Shape>[]) => keep(sumOf(terms)) as Tensor<D, Shape4>;
    const tables = global.flatMap(({ dRelativeBias }) => (dRelativeBias ? [dRelativeBias] : []));
    return {
      dq: sum([local.dq, ...global.map(({ dq }) => dq)]),
      dk: keep(local.dk) as Tensor<D, Shape4>,
      dv: keep(local.dv) as Tensor<D, Shape4>,
      dkGlobal: sum(global.map(({ dk }) => dk)),
      dvGlobal: sum(global.map(({ dv }) => dv)),
      ...(local.dRelativeBias && { dBiasTable: keep(local.dRelativeBias) }),
      ...(tables.length > 0 && { dGlobalBiasTable: keep(sumOf(tables)) }),
    };
  });
}
