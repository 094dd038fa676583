/** Sums of products by the names of axes, against a loop over all products. */
import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import { einsum, FlashAttnError, memory, parameter, scope, type Tensor, tensor } from '../../lib/index.js';
import { einsum as oracle } from '../../verify/oracle/einsum.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { expectNear, numbers, size } from '../support/samples.js';

const letters = ['a', 'b', 'c', 'X', 'Y'];

const cases = fc.record({
  sizes: fc.array(fc.oneof({ weight: 9, arbitrary: fc.integer({ min: 1, max: 4 }) }, fc.constant(0)), {
    minLength: 5,
    maxLength: 5,
  }),
  /** Of the axes that '...' stands for. */
  dots: fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 2 }),
  inputs: fc.array(
    fc.record({
      labels: fc.array(fc.nat({ max: 4 }), { maxLength: 4 }),
      /** How many of the axes of '...' it has, and in front of which label. */
      dots: fc.nat({ max: 2 }),
      dotsAt: fc.nat({ max: 4 }),
      ones: fc.nat({ max: 15 }),
      turned: fc.boolean(),
    }),
    { minLength: 1, maxLength: 3 },
  ),
  output: fc.shuffledSubarray([0, 1, 2, 3, 4]),
  dtype: fc.constantFrom('float32', 'float32', 'float16', 'bfloat16'),
  seed: fc.nat({ max: 1000 }),
});

type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

