import type { FloatDType } from '../base/dtype.js';
import type { BlockMask } from '../blockmask/blockMask.js';
import type { DeviceBuffer, HostArray, Uploaded } from './memory.js';
import { addressOf, blockLists, type Flat, refOf, type Strided, tensorRef, type View } from './operand.js';
import { operation } from './operation.js';
import { type ScoreProgram, scoreModFields, scoreModValues } from './scoreProgram.js';
import { struct, type ValuesOf } from './struct.js';

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

/** How many pairs of dims of q and k are turned, and which dims a pair has. */
export interface RotaryProblem {
  readonly pairs: number;
  readonly interleaved: boolean;
}

/** A call to attention with every option checked and every default filled in; tensors themselves are not part of it. */
export interface AttentionProblem {
  readonly dtype: FloatDType;
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
  /** Whether the diagonal starts at the first query and key; otherwise it ends at the last ones. */
  readonly topLeft: boolean;
  /** How many keys further right the diagonal lies. */
  readonly offset: number;
  readonly dropout: DropoutProblem | undefined;
  readonly biasShape: readonly [number, number, number, number] | undefined;
  readonly alibi: { readonly batched: boolean; readonly slopes: Float32Array | undefined } | undefined;
  readonly relative: RelativeProblem | undefined;
  /** What scores are replaced by, after all of the above. */
  readonly scoreMod: ScoreProgram | undefined;
  readonly blockMask: BlockMask | undefined;
  readonly hasSink: boolean;
  /** Where the kernel turns q and k as it loads them. */
  readonly rotary: RotaryProblem | undefined;
  /** Positions of a page, where keys and values are in pages: see `pagedAttention`. */
  readonly pageSize?: number;
  /** Whether backward has to give the same bits on repeats. */
  readonly deterministic: boolean;
}

/** float32 [positions, pairs], contiguous. */
export interface AngleOperands {
  readonly cos: Flat;
  readonly sin: Flat;
}

/** The tensors that options bring along, shared by forward and backward. */
export interface AttentionExtras {
  /** [batch, heads, Nq, Nk] with stride 0 where it broadcasts; `shape` is `problem.biasShape`. */
  readonly bias?: Strided | undefined;
  /** Contiguous [heads] or [batch, heads]. */
  readonly alibi?: Flat | undefined;
  /** Contiguous [buckets, heads]. */
  readonly relativeTable?: Flat | undefined;
  /** Contiguous [heads]. */
  readonly sink?: Flat | undefined;
  /** What `problem.scoreMod` looks up, float32 or int32. */
  readonly scoreTables?: readonly Flat[] | undefined;
  /** Of `problem.rotary`. */
  readonly angles?: { readonly query: AngleOperands; readonly key?: AngleOperands } | undefined;
}

export interface ForwardOperands extends AttentionExtras {
  readonly query: View;
  readonly key: View;
  readonly value: View;
  readonly out: View;
  /** Contiguous [batch, heads, query rows], or [heads, query rows]. */
  readonly lse: Flat;
}

export interface BackwardOperands extends ForwardOperands {
  readonly dOut: View;
  readonly dLse?: Flat | undefined;
  readonly dQuery: View;
  readonly dKey: View;
  readonly dValue: View;
  /** Contiguous, of shape `problem.biasShape`. */
  readonly dBias?: Flat | undefined;
  readonly dRelative?: Flat | undefined;
  readonly dSink?: Flat | undefined;
}

/** Rows of lse over all batches and heads. */
const lseRows = (p: AttentionProblem): number => (p.layout === 'varlen' ? 1 : p.batch) * p.heads * p.queryRows;

const shapeFields = {
  lseRows: 'int64',
  dtype: 'dtype',
  batch: 'int32',
  heads: 'int32',
  kvHeads: 'int32',
  headDim: 'int32',
  valueDim: 'int32',
  queryLength: 'int32',
  keyLength: 'int32',
  blockSize: 'int32',
  bucketCount: 'int32',
  options: 'int32',
  deterministic: 'int32',
  headsDiffer: 'int32',
  paged: 'int32',
  scale: 'float32',
} as const;

/** A problem without its tensors: what tiles and scratch memory depend on. */
export const attentionShape = struct('AttentionShape', shapeFields);

