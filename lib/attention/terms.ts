// What is added to the logits, multiplies them or drops them.

import { isTyped } from '../base/arrays.js';
import { checkInteger, checkNumber, checkOptions, mustBe } from '../base/check.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import type { AttentionProblem, DropoutProblem, RelativeProblem } from '../kernels/attention.js';
import { checkTensor, isTensor, type Tensor } from '../tensor/tensor.js';
import type { AttentionOptions } from './options.js';
import type { RelativeBias } from './relative.js';
import type { Sequences } from './sequences.js';

const mostFloat32 = 3.4028234663852886e38;
// Devices may take smaller numbers for 0.
const leastNormal = 2 ** -126;

/** Whether float32 holds a number as one with all its digits: not as 0, a subnormal or Infinity. */
function isNormal(x: number): boolean {
  const size = Math.abs(Math.fround(x));
  return size >= leastNormal && size <= mostFloat32;
}

/** Kernels work in units of log 2. */
const staysNormal = (x: number) => isNormal(x) && isNormal(x * Math.LOG2E);

export interface Scaling {
  readonly scale: number;
  /** 0: none. */
  readonly softcap: number;
}

export function readScaling({ scale, softcap = 0 }: AttentionOptions, headDim: number): Scaling {
  const factor = scale === undefined ? 1 / Math.sqrt(headDim) : checkNumber(scale, 'scale');
  const range = 'from 1.2e-38 to 2.3e38';
  if (factor !== 0 && !staysNormal(factor)) throw mustBe('scale', scale, `0 or ${range} in size`);
  if (checkNumber(softcap, 'softcap') === 0) return { scale: factor, softcap };
  if (softcap < 0 || !staysNormal(softcap)) throw mustBe('softcap', softcap, `0 for none or ${range}, positive`);
  if (factor !== 0 && !isNormal(factor / softcap))
    throw optionError(
      `softcap is ${softcap} with a scale of ${factor}; scale / softcap must be from 1.2e-38 to 3.4e38 in size`,
    );
  return { scale: factor, softcap };
}

/** The tensor that is added to the logits, and under which name it was given. */
export function additiveTerm({ bias, attnMask }: AttentionOptions): { name: string; tensor: Tensor } | undefined {
  if (bias !== undefined) return { name: 'bias', tensor: bias };
  return isTensor(attnMask) ? { name: 'attnMask', tensor: attnMask } : undefined;
}

/** A shape of rank 1 to 4 that broadcasts to [batch, heads, Nq, Nk], in rank 4. */
export function broadcastShape(
  shape: readonly number[],
  argument: string,
  heads: number,
  { batch, queryLength, keyLength }: Sequences,
): readonly [number, number, number, number] {
  const full = [batch, heads, queryLength, keyLength];
  const missing = 4 - shape.length;
  const fits = missing >= 0 && missing < 4 && shape.every((n, axis) => n === 1 || n === full[axis + missing]);
  if (!fits)
    throw shapeError(
      `${argument} has shape ${show(shape)}; it must broadcast to [batch, heads, Nq, Nk] = ${show(full)}: rank 1 to 4, each dim equal or 1`,
    );
  return [...[1, 1, 1].slice(0, missing), ...shape] as unknown as readonly [number, number, number, number];
}

export function readBias(
  options: AttentionOptions,
  heads: number,
  sequences: Sequences,
): AttentionProblem['biasShape'] {
  if (options.bias !== undefined) {
    checkTensor(options.bias, 'bias');
    if (isTensor(options.attnMask))
      throw optionError('bias and a tensor attnMask are both given; only one of them can be added to the logits');
  }
  const term = additiveTerm(options);
  return term && broadcastShape(term.tensor.shape, term.name, heads, sequences);
}

/** Slopes [heads] of the host, or those of a tensor, which stay on the device. */
export function readAlibi(
  { alibi, offset = 0 }: AttentionOptions,
  heads: number,
  { batch, queryLength, keyLength }: Sequences,
): AttentionProblem['alibi'] {
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
  if (!Array.isArray(alibi) && !isTyped(alibi, 'Float32Array', 'Float64Array'))
    throw mustBe('alibi', alibi, 'a tensor, a Float32Array or an array of numbers');
  if (alibi.length !== heads)
    throw shapeError(`alibi has ${alibi.length} slopes; it needs one for each of the ${heads} query heads`);
  const slopes = new Float32Array(heads);
  const farthest = queryLength + keyLength + Math.abs(offset);
  for (let h = 0; h < heads; h++) {
    slopes[h] = checkNumber(alibi[h], `alibi[${h}]`);
    if (!Number.isFinite(Math.fround(slopes[h] * Math.LOG2E * farthest)))
      throw mustBe(`alibi[${h}]`, alibi[h], `finite in float32, also times log2 e and a distance of ${farthest}`);
  }
  return { batched: false, slopes };
}

