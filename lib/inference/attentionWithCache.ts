// Attention of new positions over all that a cache holds of their sequences.
import { attention } from '../attention/attention.js';
import { viewOf } from '../attention/layout.js';
import type { DenseOptions, RotaryOption } from '../attention/options.js';
import { readProblem } from '../attention/problem.js';
import { rotaryTables } from '../attention/rotary.js';
import { pagedForward } from '../backends/shared/attention.js';
import { checkArray, checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import type { AttentionProblem, RotaryProblem } from '../kernels/attention.js';
import type { Backend } from '../kernels/device.js';
import { storeRows } from '../kernels/storeRows.js';
import { cast } from '../ops/cast.js';
import { embedding } from '../ops/embedding.js';
import { rope as ropeOf } from '../ops/rope.js';
import { needsRecord, withoutRecording } from '../tape/tape.js';
import { allocating, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';
import { type SequenceBlocks, type Span, type StepEntries, spansOf, stepEntries, stepRows } from './cacheStep.js';
import { KvCache } from './kvCache.js';

/** What attention is told as everywhere: see `attention`. */
type Pattern = Pick<DenseOptions, 'scale' | 'softcap' | 'sink' | 'window'>;

export interface CachedAttentionOptions extends Pattern {
  /** Of the cache, from 0 on. */
  readonly layer: number;
  /** As many as q has: each with its new positions counted in `length`. */
  readonly sequences: readonly SequenceBlocks[];
  /** Of packed q [total, heads, dim]: how many of its rows each sequence has, its last positions. */
  readonly counts?: readonly number[];
  /** Keys and values of the new positions, in the order of q, of any float dtype; left out, they are in the cache already. */
  readonly k?: Tensor<FloatDType, Shape>;
  readonly v?: Tensor<FloatDType, Shape>;
  /** Turns q and k by the angles of their positions; the cache has turned keys. */
  readonly rope?: RotaryOption;
  /** [heads], as of `attention`. */
  readonly alibi?: ArrayLike<number>;
  /** Whether a query sees no key behind its own position. Default true. */
  readonly causal?: boolean;
}

const pattern = ['scale', 'softcap', 'sink', 'window', 'alibi'] as const;
const names = [...pattern, 'layer', 'sequences', 'counts', 'k', 'v', 'rope', 'causal'] as const;

export interface CachedAttentionResult<D extends FloatDType = FloatDType> {
  /** [batch, new, heads, value dim], or [total, heads, value dim], in the dtype of q. */
  readonly out: Tensor<D, Shape>;
  /** float32 [heads, rows]: the natural logarithm of the sum of weights of each row. */
  readonly lse: Tensor<'float32', Shape>;
}

/** Rows [total, heads, dim] of q, k or v. */
function packed(t: unknown, name: string, [batch, count]: readonly [number, number] | readonly []): Tensor {
  checkTensor(t, name);
  const rank = batch === undefined ? 3 : 4;
  if (t.shape.length !== rank)
    throw shapeError(
      `${name} has shape ${show(t.shape)}; it must be ${rank === 4 ? '[batch, new, heads, dim]' : '[total, heads, dim] with counts'}`,
    );
  if (rank === 3) return t;
  if (t.shape[0] !== batch || t.shape[1] !== count)
    throw shapeError(
      `${name} has shape ${show(t.shape)}; it must begin with ${show([batch, count])} as that of q does`,
    );
  const [, , heads, dim] = t.shape as readonly [number, number, number, number];
  return (t.isContiguous ? t : t.contiguous()).reshape([batch * (count as number), heads, dim]);
}

interface Call {
  readonly cache: KvCache;
  readonly layer: number;
  readonly spans: readonly Span[];
  readonly q: Tensor;
  readonly problem: AttentionProblem;
  readonly options: CachedAttentionOptions;
  readonly device: DeviceName;
}

function checkRows(t: Tensor, name: string, rows: number, heads: number, dim: number): void {
  const wanted = [rows, heads, dim];
  if (t.shape.some((n, axis) => n !== wanted[axis]))
    throw shapeError(
      `${name} has shape ${show(t.shape)} when packed; it must be ${show(wanted)}, [rows, kv heads, dim]`,
    );
}

function countsOf(q: Tensor, options: CachedAttentionOptions): number[] {
  const { counts } = options;
  if (q.shape.length === 4 && counts === undefined) {
    const [batch, count] = q.shape as readonly [number, number];
    return new Array<number>(batch).fill(count);
  }
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

/** The problem of the packed rows, as `attention` would read it for one sequence of all rows of the cache. */
function problemOf(q: Tensor, cache: KvCache, options: CachedAttentionOptions): AttentionProblem {
  const rows = cache.pool.blocks * cache.blockSize;
  const { causal = true, alibi } = options;
  checkBoolean(causal, 'causal');
  const own = Object.fromEntries(
    pattern.filter((name) => options[name] !== undefined).map((name) => [name, options[name]]),
  );
  const [heads, dim] = [q.shape[1] as number, q.shape[2] as number];
  if (dim !== cache.dim) throw shapeError(`q has shape ${show(q.shape)}; the keys of the cache have ${cache.dim} dims`);
  return readProblem(
    [q.shape[0] as number, heads, dim],
    [rows, cache.kvHeads, cache.dim],
    [rows, cache.kvHeads, cache.valueDim],
    q.dtype,
    { ...own, ...(alibi && { alibi }), causal, cuSeqlensQ: [0, q.shape[0] as number], cuSeqlensK: [0, rows] } as object,
  );
}

/** @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, where angles do not reach */
function readRotary(given: RotaryOption | undefined, spans: readonly Span[], dim: number): RotaryProblem | undefined {
  if (given === undefined) return undefined;
  const last = spans.reduce((most, { begin, count }) => Math.max(most, begin + count), 0);
  const one = readProblem([1, last, 1, dim], [1, last, 1, dim], [1, last, 1, dim], 'float32', { rope: given });
  return one.rotary;
}

/** Stores keys and values where the spans say. */
function store(
  { cache, layer, spans, options, device }: Call,
  k: Tensor,
  v: Tensor,
  rotary: RotaryProblem | undefined,
) {
  const { backend } = cache;
  const rows = stepRows(spans, cache.blockSize, device);
  const slots = rows.slots.flat('slots', backend);
  const put = (from: Tensor, name: string, to: Tensor, turned: boolean) => {
    const { rope } = options;
    const { cos, sin } = rope?.keys ?? rope ?? {};
    backend.launch(storeRows, {
      from: viewOf(from, 'varlen', name, backend),
      to: viewOf(to, 'varlen', 'the cache', backend),
      rows: slots,
      count: from.shape[0] as number,
      heads: from.shape[1] as number,
      dim: from.shape[2] as number,
      ...(turned &&
        rotary &&
        cos &&
        sin && {
          rotary: {
            ...rotary,
            angles: { cos: cos.flat('rope.cos', backend), sin: sin.flat('rope.sin', backend) },
            positions: rows.positions.flat('positions', backend),
          },
        }),
    });
    to.written();
  };
  put(k, 'k', cache.keys[layer] as Tensor, true);
  put(v, 'v', cache.values[layer] as Tensor, false);
}

/** With a kernel that reads pages. */
function attendPages(call: Call, backend: Backend, entries: StepEntries, rotary: RotaryProblem | undefined) {
  const { cache, layer, q, options } = call;
  const { rope, sink } = options;
  const [rows, heads] = q.shape as readonly [number, number];
  const problem: AttentionProblem = {
    ...call.problem,
    batch: entries.entries,
    sequences: entries.sequences,
    queryLength: entries.queryLength,
    keyLength: entries.keyLength,
    pageSize: cache.blockSize,
    rotary,
  };
  return allocating(backend, (allocate) => {
    const out = allocate([rows, heads, cache.valueDim], q.dtype) as Tensor;
    const lse = allocate([heads, rows], 'float32');
    pagedForward(backend, problem, {
      query: viewOf(q, 'varlen', 'q', backend),
      key: viewOf(cache.keys[layer] as Tensor, 'varlen', 'the keys', backend),
      value: viewOf(cache.values[layer] as Tensor, 'varlen', 'the values', backend),
      out: viewOf(out, 'varlen', 'out', backend),
      lse: lse.flat('lse', backend),
      sink: sink?.flat('sink', backend),
      pages: { ...entries.pages.flat('pages', backend), count: entries.pages.shape[1] as number },
      ...(rope && {
        angles: { query: { cos: rope.cos.flat('rope.cos', backend), sin: rope.sin.flat('rope.sin', backend) } },
      }),
    });
    return { out, lse };
  });
}

/** Without one: the rows that are seen are brought together before attention over packed sequences. */
function attendGathered({ cache, layer, spans, q, options, device }: Call): CachedAttentionResult {
  const { blockSize } = cache;
  const { causal = true, rope, alibi } = options;
  const lengths = spans.map(({ begin, count }) => (count === 0 ? 0 : begin + count));
  const rows = spans.flatMap(({ table }, at) =>
    Array.from(
      { length: lengths[at] as number },
      (_, j) => (table[Math.floor(j / blockSize)] as number) * blockSize + (j % blockSize),
    ),
  );
  const offsets = (counts: readonly number[]) => {
    const sums = [0];
    for (const n of counts) sums.push((sums[sums.length - 1] as number) + n);
    return sums;
  };
  return tidying(
    () => {
      const ids = tensor(Int32Array.from(rows), [rows.length], { device });
      const gathered = (t: Tensor) => {
        const found = embedding(t, ids);
        return found.dtype === q.dtype ? found : cast(found, q.dtype);
      };
      const query = rope ? turnedQueries(q, spans, rope, device) : q;
      const own = Object.fromEntries(
        pattern.filter((name) => options[name] !== undefined).map((name) => [name, options[name]]),
      );
      const { out, lse } = attention(
        query,
        gathered(cache.keys[layer] as Tensor),
        gathered(cache.values[layer] as Tensor),
        {
          ...own,
          ...(alibi && { alibi: Float32Array.from(alibi) }),
          causal,
          cuSeqlensQ: offsets(spans.map(({ count }) => count)),
          cuSeqlensK: offsets(lengths),
        } as never,
      );
      return { out: out as Tensor, lse: lse as CachedAttentionResult['lse'] };
    },
    ({ out, lse }) => [out, lse],
  );
}

function turnedQueries(
  q: Tensor,
  spans: readonly Span[],
  { cos, sin, pairs }: RotaryOption,
  device: DeviceName,
): Tensor {
  const positions = spans.flatMap(({ begin, count }) => Array.from({ length: count }, (_, i) => begin + i));
  const ids = tensor(Int32Array.from(positions), [positions.length], { device });
  return ropeOf(
    q,
    { cos: embedding(cos, ids), sin: embedding(sin, ids) } as never,
    pairs === undefined ? {} : { pairs },
  );
}

/**
 * Attention of each sequence's last positions, the new ones, over all positions that the cache holds of it: stores `k` and `v`
 * of the new positions first. Query i of n stands at position length - n + i and sees the keys up to it.
 *
 * Keys are summed in pieces of 256 that are merged in their order, on the processor with the kernels' own reading of blocks:
 * a row of the result has the same bits whatever other rows and sequences are computed with it, however a prompt is cut into
 * pieces, and on any number of threads. On CUDA the rows that are seen are brought together first.
 *
 * @param q [batch, new, heads, dim], the same number of new positions of each sequence; or packed [total, heads, dim] with
 *   `counts`. Heads are a multiple of the cache's
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_AUTOGRAD, ERR_OUT_OF_MEMORY, with the cache unchanged:
 *   also for blocks that are none, two sequences that write to one, lengths past the table, positions past the angles
 */
export function attentionWithCache<D extends FloatDType>(
  q: Tensor<D, Shape>,
  cache: KvCache,
  options: CachedAttentionOptions,
): CachedAttentionResult<D>;
export function attentionWithCache(q: Tensor, cache: KvCache, options: CachedAttentionOptions): CachedAttentionResult {
  checkTensor(q, 'q');
  if (!(cache instanceof KvCache)) throw optionError(`cache is ${show(cache)}; it must be what kvCache() makes`);
  cache.checkUsable();
  checkOptions(options, names);
  const { backend } = cache;
  const layer = cache.checkLayer(options.layer);
  const counts = countsOf(q, options);
  const spans = spansOf(cache, options.sequences, counts);
  const { k, v, sink, rope } = options;
  if ((k === undefined) !== (v === undefined)) throw optionError('k and v belong together; give both or neither');
  for (const [name, t] of Object.entries({ q, k, v, sink })) {
    if (t === undefined) continue;
    checkTensor(t, name);
    t.operand(name, backend);
    if (needsRecord([t]))
      throw new FlashAttnError(
        'ERR_AUTOGRAD',
        `${name} needs a gradient, and a cache has none: detach() it, or use noGrad()`,
      );
  }
  return withoutRecording(() =>
    tidying(
      () => {
        const batch = q.shape.length === 4 ? ([q.shape[0] as number, q.shape[1] as number] as const) : ([] as const);
        const query = packed(q, 'q', batch);
        const rows = query.shape[0] as number;
        const [key, value] = [k && packed(k, 'k', batch), v && packed(v, 'v', batch)];
        if (key) checkRows(key, 'k', rows, cache.kvHeads, cache.dim);
        if (value) checkRows(value, 'v', rows, cache.kvHeads, cache.valueDim);
        const problem = problemOf(query, cache, options);
        const rotary = readRotary(rope, spans, cache.dim);
        for (const [name, t] of Object.entries(rotaryTables(rope))) t.operand(name, backend);
        const device = backend.device as DeviceName;
        const call: Call = { cache, layer, spans, q: query, problem, options, device };
        const entries = backend.readsPages
          ? stepEntries(spans, cache.blockSize, device, options.causal ?? true)
          : undefined;
        if (key && value) store(call, key, value, rotary);
        const { out, lse } = entries ? attendPages(call, backend, entries, rotary) : attendGathered(call);
        const [first, each] = batch;
        const shaped =
          first === undefined ? out : out.reshape([first, each as number, query.shape[1] as number, cache.valueDim]);
        return { out: shaped, lse };
      },
      ({ out, lse }) => [out, lse],
    ),
  );
}
