import type { DeviceBuffer } from './memory.js';
import { addressOf, type Operand } from './operand.js';
import { operation } from './operation.js';
import { struct } from './struct.js';

const mostBatchAxes = 4;
/** Kernels count rows, columns, steps and pieces of work in 32 bits, and in steps of several. */
export const mostRows = 2 ** 31 - 2 ** 10;
const mostItems = 2 ** 30;

/** Matrices of a batch: strides in elements, 0 where they broadcast. */
export interface Matrices extends Operand {
  readonly row: number;
  readonly column: number;
  /** One for each axis of the batch. */
  readonly batch: readonly number[];
}

/** The functions that may follow, in the order of native/structs/activation.h. */
export const activations = ['gelu', 'geluTanh', 'silu', 'relu'] as const;

/** C[b, i, j] = activation(alpha * (the sum over k of A[b, i, k] * B[b, k, j]) + bias[b, i, j]) */
export interface MatmulOperands {
  /** [batch..., rows, inner] */
  readonly a: Matrices;
  /** [batch..., inner, columns] */
  readonly b: Matrices;
  /** [batch..., rows, columns]; no element lies at two places of it. */
  readonly c: Matrices;
  /** As C. */
  readonly bias?: Matrices | undefined;
  readonly batch: readonly number[];
  readonly rows: number;
  readonly columns: number;
  readonly inner: number;
  readonly alpha: number;
  /** Whether to add to C, in float32. */
  readonly accumulate: boolean;
  /** Before anything is added to C. */
  readonly activation?: (typeof activations)[number] | undefined;
}

const matrixRef = struct('MatrixRef', {
  data: 'address',
  row: 'int64',
  column: 'int64',
  batch: { of: 'int64', count: mostBatchAxes },
  dtype: 'dtype',
  reserved: 'int32',
});

const params = struct('MatmulParams', {
  a: matrixRef,
  b: matrixRef,
  c: matrixRef,
  bias: matrixRef,
  packedA: 'address',
  packedB: 'address',
  batch: { of: 'int64', count: mostBatchAxes },
  rows: 'int32',
  columns: 'int32',
  inner: 'int32',
  alpha: 'float32',
  accumulate: 'int32',
  activation: 'int32',
});

function padded(values: readonly number[], by: number): number[] {
  const result = [by, by, by, by];
  for (let at = 0; at < values.length; at++) result[mostBatchAxes - values.length + at] = values[at];
  return result;
}

const refOf = (matrices: Matrices | undefined) =>
  matrices && {
    data: addressOf(matrices),
    row: matrices.row,
    column: matrices.column,
    batch: padded(matrices.batch, 0),
    dtype: matrices.dtype,
  };

const product = (values: readonly number[]) => values.reduce((a, b) => a * b, 1);

interface MatmulLaunch {
  readonly operands: MatmulOperands;
  /** Scratch memory, where `packedElements` says so. */
  readonly packedA?: DeviceBuffer | undefined;
  readonly packedB?: DeviceBuffer | undefined;
}

export const matmul = operation('matmul', params, ({ operands, packedA, packedB }: MatmulLaunch) => {
  const { a, b, c, bias, batch, rows, columns, inner, alpha, accumulate, activation } = operands;
  const count = product(batch) * rows * columns;
  if (count === 0) return undefined;
  const writes = [c.buffer];
  if (packedA) writes.push(packedA);
  if (packedB) writes.push(packedB);
  return {
    params: {
      a: refOf(a),
      b: refOf(b),
      c: refOf(c),
      bias: refOf(bias),
      packedA: packedA?.address ?? 0,
      packedB: packedB?.address ?? 0,
      batch: padded(batch, 1),
      rows,
      columns,
      inner,
      alpha,
      accumulate: accumulate ? 1 : 0,
      activation: activation === undefined ? 0 : 1 + activations.indexOf(activation),
    },
    reads: bias ? [a.buffer, b.buffer, bias.buffer] : [a.buffer, b.buffer],
    writes,
    work: 2 * count * Math.max(1, inner),
  };
});

