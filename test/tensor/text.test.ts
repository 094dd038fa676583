import { inspect } from 'node:util';
import { expect, it } from 'vitest';
import { tensor, zeros } from '../../lib/index.js';

it('a tensor is shown by shape, dtype and device, never by its data', () => {
  const t = zeros([2, 3], { dtype: 'bfloat16', device: 'wasm' });
  const text = 'Tensor [2, 3] bfloat16 on wasm';
  expect(String(t)).toBe(text);
  expect(`${t}`).toBe(text);
  expect(inspect(t)).toBe(text);
  expect(inspect({ nested: [t] })).toContain(text);
  expect(inspect(t, { depth: -1 })).toBe(text);
  t.dispose();
  expect(String(t)).toBe(`${text}, disposed`);
  expect(inspect(t)).toBe(`${text}, disposed`);
});

it('a large tensor is shown in a line', () => {
  using t = zeros([1, 4096, 8, 64]);
  expect(inspect(t)).toBe(`Tensor [1, 4096, 8, 64] float32 on ${t.device}`);
  using scalar = tensor([1], []);
  expect(inspect(scalar)).toBe(`Tensor [] float32 on ${scalar.device}`);
});

it('slices with a step are views', () => {
  using t = tensor(
    Array.from({ length: 24 }, (_, i) => i),
    [2, 12],
  );
  using every = t.slice(1, 1, 12, 4);
  expect([every.shape, every.strides]).toEqual([
    [2, 3],
    [12, 4],
  ]);
  expect([...every.dataSync()]).toEqual([1, 5, 9, 13, 17, 21]);
  using again = every.slice(1, 0, 3, 2);
  expect([...again.dataSync()]).toEqual([1, 9, 13, 21]);
  using one = t.slice(1, 11, 12, 2 ** 52);
  expect([...one.dataSync()]).toEqual([11, 23]);
  using none = t.slice(1, 3, 3, 2);
  expect(none.shape).toEqual([2, 0]);
  expect(() => every.reshape([6])).toThrow('strided view');
  for (const step of [0, -1, 1.5, Number.NaN]) expect(() => t.slice(1, 0, 12, step)).toThrow('an integer >= 1');
});

it('reshape tells one axis from the others', () => {
  using t = zeros([4, 6]);
  const shapes = [[-1], [-1, 4], [2, -1, 3], [24, -1]].map((shape) => {
    using view = t.reshape(shape);
    return view.shape;
  });
  expect(shapes).toEqual([[24], [6, 4], [2, 4, 3], [24, 1]]);
  using empty = zeros([0, 3]);
  using view = empty.reshape([3, -1]);
  expect(view.shape).toEqual([3, 0]);
  expect(() => empty.reshape([0, -1])).toThrow('-1 cannot be told');
  expect(() => t.reshape([5, -1])).toThrow('does not fit the 24 elements');
  expect(() => t.reshape([-1, -1])).toThrow('without a second -1');
});
