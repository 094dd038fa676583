import { mergeForward, mergeGradients } from '../backends/shared/merge.js';
import { checkOptions, checkWord, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import type { MergePart, MergeShape } from '../kernels/merge.js';
import { filled, inRows } from '../tape/arithmetic.js';
import { record } from '../tape/tape.js';
import { allocating, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import type { Shape2, Shape3, Shape4 } from './attention.js';
import { dimsOf, type Layout, lseShape, orders, rankOf, viewOf } from './layout.js';
import { expect } from './operands.js';

/** Attention over some of the keys: what `attention` returns. */
export interface AttentionState<D extends FloatDType = FloatDType, S extends Shape = Shape> {
  /** [batch, seq, heads, dim], or as `layout` says, or [total, heads, dim]. */
  readonly out: Tensor<D, S>;
  /** [batch, heads, seq], or [heads, total]. */
  readonly lse: Tensor<'float32', S extends Shape4 ? Shape3 : S extends Shape3 ? Shape2 : Shape>;
}

export interface MergeOptions {
  /** Order of the dims of out, as in `attention`. Default 'bshd'; without meaning for rank 3. */
  readonly layout?: 'bshd' | 'bhsd';
}

export interface MergeBackwardOptions extends MergeOptions {
  /** The gradient of the loss with respect to the merged lse. float32, the shape of lse. */
  readonly dLse?: Tensor<'float32', Shape>;
}

/** The gradients of one state; pass them to `attentionBackward` as dOut and dLse. */
export interface StateGradients<D extends FloatDType = FloatDType, S extends Shape = Shape> {
  readonly dOut: Tensor<D, S>;
  readonly dLse: Tensor<'float32', Shape>;
}

interface MergeProblem extends MergeShape {
  readonly backend: Backend;
  readonly layout: Layout;
  readonly outShape: Shape;
  readonly lseShape: Shape;
  readonly dtype: FloatDType;
}

const statesNeeded = 'an array of at least one { out, lse }';

function checkState(state: unknown, argument: string): asserts state is AttentionState {
  if (state === null || typeof state !== 'object') throw mustBe(argument, state, '{ out, lse }');
}

function readLayout(shape: Shape, layout: MergeOptions['layout'] = 'bshd'): Layout {
  checkWord(layout, 'layout', ['bshd', 'bhsd']);
  if (shape.length === rankOf('varlen')) return 'varlen';
  if (shape.length === rankOf(layout)) return layout;
  throw shapeError(
    `states[0].out has shape ${show(shape)}; it must be ${orders[layout]} or, of packed sequences, ${orders.varlen}`,
  );
}

function readMerge(states: readonly AttentionState[], { layout: given }: MergeOptions): MergeProblem {
  if (!Array.isArray(states) || states.length === 0) throw mustBe('states', states, statesNeeded);
  for (let i = 0; i < states.length; i++) checkState(states[i], `states[${i}]`);
  const [first] = states as [AttentionState];
  checkTensor(first.out, 'states[0].out');
  const { shape, dtype, backend } = first.out;
  const layout = readLayout(shape, given);
  const dims = dimsOf(shape, layout);
  const ofLse = lseShape(dims, layout);
  for (const [i, state] of states.entries()) {
    expect(state.out, `states[${i}].out`, shape, dtype);
    expect(state.lse, `states[${i}].lse`, ofLse, 'float32');
  }
  const { batch, heads, rows: queryLength, dim: valueDim } = dims;
  return { batch, heads, queryLength, valueDim, backend, layout, outShape: shape, lseShape: ofLse, dtype };
}

const part = (p: MergeProblem, out: Tensor, lse: Tensor, name: string): MergePart => ({
  out: viewOf(out, p.layout, `${name}.out`, p.backend),
  lse: lse.flat(`${name}.lse`, p.backend),
});

const readParts = (p: MergeProblem, states: readonly AttentionState[]) =>
  states.map(({ out, lse }, i) => part(p, out, lse, `states[${i}]`));

/**
 * The exact attention over the union of disjoint key sets, from the attention over each of them:
 * lse = log sum_p e^lse_p, out = sum_p e^(lse_p - lse) out_p. The algebra behind split-KV, ring and tree attention.
 * A state with lse -Infinity (no visible key) counts for nothing.
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function mergeStates<D extends FloatDType, S extends Shape>(
  states: readonly AttentionState<D, S>[],
  options: MergeOptions = {},
): AttentionState<D, S> {
  checkOptions(options, ['layout']);
  const p = readMerge(states, options);
  const parts = readParts(p, states);
  return allocating(p.backend, (allocate) => {
    const out = allocate(p.outShape, p.dtype);
    const lse = allocate(p.lseShape, 'float32');
    mergeForward(p.backend, { shape: p, parts, ...part(p, out, lse, 'result') });
    recordMerge(p, states, { out: out as Tensor, lse: lse as Tensor<'float32', Shape> });
    return { out, lse } as unknown as AttentionState<D, S>;
  });
}

/** Lets gradients of the merged out and lse find their way to the states. */
function recordMerge(p: MergeProblem, states: readonly AttentionState[], merged: AttentionState): void {
  const inputs = states.flatMap(({ out, lse }) => [out, lse]);
  record(
    'mergeStates',
    inputs,
    [merged.out, merged.lse],
    [...inputs, merged.out, merged.lse],
    ([dOut, dLse], saved) => {
      const pairs = Array.from({ length: states.length + 1 }, (_, i) => ({ out: saved[2 * i], lse: saved[2 * i + 1] }));
      const [result] = pairs.splice(-1);
      const gradient = dOut ? inRows(dOut) : filled(p.backend, p.outShape, p.dtype, 0);
      const gradients = mergeStatesBackward(gradient, { states: pairs, ...result } as unknown as SavedMerge, {
        layout: p.layout as 'bshd',
        ...(dLse && { dLse: inRows(dLse) as Tensor<'float32', Shape> }),
      });
      return gradients.flatMap((each) => [each.dOut, each.dLse]);
    },
  );
}

type SavedMerge = { readonly states: readonly AttentionState[] } & AttentionState;

/**
 * The gradients of `mergeStates` for each of its states.
 *
 * @param dOut the gradient of the merged out
 * @param saved the states and their merged result
 * @throws as `mergeStates`
 */
export function mergeStatesBackward<D extends FloatDType, S extends Shape>(
  dOut: Tensor<D, S>,
  saved: { readonly states: readonly AttentionState<D, S>[] } & AttentionState<D, S>,
  options: MergeBackwardOptions = {},
): StateGradients<D, S>[] {
  if (saved === null || typeof saved !== 'object') throw mustBe('saved', saved, '{ states, out, lse }');
  checkOptions(options, ['layout', 'dLse']);
  const { states } = saved;
  const { dLse } = options;
  const p = readMerge(states, options);
  expect(saved.out, 'saved.out', p.outShape, p.dtype);
  expect(saved.lse, 'saved.lse', p.lseShape, 'float32');
  expect(dOut, 'dOut', p.outShape, p.dtype);
  if (dLse !== undefined) expect(dLse, 'dLse', p.lseShape, 'float32');
  const operands = {
    parts: readParts(p, states),
    ...part(p, saved.out, saved.lse, 'saved'),
    dOut: viewOf(dOut, p.layout, 'dOut', p.backend),
    ...(dLse && { dLse: dLse.flat('dLse', p.backend) }),
  };
  return allocating(p.backend, (allocate) => {
    const gradients = states.map(() => ({
      dOut: allocate(p.outShape, p.dtype),
      dLse: allocate(p.lseShape, 'float32'),
    }));
    const dParts = gradients.map((gradient, i) => part(p, gradient.dOut, gradient.dLse, `gradients[${i}]`));
    mergeGradients(p.backend, { shape: p, ...operands, dParts });
    return gradients as unknown as StateGradients<D, S>[];
  });
}
