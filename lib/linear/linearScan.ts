import { checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { linearScanBackward, linearScan as linearScanOperation } from '../kernels/linearScan.js';
import { scanBlocks } from '../kernels/scan.js';
import { filled } from '../tape/arithmetic.js';
import { needsRecord, record } from '../tape/tape.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import {
  checkSequences,
  checkShape,
  checkState,
  checkUsable,
  type Scanned,
  ScanOperands,
  scanShapeOf,
} from './scanOperands.js';

export interface LinearScanOptions {
  /** float32 [batch, channels]: h before the first position. Default: zeros. */
  readonly initialState?: Tensor<'float32', Shape>;
}

const stateAxes = '[batch, channels] of x';

function backward(
  x: Tensor,
  gate: Tensor,
  kept: Tensor,
  dOut: Tensor,
  dFinal: Tensor | undefined,
  needed: readonly boolean[],
): readonly (Tensor | undefined)[] {
  const { backend } = x;
  const shape = scanShapeOf(x, 'x');
  return ScanOperands.within(backend, (operands, allocate) => {
    const dX = needed[0] ? allocate(x.shape, x.dtype) : undefined;
    const dGate = needed[1] ? allocate(gate.shape, gate.dtype) : undefined;
    const dInitial = needed[2] ? allocate([shape.batch, shape.channels], 'float32') : undefined;
    backend.launch(linearScanBackward, {
      ...{ x: operands.sequences(x, 'x'), gate: operands.sequences(gate, 'gate'), kept: operands.floats(kept, 'kept') },
      dOut: operands.sequences(dOut, 'dOut'),
      dFinal: operands.floats(dFinal, 'dState'),
      dX: operands.sequences(dX, 'dX'),
      dGate: operands.sequences(dGate, 'dGate'),
      dInitial: operands.floats(dInitial as Tensor | undefined, 'dInitialState'),
      ...shape,
    });
    return [dX, dGate, dInitial as Tensor | undefined];
  });
}

/**
 * A gated sum along a sequence, of each channel for itself: h_t = e^(gate_t) h_{t-1} + x_t, and out_t = h_t. The recurrence
 * of HGRN (Qin, Yang and Zhong, "Hierarchically Gated Recurrent Neural Network for Sequence Modeling", 2023), of minGRU and
 * of RG-LRU. h is float32, whatever the dtypes; out is rounded to that of x. Gates are logarithms: 0 keeps all, -Infinity
 * nothing; below -55 the factor is 0, and one that is too large for float32 is Infinity. Its gradients, also of both states,
 * compute h again from what is kept of it at every 32nd position.
 *
 * @param x [batch, length, channels]
 * @param gate of the shape of x, of any floating-point dtype
 * @returns `out` of the shape and dtype of x, and `state`, h after the last position, float32 [batch, channels]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function linearScan<D extends FloatDType, S extends Shape>(
  x: Tensor<D, S>,
  gate: Tensor<FloatDType, Shape>,
  options: LinearScanOptions = {},
): Scanned<D, S> {
  const input: unknown = x;
  checkSequences(input, 'x');
  checkShape(gate, 'gate', input.shape, 'that of x');
  checkOptions(options, ['initialState']);
  const shape = scanShapeOf(input, 'x');
  const initial = options.initialState as Tensor | undefined;
  if (initial !== undefined) checkState(initial, 'initialState', [shape.batch, shape.channels], stateAxes);
  const { backend } = input;
  checkUsable(backend, { x: input, gate, initialState: initial });
  const inputs = [input, gate, initial];
  const records = needsRecord(inputs);
  const { out, state, kept } = ScanOperands.within(backend, (operands, allocate) => {
    const out = allocate(input.shape, input.dtype);
    const state = allocate([shape.batch, shape.channels], 'float32');
    const blocks = scanBlocks(shape.length);
    const kept = records ? allocate([shape.batch, blocks, shape.channels], 'float32') : undefined;
    backend.launch(linearScanOperation, {
      x: operands.sequences(input, 'x'),
      gate: operands.sequences(gate, 'gate'),
      out: operands.sequences(out, 'out'),
      initial: operands.floats(initial, 'initialState'),
      finalState: state.flat('state', backend),
      kept: kept?.flat('kept', backend),
      ...shape,
    });
    return { out, state, kept };
  });
  if (kept) {
    record('linearScan', inputs, [out, state], [input, gate, kept], ([dOut, dState], [ownX, ownGate, own], needed) => {
      const like = ownX as Tensor;
      using zero = dOut ? undefined : filled(backend, like.shape, like.dtype, 0);
      return backward(like, ownGate as Tensor, own as Tensor, dOut ?? (zero as Tensor), dState, needed);
    });
    kept.dispose();
  }
  return { out: out as Tensor<D, Shape> as Tensor<D, S>, state };
}
