/** The scans and their gradients against float64: shapes, strides, dtypes, states, extreme gates, what is not finite. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  add,
  cast,
  type DeviceName,
  linearScan,
  memory,
  mul,
  parameter,
  selectiveScan,
  sum,
  type Tensor,
  tensor,
  wkv,
  zeros,
} from '../../lib/index.js';
import { uniform } from '../../verify/oracle/random.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { rounding, size } from '../support/samples.js';
import { type Case, type Family, families, makeInputs, makeTensor, type Named } from './families.js';

const dtypes = ['float32', 'float16', 'bfloat16'] as const;

const plain: Case = {
  ...{ seed: 5, batch: 2, length: 70, channels: 37, groups: 1, size: 5, dtype: 'float32', layout: 'whole' },
  ...{ optional: true, softplus: true },
};

const cases = fc
  .record({
    seed: fc.nat(1000),
    batch: fc.integer({ min: 1, max: 3 }),
    length: fc.oneof(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 30, max: 100 })),
    perGroup: fc.oneof(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 17, max: 70 })),
    groups: fc.constantFrom(1, 1, 2, 3),
    size: fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 15, max: 34 })),
    dtype: fc.constantFrom(...dtypes),
    layout: fc.constantFrom('whole' as const, 'part' as const, 'swapped' as const),
    optional: fc.boolean(),
    softplus: fc.boolean(),
  })
  .map(({ perGroup, ...c }) => ({ ...c, channels: c.groups * perGroup }) as Case);

const largest = (values: ArrayLike<number>) => Array.from(values).reduce((most, x) => Math.max(most, Math.abs(x)), 1);

/** `tolerance` is relative to the largest element; 16-bit results are rounded besides. */
function expectNear(name: string, got: Tensor, wanted: ArrayLike<number>, tolerance: number): void {
  const data = got.toFloat32Sync();
  expect([name, data.length]).toEqual([name, wanted.length]);
  const absolute = tolerance * largest(wanted) + (got.dtype === 'float16' ? 2 ** -25 : 0);
  for (let i = 0; i < wanted.length; i++) {
    const [a, b] = [data[i] as number, wanted[i] as number];
    if (!(Math.abs(a - b) <= absolute + rounding[got.dtype] * Math.abs(b)))
      throw new Error(`element ${i} of ${name} is ${a}, not ${b} within ${absolute}`);
  }
}

/** Cotangents that every dtype holds. */
const cotangent = (count: number, seed: number) => {
  const next = uniform(seed);
  return Float32Array.from({ length: count }, () => Math.round(next() * 16 - 8) / 8);
};

/** Results and gradients, each of which `see` gets. */
function solve(
  family: Family,
  c: Case,
  tensors: Named<Tensor>,
  device: DeviceName,
  see: (name: string, t: Tensor) => void,
): void {
  const own: Tensor[] = [];
  const use = <T extends Tensor>(t: T): T => {
    own.push(t);
    return t;
  };
  const parameters: Record<string, Tensor> = {};
  for (const [name, t] of Object.entries(tensors)) parameters[name] = use(parameter(t));
  const { out, state } = family.run(parameters, c);
  use(out);
  use(state as Tensor);
  const dOut = use(tensor(cotangent(out.size, c.seed + 7), out.shape, { device }));
  const dState = use(tensor(cotangent(state.size, c.seed + 8), state.shape, { device }));
  see('out', out);
  see('state', state as Tensor);
  const first = use(sum(use(mul(use(cast(out, 'float32')), dOut))));
  const second = use(sum(use(mul(state, dState))));
  use(add(first, second)).backward();
  for (const [name, t] of Object.entries(parameters)) see(name, t.grad as Tensor);
  for (const t of own) t.dispose();
}

function check(family: Family, c: Case, device: DeviceName): void {
  const { tensors, data, dispose } = makeInputs(family, c, device);
  const { out, state } = family.oracle(data, c);
  const [dOut, dState] = [cotangent(out.length, c.seed + 7), cotangent(state.length, c.seed + 8)];
  const gradients = family.gradients?.(data, c, dOut, dState);
  solve(family, c, tensors, device, (name, t) => {
    if (name === 'out') expectNear('out', t, out, 1e-5);
    else if (name === 'state') expectNear('state', t, state, 1e-5);
    else if (gradients) expectNear(`the gradient of ${name}`, t, gradients[name] as Float64Array, 2e-5);
    else expectSlope(family, c, data, name, t, dOut, dState);
  });
  dispose();
}

/** The sum of results weighted by cotangents. */
function objective(family: Family, c: Case, data: Named<ArrayLike<number>>, dOut: Float32Array, dState: Float32Array) {
  const { out, state } = family.oracle(data, c);
  const dot = (a: Float64Array, b: Float32Array) => a.reduce((total, x, i) => total + x * (b[i] as number), 0);
  return dot(out, dOut) + dot(state, dState);
}

