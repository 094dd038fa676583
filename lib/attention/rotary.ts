// Rotary positions as an option: q and k are turned by an operation of their own before the scores.
import { checkOptions, checkWord } from '../base/check.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { release } from '../base/released.js';
import type { AttentionProblem } from '../kernels/attention.js';
import { gatherRows, RowMap } from '../ops/gather.js';
import { type RopeAngles, type RopeOptions, rope, turnedBack } from '../ops/rope.js';
import { withoutRecording } from '../tape/tape.js';
import { sameShape } from '../tensor/shape.js';
import { checkTensor, type Tensor } from '../tensor/tensor.js';
import { diagonalOf } from './visibility.js';

type Side = 'query' | 'key';

/** Where a batch entry or packed sequence begins, how many real rows it has, and the position of the first of them. */
interface Span {
  readonly begin: number;
  readonly length: number;
  readonly position: number;
}

/** Of the side, one for each batch entry or packed sequence; a single one where they are all the same. */
function spansOf(p: AttentionProblem, side: Side): readonly Span[] {
  const positionOf = (b: number) => (side === 'query' ? diagonalOf(p, b) : 0);
  const { sequences } = p;
  if (!sequences)
    return [{ begin: 0, length: side === 'query' ? p.queryLength : p.keyLength, position: positionOf(0) }];
  const at = side === 'query' ? 0 : 2;
  return Array.from({ length: p.batch }, (_, b) => ({
    begin: sequences[b * 4 + at],
    // Queries without a key see nothing: their positions do not matter.
    length: sequences[b * 4 + 3] === 0 ? 0 : sequences[b * 4 + at + 1],
    position: positionOf(b),
  }));
}

/** @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DISPOSED */
export function checkRope(given: RopeAngles & RopeOptions, p: AttentionProblem): void {
  checkOptions(given, ['cos', 'sin', 'pairs'], 'rope');
  const { cos, sin, pairs = 'half' } = given;
  checkWord(pairs, 'rope.pairs', ['half', 'interleaved']);
  for (const [name, t] of [
    ['rope.cos', cos],
    ['rope.sin', sin],
  ] as const) {
    checkTensor(t, name);
    if (t.dtype !== 'float32') throw new FlashAttnError('ERR_DTYPE', `${name} is ${t.dtype}; angles are float32`);
    if (t.shape.length !== 2 || 2 * t.shape[1] > p.headDim)
      throw shapeError(
        `${name} has shape ${show(t.shape)}; it must be [positions, at most dim / 2] with a head dim of ${p.headDim}`,
      );
    if (!t.isContiguous) throw shapeError(`${name} must be contiguous`);
  }
  if (!sameShape(cos.shape, sin.shape))
    throw shapeError(`rope.sin has shape ${show(sin.shape)} and rope.cos ${show(cos.shape)}; they must be equal`);
  for (const side of ['query', 'key'] as const)
    for (const [b, { length, position }] of spansOf(p, side).entries()) {
      if (length === 0 || (position >= 0 && position + length <= cos.shape[0])) continue;
      const of = p.sequences ? ` of sequence ${b}` : '';
      throw shapeError(
        `rope.cos has shape ${show(cos.shape)}, rows for positions from 0 to ${cos.shape[0] - 1}; the ${side} positions${of} are ${position} to ${position + length - 1}`,
      );
    }
}

/** The row of the angles for every row of q or k; -1 for rows that are not real. */
function positionsOf(p: AttentionProblem, side: Side): Int32Array {
  const rows = side === 'query' ? p.queryRows : p.keyRows;
  const packed = p.layout === 'varlen';
  const positions = new Int32Array(packed ? rows : p.batch * rows).fill(-1);
  for (const [b, { begin, length, position }] of spansOf(p, side).entries()) {
    const first = packed ? begin : b * rows;
    for (let i = 0; i < length; i++) positions[first + i] = position + i;
  }
  return positions;
}

/** The angles of q or k, in the shape that `rope` takes for them. */
function anglesOf(p: AttentionProblem, side: Side, { cos, sin }: RopeAngles): RopeAngles {
  if (!p.sequences) {
    const [{ length, position }] = spansOf(p, side) as [Span];
    const rowsOf = (t: RopeAngles['cos']) => t.slice(0, length && position, length && position + length);
    return { cos: rowsOf(cos), sin: rowsOf(sin) };
  }
  const map = RowMap.of(positionsOf(p, side), cos.shape[0]);
  const half = cos.shape[1];
  const rows = side === 'query' ? p.queryRows : p.keyRows;
  const shape = p.layout === 'varlen' ? [rows, half] : [p.batch, rows, half];
  const rowsOf = (t: RopeAngles['cos']) => gatherRows(t.reshape([1, ...t.shape]), map).reshape(shape);
  try {
    return { cos: rowsOf(cos), sin: rowsOf(sin) };
  } finally {
    release(map);
  }
}

/** What `f` makes of x [..., length, heads, dim], in the order of the layout. */
function inOrder(p: AttentionProblem, x: Tensor, f: (x: Tensor) => Tensor): Tensor {
  return p.layout === 'bhsd' ? f(x.transpose(1, 2)).transpose(1, 2) : f(x);
}

interface Pair {
  readonly q: Tensor;
  readonly k: Tensor;
}

function both(
  p: AttentionProblem,
  { q, k }: Pair,
  angles: RopeAngles,
  turn: (x: Tensor, own: RopeAngles) => Tensor,
): Pair {
  angles.cos.operand('rope.cos', q.backend);
  angles.sin.operand('rope.sin', q.backend);
  const [ofQueries, ofKeys] = withoutRecording(
    () => [anglesOf(p, 'query', angles), anglesOf(p, 'key', angles)] as const,
  );
  return { q: inOrder(p, q, (x) => turn(x, ofQueries)), k: inOrder(p, k, (x) => turn(x, ofKeys)) };
}

/** q and k, turned; recorded. Whoever calls tidies up what is made besides. */
export const turned = (
  p: AttentionProblem,
  inputs: Pair,
  { cos, sin, pairs = 'half' }: RopeAngles & RopeOptions,
): Pair => both(p, inputs, { cos, sin }, (x, angles) => rope(x, angles, { pairs }));

/** The gradients of q and k, from those of what they were turned to. Likewise. */
export const gradientsOfTurned = (
  p: AttentionProblem,
  gradients: Pair,
  { cos, sin, pairs }: RopeAngles & RopeOptions,
): Pair => both(p, gradients, { cos, sin }, (x, angles) => turnedBack(x, angles, pairs));
