/** Random tensors with the numbers that they hold: shapes of rank 0 to 6, strides, dtypes. */
import fc from 'fast-check';
import { type AnyTensor, type DeviceName, type FloatDType, tensor } from '../../lib/index.js';
import { uniform } from '../../verify/oracle/random.js';

/** How an array lies in memory. */
export interface ArrayForm {
  readonly dtype: FloatDType | 'bool';
  readonly seed: number;
  /** Numbers that axes are sorted by, for their order in memory. */
  readonly order: readonly number[];
  /** By axis whether only every other element is the array's. */
  readonly gaps: readonly boolean[];
}

const axis = 6;

export const formArbitrary = (
  dtypes: readonly (FloatDType | 'bool')[] = ['float32', 'float32', 'float16', 'bfloat16', 'bool'],
): fc.Arbitrary<ArrayForm> =>
  fc.record({
    dtype: fc.constantFrom(...dtypes),
    seed: fc.nat(1000),
    order: fc.oneof(fc.constant([0, 1, 2, 3, 4, 5]), fc.array(fc.nat(100), { minLength: axis, maxLength: axis })),
    gaps: fc.oneof(
      fc.constant(new Array<boolean>(axis).fill(false)),
      fc.array(fc.boolean(), { minLength: axis, maxLength: axis }),
    ),
  });

export const arrayArbitrary = formArbitrary();

/** Shapes of rank 0 to 6, of few elements; also empty ones, and one of many elements along an axis. */
export const shapeArbitrary = fc.oneof(
  { weight: 8, arbitrary: fc.array(fc.constantFrom(1, 1, 2, 3, 2, 3, 4), { maxLength: axis }) },
  { weight: 1, arbitrary: fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 4 }) },
  {
    weight: 2,
    arbitrary: fc.tuple(fc.nat(2), fc.integer({ min: 5, max: 700 }), fc.constantFrom(1, 2, 3)).map(([at, n, other]) => {
      const shape = [other, 2, 3];
      shape[at] = n;
      return shape;
    }),
  },
);

/** A shape, and others that broadcast to it together. */
export const shapesThatBroadcast = (count: number) =>
  fc
    .record({
      whole: shapeArbitrary,
      once: fc.array(fc.array(fc.nat(3), { minLength: axis, maxLength: axis }), { minLength: count, maxLength: count }),
      missing: fc.array(fc.constantFrom(0, 0, 0, 1, 2, 6), { minLength: count, maxLength: count }),
    })
    .map(({ whole: drawn, once, missing }) => {
      const whole: readonly number[] = drawn;
      const shapes = once.map((ones, i) =>
        whole.map((n, at) => (ones[at] === 0 ? 1 : n)).slice(Math.min(missing[i] as number, whole.length)),
      );
      const rank = Math.max(...shapes.map((shape) => shape.length));
      const shape = Array.from({ length: rank }, (_, at) => {
        const sizes = shapes.map((own) => own[at - rank + own.length] ?? 1);
        return sizes.find((n) => n !== 1) ?? 1;
      });
      return { shapes, shape };
    });

export interface Built {
  readonly t: AnyTensor;
  /** Row-major. */
  readonly data: Float32Array;
  /** The numbers in the order of a larger shape. */
  expanded(shape: readonly number[]): number[];
  dispose(): void;
}

export function build(shape: readonly number[], { dtype, seed, order, gaps }: ArrayForm, device: DeviceName): Built {
  const rank = shape.length;
  const axes = [...shape.keys()].sort((a, b) => (order[a] as number) - (order[b] as number));
  const stored = axes.map((at) => (shape[at] as number) * (gaps[at] ? 2 : 1));
  const count = stored.reduce((x, n) => x * n, 1);
  const next = uniform(seed);
  const values =
    dtype === 'bool'
      ? Uint8Array.from({ length: count }, () => (next() < 0.5 ? 1 : 0))
      : Float32Array.from({ length: count }, () => (next() < 0.06 ? 0 : (next() - 0.5) * 6));
  const made = [tensor(values as Float32Array, stored, { dtype: dtype as 'float32', device }) as AnyTensor];
  let t = made[0] as AnyTensor;
  for (const [at, own] of axes.entries())
    if (gaps[own]) {
      t = t.slice(at, 0, stored[at] as number, 2);
      made.push(t);
    }
  t = t.permute([...shape.keys()].map((own) => axes.indexOf(own)));
  made.push(t);
  const data = t.toFloat32Sync();
  return {
    t,
    data,
    expanded: (larger) => {
      const total = larger.reduce((x, n) => x * n, 1);
      return Array.from({ length: total }, (_, at) => {
        let rest = at;
        let place = 0;
        let stride = 1;
        for (let axis = -1; axis >= -larger.length; axis--) {
          const n = larger.at(axis) as number;
          const own = axis >= -rank ? (shape.at(axis) as number) : 1;
          if (own !== 1) place += (rest % n) * stride;
          stride *= own;
          rest = Math.floor(rest / n);
        }
        return data[place] as number;
      });
    },
    dispose: () => {
      for (const each of made) each.dispose();
    },
  };
}