/** The equation, and for the oracle the labels and shapes; a label of '...' is a number. */
function read(c: Case) {
  const lengths = new Map<string, number>();
  const inputs = c.inputs.map((input) => {
    const names = input.labels.map((i) => letters[i] as string);
    const dots = c.dots.slice(c.dots.length - Math.min(input.dots, c.dots.length));
    const dotNames = dots.map((_, i) => String(dots.length - i));
    const at = Math.min(input.dotsAt, names.length);
    const labels = names.toSpliced(at, 0, ...dotNames);
    const shape = labels.map((label, axis) => {
      const n = /\d/.test(label) ? (c.dots.at(-Number(label)) as number) : (c.sizes[letters.indexOf(label)] as number);
      return labels.indexOf(label) === labels.lastIndexOf(label) && (input.ones >> axis) % 2 === 1 ? 1 : n;
    });
    for (const [axis, label] of labels.entries())
      lengths.set(
        label,
        lengths.has(label) && lengths.get(label) !== 1 ? (lengths.get(label) as number) : (shape[axis] as number),
      );
    const text = names.join('');
    return { labels, shape, text: dots.length > 0 ? `${text.slice(0, at)}...${text.slice(at)}` : text };
  });
  const most = Math.max(...c.inputs.map(({ dots }) => Math.min(dots, c.dots.length)));
  const dotNames = Array.from({ length: most }, (_, i) => String(most - i));
  const output = [...dotNames, ...c.output.map((i) => letters[i] as string).filter((label) => lengths.has(label))];
  const right = `${most > 0 ? '...' : ''}${output.slice(most).join('')}`;
  return { equation: `${inputs.map(({ text }) => text).join(', ')} -> ${right}`, inputs, output, lengths };
}

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('einsum'), () => {
    const make = (shape: readonly number[], seed = 1) => tensor(numbers(size(shape), seed), [...shape], { device });

    it('is a sum of products, and so are its gradients', () => {
      const before = memory(device).tensors;
      fc.assert(
        fc.property(cases, (c) => {
          const { equation, inputs, output, lengths } = read(c);
          scope(() => {
            const given = inputs.map(({ shape, labels }, i) => {
              const last = shape.length - 1;
              const turned = c.inputs[i]?.turned && last > 0;
              const stored = [...shape];
              if (turned) [stored[0], stored[last]] = [shape[last] as number, shape[0] as number];
              const whole = parameter(tensor(numbers(size(shape), c.seed + i), stored, { dtype: c.dtype, device }));
              const view = (t: Tensor) => (turned ? t.transpose(0, last) : t);
              return { whole, view, x: view(whole as Tensor), shape, labels };
            });
            const out = einsum(equation, ...given.map(({ x }) => x));
            expect(out.shape).toEqual(output.map((label) => lengths.get(label)));
            expect(out.dtype).toBe(c.dtype);
            const dOut = tensor(numbers(out.size, c.seed + 9), out.shape, { dtype: c.dtype, device });
            out.backward(dOut as Tensor);
            const data = given.map(({ x, shape, labels }) => ({ data: x.toFloat32Sync().slice(), shape, labels }));
            const gradient = dOut.toFloat32Sync();
            const exact = oracle(data, output, lengths, gradient);
            const absolute = (values: ArrayLike<number>) => Float64Array.from(values, Math.abs);
            const positive = data.map((array) => ({ ...array, data: absolute(array.data) }));
            const scales = oracle(positive, output, lengths, absolute(gradient));
            // Every product of two is rounded.
            expectNear('out', out, exact.out, scales.out, 8);
            for (const [i, { whole, view, x }] of given.entries()) {
              expectNear(
                `gradient ${i}`,
                view(whole.grad as Tensor),
                exact.gradients[i] as Float64Array,
                scales.gradients[i] as Float64Array,
                12,
              );
              x.dispose();
              whole.dispose();
            }
            for (const t of [out, dOut]) t.dispose();
          });
        }),
        { numRuns: runs(300) },
      );
      expect(memory(device).tensors).toBe(before);
    });

    it('has the axes that occur once, in alphabetical order, where the equation names no result', () => {
      const a = make([2, 3, 4]);
      const b = make([4, 5], 2);
      expect(einsum('bac,cB', a, b).shape).toEqual([5, 3, 2]);
      expect(einsum('ii', make([3, 3])).shape).toEqual([]);
      expect(einsum('...c,cB', a, b).shape).toEqual([2, 3, 5]);
      expect([...einsum('ba', make([2, 2])).dataSync()]).toEqual([...make([2, 2]).transpose(0, 1).dataSync()]);
    });

    it('of one tensor without sums is a view that is not the tensor itself', () => {
      const x = make([2, 3]);
      const same = einsum('ab->ab', x);
      same.dispose();
      expect(einsum('ab->ba', x).strides).toEqual([1, 3]);
      expect([...einsum('aa->a', make([3, 3])).dataSync()]).toEqual([0, 4, 8].map((i) => make([3, 3]).dataSync()[i]));
    });

    it('copies no factor of attention', () => {
      const q = make([2, 5, 3, 4]);
      const k = make([2, 7, 3, 4], 2);
      const launch = vi.spyOn(q.backend, 'launch');
      const scores = einsum('bqhd,bkhd->bhqk', q, k);
      expect(launch.mock.calls.map(([{ name }]) => name)).toEqual(['matmul']);
      launch.mockRestore();
      scores.dispose();
    });

    it('refuses what does not fit', () => {
      const a = make([2, 3]);
      const b = make([4, 5]);
      const message = (call: () => unknown) => {
        try {
          call();
        } catch (error) {
          if (error instanceof FlashAttnError) return `${error.code}: ${error.message}`;
        }
        return 'none';
      };
      expect(message(() => einsum('ij,jk', a, b))).toBe(
        'ERR_SHAPE: axis "j" has length 3 in tensors[0] and 4 in tensors[1]; they must be equal or 1',
      );
      expect(message(() => einsum('ii', a))).toBe(
        'ERR_SHAPE: axis "i" has length 2 and 3 in tensors[0], [2, 3]; they must be equal',
      );
      for (const equation of ['ij->ik', 'ij->ii', 'i1->i', 'ij->i->j', 'ij,jk', '...i...', 'ij->...i.', '', '...->'])
        expect([equation, codeOf(() => einsum(equation, a))]).toEqual([
          equation,
          equation === '' ? 'ERR_SHAPE' : 'ERR_OPTION',
        ]);
      expect(codeOf(() => einsum('i', a))).toBe('ERR_SHAPE');
      expect(codeOf(() => einsum('ijk...', a))).toBe('ERR_SHAPE');
      expect(codeOf(() => einsum('ij'))).toBe('ERR_OPTION');
      expect(codeOf(() => einsum(3 as unknown as string, a))).toBe('ERR_OPTION');
      expect(codeOf(() => einsum('ij', [1] as unknown as Tensor))).toBe('ERR_OPTION');
      const half = tensor([1, 2], [2], { dtype: 'float16', device });
      expect(codeOf(() => einsum<'float16' | 'float32'>('ij,i', a, half))).toBe('ERR_DTYPE');
      half.dispose();
      expect(codeOf(() => einsum('i', half))).toBe('ERR_DISPOSED');
    });
  });
});
