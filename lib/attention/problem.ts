import { checkBoolean } from '../base/check.js';
import type { DType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { BlockMask } from '../blockmask/blockMask.js';
import { blockMask } from '../blockmask/build.js';
import { Mask } from '../masks/mask.js';
import { type Shape, Tensor } from '../tensor/tensor.js';
import { type AttentionOptions, type Integers, optionNames } from './options.js';
import type { RelativeBias } from './relative.js';

/** A window side without a limit. */
export const unbounded = 0x3fffffff;
export const maxHeadDim = 256;

export interface DropoutProblem {
  readonly threshold: number;
  readonly keepScale: number;
  readonly seedLow: number;
  readonly seedHigh: number;
}

/** Relative positions as the kernels read them; `buckets[key - query + origin]` is a row of the table. */
export interface RelativeProblem {
  readonly buckets: Int32Array;
  readonly origin: number;
  readonly queryPosition: Int32Array | undefined;
  readonly keyPosition: Int32Array | undefined;
  readonly bucketCount: number;
}

/** A call to attention with every option checked and every default filled in; tensors themselves are not part of it. */
export interface AttentionProblem {
  readonly dtype: DType;
  readonly layout: 'bshd' | 'bhsd' | 'varlen';
  /** Batch entries, or sequences when varlen. */
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  /** The longest sequence of queries and of keys. */
  readonly queryLength: number;
  readonly keyLength: number;
  /** Rows of the tensors along their sequence dim: total tokens when varlen. */
  readonly queryRows: number;
  readonly keyRows: number;
  /** Per batch entry: query begin, query length, key begin, key length. Undefined: every sequence is whole. */
  readonly sequences: Int32Array | undefined;
  readonly scale: number;
  /** 0: none. */
  readonly softcap: number;
  readonly windowLeft: number;
  readonly windowRight: number;
  readonly topLeft: boolean;
  readonly dropout: DropoutProblem | undefined;
  readonly biasShape: readonly [number, number, number, number] | undefined;
  readonly alibi: { readonly batched: boolean; readonly slopes: Float32Array | undefined } | undefined;
  readonly relative: RelativeProblem | undefined;
  readonly blockMask: BlockMask | undefined;
  readonly hasSink: boolean;
  /** Whether backward has to give the same bits on repeats. */
  readonly deterministic: boolean;
}

export const isTensor = (value: unknown): value is Tensor => value instanceof Tensor;

function checkFinite(value: unknown, argument: string): number {
  if (typeof value === 'number' && Number.isFinite(value)) return value;
  throw optionError(`${argument} is ${show(value)}; it must be a finite number`);
}

function integers(values: Integers, argument: string): Int32Array {
  const valid =
    values instanceof Int32Array ||
    (Array.isArray(values) && values.every((n) => Number.isInteger(n) && n === (n | 0)));
  if (!valid)
    throw optionError(`${argument} is ${show(values)}; it must be an Int32Array or an array of 32-bit integers`);
  return values instanceof Int32Array ? values : Int32Array.from(values);
}

interface Dims {
  batch: number;
  queryRows: number;
  keyRows: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  valueDim: number;
}

/** Splits q, k and v's shapes into named dims and checks that they agree. */
function readDims(q: Shape, k: Shape, v: Shape, layout: AttentionProblem['layout']): Dims {
  const order =
    layout === 'varlen'
      ? '[total, heads, dim]'
      : layout === 'bshd'
        ? '[batch, seq, heads, dim]'
        : '[batch, heads, seq, dim]';
  const rank = layout === 'varlen' ? 3 : 4;
  for (const [name, shape] of Object.entries({ q, k, v })) {
    if (shape.length !== rank)
      throw shapeError(
        `${name} has shape ${show(shape)}; ${layout === 'varlen' ? 'with cuSeqlensQ it' : 'it'} must have rank ${rank}, ${order}`,
      );
  }
  const split = (shape: Shape) => {
    const [batch, rows, heads, dim] = (
      layout === 'varlen' ? [1, ...shape] : layout === 'bshd' ? shape : [shape[0], shape[2], shape[1], shape[3]]
    ) as [number, number, number, number];
    return { batch, rows, heads, dim };
  };
  const query = split(q);
  const key = split(k);
  const value = split(v);
  // Text for errors alone: it costs more than all the checks.
  const context = () => `q ${show(q)}, k ${show(k)}, v ${show(v)} (${order})`;
  if (query.batch !== key.batch || key.batch !== value.batch)
    throw shapeError(`the batch sizes differ: ${query.batch}, ${key.batch} and ${value.batch} in ${context()}`);
  if (query.dim !== key.dim)
    throw shapeError(`q and k must have the same head dim, got ${query.dim} and ${key.dim} in ${context()}`);
  if (key.rows !== value.rows)
    throw shapeError(`k and v must have the same length, got ${key.rows} and ${value.rows} in ${context()}`);
  if (key.heads !== value.heads)
    throw shapeError(`k and v must have the same number of heads, got ${key.heads} and ${value.heads} in ${context()}`);
  if (key.heads < 1 || query.heads < 1 || query.heads % key.heads !== 0)
    throw shapeError(
      `the ${query.heads} query heads must be a positive multiple of the ${key.heads} key/value heads in ${context()}`,
    );
  for (const [name, dim] of [
    ['head dim of q and k', query.dim],
    ['head dim of v', value.dim],
  ] as const)
    if (dim < 1 || dim > maxHeadDim)
      throw shapeError(`the ${name} is ${dim}; it must be from 1 to ${maxHeadDim} in ${context()}`);
  return {
    batch: query.batch,
    queryRows: query.rows,
    keyRows: key.rows,
    heads: query.heads,
    kvHeads: key.heads,
    headDim: query.dim,
    valueDim: value.dim,
  };
}

function readLengths(values: Integers | undefined, argument: string, batch: number, rows: number): Int32Array {
  if (values === undefined) return new Int32Array(batch).fill(rows);
  const lengths = integers(values, argument);
  if (lengths.length !== batch)
    throw optionError(`${argument} has ${lengths.length} entries; it needs one for each of the ${batch} batch entries`);
  const bad = lengths.findIndex((n) => n < 0 || n > rows);
  if (bad >= 0)
    throw optionError(`${argument}[${bad}] is ${lengths[bad]}; it must be from 0 to the sequence length ${rows}`);
  return lengths;
}

function readOffsets(values: Integers, argument: string, rows: number): Int32Array {
  const offsets = integers(values, argument);
  if (offsets.length < 1 || offsets[0] !== 0)
    throw optionError(`${argument} must start with 0, got ${show([...offsets.slice(0, 4)])}`);
  const fall = offsets.findIndex((n, i) => i > 0 && n < offsets[i - 1]);
  if (fall >= 0)
    throw optionError(
      `${argument} must never fall, but ${argument}[${fall}] = ${offsets[fall]} comes after ${offsets[fall - 1]}`,
    );
  const last = offsets[offsets.length - 1];
  if (last > rows) throw optionError(`${argument} ends at ${last}, past the ${rows} rows of the tensor`);
  return offsets;
}

function zipSequences(queries: Int32Array, keys: Int32Array, begins: 'offsets' | 'lengths'): Int32Array {
  const batch = begins === 'offsets' ? queries.length - 1 : queries.length;
  const sequences = new Int32Array(batch * 4);
  for (let b = 0; b < batch; b++) {
    const span = (x: Int32Array) => (begins === 'offsets' ? [x[b], x[b + 1] - x[b]] : [0, x[b]]);
    sequences.set([...span(queries), ...span(keys)], b * 4);
  }
  return sequences;
}

const longest = (sequences: Int32Array, field: number) => {
  let most = 0;
  for (let at = field; at < sequences.length; at += 4) most = Math.max(most, sequences[at]);
  return most;
};

function readSequences(options: AttentionOptions, dims: Dims) {
  if (options.cuSeqlensQ !== undefined) {
    const queries = readOffsets(options.cuSeqlensQ, 'cuSeqlensQ', dims.queryRows);
    const keys = readOffsets(options.cuSeqlensK, 'cuSeqlensK', dims.keyRows);
    if (queries.length !== keys.length)
      throw optionError(
        `cuSeqlensQ has ${queries.length} entries and cuSeqlensK ${keys.length}; both need sequences + 1`,
      );
    const sequences = zipSequences(queries, keys, 'offsets');
    return {
      batch: queries.length - 1,
      sequences,
      queryLength: longest(sequences, 1),
      keyLength: longest(sequences, 3),
    };
  }
  const whole = { batch: dims.batch, queryLength: dims.queryRows, keyLength: dims.keyRows };
  if (options.qLens === undefined && options.kLens === undefined) return { ...whole, sequences: undefined };
  const queries = readLengths(options.qLens, 'qLens', dims.batch, dims.queryRows);
  const keys = readLengths(options.kLens, 'kLens', dims.batch, dims.keyRows);
  return { ...whole, sequences: zipSequences(queries, keys, 'lengths') };
}

function readWindow(options: AttentionOptions): { windowLeft: number; windowRight: number } {
  const { window = [-1, -1], causal = false } = options;
  checkBoolean(causal, 'causal');
  const valid =
    Array.isArray(window) &&
    window.length === 2 &&
    window.every((n) => Number.isInteger(n) && n >= -1 && n < unbounded);
  if (!valid)
    throw optionError(`window is ${show(window)}; it must be [left, right], integers >= 0, or -1 for infinite`);
  const [left, right] = window.map((n) => (n === -1 ? unbounded : n)) as [number, number];
  return { windowLeft: left, windowRight: causal ? Math.min(right, 0) : right };
}

function readDropout(dropout: AttentionOptions['dropout']): DropoutProblem | undefined {
  if (dropout === undefined) return undefined;
  const { p, seed } = dropout;
  if (!(typeof p === 'number' && p >= 0 && p < 1))
    throw optionError(`dropout.p is ${show(p)}; it must be from 0 to below 1`);
  const whole = typeof seed === 'bigint' ? seed : Number.isSafeInteger(seed) ? BigInt(seed) : -1n;
  if (whole < 0n || whole >= 2n ** 64n)
    throw optionError(`dropout.seed is ${show(seed)}; it must be an integer from 0 to 2^64 - 1`);
  const threshold = Math.floor(p * 2 ** 32);
  if (threshold === 0) return undefined;
  return { threshold, keepScale: 1 / (1 - p), seedLow: Number(whole & 0xffffffffn), seedHigh: Number(whole >> 32n) };
}

type ProblemSequences = ReturnType<typeof readSequences>;

function readBiasShape(bias: Tensor | undefined, dims: Dims, s: ProblemSequences): AttentionProblem['biasShape'] {
  if (bias === undefined) return undefined;
  if (!isTensor(bias)) throw optionError(`bias is ${show(bias)}; it must be a tensor`);
  const full = [s.batch, dims.heads, s.queryLength, s.keyLength];
  const fits = bias.shape.length === 4 && bias.shape.every((n, axis) => n === 1 || n === full[axis]);
  if (!fits)
    throw shapeError(
      `bias has shape ${show(bias.shape)}; it must broadcast to [batch, heads, Nq, Nk] = ${show(full)}: each dim equal or 1`,
    );
  return bias.shape as unknown as readonly [number, number, number, number];
}

function readAlibi(alibi: AttentionOptions['alibi'], heads: number, batch: number): AttentionProblem['alibi'] {
  if (alibi === undefined) return undefined;
  if (isTensor(alibi)) {
    const [first, second] = alibi.shape;
    const batched = alibi.shape.length === 2 && first === batch && second === heads;
    if (!batched && !(alibi.shape.length === 1 && first === heads))
      throw shapeError(
        `alibi has shape ${show(alibi.shape)}; it must be [heads] = [${heads}] or [batch, heads] = [${batch}, ${heads}]`,
      );
    if (alibi.dtype !== 'float32') throw new FlashAttnError('ERR_DTYPE', `alibi is ${alibi.dtype}; slopes are float32`);
    return { batched, slopes: undefined };
  }
  const valid = alibi instanceof Float32Array || (Array.isArray(alibi) && alibi.every((x) => typeof x === 'number'));
  if (!valid) throw optionError(`alibi is ${show(alibi)}; it must be a tensor, a Float32Array or an array of numbers`);
  if (alibi.length !== heads)
    throw shapeError(`alibi has ${alibi.length} slopes; it needs one for each of the ${heads} query heads`);
  return { batched: false, slopes: Float32Array.from(alibi) };
}

function checkPositions(
  positions: Int32Array | undefined,
  argument: string,
  length: number,
): [least: number, most: number] {
  if (positions === undefined) return [0, Math.max(0, length - 1)];
  if (!(positions instanceof Int32Array) || positions.length < length)
    throw optionError(`${argument} must be an Int32Array with at least ${length} entries, one for each position`);
  let least = positions[0] ?? 0;
  let most = least;
  for (let i = 0; i < length; i++) {
    least = Math.min(least, positions[i]);
    most = Math.max(most, positions[i]);
  }
  return [least, most];
}

function readRelative(
  relative: RelativeBias | undefined,
  heads: number,
  s: ProblemSequences,
): RelativeProblem | undefined {
  if (relative === undefined) return undefined;
  const { table, buckets, origin, queryPosition, keyPosition } = relative;
  if (!isTensor(table)) throw optionError(`relativeBias.table is ${show(table)}; it must be a tensor [buckets, heads]`);
  if (table.shape.length !== 2 || table.shape[1] !== heads)
    throw shapeError(
      `relativeBias.table has shape ${show(table.shape)}; it must be [buckets, heads] with ${heads} heads`,
    );
  if (!(buckets instanceof Int32Array))
    throw optionError(`relativeBias.buckets is ${show(buckets)}; it must be an Int32Array`);
  if (!Number.isInteger(origin)) throw optionError(`relativeBias.origin is ${show(origin)}; it must be an integer`);
  const bucketCount = table.shape[0];
  const bad = buckets.findIndex((bucket) => bucket < 0 || bucket >= bucketCount);
  if (bad >= 0)
    throw optionError(`relativeBias.buckets[${bad}] is ${buckets[bad]}; the table has ${bucketCount} buckets`);
  const [leastQuery, mostQuery] = checkPositions(queryPosition, 'relativeBias.queryPosition', s.queryLength);
  const [leastKey, mostKey] = checkPositions(keyPosition, 'relativeBias.keyPosition', s.keyLength);
  const [first, last] = [leastKey - mostQuery + origin, mostKey - leastQuery + origin];
  if (s.queryLength && s.keyLength && (first < 0 || last >= buckets.length))
    throw optionError(
      `relativeBias.buckets has ${buckets.length} entries; these positions read entries ${first} to ${last}`,
    );
  return { buckets, origin, queryPosition, keyPosition, bucketCount };
}

const compiled = new WeakMap<Mask, Map<string, BlockMask>>();

/** Compiles a mask once for each pair of lengths. */
function compileMask(mask: Mask, heads: number, s: ProblemSequences): BlockMask {
  const known = compiled.get(mask) ?? new Map<string, BlockMask>();
  compiled.set(mask, known);
  const key = `${s.batch} ${heads} ${s.queryLength} ${s.keyLength}`;
  const result = known.get(key) ?? blockMask(mask, { batch: s.batch, heads, nq: s.queryLength, nk: s.keyLength });
  known.set(key, result);
  return result;
}

function readMask(mask: AttentionOptions['mask'], heads: number, s: ProblemSequences): BlockMask | undefined {
  if (mask === undefined) return undefined;
  if (mask instanceof Mask) return compileMask(mask, heads, s);
  if (!(mask instanceof BlockMask)) throw optionError(`mask is ${show(mask)}; it must be a mask or a block mask`);
  if (mask.queries !== s.queryLength || mask.keys !== s.keyLength)
    throw shapeError(
      `mask is for ${mask.queries} queries x ${mask.keys} keys; the problem has ${s.queryLength} x ${s.keyLength}`,
    );
  for (const [name, got, wanted] of [
    ['batch entries', mask.batch, s.batch],
    ['heads', mask.heads, heads],
  ] as const)
    if (got !== 1 && got !== wanted)
      throw shapeError(`mask is for ${got} ${name}; the problem has ${wanted}, and 1 fits all`);
  return mask;
}

/** @throws ERR_SHAPE, ERR_DTYPE or ERR_OPTION, naming the argument. */
export function readProblem(q: Shape, k: Shape, v: Shape, dtype: DType, options: AttentionOptions): AttentionProblem {
  if (options === null || typeof options !== 'object')
    throw optionError(`options is ${show(options)}; it must be an object`);
  const unknown = Object.keys(options).find((name) => !optionNames.has(name));
  if (unknown !== undefined)
    throw optionError(`there is no option ${show(unknown)}; the options are ${[...optionNames].join(', ')}`);
  const { align = 'bottomRight', layout = 'bshd', softcap, sink } = options;
  if (align !== 'bottomRight' && align !== 'topLeft')
    throw optionError(`align is ${show(align)}; it must be 'bottomRight' or 'topLeft'`);
  if (layout !== 'bshd' && layout !== 'bhsd')
    throw optionError(`layout is ${show(layout)}; it must be 'bshd' or 'bhsd'`);
  if (options.deterministic !== undefined) checkBoolean(options.deterministic, 'deterministic');
  const varlen = options.cuSeqlensQ !== undefined || options.cuSeqlensK !== undefined;
  if (varlen) {
    if (options.cuSeqlensQ === undefined || options.cuSeqlensK === undefined)
      throw optionError('cuSeqlensQ and cuSeqlensK must be given together');
    for (const name of ['layout', 'qLens', 'kLens'] as const)
      if (options[name] !== undefined) throw optionError(`${name} has no meaning together with cuSeqlensQ`);
  }
  const dims = readDims(q, k, v, varlen ? 'varlen' : layout);
  const sequences = readSequences(options, dims);
  const window = readWindow(options);
  if (softcap !== undefined && !(checkFinite(softcap, 'softcap') > 0))
    throw optionError(`softcap is ${softcap}; it must be positive`);
  if (sink !== undefined) {
    if (!isTensor(sink)) throw optionError(`sink is ${show(sink)}; it must be a tensor [heads]`);
    if (sink.shape.length !== 1 || sink.shape[0] !== dims.heads)
      throw shapeError(`sink has shape ${show(sink.shape)}; it must be [heads] = [${dims.heads}]`);
  }
  return {
    // Field by field: spreading objects of different shapes takes the engine's slow path.
    batch: sequences.batch,
    queryRows: dims.queryRows,
    keyRows: dims.keyRows,
    heads: dims.heads,
    kvHeads: dims.kvHeads,
    headDim: dims.headDim,
    valueDim: dims.valueDim,
    queryLength: sequences.queryLength,
    keyLength: sequences.keyLength,
    sequences: sequences.sequences,
    dtype,
    layout: varlen ? 'varlen' : layout,
    scale: options.scale === undefined ? 1 / Math.sqrt(dims.headDim) : checkFinite(options.scale, 'scale'),
    softcap: softcap ?? 0,
    windowLeft: window.windowLeft,
    windowRight: window.windowRight,
    topLeft: align === 'topLeft',
    dropout: readDropout(options.dropout),
    biasShape: readBiasShape(options.bias, dims, sequences),
    alibi: readAlibi(options.alibi, dims.heads, sequences.batch),
    relative: readRelative(options.relativeBias, dims.heads, sequences),
    blockMask: readMask(options.mask, dims.heads, sequences),
    hasSink: sink !== undefined,
    deterministic: options.deterministic ?? false,
  };
}
