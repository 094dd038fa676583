// The engine of linear and recurrent attention.
import type { FloatDType } from '../base/dtype.js';
import type { Backend } from '../kernels/device.js';
import type { DeviceBuffer } from '../kernels/memory.js';
import type { Flat, View } from '../kernels/operand.js';
import {
  chunkStateElements,
  type DecayKind,
  outHeads,
  recurrenceBackward as recurrenceBackwardOperation,
  recurrence as recurrenceOperation,
  stateColumns,
} from '../kernels/recurrence.js';
import { Operands } from '../ops/operands.js';
import { converted, filled, reduceAxes } from '../tape/arithmetic.js';
import { needsRecord, record } from '../tape/tape.js';
import {
  type Allocate,
  type AnyTensor,
  allocateTensor,
  allocating,
  type Shape,
  type Tensor,
} from '../tensor/tensor.js';
import { type CheckedRecurrence, checkGates, type Layout, type RecurrenceOptions, readRecurrence } from './problem.js';

export type { DecayOptions, RecurrenceOptions, UpdateOptions } from './problem.js';

export interface Recurrence<D extends FloatDType = FloatDType> {
  /** [batch, seq, heads, value dim], or [total, heads, value dim]; heads are those of q or of the states, whichever are more. */
  readonly out: Tensor<D, Shape>;
  /** float32 [sequences, heads, key dim, value dim], with a normalizer [..., value dim + 1]. */
  readonly state: Tensor<'float32', Shape>;
}

export interface NormalizedRecurrence<D extends FloatDType = FloatDType> extends Recurrence<D> {
  /** float32 [batch, seq, heads]: scale q_t . (the decayed sum of keys), which `out` is not divided by. */
  readonly normalizer: Tensor<'float32', Shape>;
}

/** Tensors as the kernels of the recurrence read them. */
class Rows extends Operands {
  constructor(
    backend: Backend,
    readonly layout: Layout,
  ) {
    super(backend);
  }

  /** [batch, seq, heads, dim], [total, heads, dim] or [batch, heads, dim] */
  rows(given: Tensor, argument: string): View {
    const last = given.shape.length - 1;
    given.operand(argument, this.backend);
    const t = given.strides[last] === 1 || given.shape[last] === 1 ? given : this.keep(given.contiguous());
    return this.#view(t, argument, last);
  }

  /** As `rows` without dim. */
  scalars(t: Tensor, argument: string): View {
    return this.#view(t, argument, t.shape.length);
  }

  /** Decays [heads], or as `rows` or `scalars`. */
  decays(t: Tensor, kind: DecayKind, argument: string): View {
    if (kind === 'channel') return this.rows(t, argument);
    if (kind === 'position') return this.scalars(t, argument);
    const { buffer, offset } = t.operand(argument, this.backend);
    return { buffer, offset, dtype: t.dtype, batchStride: 0, seqStride: 0, headStride: t.strides[0] };
  }

  integers(values: Int32Array): Flat {
    const t = this.keep(allocateTensor(this.backend, [values.length], 'int32', 'hostWritten'));
    const flat = t.flat('cuSeqlens', this.backend);
    this.backend.write(flat.buffer, 0, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    return flat;
  }

  #view(t: Tensor, argument: string, axes: number): View {
    const { strides, dtype } = t;
    const { buffer, offset } = t.operand(argument, this.backend);
    const head = axes - 1;
    const batchStride = this.layout === 'packed' ? 0 : strides[0];
    const seqStride = this.layout === 'step' ? 0 : strides[head - 1];
    return { buffer, offset, dtype, batchStride, seqStride, headStride: strides[head] };
  }
}

interface Inputs extends CheckedRecurrence {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
}

function inputOperands(x: Inputs, operands: Rows) {
  const { problem, decay, beta, read, write, bonus, initialState, offsets } = x;
  return {
    problem,
    query: operands.rows(x.q, 'q'),
    key: operands.rows(x.k, 'k'),
    value: operands.rows(x.v, 'v'),
    decay: decay && operands.decays(decay, problem.decay, 'decay.log'),
    beta: beta && operands.scalars(beta, 'update.beta'),
    read: read && operands.rows(read, 'update.read'),
    write: write && operands.rows(write, 'update.write'),
    bonus: bonus && operands.flat(bonus, 'bonus'),
    initial: initialState && operands.flat(initialState, 'initialState'),
    offsets: offsets && operands.integers(offsets),
  };
}

const rowsOf = ({ q, layout }: Inputs): Shape => q.shape.slice(0, layout === 'batched' ? 2 : 1);

const isProcessor = ({ device }: Backend): boolean => device === 'cpu' || device === 'wasm';

