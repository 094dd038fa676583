// Shapes and options of a recurrence, checked.
import { checkBoolean, checkFloat32, checkObject, checkOffsets, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import type { DecayKind, RecurrenceProblem } from '../kernels/recurrence.js';
import { placeOf } from '../tensor/shape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/** What the state is multiplied by before each position. */
export interface DecayOptions {
  /**
   * 'head': one decay for each head (RetNet, Lightning attention); 'position': one for each position and head (Mamba-2,
   * gated retention); 'channel': one for each position, head and key channel (GLA, RWKV-6).
   */
  readonly per: 'head' | 'position' | 'channel';
  /** Logarithms, of any float dtype: [heads], [batch, seq, heads] or [batch, seq, heads, key dim]. 0 keeps, -Infinity clears. */
  readonly log: Tensor<FloatDType, Shape>;
}

/** What a position adds to the state. */
export type UpdateOptions =
  /** k v^T */
  | { readonly kind: 'add' }
  /** beta k (v - S^T k)^T, with the decayed state S. beta [batch, seq, heads], of any float dtype */
  | { readonly kind: 'delta'; readonly beta: Tensor<FloatDType, Shape> }
  /**
   * k v^T + write (S^T read)^T, with the state S before its decay (RWKV-7). Both [batch, seq, heads, key dim], of the dtype of
   * q. Only with decays by channel.
   */
  | { readonly kind: 'lowRank'; readonly read: Tensor<FloatDType, Shape>; readonly write: Tensor<FloatDType, Shape> };

export interface RecurrenceOptions {
  /** Default: none. */
  readonly decay?: DecayOptions | undefined;
  /** Default: { kind: 'add' } */
  readonly update?: UpdateOptions | undefined;
  /**
   * float32 [heads, key dim]: out_t reads the state before its own position, and q_t . (bonus k_t) v_t besides (RWKV-6).
   * Only with decays by channel.
   */
  readonly bonus?: Tensor<'float32', Shape> | undefined;
  /** Whether q times the decayed sum of keys is returned too, which normalised attention divides by. Default false. */
  readonly normalizer?: boolean | undefined;
  /** Of queries. Default 1 / sqrt(key dim). */
  readonly scale?: number | undefined;
  /** float32 [sequences, heads, key dim, value dim], with a normalizer [..., value dim + 1]. Default: zeros. */
  readonly initialState?: Tensor<'float32', Shape> | undefined;
  /** Sequences packed behind one another: where each begins, and where the last ends. Tensors have no batch axis then. */
  readonly cuSeqlens?: ArrayLike<number> | undefined;
  /**
   * Whether gates are read and looked at first: a decay above 0 or NaN, or a NaN beta, is an error that names its place.
   * Waits for them. Default false.
   */
  readonly checkGates?: boolean | undefined;
}

const names = [
  'decay',
  'update',
  'bonus',
  'normalizer',
  'scale',
  'initialState',
  'cuSeqlens',
  'checkGates',
] as const satisfies readonly (keyof RecurrenceOptions)[];

/** What tensors have before their heads: batch and seq, rows of packed sequences, or the batch of a step. */
export type Layout = 'batched' | 'packed' | 'step';

const axesText = { batched: 'batch, seq', packed: 'total', step: 'batch' } as const satisfies Record<Layout, string>;

export interface CheckedRecurrence {
  readonly problem: RecurrenceProblem;
  readonly layout: Layout;
  readonly decay: Tensor | undefined;
  readonly beta: Tensor | undefined;
  readonly read: Tensor | undefined;
  readonly write: Tensor | undefined;
  readonly bonus: Tensor | undefined;
  readonly initialState: Tensor | undefined;
  /** [sequences + 1] */
  readonly offsets: Int32Array | undefined;
}

interface Axes {
  /** What comes before heads. */
  readonly rows: Shape;
  readonly text: string;
}

function checkRows(t: unknown, argument: string, { rows, text }: Axes, rest: readonly string[]): asserts t is Tensor {
  checkTensor(t, argument);
  const rank = rows.length + rest.length;
  const order = `[${[text, ...rest].join(', ')}]`;
  if (t.shape.length !== rank)
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must have ${rank} axes, ${order}`);
  for (let axis = 0; axis < rows.length; axis++)
    if (t.shape[axis] !== rows[axis])
      throw shapeError(
        `${argument} has shape ${show(t.shape)}; it must be [${rows.join(', ')}, ...] as q is, ${order}`,
      );
}

function checkHeads(argument: string, own: number, heads: number): void {
  if (own < 1 ? heads !== 0 : heads % own !== 0)
    throw shapeError(`${argument} has ${own} heads; their number must divide ${heads}, that of the states`);
}

function checkDim(argument: string, dim: number, most: number): void {
  if (dim < 1 || dim > most) throw shapeError(`${argument} has head dim ${dim}; it must be from 1 to ${most}`);
}

function readOffsets(value: unknown, total: number): Int32Array {
  const offsets = checkOffsets(value, 'cuSeqlens');
  const last = offsets[offsets.length - 1];
  if (last !== total) throw optionError(`cuSeqlens ends at ${last}; it must end at ${total}, the rows of q`);
  return offsets;
}

function readDecay(
  decay: DecayOptions | undefined,
  axes: Axes,
  keyDim: number,
): { kind: DecayKind; log?: Tensor; heads: number } {
  if (decay === undefined) return { kind: 'none', heads: 1 };
  checkObject(decay, 'decay');
  checkOptions(decay, ['per', 'log'], 'decay.');
  const kind = checkWord(decay.per, 'decay.per', ['head', 'position', 'channel']);
  const log = decay.log as Tensor;
  if (kind === 'head') {
    checkTensor(log, 'decay.log');
    if (log.shape.length !== 1)
      throw shapeError(`decay.log has shape ${show(log.shape)}; a decay by head must be [heads]`);
    return { kind, log, heads: log.shape[0] };
  }
  checkRows(log, 'decay.log', axes, kind === 'channel' ? ['heads', 'key dim'] : ['heads']);
  if (kind === 'channel' && log.shape[axes.rows.length + 1] !== keyDim)
    throw shapeError(`decay.log has shape ${show(log.shape)}; its last axis must be the key dim, ${keyDim}`);
  return { kind, log, heads: log.shape[axes.rows.length] };
}

interface CheckedUpdate {
  readonly kind: UpdateOptions['kind'];
  readonly beta?: Tensor;
  readonly read?: Tensor;
  readonly write?: Tensor;
}

const updateNames = { add: ['kind'], delta: ['kind', 'beta'], lowRank: ['kind', 'read', 'write'] } as const;

function readUpdate(update: UpdateOptions | undefined, axes: Axes, q: Tensor): CheckedUpdate {
  if (update === undefined) return { kind: 'add' };
  checkObject(update, 'update');
  const kind = checkWord(update.kind, 'update.kind', ['add', 'delta', 'lowRank']);
  checkOptions(update as Record<string, unknown>, updateNames[kind], 'update.');
  if (update.kind === 'add') return { kind: 'add' };
  if (update.kind === 'delta') {
    checkRows(update.beta, 'update.beta', axes, ['heads']);
    return { kind: 'delta', beta: update.beta };
  }
  const keyDim = q.shape[axes.rows.length + 1];
  const check = (t: unknown, argument: string): Tensor => {
    checkRows(t, argument, axes, ['heads', 'key dim']);
    if (t.shape[axes.rows.length + 1] !== keyDim)
      throw shapeError(`${argument} has shape ${show(t.shape)}; its last axis must be the key dim, ${keyDim}`);
    if (t.dtype !== q.dtype)
      throw new FlashAttnError('ERR_DTYPE', `${argument} is ${t.dtype} and q is ${q.dtype}; they must be the same`);
    return t;
  };
  return { kind: 'lowRank', read: check(update.read, 'update.read'), write: check(update.write, 'update.write') };
}

/** @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE */
export function readRecurrence(
  q: unknown,
  k: unknown,
  v: unknown,
  options: RecurrenceOptions,
  layout: Layout = options?.cuSeqlens === undefined ? 'batched' : 'packed',
): CheckedRecurrence {
  checkTensor(q, 'q');
  checkObject(options, 'options');
  checkOptions(options, names);
  const packed = layout === 'packed';
  const rank = layout === 'batched' ? 4 : 3;
  const text = axesText[layout];
  if (q.shape.length !== rank)
    throw shapeError(`q has shape ${show(q.shape)}; it must have ${rank} axes, [${text}, heads, key dim]`);
  const axes: Axes = { rows: q.shape.slice(0, rank - 2), text };
  checkRows(k, 'k', axes, ['heads', 'key dim']);
  checkRows(v, 'v', axes, ['heads', 'value dim']);
  for (const [argument, t] of [
    ['k', k],
    ['v', v],
  ] as const)
    if (t.dtype !== q.dtype)
      throw new FlashAttnError('ERR_DTYPE', `${argument} is ${t.dtype} and q is ${q.dtype}; they must be the same`);
  const [queryHeads, keyDim] = q.shape.slice(rank - 2);
  const [keyHeads, keyOwnDim] = k.shape.slice(rank - 2);
  const [valueHeads, valueDim] = v.shape.slice(rank - 2);
  checkDim('q', keyDim, 256);
  checkDim('v', valueDim, 256);
  if (keyOwnDim !== keyDim) throw shapeError(`k has head dim ${keyOwnDim}; it must be ${keyDim}, that of q`);
  const { decay, update, bonus, initialState } = options;
  const { kind, log, heads: decayHeads } = readDecay(decay, axes, keyDim);
  const { kind: updateKind, beta, read, write } = readUpdate(update, axes, q);
  const headsOf = (t: Tensor | undefined) => (t ? t.shape[rank - 2] : 1);
  const [betaHeads, readHeads, writeHeads] = [headsOf(beta), headsOf(read), headsOf(write)];
  const heads = Math.max(
    keyHeads,
    valueHeads,
    log ? decayHeads : 0,
    beta ? betaHeads : 0,
    read ? Math.max(readHeads, writeHeads) : 0,
  );
  checkHeads('k', keyHeads, heads);
  checkHeads('v', valueHeads, heads);
  if (log) checkHeads('decay.log', decayHeads, heads);
  if (beta) checkHeads('update.beta', betaHeads, heads);
  if (read) checkHeads('update.read', readHeads, heads);
  if (write) checkHeads('update.write', writeHeads, heads);
  if (queryHeads < heads) checkHeads('q', queryHeads, heads);
  else if (heads === 0 ? queryHeads !== 0 : queryHeads % heads !== 0)
    throw shapeError(`q has ${queryHeads} heads; their number must be a multiple of ${heads}, that of the states`);
  if (beta && kind === 'channel')
    throw optionError(`decay.per is 'channel'; the delta rule takes decays by head or by position`);
  const normalizer = checkBoolean(options.normalizer ?? false, 'normalizer');
  if (read && kind !== 'channel')
    throw optionError(`update.kind is 'lowRank', which needs decay.per 'channel'; it is ${show(decay?.per)}`);
  if (updateKind !== 'add' && normalizer)
    throw optionError(`normalizer is true; only update.kind 'add' has one, it is '${updateKind}'`);
  const offsets = packed ? readOffsets(options.cuSeqlens, axes.rows[0]) : undefined;
  const batch = offsets ? offsets.length - 1 : axes.rows[0];
  if (bonus !== undefined) {
    checkExact(bonus, 'bonus', [heads, keyDim]);
    if (read) throw optionError(`bonus is given; update.kind 'lowRank' has none`);
    if (kind !== 'channel') throw optionError(`bonus needs decay.per 'channel'; it is ${show(decay?.per)}`);
  }
  if (initialState !== undefined)
    checkExact(initialState, layout === 'step' ? 'state' : 'initialState', [
      batch,
      heads,
      keyDim,
      valueDim + (normalizer ? 1 : 0),
    ]);
  const problem: RecurrenceProblem = {
    batch,
    length: layout === 'step' ? 1 : axes.rows[axes.rows.length - 1],
    heads,
    queryHeads,
    keyHeads,
    valueHeads,
    decayHeads,
    betaHeads,
    readHeads,
    writeHeads,
    keyDim,
    valueDim,
    decay: kind,
    update: updateKind,
    normalizes: normalizer,
    packed,
    scale: options.scale === undefined ? 1 / Math.sqrt(keyDim) : checkFloat32(options.scale, 'scale'),
  };
  return { problem, layout, decay: log, beta, read, write, bonus, initialState, offsets };
}

function checkExact(t: unknown, argument: string, shape: Shape): asserts t is Tensor<'float32', Shape> {
  checkTensor(t, argument);
  if (t.dtype !== 'float32') throw new FlashAttnError('ERR_DTYPE', `${argument} is ${t.dtype}; it must be float32`);
  if (t.shape.length !== shape.length || t.shape.some((n, axis) => n !== shape[axis]))
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be ${show(shape)}`);
}

/** @throws ERR_OPTION naming the first gate that is none, and its place */
export function checkGates({ decay, beta }: CheckedRecurrence): void {
  const look = (t: Tensor | undefined, argument: string, needed: string, is: (x: number) => boolean) => {
    if (!t) return;
    const values = t.toFloat32Sync();
    const at = values.findIndex((x) => !is(x));
    if (at >= 0) throw optionError(`${argument}${placeOf(t.shape, at)} is ${values[at]}; it must be ${needed}`);
  };
  look(decay, 'decay.log', '0 or less: the logarithm of a decay', (x) => x <= 0);
  look(beta, 'update.beta', 'a finite number', Number.isFinite);
}