export function shapeOf(p: AttentionProblem): ValuesOf<typeof shapeFields> {
  const headsDiffer = p.biasShape || p.alibi || p.relative || p.scoreMod || p.dropout;
  return {
    lseRows: lseRows(p),
    dtype: p.dtype,
    batch: p.batch,
    heads: p.heads,
    kvHeads: p.kvHeads,
    headDim: p.headDim,
    valueDim: p.valueDim,
    queryLength: p.queryLength,
    keyLength: p.keyLength,
    blockSize: p.blockMask?.blockSize ?? 0,
    bucketCount: p.relative?.bucketCount ?? 0,
    options: p.softcap > 0 || headsDiffer ? 1 : 0,
    deterministic: p.deterministic ? 1 : 0,
    headsDiffer: headsDiffer ? 1 : 0,
    paged: p.pageSize ? 1 : 0,
    scale: p.scale,
  };
}

const partitionFields = {
  items: 'int64',
  decodeStates: 'int64',
  rowTerms: 'int64',
  dQuerySum: 'int64',
  turns: 'int64',
  dRelativePartial: 'int64',
  relativeSlices: 'int32',
  keySplits: 'int32',
  tilesPerItem: 'int32',
  queryTile: 'int32',
  keyTile: 'int32',
  threads: 'int32',
  sharedMemory: 'int32',
  reserved: 'int32',
} as const;

/** How a device cuts a problem into pieces, and the 32-bit words of the scratch arrays that backward needs. */
export const attentionPartition = struct('AttentionPartition', partitionFields);
export type AttentionPartition = ValuesOf<typeof partitionFields>;

/** Addresses of what a launch needs besides the caller's tensors, float32 or int32; 0 where there is none. */
export interface AttentionMemory {
  readonly sequences: number;
  readonly bias: number;
  /** Of `bias`, as it is read. */
  readonly biasStrides: readonly number[];
  readonly alibi: number;
  readonly relativeTable: number;
  readonly buckets: number;
  readonly queryPosition: number;
  readonly keyPosition: number;
  readonly sink: number;
  readonly scoreMod: Uploaded | undefined;
  readonly blockMask: Uploaded | undefined;
  readonly dRelative: number;
  readonly dSink: number;
  readonly dBias: number;
  readonly decodeStates: number;
  readonly rowTerms: number;
  readonly dQuerySum: number;
  readonly turns: number;
  readonly dRelativePartial: number;
  /** All memory behind these addresses. */
  readonly buffers: readonly DeviceBuffer[];
}

export interface AttentionLaunch<Operands extends ForwardOperands> {
  readonly problem: AttentionProblem;
  readonly operands: Operands;
  readonly memory: AttentionMemory;
  readonly partition: AttentionPartition;
}

/** The arrays of a block mask, in the order of `BlockMaskParams`. */
export const blockMaskArrays = ({ full, partial, bits, transposed }: BlockMask): readonly HostArray[] => [
  ...[full, partial, transposed.full, transposed.partial].flatMap(({ offsets, indices }) => [offsets, indices]),
  transposed.partialBlocks,
  bits,
];

const blockMaskFields = {
  full: blockLists,
  partial: blockLists,
  fullQueries: blockLists,
  partialQueries: blockLists,
  partialBlocks: 'address',
  bits: 'address',
  blockSize: 'int32',
  batch: 'int32',
  heads: 'int32',
  queryBlocks: 'int32',
  keyBlocks: 'int32',
  reserved: 'int32',
} as const;

function blockMaskValues(mask: BlockMask, { addresses }: Uploaded): ValuesOf<typeof blockMaskFields> {
  const lists = (at: number) => ({ offsets: addresses[at], indices: addresses[at + 1] });
  return {
    full: lists(0),
    partial: lists(2),
    fullQueries: lists(4),
    partialQueries: lists(6),
    partialBlocks: addresses[8],
    bits: addresses[9],
    blockSize: mask.blockSize,
    batch: mask.batch,
    heads: mask.heads,
    queryBlocks: mask.rows,
    keyBlocks: mask.columns,
  };
}

export const rotaryAngles = struct('RotaryAngles', { cos: 'address', sin: 'address' });

const anglesOf = (angles: AngleOperands | undefined) => ({ cos: addressOf(angles?.cos), sin: addressOf(angles?.sin) });

