import { checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import {
  diagonalScanBackward,
  diagonalScan as diagonalScanOperation,
  diagonalScratch,
} from '../kernels/diagonalScan.js';
import { mostScanState, type ScanShape, scanBlocks } from '../kernels/scan.js';
import { filled } from '../tape/arithmetic.js';
import { needsRecord, record } from '../tape/tape.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import {
  checkSequences,
  checkShape,
  checkState,
  checkUsable,
  gradientOf,
  type Scanned,
  ScanOperands,
  scanShapeOf,
} from './scanOperands.js';

export interface DiagonalScanOptions {
  /** float32 [batch, channels, state, 2]: h before the first position. Default: zeros. */
  readonly initialState?: Tensor<'float32', Shape>;
}

interface Inputs extends ScanShape {
  readonly u: Tensor;
  readonly a: Tensor;
  readonly w: Tensor;
}

function backward(
  { u, a, w, ...shape }: Inputs,
  kept: Tensor,
  dOut: Tensor,
  dFinal: Tensor | undefined,
  needed: readonly boolean[],
): readonly (Tensor | undefined)[] {
  const { backend } = u;
  const state = a.shape[1];
  return ScanOperands.within(backend, (operands, allocate) => {
    const dU = needed[0] ? allocate(u.shape, u.dtype) : undefined;
    const [dA, dW] = [needed[1], needed[2]].map((is) => (is ? allocate(a.shape, 'float32') : undefined)) as [
      Tensor | undefined,
      Tensor | undefined,
    ];
    const dInitial = needed[3] ? (allocate([shape.batch, shape.channels, state, 2], 'float32') as Tensor) : undefined;
    backend.launch(diagonalScanBackward, {
      u: operands.sequences(u, 'u'),
      a: operands.floats(a, 'a'),
      w: operands.floats(w, 'w'),
      kept: operands.floats(kept, 'kept'),
      dOut: operands.sequences(dOut, 'dOut'),
      dFinal: operands.floats(dFinal, 'dState'),
      dU: operands.sequences(dU, 'dU'),
      dInitial: operands.floats(dInitial, 'dInitialState'),
      dA: operands.floats(dA, 'dA'),
      dW: operands.floats(dW, 'dW'),
      ofSequences: operands.scratch(dA || dW ? diagonalScratch(shape, state) : 0),
      state,
      ...shape,
    });
    return [dU, gradientOf(a, dA), gradientOf(w, dW), dInitial];
  });
}

/**
 * A linear system with a diagonal matrix of complex numbers, of each channel for itself, the same at every position:
 * h_t[n] = a[n] h_{t-1}[n] + u_t, and out_t = Re(the sum over n of w[n] h_t[n]). What S4D is as a recurrence (Gu, Gupta, Goel
 * and Re, "On the Parameterization and Initialization of Diagonal State Space Models", 2022), S5, and LRU. Complex numbers are
 * pairs on the last axis, the real part first; the gradient of one is that of both parts.
 *
 * @param u [batch, length, channels]
 * @param a [channels, state, 2], of any floating-point dtype: the factor of each position
 * @param w of the shape of a, of any floating-point dtype: how the state is read
 * @returns `out` of the shape and dtype of u, and `state`, h after the last position, float32 [batch, channels, state, 2]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function diagonalScan<D extends FloatDType, S extends Shape>(
  u: Tensor<D, S>,
  a: Tensor<FloatDType, Shape>,
  w: Tensor<FloatDType, Shape>,
  options: DiagonalScanOptions = {},
): Scanned<D, S> {
  const input: unknown = u;
  checkSequences(input, 'u');
  const shape = scanShapeOf(input, 'u');
  const { batch, length, channels } = shape;
  checkShape(a, 'a', [channels, a?.shape?.[1] ?? 0, 2], '[channels, state, 2]');
  const size = a.shape[1];
  if (size < 1 || size > mostScanState / 2)
    throw shapeError(`a has shape ${show(a.shape)}; a state has from 1 to ${mostScanState / 2} elements a channel`);
  checkShape(w, 'w', a.shape, 'that of a');
  checkOptions(options, ['initialState']);
  const initial = options.initialState as Tensor | undefined;
  const stateShape = [batch, channels, size, 2];
  if (initial !== undefined) checkState(initial, 'initialState', stateShape, '[batch, channels, state, 2] of u and a');
  const { backend } = input;
  checkUsable(backend, { u: input, a, w, initialState: initial });
  const inputs = [input, a, w, initial];
  const records = needsRecord(inputs);
  const { out, state, kept } = ScanOperands.within(backend, (operands, allocate) => {
    const out = allocate(input.shape, input.dtype);
    const state = allocate(stateShape, 'float32');
    const kept = records ? allocate([batch, scanBlocks(length), size, 2, channels], 'float32') : undefined;
    backend.launch(diagonalScanOperation, {
      u: operands.sequences(input, 'u'),
      a: operands.floats(a, 'a'),
      w: operands.floats(w, 'w'),
      out: operands.sequences(out, 'out'),
      initial: operands.floats(initial, 'initialState'),
      finalState: state.flat('state', backend),
      kept: kept?.flat('kept', backend),
      state: size,
      ...shape,
    });
    return { out, state, kept };
  });
  if (kept) {
    record('diagonalScan', inputs, [out, state], [input, a, w, kept], ([dOut, dState], saved, needed) => {
      const [ownU, ownA, ownW, own] = saved as [Tensor, Tensor, Tensor, Tensor];
      using zero = dOut ? undefined : filled(backend, ownU.shape, ownU.dtype, 0);
      return backward({ u: ownU, a: ownA, w: ownW, ...shape }, own, dOut ?? (zero as Tensor), dState, needed);
    });
    kept.dispose();
  }
  return { out: out as Tensor<D, Shape> as Tensor<D, S>, state };
}