// An item reads the panels of its factors alone where C is hardly larger than a tile: native/cpu/ops/matmul.h.
const mostTileRows = 64;
const mostTileColumns = 128;
// Where A is packed, items have up to so many.
const mostTallRows = 256;

const isShared = (matrices: Matrices) => matrices.batch.every((stride) => stride === 0);

/** Elements of one packed factor that launches are cut for: 32 MB. */
const mostPacked = 2 ** 23;
const leastChunk = 128;
/** Of the inner dim, where a launch takes some of them: C is read and written once for each of these many. */
const leastSteps = 2048;

/** Elements of the packed factors, at most a third of the rows of which is padding; 0: no other item needs them. */
function packedSizes({ a, b, batch, rows, columns, inner }: MatmulOperands): { a: number; b: number } {
  const entries = (matrices: Matrices) => (isShared(matrices) ? 1 : product(batch));
  const packsA = columns > mostTileColumns;
  return {
    a: packsA ? entries(a) * inner * (Math.ceil((4 / 3) * rows) + 16) : 0,
    b: rows > (packsA ? mostTallRows : mostTileRows) ? entries(b) * inner * (columns + 64) : 0,
  };
}

/** Of a launch: what would be too much, as few rows of a long inner dim are, every item packs for itself. */
export function packedElements(operands: MatmulOperands): { a: number; b: number } {
  const { a, b } = packedSizes(operands);
  const bounded = (size: number) => (size > 2 * mostPacked ? 0 : size);
  return { a: bounded(a), b: bounded(b) };
}

type Part = 'a' | 'b' | 'c' | 'bias';
const parts: readonly Part[] = ['a', 'b', 'c', 'bias'];

type Changed = Partial<Pick<Matrices, 'offset' | 'row' | 'column' | 'batch'>>;

function change(operands: MatmulOperands, to: (matrices: Matrices, part: Part) => Changed): MatmulOperands {
  const changed: Record<string, Matrices | undefined> = {};
  for (const part of parts) {
    const matrices = operands[part];
    changed[part] = matrices && { ...matrices, ...to(matrices, part) };
  }
  return { ...operands, ...changed };
}

/** A^T and B^T in the other's place: C^T = B^T A^T. */
function swapFactors(operands: MatmulOperands): MatmulOperands {
  const { a, b, rows, columns } = operands;
  const transposed = change({ ...operands, a: b, b: a }, ({ row, column }) => ({ row: column, column: row }));
  return { ...transposed, rows: columns, columns: rows };
}

/** One axis of the batch less, where all matrices have the last two behind one another. */
function joinBatch(operands: MatmulOperands): MatmulOperands | undefined {
  const { batch } = operands;
  const last = batch.length - 1;
  for (let axis = 0; axis < batch.length; axis++) {
    const isOne = batch[axis] === 1;
    const joins = (matrices: Matrices | undefined) =>
      axis < last && (!matrices || matrices.batch[axis] === batch[axis + 1] * matrices.batch[axis + 1]);
    if (!isOne && !parts.every((part) => joins(operands[part]))) continue;
    const sizes = batch.filter((_, at) => at !== axis);
    if (!isOne) sizes[axis] = batch[axis] * batch[axis + 1];
    const joined = change(operands, (matrices) => ({ batch: matrices.batch.filter((_, at) => at !== axis) }));
    return { ...joined, batch: sizes };
  }
  return undefined;
}

/** The last axis of the batch as rows, where it shares B. */
function foldBatch(operands: MatmulOperands): MatmulOperands | undefined {
  const { batch, rows, b } = operands;
  const last = batch.length - 1;
  if (last < 0 || b.batch[last] !== 0 || rows * batch[last] > mostRows) return undefined;
  const follows = (matrices: Matrices | undefined) =>
    !matrices || rows === 1 || matrices.batch[last] === rows * matrices.row;
  if (!follows(operands.a) || !follows(operands.c) || !follows(operands.bias)) return undefined;
  const folded = change(operands, ({ batch: strides, row }, part) => ({
    batch: strides.slice(0, last),
    row: rows === 1 && part !== 'b' ? strides[last] : row,
  }));
  return { ...folded, batch: batch.slice(0, last), rows: rows * batch[last] };
}