/** @internal @param into where the final state goes: [sequences, heads, key dim, state columns]. Default: a new tensor */
export function forward(x: Inputs, into?: Tensor): { out: Tensor; state: Tensor; normalizer: Tensor | undefined } {
  const { backend } = x.q;
  const { problem } = x;
  const operands = new Rows(backend, x.layout);
  try {
    const inputs = inputOperands(x, operands);
    return allocating(backend, (allocate) => {
      const heads = [...rowsOf(x), outHeads(problem)];
      const out = allocate([...heads, problem.valueDim], x.q.dtype);
      const normalizer = problem.normalizes ? allocate(heads, 'float32') : undefined;
      const state = into ?? allocate([problem.batch, problem.heads, problem.keyDim, stateColumns(problem)], 'float32');
      backend.launch(recurrenceOperation, {
        problem,
        query: inputs.query,
        key: inputs.key,
        value: inputs.value,
        decay: inputs.decay,
        beta: inputs.beta,
        read: inputs.read,
        write: inputs.write,
        bonus: inputs.bonus,
        offsets: inputs.offsets,
        initial: inputs.initial,
        out: operands.rows(out, 'out'),
        normalizer: normalizer?.flat('normalizer', backend),
        finalState: state.flat('state', backend),
      });
      return { out, state, normalizer };
    });
  } finally {
    operands.dispose();
  }
}

/** The sum over the heads of the states that shared one of `like`, in its dtype. `axis` is that of heads. */
function sharedHeads(gradient: Tensor, like: Tensor, axis: number): Tensor {
  const heads = like.shape[axis];
  if (gradient.shape[axis] === heads)
    return gradient.dtype === like.dtype ? gradient : disposing(gradient, () => converted(gradient, like.dtype));
  const shape = [
    ...gradient.shape.slice(0, axis),
    heads,
    gradient.shape[axis] / heads,
    ...gradient.shape.slice(axis + 1),
  ];
  return disposing(gradient, () => {
    const split = gradient.reshape(shape);
    return disposing(split, () => {
      const reduced = shape.map((_, at) => at === axis + 1);
      return reduceAxes(split, reduced, { reduction: 'sum', dtype: like.dtype }) as Tensor;
    });
  });
}

function disposing<T>(t: AnyTensor, f: () => T): T {
  try {
    return f();
  } finally {
    t.dispose();
  }
}

/** The sum over the first axis, of sequences. */
function sumOfSequences(gradient: Tensor, dtype: FloatDType): Tensor {
  return disposing(gradient, () =>
    reduceAxes(
      gradient,
      gradient.shape.map((_, axis) => axis === 0),
      { reduction: 'sum', dtype },
    ),
  ) as Tensor;
}

interface Gradients {
  readonly dOut: Tensor | undefined;
  readonly dState: Tensor | undefined;
  readonly dNormalizer: Tensor | undefined;
}

function backward(x: Inputs, { dOut, dState, dNormalizer }: Gradients): readonly (Tensor | undefined)[] {
  const { q, k, v, problem, decay, beta, read, write, bonus, initialState } = x;
  const { backend } = q;
  const operands = new Rows(backend, x.layout);
  const rows = rowsOf(x);
  const { batch, heads, keyDim, valueDim } = problem;
  const axis = rows.length;
  /** Sums over heads that share something are made of float32. */
  const allocateFor = (allocate: Allocate, like: Tensor, own: number, dim?: number) => {
    const exact = like.shape[axis] === own && like.dtype === q.dtype;
    return allocate([...rows, own, ...(dim === undefined ? [] : [dim])], exact ? like.dtype : 'float32');
  };
  try {
    const inputs = inputOperands(x, operands);
    const zeros = () => operands.keep(filled(backend, [...rows, outHeads(problem), valueDim], q.dtype, 0)) as Tensor;
    const chunkStates = operands.scratch(
      Math.max(1, chunkStateElements(problem, isProcessor(backend))),
    ) as DeviceBuffer;
    const all = allocating(backend, (allocate) => {
      const gradients = {
        dQuery: allocateFor(allocate, q, outHeads(problem), keyDim),
        dKey: allocateFor(allocate, k, heads, keyDim),
        dValue: allocateFor(allocate, v, heads, valueDim),
        dDecay:
          decay &&
          (problem.decay === 'head'
            ? allocate([batch, heads], 'float32')
            : allocate([...rows, heads, ...(problem.decay === 'channel' ? [keyDim] : [])], 'float32')),
        dBeta: beta && allocate([...rows, heads], 'float32'),
        dRead: read && allocateFor(allocate, read, heads, keyDim),
        dWrite: write && allocateFor(allocate, write, heads, keyDim),
        dBonus: bonus && allocate([batch, heads, keyDim], 'float32'),
        dInitial: initialState && allocate(initialState.shape, 'float32'),
      };
      const { dDecay } = gradients;
      const decays = dDecay && operands.decays(dDecay, problem.decay, 'dDecay');
      backend.launch(recurrenceBackwardOperation, {
        ...inputs,
        dOut: operands.rows(dOut ?? zeros(), 'dOut'),
        dNormalizer: dNormalizer && operands.flat(dNormalizer, 'dNormalizer'),
        dFinalState: dState && operands.flat(dState, 'dState'),
        dQuery: operands.rows(gradients.dQuery, 'dQuery'),
        dKey: operands.rows(gradients.dKey, 'dKey'),
        dValue: operands.rows(gradients.dValue, 'dValue'),
        // By head it is [batch, heads]: one for each sequence.
        dDecay: decays && (problem.decay === 'head' ? { ...decays, batchStride: heads, headStride: 1 } : decays),
        dBeta: gradients.dBeta && operands.scalars(gradients.dBeta, 'dBeta'),
        dRead: gradients.dRead && operands.rows(gradients.dRead, 'dRead'),
        dWrite: gradients.dWrite && operands.rows(gradients.dWrite, 'dWrite'),
        dBonus: gradients.dBonus?.flat('dBonus', backend),
        dInitial: gradients.dInitial?.flat('dInitial', backend),
        chunkStates,
      });
      return gradients;
    });
    const dLog = () => {
      if (!all.dDecay || !decay) return undefined;
      if (problem.decay !== 'head') return sharedHeads(all.dDecay, decay, axis);
      return sharedHeads(sumOfSequences(all.dDecay, 'float32'), decay, 0);
    };
    return [
      sharedHeads(all.dQuery, q, axis),
      sharedHeads(all.dKey, k, axis),
      sharedHeads(all.dValue, v, axis),
      dLog(),
      all.dBeta && beta && sharedHeads(all.dBeta, beta, axis),
      all.dRead && read && sharedHeads(all.dRead, read, axis),
      all.dWrite && write && sharedHeads(all.dWrite, write, axis),
      all.dBonus && sumOfSequences(all.dBonus, 'float32'),
      all.dInitial,
    ];
  } finally {
    operands.dispose();
  }
}

