// Attention in which every position has a list of key blocks of its own, as one operation.
import { lseShape, outShape, viewOf } from '../attention/layout.js';
import { shapeError } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import {
  type SelectedShape,
  selectedAttentionBackward,
  selectedAttention as selectedAttentionOperation,
  selectedScratch,
} from '../kernels/selectedAttention.js';
import type { Indices } from '../ops/embedding.js';
import { Operands } from '../ops/operands.js';
import { filled, inRows } from '../tape/arithmetic.js';
import { needsRecord, record } from '../tape/tape.js';
import { allocating, type Tensor } from '../tensor/tensor.js';
import type { Attended } from './selectedBlocks.js';

export interface SelectedOptions {
  /** Tokens of a block. */
  readonly size: number;
  readonly scale: number;
}

/** Kernels count positions, rows and places in lists in 32 bits. */
const mostCounted = 2 ** 30;

export const hasSelectedAttention = (backend: Backend): boolean => backend.has(selectedAttentionOperation);

interface Saved {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly blocks: Indices;
}

const shapeOf = ({ q, k, v, blocks }: Saved, blockSize: number): SelectedShape => ({
  batch: q.shape[0],
  seq: q.shape[1],
  heads: q.shape[2],
  kvHeads: k.shape[2],
  headDim: q.shape[3],
  valueDim: v.shape[3],
  slots: blocks.shape[3],
  blockSize,
});

const view = (t: Tensor, argument: string, backend: Backend) => viewOf(t, 'bshd', argument, backend);

const inputsOf = ({ q, k, v, blocks }: Saved, backend: Backend) => ({
  query: view(q, 'q', backend),
  key: view(k, 'k', backend),
  value: view(v, 'v', backend),
  blocks: { ...blocks.operand('blocks', backend), dtype: blocks.dtype },
});

/**
 * Attention of each position to the keys, up to its own, of the blocks that its list names: once, however often it names one;
 * -1 names none. All query heads that share a kv head share a list. On devices with `hasSelectedAttention`.
 *
 * @param q [batch, seq, heads, dim]
 * @param k [batch, seq, kv heads, dim]
 * @param v [batch, seq, kv heads, value dim]
 * @param blocks int32 [batch, seq, kv heads, slots]
 * @returns `out` of the dtype of q, and `lse` [batch, heads, seq]
 * @throws ERR_SHAPE, ERR_OUT_OF_MEMORY
 */
export function selectedAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  blocks: Indices,
  { size, scale }: SelectedOptions,
): Attended {
  const { backend } = q;
  const inputs = { q, k, v, blocks };
  const shape = shapeOf(inputs, size);
  const { batch, seq, heads, valueDim } = shape;
  if (Math.max(batch * heads * seq, blocks.size) > mostCounted)
    throw shapeError(`there are more than 2^30 rows or places in lists: ${batch * heads * seq} and ${blocks.size}`);
  const dims = { batch, rows: seq, heads, dim: valueDim };
  const records = needsRecord([q, k, v]);
  const { out, lse, terms } = allocating(backend, (allocate) => {
    const out = allocate(outShape(dims, 'bshd'), q.dtype) as Tensor;
    const lse = allocate(lseShape(dims, 'bshd'), 'float32') as Tensor;
    const terms = records ? (allocate([2, batch, heads, seq], 'float32') as Tensor) : undefined;
    backend.launch(selectedAttentionOperation, {
      shape,
      scale,
      ...inputsOf(inputs, backend),
      out: view(out, 'out', backend),
      lse: lse.flat('lse', backend),
      rowTerms: terms?.flat('terms', backend),
    });
    return { out, lse, terms };
  });
  if (terms) {
    record('selectedAttention', [q, k, v], [out, lse], [q, k, v, blocks, out, terms], ([dOut, dLse], saved) => {
      const [ownQ, ownK, ownV, ownBlocks, ownOut, ownTerms] = saved as unknown as [
        ...[Tensor, Tensor, Tensor, Indices],
        ...[Tensor, Tensor],
      ];
      const gradient = dOut ? inRows(dOut) : (filled(backend, ownOut.shape, ownOut.dtype, 0) as Tensor);
      const again = { q: ownQ, k: ownK, v: ownV, blocks: ownBlocks };
      return gradients(again, { size, scale }, ownOut, ownTerms, gradient, dLse && inRows(dLse));
    });
    terms.dispose();
  }
  return { out, lse };
}

function gradients(
  inputs: Saved,
  { size, scale }: SelectedOptions,
  out: Tensor,
  terms: Tensor,
  dOut: Tensor,
  dLse: Tensor | undefined,
): readonly Tensor[] {
  const { q, k, v } = inputs;
  const { backend } = q;
  const shape = shapeOf(inputs, size);
  const operands = new Operands(backend);
  try {
    return allocating(backend, (allocate) => {
      const [dQ, dK, dV] = [q, k, v].map((t) => allocate(t.shape, t.dtype) as Tensor) as [Tensor, Tensor, Tensor];
      const sums = selectedScratch(shape);
      backend.launch(selectedAttentionBackward, {
        shape,
        scale,
        ...inputsOf(inputs, backend),
        out: view(out, 'out', backend),
        rowTerms: terms.flat('terms', backend),
        dOut: view(dOut, 'dOut', backend),
        dLse: dLse?.flat('dLse', backend),
        dQuery: view(dQ, 'dq', backend),
        dKey: view(dK, 'dk', backend),
        dValue: view(dV, 'dv', backend),
        dKeySum: operands.scratch(sums.dKeySum),
        dValueSum: operands.scratch(sums.dValueSum),
      });
      return [dQ, dK, dV];
    });
  } finally {
    operands.dispose();
  }
}
