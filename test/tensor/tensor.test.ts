import { describe, expect, expectTypeOf, it } from 'vitest';
import { type FloatDType, memory, type Tensor, tensor, zeros } from '../../lib/index.js';
import { fromBits, toBits } from '../../verify/oracle/float16.js';

const range = (n: number) => Float32Array.from({ length: n }, (_, i) => i);

describe('views', () => {
  it('read the elements that their shape names', async () => {
    using t = tensor(range(24), [2, 3, 4]);
    using swapped = t.transpose(0, 2);
    using middle = t.slice(1, 1, 3);
    using row = t.select(1, 2);
    using flat = t.reshape([6, 4]);
    expect([...swapped.shape, ...swapped.strides]).toEqual([4, 3, 2, 1, 4, 12]);
    expect([...(await swapped.data())].slice(0, 6)).toEqual([0, 12, 4, 16, 8, 20]);
    expect([...middle.dataSync()]).toEqual([4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23]);
    expect([...row.dataSync()]).toEqual([8, 9, 10, 11, 20, 21, 22, 23]);
    expect([...(await flat.data())]).toEqual([...range(24)]);
    expect(() => swapped.reshape([24])).toThrow('contiguous');
    expect(() => t.slice(1, 2, 4)).toThrow('[2, 4) must lie within [0, 3)');
    expect(() => t.select(3, 0)).toThrow('axis 3');
  });

  it('keep the memory until the last of them is disposed', async () => {
    const before = memory();
    const t = tensor(range(24), [2, 12]);
    const view = t.select(0, 1);
    t.dispose();
    expect(memory().tensors).toBe(before.tensors + 1);
    expect([...(await view.data())]).toEqual([...range(24).subarray(12)]);
    view.dispose();
    expect(memory()).toMatchObject({ tensors: before.tensors, bytesInUse: before.bytesInUse });
  });

  it('read before dispose even when dispose comes first in time', async () => {
    const t = tensor(range(4), [4]);
    const data = t.data();
    t.dispose();
    expect([...(await data)]).toEqual([0, 1, 2, 3]);
  });
});

describe('data', () => {
  it('is copied in and out', async () => {
    const source = range(3);
    using t = tensor(source, [3]);
    source[0] = 9;
    const read = await t.data();
    read[1] = 9;
    expect([...(await t.data())]).toEqual([0, 1, 2]);
    t.write([5, 6, 7]);
    expect([...t.dataSync()]).toEqual([5, 6, 7]);
    expect(() => t.write([1])).toThrow('source has 1 elements');
  });

  it('of 16-bit tensors is bit patterns, widened by toFloat32', async () => {
    using half = tensor([1, -2, 65504, 0.1], [4], { dtype: 'float16' });
    expect([...(await half.data())]).toEqual([0x3c00, 0xc000, 0x7bff, 0x2e66]);
    expect([...(await half.toFloat32())]).toEqual([1, -2, 65504, 0.0999755859375]);
    using raw = tensor(Uint16Array.of(0x3f80, 0xc000), [2], { dtype: 'bfloat16' });
    expect([...raw.toFloat32Sync()]).toEqual([1, -2]);
  });

  it.runIf('Float16Array' in globalThis)('accepts a Float16Array where there is one', () => {
    const Half = (globalThis as unknown as { Float16Array: { from(x: number[]): never } }).Float16Array;
    using t = tensor(Half.from([1, 2.5]), [2]);
    expect(t.dtype).toBe('float16');
    expect([...t.dataSync()]).toEqual([0x3c00, 0x4100]);
  });

  it('zeros are zeros also where memory was used before', async () => {
    for (let i = 0; i < 3; i++) {
      const used = tensor(range(1000).fill(7), [1000]);
      used.dispose();
      using t = zeros([1000]);
      expect((await t.data()).every((x) => x === 0)).toBe(true);
    }
  });
});

