/** Kolmogorov-Arnold layers, against their definition curve by curve. */
import { cast, type DeviceName, memory, noGrad, scope, type Tensor, tensor, zeros } from 'flashattn';
import { bSplines, KANLinear, kanConv2d, kanLinear, pykanLinear, pykanUpdateGrid } from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import {
  bSpline,
  efficientKan,
  fitCurve,
  gridOfSamples,
  type Kan,
  type KanInputs,
  type PykanInputs,
  pykan,
} from '../../verify/oracle/kan.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Input, type Inputs, input, run } from './taped.js';

const cases: readonly (Kan & { readonly rows: readonly number[] })[] = [
  { inputs: 3, outputs: 2, knots: 12, order: 3, rows: [5] },
  { inputs: 2, outputs: 4, knots: 8, order: 2, rows: [2, 3] },
  { inputs: 4, outputs: 1, knots: 6, order: 1, rows: [1] },
];

/** Rising knots around [-1, 1], other ones for each input. */
const gridOf = ({ inputs, knots }: Kan): Float64Array =>
  Float64Array.from({ length: inputs * knots }, (_, at) => {
    const [i, c] = [Math.floor(at / knots), at % knots];
    return Math.fround(-2 + (4 * c) / (knots - 1) + 0.05 * i + 0.02 * Math.sin(c));
  });

const kanInputs = (k: (typeof cases)[number], scaler: boolean): Inputs => ({
  // Some beyond the knots.
  x: input([...k.rows, k.inputs], 1, 1.2),
  baseWeight: input([k.outputs, k.inputs], 2),
  splineWeight: input([k.outputs, k.inputs, k.knots - k.order - 1], 3),
  ...(scaler && { splineScaler: input([k.outputs, k.inputs], 4) }),
});

