/** The scans as one kind of thing: named inputs, a result, a final state, and what float64 says of them. */
import {
  type DeviceName,
  diagonalScan,
  type FloatDType,
  linearScan,
  type Scanned,
  type Shape,
  selectiveScan,
  type Tensor,
  tensor,
  wkv,
} from '../../lib/index.js';
import { uniform } from '../../verify/oracle/random.js';
import * as oracle from '../../verify/oracle/scans.js';
import { size } from '../support/samples.js';

export interface Case {
  readonly seed: number;
  readonly batch: number;
  readonly length: number;
  readonly channels: number;
  readonly groups: number;
  readonly size: number;
  readonly dtype: FloatDType;
  readonly layout: Layout;
  /** Which of the optional inputs there are. */
  readonly optional: boolean;
  /** Of a selective scan. */
  readonly softplus: boolean;
}

/** How sequences lie in memory: whole, in longer rows, or with the first and last axis swapped; NaN between them. */
export type Layout = 'whole' | 'part' | 'swapped';

export interface InputForm {
  readonly shape: Shape;
  /** Sequences have the dtype and layout of the case; parameters and states are float32. */
  readonly isSequence: boolean;
  readonly from: number;
  readonly to: number;
}

export type Named<T> = Readonly<Record<string, T>>;
type Numbers = ArrayLike<number>;

export interface Family {
  readonly name: string;
  readonly inputs: (c: Case) => Named<InputForm>;
  readonly run: (t: Named<Tensor>, c: Case) => Scanned<FloatDType, Shape>;
  readonly oracle: (data: Named<Numbers>, c: Case) => oracle.Scanned;
  /** By the names of the inputs; undefined: only differences say it. */
  readonly gradients?: (data: Named<Numbers>, c: Case, dOut: Numbers, dState: Numbers) => Named<Float64Array>;
}

const sequence = (c: Case, from: number, to: number, ...axes: number[]): InputForm => ({
  shape: [c.batch, c.length, ...(axes.length > 0 ? axes : [c.channels])],
  isSequence: true,
  from,
  to,
});
const floats = (from: number, to: number, ...shape: number[]): InputForm => ({ shape, isSequence: false, from, to });

type Float32 = Tensor<'float32', Shape>;
const initial = (t: Named<Tensor>) => (t.initial ? { initialState: t.initial as Tensor as Float32 } : {});
const of = (t: Named<Tensor>, name: string): Tensor => t[name] as Tensor;
const numbersOf = (data: Named<Numbers>, name: string): Numbers => data[name] as Numbers;

const linear: Family = {
  name: 'linearScan',
  inputs: (c) => ({
    x: sequence(c, -1, 1),
    gate: sequence(c, -2, 0),
    ...(c.optional && { initial: floats(-1, 1, c.batch, c.channels) }),
  }),
  run: (t) => linearScan(of(t, 'x'), of(t, 'gate'), initial(t)),
  oracle: (data, c) =>
    oracle.linearScan({ ...c, x: numbersOf(data, 'x'), gate: numbersOf(data, 'gate'), initial: data.initial }),
  gradients: (data, c, dOut, dState) => {
    const problem = { ...c, x: numbersOf(data, 'x'), gate: numbersOf(data, 'gate'), initial: data.initial };
    const { dX, dGate, dInitial } = oracle.linearScanBackward(problem, dOut, dState);
    return { x: dX, gate: dGate, initial: dInitial };
  },
};

const selectiveProblem = (data: Named<Numbers>, c: Case): oracle.SelectiveScanProblem => ({
  ...c,
  ...(data as unknown as oracle.SelectiveScanProblem),
});

const selective: Family = {
  name: 'selectiveScan',
  inputs: (c) => ({
    u: sequence(c, -1, 1),
    dt: c.softplus ? sequence(c, -3, 1) : sequence(c, 0, 0.5),
    b: sequence(c, -1, 1, c.groups, c.size),
    c: sequence(c, -1, 1, c.groups, c.size),
    a: floats(-2, -0.1, c.channels, c.size),
    ...(c.optional && {
      skip: floats(-1, 1, c.channels),
      z: sequence(c, -2, 2),
      dtBias: floats(0, 0.2, c.channels),
      initial: floats(-1, 1, c.batch, c.channels, c.size),
    }),
  }),
  run: (t, c) =>
    selectiveScan(
      of(t, 'u'),
      { dt: of(t, 'dt'), a: of(t, 'a'), b: of(t, 'b'), c: of(t, 'c') },
      {
        softplus: c.softplus,
        ...(t.skip && { skip: t.skip, z: of(t, 'z'), dtBias: of(t, 'dtBias') }),
        ...initial(t),
      },
    ),
  oracle: (data, c) => oracle.selectiveScan(selectiveProblem(data, c)),
  gradients: (data, c, dOut, dState) => {
    const g = oracle.selectiveScanBackward(selectiveProblem(data, c), dOut, dState);
    return {
      ...{ u: g.dU, dt: g.dDt, b: g.dB, c: g.dC, a: g.dA },
      ...{ skip: g.dSkip, z: g.dZ, dtBias: g.dDtBias, initial: g.dInitial },
    };
  },
};

