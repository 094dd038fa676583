// Rotary positions as an option: what kernels are told, and where they do not turn rows, an operation before them.
import { checkOptions, checkWord } from '../base/check.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { release } from '../base/released.js';
import type { AttentionExtras, AttentionProblem, RotaryProblem } from '../kernels/attention.js';
import type { Backend } from '../kernels/device.js';
import { gatherRows, RowMap } from '../ops/gather.js';
import { type RopeAngles, rope, turnedBack } from '../ops/rope.js';
import { withoutRecording } from '../tape/tape.js';
import { sameShape } from '../tensor/shape.js';
import { checkTensor, type Tensor } from '../tensor/tensor.js';
import type { RotaryOption } from './options.js';
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

/** The tables of a call by their names. */
export const rotaryTables = (given: RotaryOption | undefined): Readonly<Record<string, RopeAngles['cos']>> =>
  given
    ? {
        'rope.cos': given.cos,
        'rope.sin': given.sin,
        ...(given.keys && { 'rope.keys.cos': given.keys.cos, 'rope.keys.sin': given.keys.sin }),
      }
    : {};

/** The option with other handles of its tables, in the order of `rotaryTables`. */
export const withTables = (given: RotaryOption, tables: readonly Tensor[]): RotaryOption => {
  const [cos, sin, keyCos, keySin] = tables as readonly RopeAngles['cos'][];
  return { ...given, cos, sin, ...(given.keys && { keys: { cos: keyCos, sin: keySin } }) } as RotaryOption;
};

/** @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DISPOSED */
export function readRope(given: RotaryOption | undefined, p: AttentionProblem): RotaryProblem | undefined {
  if (given === undefined) return undefined;
  checkOptions(given, ['cos', 'sin', 'pairs', 'keys'], 'rope');
  const { cos, pairs = 'half', keys } = given;
  checkWord(pairs, 'rope.pairs', ['half', 'interleaved']);
  if (keys !== undefined) checkOptions(keys, ['cos', 'sin'], 'rope.keys');
  for (const [name, t] of Object.entries(rotaryTables(given))) {
    checkTensor(t, name);
    if (t.dtype !== 'float32') throw new FlashAttnError('ERR_DTYPE', `${name} is ${t.dtype}; angles are float32`);
    if (t.shape.length !== 2 || 2 * t.shape[1] > p.headDim)
      throw shapeError(
        `${name} has shape ${show(t.shape)}; it must be [positions, at most dim / 2] with a head dim of ${p.headDim}`,
      );
    if (!t.isContiguous) throw shapeError(`${name} must be contiguous`);
    if (!sameShape(cos.shape, t.shape))
      throw shapeError(`${name} has shape ${show(t.shape)} and rope.cos ${show(cos.shape)}; they must be equal`);
  }
  for (const side of ['query', 'key'] as const)
    for (const [b, { length, position }] of spansOf(p, side).entries()) {
      if (length === 0 || (position >= 0 && position + length <= cos.shape[0])) continue;
      const of = p.sequences ? ` of sequence ${b}` : '';
      throw shapeError(
        `rope.cos has shape ${show(cos.shape)}, rows for positions from 0 to ${cos.shape[0] - 1}; the ${side} positions${of} are ${position} to ${position + length - 1}`,
      );
    }
  return { pairs: cos.shape[1], interleaved: pairs === 'interleaved' };
}

/** What kernels are given that turn rows. */
export function angleOperands(given: RotaryOption | undefined, backend: Backend): AttentionExtras['angles'] {
  if (!given || !backend.turnsRows) return undefined;
  const of = ({ cos, sin }: RopeAngles, name: string) => ({
    cos: cos.flat(`${name}.cos`, backend),
    sin: sin.flat(`${name}.sin`, backend),
  });
  const query = of(given, 'rope');
  return { query, key: given.keys ? of(given.keys, 'rope.keys') : query };
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
  given: RotaryOption,
  turn: (x: Tensor, own: RopeAngles) => Tensor,
): Pair {
  for (const [name, t] of Object.entries(rotaryTables(given))) t.operand(name, q.backend);
  const [ofQueries, ofKeys] = withoutRecording(
    () => [anglesOf(p, 'query', given), anglesOf(p, 'key', given.keys ?? given)] as const,
  );
  return { q: inOrder(p, q, (x) => turn(x, ofQueries)), k: inOrder(p, k, (x) => turn(x, ofKeys)) };
}

/** q and k, turned; recorded. Whoever calls tidies up what is made besides. */
export const turned = (p: AttentionProblem, inputs: Pair, given: RotaryOption): Pair =>
  both(p, inputs, given, (x, angles) => rope(x, angles, { pairs: given.pairs ?? 'half' }));

/** The gradients of q and k, from those of what they were turned to. Likewise. */
export const gradientsOfTurned = (p: AttentionProblem, gradients: Pair, given: RotaryOption): Pair =>
  both(p, gradients, given, (x, angles) => turnedBack(x, angles, given.pairs));