const fields = {
  query: tensorRef,
  key: tensorRef,
  value: tensorRef,
  out: tensorRef,
  lse: 'address',
  lseBatch: 'int64',
  lseHead: 'int64',
  sequences: 'address',
  bias: struct('BiasParams', { data: 'address', batch: 'int64', head: 'int64', query: 'int64', key: 'int64' }),
  alibi: struct('AlibiParams', { slopes: 'address', batch: 'int64' }),
  relative: struct('RelativeParams', {
    table: 'address',
    buckets: 'address',
    queryPosition: 'address',
    keyPosition: 'address',
    origin: 'int32',
    bucketCount: 'int32',
  }),
  sink: 'address',
  blockMask: struct('BlockMaskParams', blockMaskFields),
  rotary: struct('RotaryParams', {
    query: rotaryAngles,
    key: rotaryAngles,
    pairs: 'int32',
    interleaved: 'int32',
  }),
  pages: struct('PageParams', { table: 'address', size: 'int32', pages: 'int32' }),
  dropout: struct('DropoutParams', {
    threshold: 'uint32',
    keepScale: 'float32',
    seedLow: 'uint32',
    seedHigh: 'uint32',
  }),
  scoreMod: struct('ScoreModParams', scoreModFields),
  batch: 'int32',
  heads: 'int32',
  kvHeads: 'int32',
  headDim: 'int32',
  valueDim: 'int32',
  queryLength: 'int32',
  keyLength: 'int32',
  scale: 'float32',
  softcap: 'float32',
  windowLeft: 'int32',
  windowRight: 'int32',
  topLeft: 'int32',
  offset: 'int32',
  deterministic: 'int32',
  tilesPerItem: 'int32',
  reserved: 'int32',
  decodeStates: 'address',
  lseRows: 'int64',
  // Backward only.
  dOut: tensorRef,
  dQuery: tensorRef,
  dKey: tensorRef,
  dValue: tensorRef,
  dLse: 'address',
  rowTerms: 'address',
  dQuerySum: 'address',
  turns: 'address',
  dRelativePartial: 'address',
  dRelative: 'address',
  dSink: 'address',
  dBias: 'address',
  biasBatch: 'int32',
  biasHeads: 'int32',
  biasQuery: 'int32',
  biasKey: 'int32',
  relativeSlices: 'int32',
  keySplits: 'int32',
} as const;

const params = struct('AttentionParams', fields);

function paramsOf(
  { problem: p, operands, memory, partition }: AttentionLaunch<ForwardOperands>,
  { backward, pages }: { readonly backward?: BackwardOperands; readonly pages?: PageTable } = {},
): ValuesOf<typeof fields> {
  const [biasBatch, biasHeads, biasQuery, biasKey] = p.biasShape ?? [1, 1, 1, 1];
  const [batch = 0, head = 0, query = 0, key = 0] = memory.biasStrides;
  return {
    query: refOf(operands.query),
    key: refOf(operands.key),
    value: refOf(operands.value),
    out: refOf(operands.out),
    lse: addressOf(operands.lse),
    lseBatch: p.layout === 'varlen' ? 0 : p.heads * p.queryRows,
    lseHead: p.queryRows,
    sequences: memory.sequences,
    bias: p.biasShape && { data: memory.bias, batch, head, query, key },
    alibi: p.alibi && { slopes: memory.alibi, batch: p.alibi.batched ? p.heads : 0 },
    relative: p.relative && {
      table: memory.relativeTable,
      buckets: memory.buckets,
      queryPosition: memory.queryPosition,
      keyPosition: memory.keyPosition,
      origin: p.relative.origin,
      bucketCount: p.relative.bucketCount,
    },
    sink: memory.sink,
    blockMask: p.blockMask && memory.blockMask && blockMaskValues(p.blockMask, memory.blockMask),
    rotary: p.rotary &&
      operands.angles && {
        query: anglesOf(operands.angles.query),
        key: anglesOf(operands.angles.key),
        pairs: p.rotary.pairs,
        interleaved: p.rotary.interleaved ? 1 : 0,
      },
    pages: pages && { table: addressOf(pages), size: p.pageSize ?? 0, pages: pages.count },
    dropout: p.dropout ?? { threshold: 0, keepScale: 1, seedLow: 0, seedHigh: 0 },
    scoreMod: memory.scoreMod && scoreModValues(memory.scoreMod.addresses[0], operands.scoreTables ?? []),
    batch: p.batch,
    heads: p.heads,
    kvHeads: p.kvHeads,
    headDim: p.headDim,
    valueDim: p.valueDim,
    queryLength: p.queryLength,
    keyLength: p.keyLength,
    scale: p.scale,
    softcap: p.softcap,
    windowLeft: p.windowLeft,
    windowRight: p.windowRight,
    topLeft: p.topLeft ? 1 : 0,
    offset: p.offset,
    deterministic: p.deterministic ? 1 : 0,
    tilesPerItem: partition.tilesPerItem,
    decodeStates: memory.decodeStates,
    lseRows: lseRows(p),
    dOut: refOf(backward?.dOut),
    dQuery: refOf(backward?.dQuery),
    dKey: refOf(backward?.dKey),
    dValue: refOf(backward?.dValue),
    dLse: addressOf(backward?.dLse),
    rowTerms: memory.rowTerms,
    dQuerySum: memory.dQuerySum,
    turns: memory.turns,
    dRelativePartial: memory.dRelativePartial,
    dRelative: memory.dRelative,
    dSink: memory.dSink,
    dBias: memory.dBias,
    biasBatch,
    biasHeads,
    biasQuery,
    biasKey,
    relativeSlices: partition.relativeSlices,
    keySplits: partition.keySplits,
  };
}

