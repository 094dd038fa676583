import type { DeviceBuffer } from './memory.js';
import { addressOf, type Flat, type Operand, refOf, tensorRef, type View } from './operand.js';
import { operation } from './operation.js';
import { buffersOf } from './scan.js';
import { struct } from './struct.js';

export interface SelectedShape {
  readonly batch: number;
  readonly seq: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  /** Of a list of blocks. */
  readonly slots: number;
  readonly blockSize: number;
}

interface SelectedInputs {
  readonly shape: SelectedShape;
  readonly scale: number;
  /** [batch, seq, heads, head dim] */
  readonly query: View;
  /** [batch, seq, kv heads, head dim] */
  readonly key: View;
  /** [batch, seq, kv heads, value dim] */
  readonly value: View;
  /** int32 [batch, seq, kv heads, slots], contiguous. */
  readonly blocks: Operand;
  /** [batch, seq, heads, value dim] */
  readonly out: View;
}

export interface SelectedOperands extends SelectedInputs {
  /** [batch, heads, seq] */
  readonly lse: Flat;
  /** float32 [2, batch, heads, seq]: what backward reads. */
  readonly rowTerms: Flat | undefined;
}

export interface SelectedBackwardOperands extends SelectedInputs {
  readonly rowTerms: Flat;
  readonly dOut: View;
  readonly dLse: Flat | undefined;
  readonly dQuery: View;
  readonly dKey: View;
  readonly dValue: View;
  /** So many float32 as `selectedScratch` says. */
  readonly dKeySum: DeviceBuffer | undefined;
  readonly dValueSum: DeviceBuffer | undefined;
}

const params = struct('SelectedAttentionParams', {
  query: tensorRef,
  key: tensorRef,
  value: tensorRef,
  out: tensorRef,
  blocks: 'address',
  lse: 'address',
  rowTerms: 'address',
  dOut: tensorRef,
  dQuery: tensorRef,
  dKey: tensorRef,
  dValue: tensorRef,
  dLse: 'address',
  dKeySum: 'address',
  dValueSum: 'address',
  batch: 'int32',
  seq: 'int32',
  heads: 'int32',
  kvHeads: 'int32',
  headDim: 'int32',
  valueDim: 'int32',
  slots: 'int32',
  blockSize: 'int32',
  splitPositions: 'int32',
  planes: 'int32',
  scale: 'float32',
  reserved: 'int32',
});

/** Parts of all sequences that may be computed at the same time, each with sums of its own. */
const wantedParts = 16;
/** Positions of a part are a multiple of this. */
const partUnit = 64;
/** Positions whose sums are added up as they are: more than 16 ranges of them have a second plane for what is older. */
const plainPositions = 1024;

/** How backward cuts sequences: by their shape alone, so that no bit depends on how many threads there are. */
function cut({ batch, seq, kvHeads }: SelectedShape): { readonly splitPositions: number; readonly planes: number } {
  const splits = Math.max(1, Math.ceil(wantedParts / Math.max(1, batch * kvHeads)));
  const splitPositions = Math.max(partUnit, Math.ceil(seq / splits / partUnit) * partUnit);
  return { splitPositions, planes: splitPositions > plainPositions ? 2 : 1 };
}

const mostLanes = 16;

/** Float32 elements of the sums of backward. */
export function selectedScratch(shape: SelectedShape): { readonly dKeySum: number; readonly dValueSum: number } {
  const { batch, seq, kvHeads, headDim, valueDim } = shape;
  const { splitPositions, planes } = cut(shape);
  const rows = Math.ceil(seq / splitPositions) * planes * batch * kvHeads * seq;
  const padded = (dim: number) => Math.ceil(dim / mostLanes) * mostLanes;
  return { dKeySum: rows * padded(headDim), dValueSum: rows * padded(valueDim) };
}

function paramsOf({
  shape,
  scale,
  query,
  key,
  value,
  blocks,
  out,
  rowTerms,
}: SelectedOperands | SelectedBackwardOperands) {
  return {
    query: refOf(query),
    key: refOf(key),
    value: refOf(value),
    out: refOf(out),
    blocks: addressOf(blocks),
    rowTerms: addressOf(rowTerms),
    ...shape,
    ...cut(shape),
    scale,
  };
}

/** Multiply-adds of forward, if all slots hold blocks. */
const products = ({ batch, seq, heads, headDim, valueDim, slots, blockSize }: SelectedShape): number =>
  batch * seq * heads * Math.min(seq, slots * blockSize) * (headDim + valueDim);

const isEmpty = ({ batch, seq, heads, valueDim }: SelectedShape) => batch * seq * heads * valueDim === 0;

/** Attention of each query to the keys, up to its own, of the blocks that its list names. */
export const selectedAttention = operation('selectedAttention', params, (operands: SelectedOperands) => {
  const { shape, query, key, value, blocks, out, lse, rowTerms } = operands;
  if (isEmpty(shape)) return undefined;
  return {
    params: {
      ...paramsOf(operands),
      lse: addressOf(lse),
      dOut: undefined,
      dQuery: undefined,
      dKey: undefined,
      dValue: undefined,
      dLse: 0,
      dKeySum: 0,
      dValueSum: 0,
    },
    reads: buffersOf(query, key, value, blocks),
    writes: buffersOf(out, lse, rowTerms),
    work: 2 * products(shape),
  };
});

export const selectedAttentionBackward = operation(
  'selectedAttentionBackward',
  params,
  (operands: SelectedBackwardOperands) => {
    const { shape, query, key, value, blocks, out, rowTerms, dOut, dLse, dQuery, dKey, dValue } = operands;
    const { dKeySum, dValueSum } = operands;
    if (isEmpty(shape)) return undefined;
    return {
      params: {
        ...paramsOf(operands),
        lse: 0,
        dOut: refOf(dOut),
        dQuery: refOf(dQuery),
        dKey: refOf(dKey),
        dValue: refOf(dValue),
        dLse: addressOf(dLse),
        dKeySum: dKeySum?.address ?? 0,
        dValueSum: dValueSum?.address ?? 0,
      },
      reads: buffersOf(query, key, value, blocks, out, rowTerms, dOut, dLse),
      writes: [...buffersOf(dQuery, dKey, dValue), ...(dKeySum && dValueSum ? [dKeySum, dValueSum] : [])],
      work: 5 * products(shape),
    };
  },
);
