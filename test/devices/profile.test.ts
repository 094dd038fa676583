/** What a profile says of launches: names, shapes, bytes and work; times are only there. */
import { describe, expect, it } from 'vitest';
import {
  add,
  attention,
  capture,
  crossEntropy,
  embedding,
  gelu,
  layerNorm,
  matmul,
  profile,
  softmax,
  sort,
  sum,
  type Tensor,
  tensor,
} from '../../lib/index.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('profile'), () => {
    const peak = 1e12;
    const make = (shape: readonly number[]) =>
      tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.5), shape, { device }) as Tensor;

    it('lists launches with their shapes, bytes and work', async () => {
      const [x, w, ids] = [make([8, 16]), make([16, 32]), tensor(Int32Array.of(1, 2, 3), [3], { device })];
      const wide = make([1, 1, 64]).expand([4, 8, 64]);
      const p = await profile(
        () => {
          gelu(x);
          add(x, make([16]));
          add(wide, 1);
          matmul(x, w);
          softmax(x, 1);
          sum(x, 1);
          layerNorm(x, undefined, undefined);
          embedding(x, ids);
          crossEntropy(x, tensor(new Int32Array(8), [8], { device }));
          sort(x, 1);
          const { out } = attention(
            make([1, 4, 2, 8]) as never,
            make([1, 6, 2, 8]) as never,
            make([1, 6, 2, 8]) as never,
          );
          return out;
        },
        { device, peak },
      );
      const find = (name: string, shape: string) =>
        p.trace.find((launch) => launch.name.startsWith(name) && launch.shape === shape);
      const arithmetic = p.trace.filter(({ name }) => name.startsWith('elementwise'));
      expect(arithmetic.map(({ shape }) => shape)).toEqual(['[8, 16]', '[8, 16]', '[4, 8, 64]']);
      expect(arithmetic[0]?.name).toBe('elementwise normalCdf mul');
      expect(arithmetic.map(({ bytes }) => bytes)).toEqual([2 * 512, 2 * 512 + 64, 4 * (64 + 2048)]);
      const product = find('matmul', '[8, 16] x [16, 32]');
      expect(product).toMatchObject({ work: 2 * 8 * 16 * 32, bytes: 4 * (8 * 16 + 16 * 32 + 8 * 32) });
      for (const [name, shape] of [
        ['softmax', '[8, 16]'],
        ['reduce', '[8, 16]'],
        ['norm', '[8, 16]'],
        ['takeRows', '[3, 16]'],
        ['crossEntropy', '[8, 16]'],
        ['sort', '[8, 16]'],
        ['attentionForward', '[1, 2, 4, 8] x 6 keys'],
      ] as const)
        expect(find(name, shape), `${name} ${shape} in ${p.trace.map((l) => `${l.name} ${l.shape}`)}`).toBeDefined();
      for (const { milliseconds, bytes, work } of p.trace) {
        expect(milliseconds).toBeGreaterThanOrEqual(0);
        expect(bytes).toBeGreaterThan(0);
        expect(work).toBeGreaterThan(0);
      }
      expect(p.result.shape).toEqual([1, 4, 2, 8]);
    });

    it('adds up what is the same, and writes tables and traces', async () => {
      const [x, w] = [make([8, 16]), make([16, 16])];
      const p = await profile(
        async () => {
          const y = matmul(x, w);
          await y.data();
          return matmul(y, w);
        },
        { device, peak },
      );
      const row = p.table.find(({ name }) => name === 'matmul');
      expect(row).toMatchObject({ launches: 2, work: 2 * 2 * 8 * 16 * 16 });
      expect(p.table.reduce((all, { timeShare }) => all + timeShare, 0)).toBeCloseTo(1, 6);
      expect(row?.peakShare).toBeCloseTo((row?.work ?? 0) / ((row?.milliseconds ?? 0) / 1000) / peak, 9);
      const lines = String(p).split('\n');
      expect(lines[0]).toMatch(new RegExp(`^${p.trace.length} launches on ${device}, [0-9.]+ ms, each run alone$`));
      expect(lines[1]).toMatch(/^operation +shape +launches +ms +time +GB\/s +GFLOP\/s +of peak$/);
      expect(lines).toHaveLength(2 + p.table.length);
      const { traceEvents } = JSON.parse(p.toChromeTrace()) as { traceEvents: Record<string, unknown>[] };
      const launches = traceEvents.filter(({ ph }) => ph === 'X');
      expect(launches).toHaveLength(p.trace.length);
      const [first, second] = launches as { ts: number; dur: number; args: object }[];
      expect(first?.ts).toBe(0);
      expect(second?.ts).toBeCloseTo(first?.dur ?? 0, 6);
      expect(first?.args).toMatchObject({ shape: '[8, 16] x [16, 16]' });
    });

    it('sees nothing before and after, nor what is only recorded', async () => {
      const x = make([4]);
      const p = await profile(() => capture(() => add(x, 1)), { device, peak });
      expect(p.trace.map(({ name }) => name)).toEqual(['elementwise add', 'copy']);
      add(x, 2);
      expect(p.trace).toHaveLength(2);
      p.result.dispose();
      const empty = await profile(() => 5, { device, peak });
      expect(empty).toMatchObject({ result: 5, trace: [], table: [], milliseconds: 0 });
    });

    it('refuses what it cannot measure, and ends with what f throws', async () => {
      await expectFailure(profile(3 as never, { device, peak }), 'ERR_OPTION', /f is 3/);
      await expectFailure(
        profile(() => 1, { device, peak: 0 }),
        'ERR_OPTION',
        /peak is 0/,
      );
      await expectFailure(
        profile(() => profile(() => 1, { device, peak }), { device, peak }),
        'ERR_OPTION',
        /being profiled already/,
      );
      const failing = () => {
        throw new RangeError('its own');
      };
      await expect(profile(failing, { device, peak })).rejects.toThrow(new RangeError('its own'));
      await profile(() => 1, { device, peak });
    });
  });
});

it('compares with the measured peak unless told another', async () => {
  const x = tensor(new Float32Array(256 * 256).fill(1), [256, 256], { device: 'wasm' });
  const p = await profile(() => matmul(x, x), { device: 'wasm' });
  expect(p.peak).toBeGreaterThan(1e6);
  expect(p.table[0]?.peakShare).toBeGreaterThan(0);
});
