import { checkBoolean, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { mostScanState, scanBlocks } from '../kernels/scan.js';
import {
  type SelectiveScanShape,
  selectiveScanBackward,
  selectiveScan as selectiveScanOperation,
  selectiveScratch,
} from '../kernels/selectiveScan.js';
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

/** What is scanned. Parameters may be of any floating-point dtype, and so may b, c, dt and z. */
export interface SelectiveScanInputs {
  /** [batch, length, channels]: how far each position goes. */
  readonly dt: Tensor<FloatDType, Shape>;
  /** [channels, state]: the rates of decay, below 0. */
  readonly a: Tensor<FloatDType, Shape>;
  /** [batch, length, groups, state]: how u enters the state; groups divides the channels. */
  readonly b: Tensor<FloatDType, Shape>;
  /** Of the shape of b: how the state is read. */
  readonly c: Tensor<FloatDType, Shape>;
}

export interface SelectiveScanOptions {
  /** [channels], D of the paper: skip u is added to what is read of the state. Default: none. */
  readonly skip?: Tensor<FloatDType, Shape>;
  /** [batch, length, channels]: the result is multiplied by silu(z). Default: it is not. */
  readonly z?: Tensor<FloatDType, Shape>;
  /** [channels]: added to dt. Default: none. */
  readonly dtBias?: Tensor<FloatDType, Shape>;
  /** Whether a step is softplus(dt + dtBias), or dt + dtBias itself. Default false. */
  readonly softplus?: boolean;
  /** float32 [batch, channels, state]: h before the first position. Default: zeros. */
  readonly initialState?: Tensor<'float32', Shape>;
}

interface Checked extends SelectiveScanShape {
  readonly u: Tensor;
  readonly dt: Tensor;
  readonly a: Tensor;
  readonly b: Tensor;
  readonly c: Tensor;
  readonly skip: Tensor | undefined;
  readonly z: Tensor | undefined;
  readonly dtBias: Tensor | undefined;
  readonly initial: Tensor | undefined;
  readonly softplus: boolean;
}

function read(u: unknown, inputs: SelectiveScanInputs, options: SelectiveScanOptions): Checked {
  checkSequences(u, 'u');
  checkOptions(inputs, ['dt', 'a', 'b', 'c'], 'inputs');
  checkOptions(options, ['skip', 'z', 'dtBias', 'softplus', 'initialState']);
  const { dt, a, b, c } = inputs;
  const { skip, z, dtBias, softplus = false, initialState } = options;
  const shape = scanShapeOf(u, 'u');
  const { batch, length, channels } = shape;
  checkShape(dt, 'dt', u.shape, 'that of u');
  checkShape(a, 'a', [channels, a?.shape?.[1] ?? 0], '[channels, state]');
  const state = a.shape[1];
  if (state < 1 || state > mostScanState)
    throw shapeError(`a has shape ${show(a.shape)}; a state has from 1 to ${mostScanState} elements a channel`);
  const groups = b?.shape?.[2] ?? 1;
  checkShape(b, 'b', [batch, length, groups, state], '[batch, length, groups, state]');
  checkShape(c, 'c', b.shape, 'that of b');
  if (groups < 1 || channels % groups !== 0)
    throw shapeError(`b has ${groups} groups; their number must divide the ${channels} channels of u`);
  if (skip !== undefined) checkShape(skip, 'skip', [channels], 'a number for each channel of u');
  if (dtBias !== undefined) checkShape(dtBias, 'dtBias', [channels], 'a number for each channel of u');
  if (z !== undefined) checkShape(z, 'z', u.shape, 'that of u');
  if (b.dtype !== c.dtype)
    throw new FlashAttnError('ERR_DTYPE', `c is ${c.dtype} and b is ${b.dtype}; they must be the same`);
  checkBoolean(softplus, 'softplus');
  const initial = initialState as Tensor | undefined;
  if (initial !== undefined)
    checkState(initial, 'initialState', [batch, channels, state], '[batch, channels, state] of u and a');
  checkUsable(u.backend, { u, dt, a, b, c, skip, z, dtBias, initialState: initial });
  return { u, dt, a, b, c, skip, z, dtBias, initial, softplus, groups, state, ...shape };
}

const launched = (operands: ScanOperands, { u, dt, z, b, c, a, skip, dtBias, softplus, ...s }: Checked) => ({
  u: operands.sequences(u, 'u'),
  dt: operands.sequences(dt, 'dt'),
  z: operands.sequences(z, 'z'),
  b: operands.sequences(b, 'b'),
  c: operands.sequences(c, 'c'),
  a: operands.floats(a, 'a'),
  skip: operands.floats(skip, 'skip'),
  dtBias: operands.floats(dtBias, 'dtBias'),
  softplus,
  batch: s.batch,
  length: s.length,
  channels: s.channels,
  groups: s.groups,
  state: s.state,
});

/** In the order of `inputsOf`. */
function backward(
  checked: Checked,
  kept: Tensor,
  dOut: Tensor,
  dFinal: Tensor | undefined,
  needed: readonly boolean[],
): readonly (Tensor | undefined)[] {
  const { u, dt, a, b, c, skip, z, dtBias, batch, channels, state } = checked;
  const { backend } = u;
  return ScanOperands.within(backend, (operands, allocate) => {
    const like = (t: Tensor | undefined, at: number) => (needed[at] && t ? allocate(t.shape, t.dtype) : undefined);
    const floats = (t: Tensor | undefined, at: number) => (needed[at] && t ? allocate(t.shape, 'float32') : undefined);
    const [dU, dDt, dB, dC, dZ] = [like(u, 0), like(dt, 1), like(b, 3), like(c, 4), like(z, 6)];
    const [dA, dSkip, dDtBias] = [floats(a, 2), floats(skip, 5), floats(dtBias, 7)];
    const dInitial = needed[8] ? allocate([batch, channels, state], 'float32') : undefined;
    const scratch = selectiveScratch(checked);
    const flat = (t: Tensor<'float32', Shape> | undefined) => operands.floats(t as Tensor | undefined, 'a gradient');
    backend.launch(selectiveScanBackward, {
      kept: operands.floats(kept, 'kept'),
      dOut: operands.sequences(dOut, 'dOut'),
      dFinal: operands.floats(dFinal, 'dState'),
      dU: operands.sequences(dU, 'dU'),
      dDt: operands.sequences(dDt, 'dDt'),
      dZ: operands.sequences(dZ, 'dZ'),
      dB: operands.sequences(dB, 'dB'),
      dC: operands.sequences(dC, 'dC'),
      dInitial: flat(dInitial),
      dA: flat(dA),
      dSkip: flat(dSkip),
      dDtBias: flat(dDtBias),
      ofSequences: operands.scratch(dA || dSkip || dDtBias ? scratch.ofSequences : 0),
      ofChannels: operands.scratch(dB || dC ? scratch.ofChannels : 0),
      ...launched(operands, checked),
    });
    const parameter = (t: Tensor | undefined, gradient: Tensor<'float32', Shape> | undefined) =>
      t && gradientOf(t, gradient as Tensor | undefined);
    const [ofA, ofSkip, ofBias] = [parameter(a, dA), parameter(skip, dSkip), parameter(dtBias, dDtBias)];
    return [dU, dDt, ofA, dB, dC, ofSkip, dZ, ofBias, dInitial as Tensor | undefined];
  });
}

/**
 * The selective scan of Mamba (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023). With
 * step_t = softplus(dt_t + dtBias), or dt_t + dtBias, for channel d of group g and element n of its state:
 *
 * h_t[d, n] = e^(step_t[d] a[d, n]) h_{t-1}[d, n] + step_t[d] b_t[g, n] u_t[d]
 *
 * out_t[d] = (the sum over n of c_t[g, n] h_t[d, n] + skip[d] u_t[d]) silu(z_t[d])
 *
 * h is float32, whatever the dtypes, and never stored for each position: its gradients compute it again from what is kept at
 * every 32nd. Sums over sequences, positions and channels are in an order that depends on the shapes alone.
 *
 * @param u [batch, length, channels]
 * @returns `out` of the shape and dtype of u, and `state`, h after the last position, float32 [batch, channels, state]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function selectiveScan<D extends FloatDType, S extends Shape>(
  u: Tensor<D, S>,
  inputs: SelectiveScanInputs,
  options: SelectiveScanOptions = {},
): Scanned<D, S> {
  const checked = read(u, inputs, options);
  const { batch, length, channels, state: size } = checked;
  const { backend } = checked.u;
  const { u: input, dt, a, b, c, skip, z, dtBias, initial } = checked;
  const all = [input, dt, a, b, c, skip, z, dtBias, initial];
  const records = needsRecord(all);
  const { out, state, kept } = ScanOperands.within(backend, (operands, allocate) => {
    const out = allocate(input.shape, input.dtype);
    const state = allocate([batch, channels, size], 'float32');
    const kept = records ? allocate([batch, scanBlocks(length), size, channels], 'float32') : undefined;
    backend.launch(selectiveScanOperation, {
      out: operands.sequences(out, 'out'),
      initial: operands.floats(initial, 'initialState'),
      finalState: state.flat('state', backend),
      kept: kept?.flat('kept', backend),
      ...launched(operands, checked),
    });
    return { out, state, kept };
  });
  if (kept) {
    const saved: Tensor[] = [kept];
    for (const t of all.slice(0, 8)) if (t) saved.push(t);
    record('selectiveScan', all, [out, state], saved, ([dOut, dState], [own, ...others], needed) => {
      const next = (is: unknown) => (is ? (others.shift() as Tensor) : undefined);
      const [ownU, ownDt, ownA, ownB, ownC] = [1, 2, 3, 4, 5].map(next) as [Tensor, Tensor, Tensor, Tensor, Tensor];
      const [ownSkip, ownZ, ownBias] = [next(skip), next(z), next(dtBias)];
      using zero = dOut ? undefined : filled(backend, ownU.shape, ownU.dtype, 0);
      const again = { ...checked, u: ownU, dt: ownDt, a: ownA, b: ownB, c: ownC };
      return backward(
        { ...again, skip: ownSkip, z: ownZ, dtBias: ownBias, initial: undefined },
        own as Tensor,
        dOut ?? (zero as Tensor),
        dState,
        needed,
      );
    });
    kept.dispose();
  }
  return { out: out as Tensor<D, Shape> as Tensor<D, S>, state };
}