// Rows are worked on four at a time, and a head has a cost of its own.
const lanes = 4;
const headWork = 4000;

/** Floating-point operations, roughly, given those of a pair of query and key; what masks leave out counts too. */
const workOf = (p: AttentionProblem, perPair: number, modSteps = 0) =>
  p.batch * p.heads * (headWork + Math.ceil(p.queryLength / lanes) * lanes * p.keyLength * (perPair + 2 * modSteps));

function buffersRead({ operands, memory }: AttentionLaunch<ForwardOperands>): DeviceBuffer[] {
  const { query, key, value, bias, alibi, relativeTable, sink, scoreTables, angles } = operands;
  const reads = [query.buffer, key.buffer, value.buffer, ...memory.buffers];
  for (const operand of [bias, alibi, relativeTable, sink]) if (operand) reads.push(operand.buffer);
  if (scoreTables) for (const table of scoreTables) reads.push(table.buffer);
  for (const side of [angles?.query, angles?.key]) if (side) reads.push(side.cos.buffer, side.sin.buffer);
  return reads;
}

/** Writes out and lse of every row of every sequence. */
export const attentionForward = operation('attentionForward', params, (launch: AttentionLaunch<ForwardOperands>) => {
  const { problem: p, operands } = launch;
  if (p.batch === 0 || p.queryLength === 0) return undefined;
  return {
    params: paramsOf(launch),
    reads: buffersRead(launch),
    writes: [operands.out.buffer, operands.lse.buffer],
    work: workOf(p, 2 * (p.headDim + p.valueDim), p.scoreMod?.valueCount),
  };
});

/** int32 [sequences, count]: which page has the positions from `count index` times `pageSize` on. */
export interface PageTable extends Flat {
  readonly count: number;
}

export interface PagedOperands extends ForwardOperands {
  readonly pages: PageTable;
}

/**
 * `attentionForward` of packed queries, at most 16 a sequence, over keys and values in pages: [rows, kv heads, dim], a page being
 * `pageSize` rows. Keys have been turned; only queries are. Bits of a row depend on its own query and keys alone.
 */
export const pagedAttention = operation('pagedAttention', params, (launch: AttentionLaunch<PagedOperands>) => {
  const { problem: p, operands } = launch;
  if (p.batch === 0 || p.queryLength === 0) return undefined;
  return {
    params: paramsOf(launch, { pages: operands.pages }),
    reads: [...buffersRead(launch), operands.pages.buffer],
    writes: [operands.out.buffer, operands.lse.buffer],
    work: workOf(p, 2 * (p.headDim + p.valueDim), p.scoreMod?.valueCount),
  };
});

/** Every gradient that has a place to go to. */
export const attentionBackward = operation('attentionBackward', params, (launch: AttentionLaunch<BackwardOperands>) => {
  const { problem: p, operands } = launch;
  const { out, lse, dOut, dLse, dQuery, dKey, dValue, dBias, dRelative, dSink } = operands;
  const reads = [...buffersRead(launch), out.buffer, lse.buffer, dOut.buffer];
  if (dLse) reads.push(dLse.buffer);
  const writes = [dQuery.buffer, dKey.buffer, dValue.buffer];
  for (const gradient of [dBias, dRelative, dSink]) if (gradient) writes.push(gradient.buffer);
  return {
    params: paramsOf(launch, { backward: operands }),
    reads,
    writes,
    work: workOf(p, 2 * (3 * p.headDim + 2 * p.valueDim), p.scoreMod?.count),
  };
});