describe('rounding', () => {
  const float = new Float32Array(1);
  const bits = new Uint32Array(float.buffer);
  /** Every float32 pattern with these low bits: all exponents, and mantissas at and around the ties. */
  function* patterns(low: number): Generator<number> {
    for (let high = 0; high < 2 ** 16; high++) {
      bits[0] = (high << 16) | low;
      yield float[0];
    }
  }
  const lows = [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff];

  /** Nearest representable by trying both neighbours; ties to the even pattern. */
  const nearest = (x: number, decode: (h: number) => number, overflow: number, infinity: number): number => {
    if (Number.isNaN(x)) return Number.NaN;
    const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
    const size = Math.abs(x);
    if (size >= overflow) return sign | infinity;
    let low = 0;
    let high = infinity;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (decode(middle) <= size) low = middle;
      else high = middle;
    }
    const down = size - decode(low);
    const up = (high === infinity ? overflow * 2 - decode(low) : decode(high)) - size;
    return sign | (down < up || (down === up && low % 2 === 0) ? low : high);
  };
  const half = (h: number) => {
    const e = h >> 10;
    return e ? (1 + (h & 1023) / 1024) * 2 ** (e - 15) : (h & 1023) * 2 ** -24;
  };
  const bfloat = (h: number) => {
    const e = h >> 7;
    return e ? (1 + (h & 127) / 128) * 2 ** (e - 127) : (h & 127) * 2 ** -133;
  };

  it.each([
    ['float16', half, 65520, 0x7c00],
    ['bfloat16', bfloat, (2 - 2 ** -8) * 2 ** 127, 0x7f80],
  ] as const)('to %s is to nearest, ties to even', async (dtype, decode, overflow, infinity) => {
    for (const low of lows) {
      const values = Float32Array.from(patterns(low));
      // The device rounds many numbers, the host few.
      using byDevice = tensor(values, [values.length], { dtype });
      using byHost = zeros([values.length], { dtype });
      for (let begin = 0; begin < values.length; begin += 2 ** 15) {
        using part = byHost.slice(0, begin, begin + 2 ** 15);
        part.write(values.subarray(begin, begin + 2 ** 15));
      }
      for (const stored of [byDevice.dataSync(), byHost.dataSync()]) {
        let wrong = 0;
        for (const [i, x] of values.entries()) {
          const expected = nearest(x, decode, overflow, infinity);
          const isNaNPattern = (stored[i] & 0x7fff) > infinity;
          if (Number.isNaN(expected) ? !isNaNPattern : stored[i] !== expected) wrong++;
        }
        expect(wrong, `low bits ${low.toString(16)}`).toBe(0);
      }
    }
  });

  it.each([
    ['float16', half, 0x7c00],
    ['bfloat16', bfloat, 0x7f80],
  ] as const)('back from %s is exact, of many numbers and of few', (dtype, decode, infinity) => {
    const stored = Uint16Array.from({ length: 2 ** 16 }, (_, pattern) => pattern);
    const numberOf = (pattern: number) => {
      const size = pattern & 0x7fff;
      const magnitude = size > infinity ? Number.NaN : size === infinity ? Number.POSITIVE_INFINITY : decode(size);
      return pattern === size ? magnitude : -magnitude;
    };
    using t = tensor(stored, [2 ** 16], { dtype });
    const expected = Float32Array.from(stored, numberOf);
    for (let begin = 0; begin < 2 ** 16; begin += 2 ** 14) {
      using part = t.slice(0, begin, begin + 2 ** 14);
      expect(part.toFloat32Sync()).toEqual(expected.slice(begin, begin + 2 ** 14));
    }
    expect(t.toFloat32Sync()).toEqual(expected);
  });

  it('of more numbers than go through the device at a time, into a part of a tensor', async () => {
    const count = 2 ** 20 + 2 ** 16 + 3;
    const values = Float32Array.from({ length: count }, (_, i) => i % 1999);
    for (const dtype of ['float16', 'bfloat16'] as const) {
      using t = zeros([count + 5], { dtype });
      using part = t.slice(0, 3, count + 3);
      part.write(values.map((x) => -x));
      const first = part.data();
      part.write(values);
      const expected = values.map((x) => fromBits(toBits(x, dtype), dtype));
      expect(await part.toFloat32()).toEqual(expected);
      expect((await first).every((bits, i) => fromBits(bits, dtype) === -expected[i])).toBe(true);
      const whole = await t.toFloat32();
      expect([...whole.slice(0, 3), ...whole.slice(count + 3)]).toEqual([0, 0, 0, 0, 0]);
    }
  });
});

describe('types', () => {
  it('know dtype and rank', () => {
    using a = tensor([1, 2], [1, 2]);
    expectTypeOf(a).toEqualTypeOf<Tensor<'float32', readonly [number, number]>>();
    using b = zeros([1, 2, 3], { dtype: 'bfloat16' });
    expectTypeOf(b.dtype).toEqualTypeOf<'bfloat16'>();
    expectTypeOf(b.dataSync()).toEqualTypeOf<Uint16Array>();
    expectTypeOf(a.dataSync()).toEqualTypeOf<Float32Array>();
    expectTypeOf<FloatDType>().toEqualTypeOf<'float32' | 'float16' | 'bfloat16'>();
    // @ts-expect-error 16-bit patterns need a dtype
    expect(() => tensor(new Uint16Array(1), [1])).toThrow('bit patterns');
  });
});