/**
 * Linear and recurrent attention: a state S [key dim, value dim] for each head, which at every position decays, is added to,
 * and is read by the query:
 *
 *   S_t = decay_t S_{t-1} + k_t u_t^T      out_t = scale S_t^T q_t
 *
 * with u_t = v_t, or by the delta rule u_t = beta_t (v_t - (decay_t S_{t-1})^T k_t), or with a correction of rank one besides,
 * write_t (S_{t-1}^T read_t)^T. In time and memory that grow with the
 * length (the chunked form of Hua et al. 2022, Sun et al. 2023, Yang et al. 2023 and 2024), with float32 states. Passing the
 * state of one call to the next gives what one call over both would.
 *
 * Heads: k, v, gates and, where they are fewer, q are shared by as many heads of the states as there are for each of theirs;
 * more heads of q than of the states read the state of their group.
 *
 * NaN and Infinity reach what comes after them, never what came before.
 *
 * @param q [batch, seq, heads, key dim], or [total, heads, key dim] with `cuSeqlens`; key dim from 1 to 256
 * @param k [batch, seq, heads, key dim], of the dtype of q
 * @param v [batch, seq, heads, value dim], of the dtype of q; value dim from 1 to 256
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function recurrence<D extends FloatDType>(
  q: Tensor<D, Shape>,
  k: Tensor<D, Shape>,
  v: Tensor<D, Shape>,
  options: RecurrenceOptions & { readonly normalizer: true },
): NormalizedRecurrence<D>;
export function recurrence<D extends FloatDType>(
  q: Tensor<D, Shape>,
  k: Tensor<D, Shape>,
  v: Tensor<D, Shape>,
  options?: RecurrenceOptions,
): Recurrence<D>;
export function recurrence(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: RecurrenceOptions = {},
): Recurrence | NormalizedRecurrence {
  const checked = readRecurrence(q, k, v, options);
  if (options.checkGates) checkGates(checked);
  const { problem, layout, decay, beta, read, write, bonus, initialState, offsets } = checked;
  const inputs = [q, k, v, decay, beta, read, write, bonus, initialState];
  const { out, state, normalizer } = forward({ ...checked, q, k, v });
  if (needsRecord(inputs)) {
    const kept: Tensor[] = [];
    for (const t of inputs) if (t) kept.push(t);
    const results = normalizer ? [out, state, normalizer] : [out, state];
    record('recurrence', inputs, results, kept, ([dOut, dState, dNormalizer], saved) => {
      const rest = [...saved] as Tensor[];
      const take = (t: Tensor | undefined) => t && (rest.shift() as Tensor);
      const [ownQ, ownK, ownV] = [take(q), take(k), take(v)] as [Tensor, Tensor, Tensor];
      const own: Inputs = {
        problem,
        layout,
        offsets,
        q: ownQ,
        k: ownK,
        v: ownV,
        decay: take(decay),
        beta: take(beta),
        read: take(read),
        write: take(write),
        bonus: take(bonus),
        initialState: take(initialState),
      };
      return backward(own, { dOut, dState, dNormalizer });
    });
  }
  const result = { out, state: state as Tensor<'float32', Shape> };
  return normalizer ? { ...result, normalizer: normalizer as Tensor<'float32', Shape> } : result;
}
