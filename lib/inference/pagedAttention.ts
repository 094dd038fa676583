// Attention of a sequence's last positions over all of its positions, which lie in pages.
import { attention } from '../attention/attention.js';
import { viewOf } from '../attention/layout.js';
import type { DenseOptions, RotaryOption } from '../attention/options.js';
import { readProblem } from '../attention/problem.js';
import { rotaryTables } from '../attention/rotary.js';
import { pagedForward } from '../backends/shared/attention.js';
import { checkArray, checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { type AttentionProblem, pagedAttention as pagedOperation, type RotaryProblem } from '../kernels/attention.js';
import { cast } from '../ops/cast.js';
import { embedding } from '../ops/embedding.js';
import { rope as turn } from '../ops/rope.js';
import { scope } from '../tape/scope.js';
import { needsRecord } from '../tape/tape.js';
import { allocating, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';
import { fitsEntries, positionsOf, rowOf, type SequenceBlocks, type Span, spansOf, stepEntries } from './cacheStep.js';

/** What attention is told as everywhere: see `attention`. */
export interface PagedPattern extends Pick<DenseOptions, 'scale' | 'softcap' | 'sink' | 'window'> {
  /** [heads], as of `attention`. */
  readonly alibi?: ArrayLike<number>;
  /** Turns queries by the angles of their positions. Keys in pages have been turned. */
  readonly rope?: RotaryOption;
  /** Whether a query sees no key behind its own position. Default true. */
  readonly causal?: boolean;
}

const terms = ['scale', 'softcap', 'sink', 'window', 'alibi'] as const;
export const patternNames = [...terms, 'rope', 'causal'] as const;

export interface PagedAttentionOptions extends PagedPattern {
  /** Of each sequence its pages, in the order of positions. What is behind its length is not looked at. */
  readonly blockTable: readonly ArrayLike<number>[];
  /** Positions of each sequence, with those of its queries, which are its last ones. */
  readonly lengths: ArrayLike<number>;
  /** Of packed q [total, heads, dim]: how many of its rows each sequence has. */
  readonly counts?: readonly number[];
}

export interface PagedAttentionResult<D extends FloatDType = FloatDType> {
  /** [batch, new, heads, value dim], or [total, heads, value dim], in the dtype of q; 0 of rows without a key. */
  readonly out: Tensor<D, Shape>;
  /** float32 [heads, rows]: the natural logarithm of the sum of weights of each row. */
  readonly lse: Tensor<'float32', Shape>;
}

/** Keys and values as rows [pages * page size, kv heads, dim]. */
export interface Pages {
  readonly keys: Tensor;
  readonly values: Tensor;
  readonly blockSize: number;
}

/** How many rows of q each sequence has. @throws ERR_SHAPE, ERR_OPTION */
export function countsOf(q: Tensor, counts: readonly number[] | undefined): number[] {
  if (q.shape.length === 4 && counts === undefined)
    return new Array<number>(q.shape[0] as number).fill(q.shape[1] as number);
  if (q.shape.length !== 3 || counts === undefined)
    throw shapeError(
      `q has shape ${show(q.shape)}; it must be [batch, new, heads, dim], or [total, heads, dim] with counts`,
    );
  const list = checkArray(counts, 'counts', 'an array of integers', (n, name) => checkInteger(n, name, 0));
  const total = list.reduce((sum, n) => sum + n, 0);
  if (total !== q.shape[0])
    throw shapeError(`counts add up to ${total}; q has shape ${show(q.shape)}, and as many rows they must be`);
  return list;
}

/** [batch, new, heads, dim] as rows [batch * new, heads, dim]; rows are rows already. */
export function packed(t: Tensor): Tensor {
  if (t.shape.length === 3) return t;
  const [batch, count, heads, dim] = t.shape as readonly [number, number, number, number];
  return (t.isContiguous ? t : t.contiguous()).reshape([batch * count, heads, dim]);
}

const termsOf = (options: PagedPattern) => {
  const own = Object.fromEntries(
    terms.filter((name) => options[name] !== undefined).map((name) => [name, options[name]]),
  );
  return options.alibi ? { ...own, alibi: Float32Array.from(options.alibi) } : own;
};

/** A call whose arguments are right. */
export interface PagedCall {
  readonly q: Tensor;
  readonly pages: Pages;
  readonly spans: readonly Span[];
  readonly options: PagedPattern;
  /** As `attention` reads it, for one sequence of all rows there are. */
  readonly problem: AttentionProblem;
  readonly rotary: RotaryProblem | undefined;
}

/**
 * @param q [rows, heads, dim] and pages of rows, or what has these shapes
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED
 */
export function readPaged(
  q: Tensor,
  pages: Pages,
  spans: readonly Span[],
  options: PagedPattern,
): Pick<PagedCall, 'problem' | 'rotary'> {
  const { causal = true, rope } = options;
  checkBoolean(causal, 'causal');
  const [count, heads, dim] = q.shape as readonly [number, number, number];
  const [rows, , keyDim] = pages.keys.shape as readonly [number, number, number];
  if (dim !== keyDim) throw shapeError(`q has shape ${show(q.shape)}; the keys of the cache have ${keyDim} dims`);
  for (const [name, t] of Object.entries(rotaryTables(rope))) {
    checkTensor(t, name);
    t.operand(name, q.backend);
  }
  options.sink?.operand('sink', q.backend);
  const packedOptions = { ...termsOf(options), causal, cuSeqlensQ: [0, count], cuSeqlensK: [0, rows] };
  const problem = readProblem(
    [count, heads, dim],
    pages.keys.shape,
    pages.values.shape,
    q.dtype,
    packedOptions as object,
  );
  if (rope === undefined) return { problem, rotary: undefined };
  const last = spans.reduce((most, { begin, count: own }) => Math.max(most, begin + own), 0);
  const one: Shape = [1, last, 1, dim];
  return { problem, rotary: readProblem(one, one, one, 'float32', { rope }).rotary };
}

/** With kernels that read pages. */
function attendPages({ q, pages, spans, options, problem, rotary }: PagedCall): PagedAttentionResult {
  const { backend } = q;
  const { rope, sink } = options;
  const [rows, heads] = q.shape as readonly [number, number];
  const valueDim = pages.values.shape[2] as number;
  const entries = stepEntries(spans, pages.blockSize, backend.device as DeviceName);
  try {
    return allocating(backend, (allocate) => {
      const out = allocate([rows, heads, valueDim], q.dtype) as Tensor;
      const lse = allocate([heads, rows], 'float32');
      if (!entries) return { out, lse };
      const { sequences, queryLength, keyLength } = entries;
      const step = { batch: entries.entries, sequences, queryLength, keyLength, pageSize: pages.blockSize, rotary };
      pagedForward(
        backend,
        { ...problem, ...step },
        {
          query: viewOf(q, 'varlen', 'q', backend),
          key: viewOf(pages.keys, 'varlen', 'the keys', backend),
          value: viewOf(pages.values, 'varlen', 'the values', backend),
          out: viewOf(out, 'varlen', 'out', backend),
          lse: lse.flat('lse', backend),
          sink: sink?.flat('sink', backend),
          pages: { ...entries.pages.flat('pages', backend), count: entries.pages.shape[1] as number },
          ...(rope && {
            angles: { query: { cos: rope.cos.flat('rope.cos', backend), sin: rope.sin.flat('rope.sin', backend) } },
          }),
        },
      );
      return { out, lse };
    });
  } finally {
    entries?.pages.dispose();
  }
}

const indices = (values: readonly number[], device: DeviceName) =>
  tensor(Int32Array.from(values), [values.length], { device });

const offsetsOf = (counts: readonly number[]): number[] => {
  const sums = [0];
  for (const n of counts) sums.push((sums[sums.length - 1] as number) + n);
  return sums;
};

/** With kernels of packed sequences: the rows that are seen are brought together before. Recorded. */
function attendGathered({ q, pages, spans, options }: PagedCall): PagedAttentionResult {
  const { blockSize } = pages;
  const { causal = true, rope } = options;
  const device = q.backend.device as DeviceName;
  const lengths = spans.map(({ begin, count }) => (count === 0 ? 0 : begin + count));
  const rows = spans.flatMap(({ table }, at) =>
    Array.from({ length: lengths[at] as number }, (_, j) => rowOf(table, blockSize, j)),
  );
  return scope(() => {
    const ids = indices(rows, device);
    const gathered = (t: Tensor) => {
      const found = embedding(t, ids);
      return found.dtype === q.dtype ? found : cast(found, q.dtype);
    };
    const query = rope ? turnedAt(q, indices(positionsOf(spans), device), rope) : q;
    const { out, lse } = attention(query, gathered(pages.keys), gathered(pages.values), {
      ...termsOf(options),
      causal,
      cuSeqlensQ: offsetsOf(spans.map(({ count }) => count)),
      cuSeqlensK: offsetsOf(lengths),
    } as never);
    return { out: out as Tensor, lse: lse as PagedAttentionResult['lse'] };
  });
}

const turnedAt = (q: Tensor, positions: ReturnType<typeof indices>, { cos, sin, pairs }: RotaryOption): Tensor =>
  turn(q, { cos: embedding(cos, positions), sin: embedding(sin, positions) }, pairs === undefined ? {} : { pairs });

/** @internal */
export function attendPaged(call: PagedCall): PagedAttentionResult {
  const { q, pages, spans, options } = call;
  const isRecorded = needsRecord([q, pages.keys, pages.values, options.sink]);
  const readsPages = q.backend.has(pagedOperation) && fitsEntries(spans, options.causal ?? true);
  return readsPages && !isRecorded ? attendPages(call) : attendGathered(call);
}

/** @internal What has the form of q as it was given. */
export function unpacked(result: PagedAttentionResult, given: Tensor): PagedAttentionResult {
  if (given.shape.length === 3) return result;
  const [batch, count, heads] = given.shape as readonly [number, number, number];
  return { ...result, out: result.out.reshape([batch, count, heads, result.out.shape[2] as number]) };
}

/** [pages, page size, kv heads, dim] as rows. */
function rowsOf(t: unknown, name: string): Tensor {
  checkTensor(t, name);
  if (t.shape.length !== 4)
    throw shapeError(`${name} has shape ${show(t.shape)}; it must be [pages, page size, kv heads, dim]`);
  const [pages, size, heads, dim] = t.shape as readonly [number, number, number, number];
  if (!t.isContiguous) throw shapeError(`${name} must be contiguous, this is a strided view`);
  return t.reshape([pages * size, heads, dim]);
}

/**
 * Attention over keys and values in pages, as vLLM's block tables have them (Kwon et al., 2023): position p of sequence b is slot
 * p % page size of page blockTable[b][p / page size]. The queries of a sequence are its last positions.
 *
 * On the processor, kernels read pages where they are, and bits of a row depend on its own query and keys alone; see
 * `attentionWithCache`, which keeps pages too. Where a gradient is recorded, on CUDA, and for more than 16 queries of a sequence
 * that are not causal, the rows that are seen are brought together first.
 *
 * @param q [batch, new, heads, dim], or packed [total, heads, dim] with `counts`
 * @param keyPages [pages, page size, kv heads, dim], contiguous, of any float dtype
 * @param valuePages [pages, page size, kv heads, value dim], likewise
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function pagedAttention<D extends FloatDType>(
  q: Tensor<D, Shape>,
  keyPages: Tensor<FloatDType, Shape>,
  valuePages: Tensor<FloatDType, Shape>,
  options: PagedAttentionOptions,
): PagedAttentionResult<D>;
export function pagedAttention(
  q: Tensor,
  keyPages: Tensor,
  valuePages: Tensor,
  options: PagedAttentionOptions,
): PagedAttentionResult {
  checkTensor(q, 'q');
  checkOptions(options, [...patternNames, 'blockTable', 'lengths', 'counts']);
  const counts = countsOf(q, options.counts);
  return tidying(
    () => {
      const [keys, values] = [rowsOf(keyPages, 'keyPages'), rowsOf(valuePages, 'valuePages')];
      for (const [name, t] of Object.entries({ keyPages, valuePages })) t.operand(name, q.backend);
      const [blocks, blockSize] = keyPages.shape as readonly [number, number];
      if (valuePages.shape[1] !== blockSize)
        throw shapeError(
          `valuePages has shape ${show(valuePages.shape)} and keyPages ${show(keyPages.shape)}; their pages must be of one size`,
        );
      const { blockTable, lengths } = options;
      const tables = checkArray(
        blockTable,
        'blockTable',
        'an array of arrays of integers',
        (t) => t as ArrayLike<number>,
      );
      if (lengths === null || typeof lengths !== 'object' || lengths.length !== tables.length)
        throw new FlashAttnError(
          'ERR_OPTION',
          `lengths is ${show(lengths)}; it must have one for each of the ${tables.length} tables`,
        );
      const sequences = tables.map((table, b): SequenceBlocks => ({ table, length: lengths[b] as number }));
      const spans = spansOf({ blocks, blockSize, writes: false }, sequences, counts);
      const query = packed(q);
      const pages = { keys, values, blockSize };
      return unpacked(attendPaged({ q: query, pages, spans, options, ...readPaged(query, pages, spans, options) }), q);
    },
    ({ out, lse }) => [out, lse],
  );
}