export function readSink(sink: AttentionOptions['sink'], heads: number): boolean {
  if (sink === undefined) return false;
  checkTensor(sink, 'sink');
  if (sink.shape.length !== 1 || sink.shape[0] !== heads)
    throw shapeError(`sink has shape ${show(sink.shape)}; it must be [heads] = [${heads}]`);
  return true;
}

export function readDropout(dropout: AttentionOptions['dropout']): DropoutProblem | undefined {
  if (dropout === undefined) return undefined;
  checkOptions(dropout, ['p', 'seed'], 'dropout');
  const { p, seed } = dropout;
  if (!(typeof p === 'number' && p >= 0 && p < 1)) throw mustBe('dropout.p', p, 'from 0 to below 1');
  const whole = typeof seed === 'bigint' ? seed : Number.isSafeInteger(seed) ? BigInt(seed) : -1n;
  if (whole < 0n || whole >= 2n ** 64n) throw mustBe('dropout.seed', seed, 'an integer from 0 to 2^64 - 1');
  const threshold = Math.floor(p * 2 ** 32);
  if (threshold === 0) return undefined;
  return { threshold, keepScale: 1 / (1 - p), seedLow: Number(whole & 0xffffffffn), seedHigh: Number(whole >> 32n) };
}

/** A copy: what has been checked here is read by kernels later. */
function copyInt32s(values: unknown, argument: string): Int32Array {
  if (!isTyped(values, 'Int32Array')) throw mustBe(argument, values, 'an Int32Array');
  return new Int32Array(values);
}

/** The least and the largest of the first `length` positions, which are their indices where none are given. */
function range(positions: Int32Array | undefined, argument: string, length: number): [least: number, most: number] {
  if (positions === undefined) return [0, Math.max(0, length - 1)];
  if (positions.length < length)
    throw optionError(`${argument} has ${positions.length} entries; it needs at least ${length}, one a position`);
  let least = positions[0] ?? 0;
  let most = least;
  for (let i = 0; i < length; i++) {
    least = Math.min(least, positions[i]);
    most = Math.max(most, positions[i]);
  }
  return [least, most];
}

const relativeNames = ['table', 'buckets', 'origin', 'queryPosition', 'keyPosition'] as const;

export function readRelative(
  relative: RelativeBias | undefined,
  heads: number,
  { queryLength, keyLength }: Sequences,
): RelativeProblem | undefined {
  if (relative === undefined) return undefined;
  checkOptions(relative, relativeNames, 'relativeBias');
  const { table, origin } = relative;
  checkTensor(table, 'relativeBias.table');
  if (table.shape.length !== 2 || table.shape[1] !== heads)
    throw shapeError(
      `relativeBias.table has shape ${show(table.shape)}; it must be [buckets, heads] with ${heads} heads`,
    );
  const bucketCount = table.shape[0];
  const copy = (name: 'buckets' | 'queryPosition' | 'keyPosition') =>
    copyInt32s(relative[name], `relativeBias.${name}`);
  const buckets = copy('buckets');
  const queryPosition = relative.queryPosition && copy('queryPosition');
  const keyPosition = relative.keyPosition && copy('keyPosition');
  checkInteger(origin, 'relativeBias.origin');
  const bad = buckets.findIndex((bucket) => bucket < 0 || bucket >= bucketCount);
  if (bad >= 0)
    throw optionError(`relativeBias.buckets[${bad}] is ${buckets[bad]}; the table has ${bucketCount} buckets`);
  const [leastQuery, mostQuery] = range(queryPosition, 'relativeBias.queryPosition', queryLength);
  const [leastKey, mostKey] = range(keyPosition, 'relativeBias.keyPosition', keyLength);
  const [first, last] = [leastKey - mostQuery + origin, mostKey - leastQuery + origin];
  if (queryLength && keyLength && (first < 0 || last >= buckets.length))
    throw optionError(
      `relativeBias.buckets has ${buckets.length} entries; these positions read entries ${first} to ${last}`,
    );
  return { buckets, origin, queryPosition, keyPosition, bucketCount };
}