const pykanInputs = (k: (typeof cases)[number]): Inputs => ({
  x: input([...k.rows, k.inputs], 1, 1.2),
  coef: input([k.inputs, k.outputs, k.knots - k.order - 1], 2),
  scaleBase: input([k.inputs, k.outputs], 3),
  scaleSp: input([k.inputs, k.outputs], 4),
});

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('Kolmogorov-Arnold layers'), () => {
    /** Runs f with the grid as a tensor. */
    const withGrid = (k: Kan, f: (grid: Tensor) => void) => {
      const grid = tensor(gridOf(k), [k.inputs, k.knots], { device }) as Tensor;
      f(grid);
      grid.dispose();
    };

    it.each(cases.flatMap((k) => [true, false].map((scaler) => ({ ...k, scaler }))))('efficient: %j', (k) => {
      withGrid(k, (grid) =>
        checkSystem(
          device,
          kanInputs(k, k.scaler),
          ({ x, ...weights }) => kanLinear(x, { grid, ...weights } as never),
          (values) => efficientKan(k, gridOf(k), values as unknown as KanInputs),
          { gradient: 3e-3 },
        ),
      );
    });

    it.each(cases.flatMap((k) => [true, false].map((masked) => ({ ...k, masked }))))('pykan: %j', (k) => {
      const mask = Float64Array.from({ length: k.inputs * k.outputs }, (_, i) => (i % 3 === 1 ? 0 : 1));
      const given = tensor(mask, [k.inputs, k.outputs], { device }) as Tensor;
      withGrid(k, (grid) =>
        checkSystem(
          device,
          pykanInputs(k),
          ({ x, ...weights }) => pykanLinear(x, { grid, ...weights, ...(k.masked && { mask: given }) } as never),
          (values) => pykan(k, gridOf(k), k.masked ? mask : undefined, values as unknown as PykanInputs),
          { gradient: 3e-3 },
        ),
      );
      given.dispose();
    });

    it('splines of any order add up to 1 within the grid, and coinciding knots give no NaN', () => {
      const knots = [0, 0, 0, 1, 2, 2, 3, 4, 4, 4];
      const at = [-1, 0, 0.5, 1, 1.75, 2, 2.5, 3.99, 4, 5];
      for (const order of [0, 1, 2]) {
        const { outputs, gradients } = run(
          device,
          { x: { shape: [at.length, 1], data: Float64Array.from(at) } },
          (t) => ({ out: bSplines(t.x, tensor(knots, [1, knots.length], { device }) as Tensor, order) }),
          { out: new Float64Array(at.length * (knots.length - order - 1)).fill(1) },
        );
        const exact = at.flatMap((x) =>
          Array.from({ length: knots.length - order - 1 }, (_, c) => bSpline(x, knots, c, order)),
        );
        expect(maxError(outputs.out, exact)).toBeLessThan(1e-6);
        expect(gradients.x.every(Number.isFinite)).toBe(true);
      }
    });

    it('a convolution is the layer of every patch', () => {
      const k = { inputs: 2 * 2 * 3, outputs: 3, knots: 7, order: 2, rows: [] };
      const [height, width, stride, padding] = [4, 5, 2, 1];
      const { baseWeight, splineWeight } = kanInputs(k, false);
      const patches = (x: Float64Array) => {
        const rows: number[] = [];
        const [down, across] = [(height + 2 * padding - 2) / stride + 1, (width + 2 * padding - 3) / stride + 1];
        for (let b = 0; b < 2; b++)
          for (let i = 0; i < Math.floor(down); i++)
            for (let j = 0; j < Math.floor(across); j++)
              for (let c = 0; c < 2; c++)
                for (let p = 0; p < 2; p++)
                  for (let q = 0; q < 3; q++) {
                    const [y, z] = [i * stride + p - padding, j * stride + q - padding];
                    const inside = y >= 0 && y < height && z >= 0 && z < width;
                    rows.push(inside ? (x[((b * 2 + c) * height + y) * width + z] ?? Number.NaN) : 0);
                  }
        return { rows, places: Math.floor(down) * Math.floor(across) };
      };
      withGrid(k, (grid) =>
        checkSystem(
          device,
          { x: input([2, 2, height, width], 1), baseWeight, splineWeight },
          ({ x, ...weights }) => kanConv2d(x, { grid, ...weights } as never, { kernelSize: [2, 3], stride, padding }),
          ({ x, ...weights }) => {
            const { rows, places } = patches(x);
            const flat = efficientKan(k, gridOf(k), { x: rows, ...weights } as unknown as KanInputs);
            // [batch, places, outputs] -> [batch, outputs, places]
            return flat.map((_, at) => {
              const [b, o, p] = [Math.floor(at / (3 * places)), Math.floor(at / places) % 3, at % places];
              return flat[(b * places + p) * 3 + o];
            });
          },
          { gradient: 3e-3 },
        ),
      );
    });

    it.each(['float16', 'bfloat16'] as const)('%s with weights of float32', (dtype) => {
      const k = cases[0];
      noGrad(() => {
        const before = memory(device).tensors;
        withGrid(k, (grid) => {
          const t = Object.fromEntries(
            Object.entries(kanInputs(k, true)).map(([name, { shape, data }]) => [
              name,
              tensor(data, shape, { device, ...(name === 'x' && { dtype }) }) as Tensor,
            ]),
          );
          const values = Object.fromEntries(
            Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
          );
          const { x, ...weights } = t;
          const out = kanLinear(x, { grid, ...weights } as never);
          expect(out.dtype).toBe(dtype);
          const exact = efficientKan(k, gridOf(k), values as unknown as KanInputs);
          expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(dtype === 'float16' ? 2 ** -6 : 2 ** -3);
          for (const each of [out, ...Object.values(t)]) each.dispose();
        });
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes batches of none', () => {
      const k = { ...cases[0], rows: [0] };
      withGrid(k, (grid) => {
        const { outputs } = run(
          device,
          kanInputs(k, true),
          ({ x, ...weights }) => ({ out: kanLinear(x, { grid, ...weights } as never) }),
          undefined,
        );
        expect(outputs.out).toHaveLength(0);
      });
    });

    const update = (x: Input, grid: Input, coef: Input, gridEps?: number) => {
      const { outputs } = run(
        device,
        { x, grid, coef },
        (t) => {
          const weights = { grid: t.grid as Tensor, coef: t.coef as Tensor };
          const after = pykanUpdateGrid(t.x as Tensor, weights, gridEps === undefined ? {} : { gridEps });
          return { grid: after.grid, coef: after.coef };
        },
        undefined,
      );
      return outputs as Readonly<Record<'grid' | 'coef', Float64Array>>;
    };

    it.each([
      { order: 3, intervals: 5, eps: undefined },
      { order: 2, intervals: 4, eps: 0.5 },
      { order: 1, intervals: 3, eps: 1 },
      { order: 0, intervals: 4, eps: 0.3 },
    ])('knots follow the inputs, and curves stay what they were: %j', ({ order, intervals, eps = 0.02, ...rest }) => {
      const k = { inputs: 3, outputs: 2, knots: intervals + 2 * order + 1, order };
      const count = intervals + order;
      const x = input([2, 30, 3], 5, 0.4, 0.2);
      const [grid, coef] = [{ shape: [3, k.knots], data: gridOf(k) }, input([3, 2, count], 6)];
      const own = update(x, grid, coef, 'eps' in rest ? undefined : eps);
      for (let i = 0; i < 3; i++) {
        const samples = x.data.filter((_, at) => at % 3 === i);
        const knots = gridOfSamples(samples, intervals, order, eps);
        expect(maxError(own.grid.subarray(i * k.knots, (i + 1) * k.knots), Float64Array.from(knots))).toBeLessThan(
          1e-6,
        );
        const before = Array.from(gridOf(k).subarray(i * k.knots, (i + 1) * k.knots));
        for (let o = 0; o < 2; o++) {
          const from = (i * 2 + o) * count;
          const curve = (x: number, at: readonly number[], c: Float64Array) =>
            c.reduce((sum, factor, n) => sum + factor * bSpline(x, at, n, order), 0);
          const y = samples.map((value) => curve(value, before, coef.data.slice(from, from + count)));
          const fitted = Float64Array.from(fitCurve(samples, y, knots, order));
          const got = own.coef.slice(from, from + count);
          // The ends of curves, which few samples tell about, are the least sure.
          expect(maxError(got, fitted)).toBeLessThan(2e-3);
          const [there, here] = [got, fitted].map((c) => samples.map((value) => curve(value, knots, c)));
          expect(maxError(there as Float64Array, here as Float64Array)).toBeLessThan(2e-5);
        }
      }
    });

    it('of many curves through few samples takes the shortest', () => {
      const grid = { shape: [1, 12], data: gridOf({ inputs: 1, outputs: 1, knots: 12, order: 3 }) };
      const [x, coef] = [input([3, 1], 7, 0.5), input([1, 1, 8], 8)];
      const own = update(x, grid, coef);
      const curve = (value: number, knots: Float64Array, c: Float64Array) =>
        c.reduce((sum, factor, n) => sum + factor * bSpline(value, Array.from(knots), n, 3), 0);
      const rows = Array.from(x.data, (value) =>
        Float64Array.from({ length: 8 }, (_, n) => bSpline(value, Array.from(own.grid), n, 3)),
      );
      for (const value of x.data.toSorted().slice(0, 2))
        expect(curve(value, own.grid, own.coef)).toBeCloseTo(curve(value, grid.data, coef.data), 4);
      // Splines that no sample meets get nothing.
      for (let n = 0; n < 8; n++) if (rows.every((row) => row[n] === 0)) expect(own.coef[n]).toBeCloseTo(0, 5);
    });

    it('keeps the curves of an input whose samples are the same, and NaN where there is one', () => {
      const k = { inputs: 3, outputs: 2, knots: 9, order: 2 };
      const [grid, coef] = [{ shape: [3, 9], data: gridOf(k) }, input([3, 2, 6], 6)];
      const data = input([20, 3], 5, 0.4).data.map((value, at) => (at % 3 === 1 ? 0.25 : at === 32 ? NaN : value));
      const own = update({ shape: [20, 3], data }, grid, coef);
      expect(own.grid.slice(9, 18)).toEqual(grid.data.slice(9, 18));
      expect(own.coef.slice(12, 24)).toEqual(coef.data.slice(12, 24));
      expect([own.grid.subarray(0, 9), own.coef.subarray(0, 12)].every((t) => t.every(Number.isFinite))).toBe(true);
      expect(own.grid.subarray(18).some(Number.isNaN)).toBe(true);
      expect(own.coef.subarray(24).every(Number.isNaN)).toBe(true);
    });

    it.each([false, true])('a layer moves its knots and keeps its curves, in bfloat16: %s', (isNarrow) => {
      const before = memory(device).tensors;
      const layer = new KANLinear({ inputs: 3, outputs: 2, range: [-4, 4], noise: 5, device });
      noGrad(() =>
        scope(() => {
          const values = tensor(input([200, 3], 1).data, [200, 3], { device }) as Tensor;
          const x = isNarrow ? (cast(values, 'bfloat16') as Tensor) : values;
          const [first, knots] = [layer.forward(values).toFloat32Sync(), layer.grid.toFloat32Sync()];
          layer.updateGrid(x);
          const after = layer.forward(values).toFloat32Sync();
          expect(layer.grid.toFloat32Sync()).not.toEqual(knots);
          // Splines on coarse knots are none on fine ones, but near.
          const size = Math.max(...first.map(Math.abs));
          const far = first.map((value, i) => Math.abs(value - (after[i] ?? NaN)));
          expect(far.reduce((a, b) => a + b) / far.length / size).toBeLessThan(0.05);
        }),
      );
      layer.dispose();
      expect(memory(device).tensors).toBe(before);
    });

    it('a layer is the function of its weights, with a grid that is not trained', () => {
      const before = memory(device).tensors;
      const layer = new KANLinear({ inputs: 3, outputs: 2, range: [0, 1], device });
      expect(Array.from(layer.grid.toFloat32Sync()).slice(3, 9)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1].map(Math.fround));
      expect(layer.parameters()).toHaveLength(3);
      noGrad(() => {
        const x = tensor(input([4, 3], 1).data, [4, 3], { device }) as Tensor;
        const { grid, baseWeight, splineWeight, splineScaler } = layer;
        const [out, own] = [layer.forward(x), kanLinear(x, { grid, baseWeight, splineWeight, splineScaler })];
        expect(out.toFloat32Sync()).toEqual(own.toFloat32Sync());
        for (const t of [x, out, own]) t.dispose();
      });
      layer.dispose();
      expect(memory(device).tensors).toBe(before);
    });
  });
});

