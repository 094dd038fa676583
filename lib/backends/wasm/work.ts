import type { AttentionProblem } from '../../attention/problem.js';

// Rows are worked on four at a time, and a head has a cost of its own.
const lanes = 4;
const headWork = 4000;

/** Floating-point operations of a forward launch, roughly; what masks leave out counts too. */
export function attentionWork(p: AttentionProblem): number {
  const rows = Math.ceil(p.queryLength / lanes) * lanes;
  return p.batch * p.heads * (headWork + 2 * rows * p.keyLength * (p.headDim + p.valueDim));
}

/** What it costs to move elements, in floating-point operations. */
export const elementWork = (elements: number) => 8 * elements;
