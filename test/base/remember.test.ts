import { memory, type Shape, swinAttention, swinAttentionBackward, type Tensor, topKAttention, zeros } from 'flashattn';
import { expect, it } from 'vitest';
import { Remember } from '../../lib/base/remember.js';
import { testDevice } from '../support/device.js';

it('keeps what was asked for last, and tells what it forgets', () => {
  const forgotten: string[] = [];
  let made = 0;
  const remember = new Remember<string>((value) => forgotten.push(value), 2);
  const get = (key: string) =>
    remember.get([key], () => {
      made++;
      return key;
    });
  for (const key of ['a', 'b', 'a', 'c', 'a', 'b']) expect(get(key)).toBe(key);
  expect(made).toBe(4);
  expect(forgotten).toEqual(['b', 'c']);
});

it('layouts of ever other shapes leave few device copies behind', () => {
  const run = (height: number) => {
    const q = zeros([1, height, 4, 1, 4], { device: testDevice });
    const { out, saved } = swinAttention(q, q, q, { window: 2, shift: 1 });
    const gradients = swinAttentionBackward(out, saved);
    for (const t of [q, out, saved, ...Object.values(gradients)]) (t as Tensor<'float32', Shape>).dispose();
  };
  for (let height = 2; height < 22; height++) run(height);
  const before = memory(testDevice).bytesInUse;
  for (let height = 22; height < 122; height++) run(height);
  // Sixteen layouts at most: a map, its transpose, and a mask with a block and ten lists of two numbers for each window.
  expect(memory(testDevice).bytesInUse - before).toBeLessThan(16 * 122 * (2 * 2 * 4 * 4 + 512 + 2 * 10 * 8));
});

it('a mask that is made for one call goes with its saved tensors', () => {
  const q = zeros([1, 70, 1, 4], { device: testDevice });
  const run = () => {
    const { out, lse, saved } = topKAttention(q, q, q, { keep: 3 });
    for (const t of [out, lse, saved]) t.dispose();
  };
  run();
  const before = memory(testDevice).bytesInUse;
  for (let n = 0; n < 20; n++) run();
  expect(memory(testDevice).bytesInUse).toBe(before);
  q.dispose();
});