describe('bad arguments of Kolmogorov-Arnold layers', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor;
  const x = of(4, 3);
  const weights = { grid: of(3, 12), baseWeight: of(2, 3), splineWeight: of(2, 3, 8) };

  it.each<[string, () => unknown, RegExp]>([
    ['rank', () => kanLinear(of(3), weights), /^ERR_SHAPE: x has shape \[3\]/],
    ['grid', () => kanLinear(x, { ...weights, grid: of(2, 12) }), /^ERR_SHAPE: weights.grid has shape/],
    ['too many coefficients', () => kanLinear(x, { ...weights, grid: of(3, 8) }), /^ERR_SHAPE: weights.grid has shape/],
    ['no coefficients', () => kanLinear(x, { ...weights, splineWeight: of(2, 3, 0) }), /0 coefficients/],
    ['base', () => kanLinear(x, { ...weights, baseWeight: of(2, 4) }), /^ERR_SHAPE: weights.baseWeight has shape/],
    ['order', () => bSplines(x, of(3, 3), 2), /^ERR_SHAPE: grid has shape .* at least 4 knots/],
    ['no order', () => bSplines(x, of(3, 3), -1), /^ERR_OPTION: order is -1/],
    [
      'coef',
      () => pykanLinear(x, { grid: of(3, 12), coef: of(2, 2, 8), scaleBase: of(3, 2), scaleSp: of(3, 2) }),
      /coef/,
    ],
    ['patches', () => kanConv2d(of(1, 1, 2, 2), weights, { kernelSize: 3 }), /^ERR_SHAPE: kernelSize is 3 x 3/],
    ['images', () => kanConv2d(x, weights, { kernelSize: 3 }), /^ERR_SHAPE: x has shape \[4, 3\]/],
    [
      'samples',
      () => pykanUpdateGrid(of(0, 3), { grid: of(3, 12), coef: of(3, 2, 8) }),
      /^ERR_SHAPE: x has shape .* at least one/,
    ],
    [
      'fewer curves',
      () => pykanUpdateGrid(x, { grid: of(3, 12), coef: of(2, 2, 8) }),
      /^ERR_SHAPE: weights.coef has shape/,
    ],
    [
      'no interval',
      () => pykanUpdateGrid(x, { grid: of(3, 12), coef: of(3, 2, 5) }),
      /^ERR_SHAPE: weights.grid has shape/,
    ],
    [
      'a share beyond 1',
      () => pykanUpdateGrid(x, { grid: of(3, 12), coef: of(3, 2, 8) }, { gridEps: 1.5 }),
      /^ERR_OPTION: gridEps is 1.5; it must be from 0 to 1/,
    ],
    [
      'too many to fit',
      () => pykanUpdateGrid(of(300, 1), { grid: of(1, 302), coef: of(1, 1, 300) }),
      /^ERR_SHAPE: weights.coef has 300 coefficients of a curve; at most 256/,
    ],
    ['a range', () => new KANLinear({ inputs: 2, outputs: 2, range: [1, -1], device }), /^ERR_OPTION: range is/],
    ['gridSize', () => new KANLinear({ inputs: 2, outputs: 2, gridSize: 0, device }), /^ERR_OPTION: gridSize is 0/],
  ])('%s', (_, call, message) => {
    expect(errorOf(call)).toMatch(message);
  });
});