/** A gradient against a difference in a random direction. */
function expectSlope(
  family: Family,
  c: Case,
  data: Named<ArrayLike<number>>,
  name: string,
  gradient: Tensor,
  dOut: Float32Array,
  dState: Float32Array,
): void {
  const step = 1e-5;
  const direction = cotangent(gradient.size, c.seed + 9);
  const moved = (sign: number) => {
    const values = Float64Array.from(data[name] as Float32Array, (x, i) => x + sign * step * (direction[i] as number));
    return objective(family, c, { ...data, [name]: values }, dOut, dState);
  };
  const wanted = (moved(1) - moved(-1)) / (2 * step);
  let [got, scale] = [0, 1];
  for (const [i, x] of gradient.toFloat32Sync().entries()) {
    got += x * (direction[i] as number);
    scale += Math.abs(x * (direction[i] as number));
  }
  const tolerance = (2e-5 + rounding[gradient.dtype]) * scale;
  if (!(Math.abs(got - wanted) <= tolerance))
    throw new Error(`the gradient of ${name} along a direction is ${got}, not ${wanted} within ${tolerance}`);
}

const bits = (t: Tensor) => Buffer.from(t.dataSync().buffer.slice(0)).toString('base64');

describe('the oracle of scans', () => {
  it.each(families.filter((family) => family.gradients))('has gradients that differences confirm: $name', (family) => {
    const c: Case = { ...plain, length: 6, channels: 4, groups: 2, size: 3 };
    const { data, dispose } = makeInputs(family, c, 'wasm');
    const { out, state } = family.oracle(data, c);
    const [dOut, dState] = [cotangent(out.length, 1), cotangent(state.length, 2)];
    const gradients = family.gradients?.(data, c, dOut, dState) ?? {};
    for (const [name, values] of Object.entries(data))
      for (let i = 0; i < values.length; i++) {
        const moved = (by: number) => {
          const changed = Float64Array.from(values);
          changed[i] = (changed[i] as number) + by;
          return objective(family, c, { ...data, [name]: changed }, dOut, dState);
        };
        const wanted = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        expect(Math.abs((gradients[name]?.[i] as number) - wanted)).toBeLessThan(1e-7 * (1 + Math.abs(wanted)));
      }
    dispose();
  });
});