const diagonalProblem = (data: Named<Numbers>, c: Case): oracle.DiagonalScanProblem => ({
  ...c,
  ...(data as unknown as oracle.DiagonalScanProblem),
});

const diagonal: Family = {
  name: 'diagonalScan',
  inputs: (c) => ({
    u: sequence(c, -1, 1),
    a: floats(-0.68, 0.68, c.channels, c.size, 2),
    w: floats(-1, 1, c.channels, c.size, 2),
    ...(c.optional && { initial: floats(-1, 1, c.batch, c.channels, c.size, 2) }),
  }),
  run: (t) => diagonalScan(of(t, 'u'), of(t, 'a'), of(t, 'w'), initial(t)),
  oracle: (data, c) => oracle.diagonalScan(diagonalProblem(data, c)),
  gradients: (data, c, dOut, dState) => {
    const { dU, dA, dW, dInitial } = oracle.diagonalScanBackward(diagonalProblem(data, c), dOut, dState);
    return { u: dU, a: dA, w: dW, initial: dInitial };
  },
};

const wkvFamily: Family = {
  name: 'wkv',
  inputs: (c) => ({
    k: sequence(c, -3, 3),
    v: sequence(c, -1, 1),
    decay: floats(-1.5, -0.01, c.channels),
    bonus: floats(-1, 1, c.channels),
    // Of the sum without v more than 0.
    ...(c.optional && { initial: floats(0.5, 2, c.batch, 3, c.channels) }),
  }),
  run: (t) => wkv(of(t, 'k'), { v: of(t, 'v'), decay: of(t, 'decay'), bonus: of(t, 'bonus') }, initial(t)),
  oracle: (data, c) => oracle.wkv({ ...c, ...(data as unknown as oracle.WkvProblem) }),
};

export const families: readonly Family[] = [linear, selective, diagonal, wkvFamily];

export interface Made {
  readonly tensors: Named<Tensor>;
  /** As the tensors hold them, row-major. */
  readonly data: Named<Float32Array>;
  readonly dispose: () => void;
}

export function makeTensor(values: Float32Array, shape: Shape, dtype: FloatDType, layout: Layout, device: DeviceName) {
  const last = shape.length - 1;
  const stored = [...shape];
  if (layout === 'part') stored[last] = (shape[last] as number) + 3;
  if (layout === 'swapped') [stored[0], stored[last]] = [shape[last] as number, shape[0] as number];
  const whole = tensor(new Float32Array(size(stored)).fill(Number.NaN), stored, { dtype, device }) as Tensor;
  const t =
    layout === 'part'
      ? whole.slice(last, 2, 2 + (shape[last] as number))
      : layout === 'swapped'
        ? whole.transpose(0, last)
        : whole.detach();
  const dense = tensor(values, shape, { dtype, device }) as Tensor;
  dense.copyInto(t as Tensor as never);
  dense.dispose();
  whole.dispose();
  return t;
}

export function makeInputs(family: Family, c: Case, device: DeviceName, data?: Named<Float32Array>): Made {
  const next = uniform(c.seed + 1);
  const tensors: Record<string, Tensor> = {};
  const held: Record<string, Float32Array> = {};
  for (const [name, form] of Object.entries(family.inputs(c))) {
    const drawn = Float32Array.from({ length: size(form.shape) }, () => form.from + next() * (form.to - form.from));
    const values = data?.[name] ?? drawn;
    const [dtype, layout] = form.isSequence ? [c.dtype, c.layout] : (['float32', 'whole'] as const);
    const t = makeTensor(values, form.shape, dtype, layout, device);
    tensors[name] = t;
    held[name] = t.toFloat32Sync();
  }
  const dispose = () => {
    for (const t of Object.values(tensors)) t.dispose();
  };
  return { tensors, data: held, dispose };
}
