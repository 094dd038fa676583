/** Comparisons where whole numbers take part: exact, also of those that float32 does not hold. */
import { describe, expect, it } from 'vitest';
import * as fa from '../../lib/index.js';
import { cast, memory, type Tensor, tensor, zeros } from '../../lib/index.js';
import { comparisons } from '../../verify/oracle/elementwise.js';
import { devicesWith } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';

const names = Object.keys(comparisons) as (keyof typeof comparisons)[];

const [least, most] = [-(2 ** 31), 2 ** 31 - 1];
/** Neighbours around 0, around what float32 still holds, and at both ends. */
const whole = Int32Array.from([
  ...[0, 2 ** 24, -(2 ** 24), 2 ** 30 + 64, -1234567890].flatMap((x) => [-2, -1, 0, 1, 2].map((d) => x + d)),
  ...[least, least + 1, least + 64, least + 65, most, most - 1, most - 63, most - 64, most - 65],
]);
const numbers = [
  ...[0, -0, 0.5, -0.5, 1e-40, -1e-40, 1.5, 2 ** 24, 2 ** 24 + 1, 2 ** 24 + 1.5, 2 ** 24 + 1 - 1e-9],
  ...[most, most + 0.5, most + 1, least, least - 0.5, 2 ** 30 + 65, -1234567889, 1e10, -1e10],
  ...[1e300, -1e300, Infinity, -Infinity, Number.NaN],
];

for (const { device, present, title } of devicesWith('elementwise'))
  describe.skipIf(!present)(title('comparisons of whole numbers'), () => {
    const expectPairs = (a: Tensor, b: Tensor, x: ArrayLike<number>, y: ArrayLike<number>) => {
      for (const name of names) {
        using result = fa[name](a, b);
        expect(result.dtype).toBe('bool');
        const wanted = Array.from(x, (p) => Array.from(y, (q) => Number(comparisons[name](p, q)))).flat();
        expect([...result.dataSync()], name).toEqual(wanted);
      }
    };

    it('are exact for int32, broadcast', () => {
      const before = memory(device).tensors;
      const [rows, columns] = [
        tensor(whole, [whole.length, 1], { device, dtype: 'int32' }),
        tensor(whole, [whole.length], { device, dtype: 'int32' }),
      ];
      expectPairs(rows as never, columns as never, whole, whole);
      const turned = rows.transpose(0, 1);
      using same = fa.equal(turned, columns);
      expect([...same.dataSync()]).toEqual(new Array(whole.length).fill(1));
      for (const t of [rows, columns, turned, same]) t.dispose();
      expect(memory(device).tensors).toBe(before);
    });

    it('are exact beside numbers, on either side', () => {
      using x = tensor(whole, [whole.length], { device, dtype: 'int32' });
      for (const name of names)
        for (const number of numbers) {
          using right = fa[name](x, number);
          using left = fa[name](number, x);
          const f = comparisons[name];
          expect([...right.dataSync()], `${name} ${number}`).toEqual(Array.from(whole, (w) => Number(f(w, number))));
          expect([...left.dataSync()], `${number} ${name}`).toEqual(Array.from(whole, (w) => Number(f(number, w))));
        }
    });

    it.each(['float32', 'bfloat16', 'bool'] as const)('are exact beside %s', (dtype) => {
      const values = Float32Array.from([
        0,
        1,
        0.5,
        -3,
        2 ** 24,
        2 ** 24 + 2,
        2 ** 31,
        -(2 ** 31),
        Infinity,
        Number.NaN,
      ]);
      using wide = tensor(values, [values.length], { device });
      using floats = cast(wide, dtype);
      using x = tensor(whole, [whole.length, 1], { device, dtype: 'int32' });
      using back = cast(floats, 'float32');
      expectPairs(x as never, floats as never, whole, back.dataSync());
    });

    it('take bool beside bool, and long arrays', () => {
      using a = tensor(Uint8Array.of(0, 1, 0, 1), [4], { device, dtype: 'bool' });
      using b = tensor(Uint8Array.of(0, 0, 1, 1), [4], { device, dtype: 'bool' });
      using same = fa.equal(a, b);
      using below = fa.less(a, b);
      expect([[...same.dataSync()], [...below.dataSync()]]).toEqual([
        [1, 0, 0, 1],
        [0, 0, 1, 0],
      ]);
      const ids = Int32Array.from({ length: 5000 }, (_, i) => most - ((i * 7919) % 300));
      using long = tensor(ids, [5000], { device, dtype: 'int32' });
      using picked = fa.equal(long, most - 7);
      expect([...picked.dataSync()]).toEqual(Array.from(ids, (id) => Number(id === most - 7)));
    });

    it('take empty tensors, and refuse the rest', async () => {
      using none = zeros([0, 3], { device, dtype: 'int32' });
      using empty = fa.less(none, 1);
      expect(empty.shape).toEqual([0, 3]);
      using x = zeros([2], { device, dtype: 'int32' });
      using y = zeros([3], { device, dtype: 'int32' });
      const before = memory(device).tensors;
      await expectFailure(() => fa.equal(x, y), 'ERR_SHAPE', /b has shape \[3\].*\[2\] of a/);
      await expectFailure(() => fa.equal(x, '1' as never), 'ERR_OPTION', /b is "1"/);
      await expectFailure(() => fa.equal(1, 1), 'ERR_OPTION', /a is 1/);
      expect(memory(device).tensors).toBe(before);
    });
  });
