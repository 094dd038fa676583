/** The systems over the scans: forms that agree, states that go on, and what is refused. Golden files have the rest. */
import { describe, expect, it } from 'vitest';
import { type DeviceName, linearScan, memory, type Tensor, tensor } from '../../lib/index.js';
import {
  hgrnRecurrence,
  mambaSelectiveScan,
  type Rwkv4State,
  rwkv4TimeMixing,
  s4d,
  s4dKernel,
} from '../../lib/systems/index.js';
import { uniform } from '../../verify/oracle/random.js';
import { testDevices } from '../support/devices.js';
import { size } from '../support/samples.js';

function random(device: DeviceName, shape: readonly number[], seed: number, from = -1, to = 1): Tensor {
  const next = uniform(seed);
  const values = Float32Array.from({ length: size(shape) }, () => from + next() * (to - from));
  return tensor(values, shape, { device }) as Tensor;
}

function expectNear(got: Tensor, wanted: ArrayLike<number>, tolerance = 2e-5): void {
  const data = got.toFloat32Sync();
  expect(data.length).toBe(wanted.length);
  for (const [i, x] of data.entries())
    if (!(Math.abs(x - (wanted[i] as number)) <= tolerance)) throw new Error(`element ${i} is ${x}, not ${wanted[i]}`);
}

/** Disposes of tensors in objects of any depth. */
function disposeAll(...values: object[]): void {
  for (const value of values)
    if ('dispose' in value) (value as Tensor).dispose();
    else disposeAll(...(Object.values(value) as object[]));
}

