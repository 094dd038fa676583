import type { DeviceBuffer } from './memory.js';
import { addressOf, type Flat, refOf, tensorRef, type View } from './operand.js';
import { elementWork, operation } from './operation.js';
import { struct, type ValuesOf } from './struct.js';

/** Attention over some of the keys. */
export interface MergePart {
  readonly out: View;
  /** Contiguous [batch, heads, rows]. */
  readonly lse: Flat;
}

export interface MergeShape {
  readonly batch: number;
  readonly heads: number;
  readonly queryLength: number;
  readonly valueDim: number;
}

export interface MergeOperands {
  readonly shape: MergeShape;
  readonly parts: readonly MergePart[];
  readonly out: View;
  readonly lse: Flat;
}

export interface MergeBackwardOperands extends MergeOperands {
  readonly dOut: View;
  readonly dLse?: Flat;
  readonly dParts: readonly MergePart[];
}

const partFields = { out: tensorRef, dOut: tensorRef, lse: 'address', dLse: 'address' } as const;

/** An entry of the table of parts. */
export const mergePart = struct('MergePart', partFields);

const params = struct('MergeParams', {
  parts: 'address',
  out: tensorRef,
  dOut: tensorRef,
  lse: 'address',
  dLse: 'address',
  partCount: 'int32',
  batch: 'int32',
  heads: 'int32',
  queryLength: 'int32',
  valueDim: 'int32',
  reserved: 'int32',
});

export const partValues = (part: MergePart, gradient: MergePart | undefined): ValuesOf<typeof partFields> => ({
  out: refOf(part.out),
  dOut: refOf(gradient?.out),
  lse: addressOf(part.lse),
  dLse: addressOf(gradient?.lse),
});

/** The table of parts, written to the device, and the rest. */
type WithTable<Operands> = Operands & { readonly table: DeviceBuffer };

function describe(operands: WithTable<MergeOperands>, backward?: MergeBackwardOperands) {
  const { shape, parts, table, out, lse } = operands;
  const { batch, heads, queryLength, valueDim } = shape;
  const work = batch * heads * queryLength * valueDim * parts.length;
  if (work === 0) return undefined;
  const reads = [table, ...parts.flatMap((part) => [part.out.buffer, part.lse.buffer])];
  if (backward) reads.push(out.buffer, lse.buffer, backward.dOut.buffer);
  if (backward?.dLse) reads.push(backward.dLse.buffer);
  return {
    params: {
      parts: table.address,
      out: refOf(out),
      dOut: refOf(backward?.dOut),
      lse: addressOf(lse),
      dLse: addressOf(backward?.dLse),
      partCount: parts.length,
      batch,
      heads,
      queryLength,
      valueDim,
    },
    reads,
    writes: backward ? backward.dParts.flatMap((part) => [part.out.buffer, part.lse.buffer]) : [out.buffer, lse.buffer],
    work: elementWork * work,
  };
}

/** lse = log sum_p e^lse_p, out = sum_p e^(lse_p - lse) out_p */
export const merge = operation('merge', params, (operands: WithTable<MergeOperands>) => describe(operands));

/** The gradients of every part. */
export const mergeBackward = operation('mergeBackward', params, (operands: WithTable<MergeBackwardOperands>) =>
  describe(operands, operands),
);