for (const { device, present, title, runs, isSlow } of testDevices)
  describe.skipIf(!present)(title('scans'), () => {
    it.each(families)('are those of float64 up to rounding, and so are their gradients: $name', (family) => {
      const small = (c: Case) => (isSlow ? { ...c, length: Math.min(c.length, 40), batch: Math.min(c.batch, 2) } : c);
      fc.assert(
        fc.property(cases, (c) => check(family, small(c), device)),
        { numRuns: runs(isSlow ? 160 : 24) },
      );
    });

    it.each(families)('go on from a state as if nothing had been cut: $name', (family) => {
      for (const dtype of dtypes)
        for (const cut of [0, 1, 31, 32, 45, 70]) {
          const c: Case = { ...plain, dtype, channels: 6, seed: cut };
          const { tensors, dispose } = makeInputs(family, c, device);
          const sequences = Object.entries(family.inputs(c)).filter(([, { isSequence }]) => isSequence);
          const part = (begin: number, end: number, initial: Tensor | undefined) => {
            const own: Record<string, Tensor> = { ...tensors };
            for (const [name] of sequences) own[name] = (tensors[name] as Tensor).slice(1, begin, end);
            if (initial) own.initial = initial;
            const result = family.run(own, { ...c, length: end - begin });
            for (const [name] of sequences) own[name]?.dispose();
            return result;
          };
          const whole = part(0, c.length, undefined);
          const first = part(0, cut, undefined);
          const second = part(cut, c.length, first.state as Tensor);
          expect(bits(second.state as Tensor)).toBe(bits(whole.state as Tensor));
          for (const [piece, begin, end] of [
            [first, 0, cut],
            [second, cut, c.length],
          ] as const) {
            using view = whole.out.slice(1, begin, end);
            expect(piece.out.toFloat32Sync()).toEqual(view.toFloat32Sync());
          }
          for (const { out, state } of [whole, first, second]) {
            out.dispose();
            state.dispose();
          }
          dispose();
        }
    });

    it('take gates from 0 to -Infinity, and keep what is below the range of exponents', () => {
      const [length, channels] = [isSlow ? 70 : 4096, 8];
      const gates = [0, -50, Number.NEGATIVE_INFINITY, -1e-3, -20, -87, -1000, -0.5];
      const x = Float32Array.from({ length: length * channels }, (_, i) => Math.cos(i * 0.7));
      const gate = Float32Array.from(
        { length: length * channels },
        (_, i) => gates[(i + (i >> 7)) % channels] as number,
      );
      const c: Case = { ...plain, batch: 1, length, channels };
      const family = families[0] as Family;
      const initial = new Float32Array(channels).fill(1e30);
      const { tensors, data, dispose } = makeInputs(family, c, device, { x, gate, initial });
      const { out, state } = family.oracle(data, c);
      const result = family.run(tensors, c);
      // Each element by itself: 1e30 e^-50 is 2e8, and not nothing.
      const got = result.out.toFloat32Sync();
      for (let i = 0; i < out.length; i++) {
        const scale = Math.max(1, Math.abs(out[i] as number), i < 2 * channels ? 1e9 : 0);
        expect(Math.abs((got[i] as number) - (out[i] as number))).toBeLessThan(2e-5 * scale);
      }
      expectNear('state', result.state as Tensor, state, 1e-5);
      result.out.dispose();
      result.state.dispose();
      dispose();
    });

    it('decay a state by e^-50 a step exactly, and its gradients too', () => {
      using x = parameter(zeros([1, 1, 1], { device })) as Tensor;
      using gate = parameter(tensor([-50], [1, 1, 1], { device })) as Tensor;
      using initial = parameter(tensor([1e20], [1, 1], { device }));
      const { out, state } = linearScan(x, gate, { initialState: initial });
      const exact = 1e20 * Math.exp(-50);
      expect((out.toFloat32Sync()[0] as number) / exact).toBeCloseTo(1, 5);
      out.backward();
      expect((gate.grad?.toFloat32Sync()[0] as number) / exact).toBeCloseTo(1, 5);
      expect((initial.grad?.toFloat32Sync()[0] as number) / Math.exp(-50)).toBeCloseTo(1, 5);
      out.dispose();
      state.dispose();
    });

    it.each(families)('let NaN through, along its channel and from its position on alone: $name', (family) => {
      const c: Case = { ...plain, length: 40, channels: 35 };
      const [name] = Object.keys(family.inputs(c)) as [string];
      const { tensors, data, dispose } = makeInputs(family, c, device);
      const values = Float32Array.from(data[name] as Float32Array);
      values[(c.length + 33) * c.channels + 34] = Number.NaN;
      const other = makeInputs(family, c, device, { ...data, [name]: values });
      const [clean, spoilt] = [family.run(tensors, c), family.run(other.tensors, c)];
      const [wanted, got] = [clean.out.toFloat32Sync(), spoilt.out.toFloat32Sync()];
      for (const [i, value] of got.entries()) {
        const [sequence, t] = [Math.floor(i / c.channels / c.length), Math.floor(i / c.channels) % c.length];
        const reached = sequence === 1 && t >= 33 && i % c.channels === 34;
        if (!(reached ? Number.isNaN(value) : value === wanted[i])) throw new Error(`element ${i} is ${value}`);
      }
      for (const { out, state } of [clean, spoilt]) {
        out.dispose();
        state.dispose();
      }
      other.dispose();
      dispose();
    });

    it('let Infinity through', () => {
      using x = tensor([1, Number.POSITIVE_INFINITY, 1], [1, 3, 1], { device }) as Tensor;
      using gate = tensor([0, 0, -1], [1, 3, 1], { device }) as Tensor;
      const { out, state } = linearScan(x, gate);
      expect([...out.toFloat32Sync()]).toEqual([1, Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY]);
      out.dispose();
      state.dispose();
      using u = tensor([1, Number.POSITIVE_INFINITY, 1], [1, 3, 1], { device }) as Tensor;
      using ones = tensor([1, 1, 1], [1, 3, 1], { device }) as Tensor;
      using row = tensor(new Float32Array(9).fill(1), [1, 3, 1, 3], { device }) as Tensor;
      using a = tensor([-1, -1, -1], [1, 3], { device }) as Tensor;
      const scanned = selectiveScan(u, { dt: ones, a, b: row, c: row });
      expect([...scanned.out.toFloat32Sync()].slice(1)).toEqual([Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY]);
      scanned.out.dispose();
      scanned.state.dispose();
    });

    it('never overflow where keys are large, with their running maximum', () => {
      const c: Case = { ...plain, batch: 1, length: 40, channels: 5, optional: false };
      const family = families[3] as Family;
      const k = Float32Array.from({ length: 200 }, (_, i) => 1000 * Math.sin(i * 1.3));
      const { tensors, data, dispose } = makeInputs(family, c, device, { k });
      const result = family.run(tensors, c);
      const { out, state } = family.oracle(data, c);
      expectNear('out', result.out, out, 1e-4);
      expectNear('state', result.state as Tensor, state, 1e-5);
      result.out.dispose();
      result.state.dispose();
      dispose();
    });

    it.skipIf(isSlow)('stay right over thousands of positions', () => {
      for (const family of families.slice(0, 3))
        check(family, { ...plain, batch: 1, length: 4096, channels: 3, groups: 1, size: 4 }, device);
    });

    it('say the same bits every time, and keep no memory', () => {
      for (const family of families) {
        const c: Case = { ...plain, layout: 'swapped', length: isSlow ? 34 : 70, channels: 40, groups: 2 };
        const { tensors, dispose } = makeInputs(family, c, device);
        const run = () => {
          const all: string[] = [];
          solve(family, c, tensors, device, (name, t) => all.push(`${name} ${bits(t)}`));
          return all;
        };
        const first = run();
        const before = memory(device).bytesInUse;
        for (let round = 0; round < 2; round++) expect(run()).toEqual(first);
        expect(memory(device).bytesInUse).toBe(before);
        dispose();
      }
    });

    it('take what is empty', () => {
      for (const family of families)
        for (const empty of [{ batch: 0 }, { length: 0 }, { channels: 0 }] as const)
          check(family, { ...plain, ...empty }, device);
    });

    it('take parameters of other dtypes, and give their gradients in these', () => {
      const c: Case = { ...plain, length: 9, channels: 4, size: 3 };
      const { tensors, dispose } = makeInputs(families[1] as Family, c, device);
      using a = cast(tensors.a as Tensor, 'bfloat16');
      using wanted = parameter(a as Tensor);
      const { out, state } = (families[1] as Family).run({ ...tensors, a: wanted }, c);
      using total = sum(out);
      total.backward();
      expect([wanted.grad?.dtype, wanted.grad?.shape]).toEqual(['bfloat16', [4, 3]]);
      out.dispose();
      state.dispose();
      dispose();
    });

    it('refuse what does not fit, before anything is computed', () => {
      const before = memory(device).bytesInUse;
      {
        const of = (...shape: number[]) => zeros(shape, { device }) as Tensor;
        using x = of(2, 3, 4);
        using wrong = of(2, 3, 5);
        using flat = of(3, 4);
        using half = zeros([2, 4], { device, dtype: 'float16' });
        expect(() => linearScan(flat, flat)).toThrow('x has shape [3, 4]; it must be [batch, length, channels]');
        expect(() => linearScan(x, wrong)).toThrow('gate has shape [2, 3, 5]; it must be [2, 3, 4], that of x');
        expect(() => linearScan(x, x, { initialState: flat as never })).toThrow('initialState has shape [3, 4]');
        expect(() => linearScan(x, x, { initialState: half as never })).toThrow('states are float32');
        expect(() => linearScan(x, x, { initial: flat } as never)).toThrow('there is no option "initial"');
        expect(codeOf(() => linearScan([1] as never, x))).toBe('ERR_OPTION');
        using a = of(4, 6);
        using b = of(2, 3, 3, 6);
        using c = of(2, 3, 1, 6);
        using wide = of(4, 300);
        expect(() => selectiveScan(x, { dt: x, a, b, c: b })).toThrow('must divide the 4 channels of u');
        expect(() => selectiveScan(x, { dt: x, a, b: c, c: b })).toThrow(
          'c has shape [2, 3, 3, 6]; it must be [2, 3, 1, 6]',
        );
        expect(() => selectiveScan(x, { dt: x, a: wide, b: c, c })).toThrow('from 1 to 256 elements');
        expect(() => selectiveScan(x, { dt: x, a, b: c, c }, { softplus: 1 as never })).toThrow('softplus is 1');
        using k16 = cast(x, 'float16');
        using w = of(4);
        expect(codeOf(() => wkv(x as Tensor, { v: k16 as never, decay: w, bonus: w }))).toBe('ERR_DTYPE');
        expect(() => wkv(x, { v: x, decay: flat, bonus: w })).toThrow('decay has shape [3, 4]; it must be [4]');
        const gone = of(2, 3, 4);
        gone.dispose();
        expect(codeOf(() => linearScan(x, gone))).toBe('ERR_DISPOSED');
      }
      expect(memory(device).bytesInUse).toBe(before);
    });

    it('read memory that is theirs alone', () => {
      // What lies between rows is NaN: makeTensor.
      using x = makeTensor(new Float32Array(2 * 33 * 5).fill(1), [2, 33, 5], 'float16', 'part', device);
      using gate = zeros([2, 33, 5], { device }) as Tensor;
      const { out, state } = linearScan(x, gate);
      expect([...state.toFloat32Sync()]).toEqual(new Array(10).fill(33));
      expect(size(out.shape)).toBe(330);
      out.dispose();
      state.dispose();
    });
  });