const [channels, pairs] = [5, 6];
const parametersOfS4D = (device: DeviceName) => ({
  logDt: random(device, [channels], 1, -4, -2),
  logAReal: random(device, [channels, pairs], 2, -1, 0),
  AImag: random(device, [channels, pairs], 3, 0, 12),
  C: random(device, [channels, pairs, 2], 4),
  D: random(device, [channels], 5),
});

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('systems over scans'), () => {
    it('has S4D as a recurrence and as a convolution, with the kernel of its definition', () => {
      const before = memory(device).bytesInUse;
      const parameters = parametersOfS4D(device);
      const u = random(device, [2, channels, 37], 6);
      const recurrence = s4d(u, parameters);
      const convolution = s4d(u, parameters, { form: 'convolution' });
      expectNear(convolution.out, recurrence.out.toFloat32Sync());
      const kernel = s4dKernel(parameters, 11);
      const [dt, logA, imag, c] = (['logDt', 'logAReal', 'AImag', 'C'] as const).map((name) =>
        parameters[name].toFloat32Sync(),
      ) as [Float32Array, Float32Array, Float32Array, Float32Array];
      const wanted = Float64Array.from({ length: channels * 11 }, (_, i) => {
        const [channel, l] = [Math.floor(i / 11), i % 11];
        const step = Math.exp(dt[channel] as number);
        let sum = 0;
        for (let n = 0; n < pairs; n++) {
          const at = channel * pairs + n;
          const [re, im] = [-Math.exp(logA[at] as number), imag[at] as number];
          // C (e^(dt A) - 1) / A e^(dt A l), as e^(dt A (l + 1)) - e^(dt A l).
          const power = (k: number) => {
            const size = Math.exp(step * re * k);
            return [size * Math.cos(step * im * k), size * Math.sin(step * im * k)] as [number, number];
          };
          const [x, y] = [power(l + 1)[0] - power(l)[0], power(l + 1)[1] - power(l)[1]];
          const [cRe, cIm] = [c[2 * at] as number, c[2 * at + 1] as number];
          const [p, q] = [cRe * x - cIm * y, cRe * y + cIm * x];
          sum += (2 * (p * re + q * im)) / (re * re + im * im);
        }
        return sum;
      });
      expectNear(kernel, wanted);
      disposeAll(parameters, { u, recurrence, kernel, out: convolution.out });
      expect(memory(device).bytesInUse).toBe(before);
    });

    it('goes on with S4D, Mamba and HGRN from their states', () => {
      const parameters = parametersOfS4D(device);
      const u = random(device, [2, channels, 37], 6);
      const [first, second] = [u.slice(2, 0, 20), u.slice(2, 20, 37)];
      const last = (t: Tensor) => {
        using tail = t.slice(2, 20, 37);
        return tail.toFloat32Sync();
      };
      const whole = s4d(u, parameters);
      const begun = s4d(first, parameters);
      const ended = s4d(second, parameters, { initialState: begun.state });
      expectNear(ended.out, last(whole.out));
      expectNear(ended.state as Tensor, whole.state.toFloat32Sync());

      const delta = random(device, [2, channels, 37], 7, 0, 0.5);
      const A = random(device, [channels, 4], 8, -2, -0.2);
      const [B, C] = [random(device, [2, 4, 37], 9), random(device, [2, 4, 37], 10)];
      const part = (t: Tensor, begin: number, end: number) => t.slice(2, begin, end);
      const all = mambaSelectiveScan(u, delta, A, B, C);
      const head = [first, part(delta, 0, 20), part(B, 0, 20), part(C, 0, 20)] as const;
      const tail = [second, part(delta, 20, 37), part(B, 20, 37), part(C, 20, 37)] as const;
      const one = mambaSelectiveScan(head[0], head[1], A, head[2], head[3]);
      const two = mambaSelectiveScan(tail[0], tail[1], A, tail[2], tail[3], { initialState: one.state });
      expect(two.out.toFloat32Sync()).toEqual(last(all.out));

      const gates = random(device, [2, channels, 37], 11, -1, 0);
      const [hgrn, scan] = [hgrnRecurrence(u, gates), linearScan(u, gates)];
      expect(hgrn.out.toFloat32Sync()).toEqual(scan.out.toFloat32Sync());
      disposeAll(parameters, {
        u,
        first,
        second,
        whole,
        begun,
        ended,
        delta,
        A,
        B,
        C,
        all,
        one,
        two,
        gates,
        hgrn,
        scan,
      });
      disposeAll({ ...head }, { ...tail });
    });

    it('runs RWKV-4 token by token as in one call', () => {
      const dim = 6;
      const vector = (seed: number, from: number, to: number) => random(device, [dim], seed, from, to);
      const matrix = (seed: number) => random(device, [dim, dim], seed);
      const weights = {
        timeMixK: vector(1, 0, 1),
        timeMixV: vector(2, 0, 1),
        timeMixR: vector(3, 0, 1),
        timeFirst: vector(4, -1, 1),
        timeDecay: vector(5, -2, -0.1),
        ...{ Wr: matrix(6), Wk: matrix(7), Wv: matrix(8), Wo: matrix(9) },
      };
      const x = random(device, [2, 9, dim], 10);
      const whole = rwkv4TimeMixing(x, weights);
      const wanted = whole.out.toFloat32Sync();
      let state: Rwkv4State | undefined;
      for (let t = 0; t < 9; t++) {
        const token = x.slice(1, t, t + 1);
        const result = rwkv4TimeMixing(token, weights, state === undefined ? {} : { state });
        const row = (b: number) => wanted.subarray((b * 9 + t) * dim, (b * 9 + t + 1) * dim);
        expectNear(result.out, [...row(0), ...row(1)]);
        if (state) disposeAll(state);
        state = result.state;
        disposeAll({ token, out: result.out });
      }
      expectNear(state?.wkv as Tensor, whole.state.wkv.toFloat32Sync());
      disposeAll(weights, whole, { x }, state ?? {});
    });

    it('refuses what does not fit', () => {
      const parameters = parametersOfS4D(device);
      const u = random(device, [2, channels, 7], 6);
      const flat = random(device, [2, channels], 6);
      expect(() => s4d(flat, parameters)).toThrow('u has shape [2, 5]; it must be [batch, 5, length]');
      expect(() => s4d(u, { ...parameters, logDt: flat })).toThrow('logDt has shape [2, 5]; it must be [5]');
      expect(() => s4d(u, parameters, { form: 'fft' as 'recurrence' })).toThrow(
        "form is \"fft\"; it must be 'recurrence' or 'convolution'",
      );
      expect(() =>
        s4d(u, parameters, { form: 'convolution', initialState: flat as Tensor as Tensor<'float32'> }),
      ).toThrow("initialState goes with form 'recurrence'");
      expect(() => mambaSelectiveScan(flat, u, flat, u, u)).toThrow('u has shape [2, 5]');
      expect(() => mambaSelectiveScan(u, u, flat, flat, u)).toThrow('B has shape [2, 5]; it must be');
      expect(() => rwkv4TimeMixing(flat, {} as never)).toThrow('x has shape [2, 5]');
      disposeAll(parameters, { u, flat });
    });
  });