/** Columns are read in whole panels, rows one by one: where there are few of them, they are better rows. */
const fewColumns = 16;

/** The same product with as few axes of the batch as possible and as many rows. */
function simplify(operands: MatmulOperands): MatmulOperands {
  let simple = operands;
  for (;;) {
    const next = joinBatch(simple) ?? foldBatch(simple);
    if (!next) break;
    simple = next;
  }
  return simple.columns < fewColumns && simple.rows > simple.columns ? swapFactors(simple) : simple;
}

function slice(operands: MatmulOperands, axis: 'rows' | 'columns', begin: number, count: number): MatmulOperands {
  const [factor, stride] = axis === 'rows' ? (['a', 'row'] as const) : (['b', 'column'] as const);
  const sliced = change(operands, (matrices, part) =>
    part === factor || part === 'c' || part === 'bias' ? { offset: matrices.offset + begin * matrices[stride] } : {},
  );
  return { ...sliced, [axis]: count };
}

/** Some steps of the inner dim, added to those before. */
function stepsOf(operands: MatmulOperands, begin: number, count: number): MatmulOperands {
  const moved = change(operands, ({ offset, row, column }, part) =>
    part === 'a' ? { offset: offset + begin * column } : part === 'b' ? { offset: offset + begin * row } : {},
  );
  const isFirst = begin === 0;
  return {
    ...moved,
    inner: count,
    bias: isFirst ? operands.bias : undefined,
    accumulate: !isFirst || operands.accumulate,
  };
}

function entriesOf(operands: MatmulOperands, begin: number, count: number): MatmulOperands {
  const moved = change(operands, (matrices) => ({ offset: matrices.offset + begin * matrices.batch[0] }));
  return { ...moved, batch: [count, ...operands.batch.slice(1)] };
}

function* chunks(length: number, most: number): Generator<[begin: number, count: number]> {
  for (let begin = 0; begin < length; begin += most) yield [begin, Math.min(most, length - begin)];
}

const itemsOf = ({ batch, rows, columns }: MatmulOperands) =>
  product(batch) * Math.ceil(rows / mostTileRows) * Math.ceil(columns / mostTileRows);

/**
 * Launches that together make the product, with few axes of the batch each.
 *
 * @param packs whether factors are packed: scratch memory is then bounded
 */
export function* matmulLaunches(operands: MatmulOperands, packs: boolean): Generator<MatmulOperands> {
  const simple = simplify(operands);
  const { a, b, batch, rows, columns, inner } = simple;
  const sizes = packs ? packedSizes(simple) : { a: 0, b: 0 };
  const [outer = 1] = batch;
  // How many times too large a launch is for which the batch is to blame.
  const excess = Math.max(
    isShared(a) ? 0 : sizes.a / mostPacked,
    isShared(b) ? 0 : sizes.b / mostPacked,
    itemsOf(simple) / mostItems,
    batch.length > mostBatchAxes ? outer : 0,
  );
  if (outer > 1 && excess > 1) {
    for (const [begin, count] of chunks(outer, Math.max(1, Math.floor(outer / excess))))
      yield* matmulLaunches(entriesOf(simple, begin, count), packs);
    return;
  }
  if (Math.max(sizes.a, sizes.b) <= mostPacked) {
    yield simple;
    return;
  }
  // A sum in pieces is as good where C is float32; what follows it has to wait for all of them.
  const steps = Math.floor(mostPacked / (Math.max(sizes.a, sizes.b) / inner));
  if (simple.c.dtype === 'float32' && simple.activation === undefined && steps >= leastSteps && steps < inner) {
    for (const [k, count] of chunks(inner, steps)) yield stepsOf(simple, k, count);
    return;
  }
  const chunk = Math.max(leastChunk, Math.floor((0.7 * mostPacked) / Math.max(1, inner)));
  for (const [j, across] of chunks(columns, chunk))
    for (const [i, down] of chunks(rows, chunk)) yield slice(slice(simple, 'columns', j, across), 'rows', i, down);
}
