/**
 * Inputs at both ends of the range of float32 where softmax is well defined: however low a finite logit is, it counts
 * by softmax, and only -Infinity hides.
 */
import type { Problem } from '../oracle/problem.js';
import { type Case, type Instance, instantiate } from './case.js';

const largest = 3.4028234663852886e38;
const largestBFloat16 = 3.3895313892515355e38;

export interface Extreme {
  readonly name: string;
  readonly problem: Instance;
}

const base: Case = {
  seed: 900,
  layout: 'bshd',
  queryLength: 40,
  keyLength: 150,
  kvHeads: 1,
  group: 2,
  headDim: 5,
  valueDim: 6,
  dLse: true,
};

function extreme(name: string, c: Partial<Case>, change: (p: Problem) => Partial<Problem>): Extreme {
  const instance = instantiate({ ...base, ...c });
  return { name, problem: { ...instance, problem: { ...instance.problem, ...change(instance.problem) } } };
}

const filled = (values: Float64Array, f: (index: number) => number): Float64Array =>
  values.map((_, n) => Math.fround(f(n)));

/** Rows of one value throughout, of two values, and with hidden keys beside them. */
function biasOf(x: number): Extreme {
  return extreme(`bias ${x}`, { bias: [true, true, false, false] }, (p) => {
    const [, , , keys] = p.bias?.shape ?? [1, 1, 1, 1];
    const at = (i: number, j: number): number => {
      if (i % 4 === 1) return j % 3 === 0 ? x : x / 2;
      if (i % 4 === 2) return j < 100 ? -Infinity : x;
      if (i % 4 === 3) return j === 77 ? 0 : x;
      return x;
    };
    return { bias: p.bias && { ...p.bias, values: p.bias.values.map((_, n) => at(Math.floor(n / keys), n % keys)) } };
  });
}

/** q.k of the given size, of one sign or of both, with all keys of a sign alike. */
function productOf(x: number, both: boolean, options: Partial<Case> = {}): Extreme {
  const { scale = 1 } = options;
  const root = Math.sqrt(Math.abs(x)) / Math.sqrt(Math.abs(scale) * base.headDim);
  const name = `q.k ${both ? '±' : ''}${x}, scale ${scale}${options.sink ? ', sink' : ''}`;
  return extreme(name, { scale, ...options }, (p) => ({
    query: filled(p.query, () => root),
    key: filled(p.key, (n) => Math.sign(x) * root * (both && Math.floor(n / base.headDim) % 2 ? -1 : 1)),
  }));
}

const sizes = [-1e30, -1e38, -largestBFloat16, -largest, 1e30, 1e38, largest];

export function extremes(): Extreme[] {
  return [
    ...sizes.map(biasOf),
    ...[-1e30, -3e38, 1e30, 3e38].flatMap((x) => [false, true].map((both) => productOf(x, both))),
    ...[1e-37, 1e-30, 1e30, 1e37].flatMap((scale) => [3, -1e30].map((x) => productOf(x, true, { scale }))),
    productOf(-1e30, false, { sink: true }),
    ...[2e-38, 1e-30, 1e30, 3e37].map((softcap) => extreme(`softcap ${softcap}`, { softcap }, () => ({}))),
    extreme('softcap of a product of 1e30', { softcap: 20, scale: 1e30 }, () => ({})),
    ...[1e30, 1e36].map((slope) =>
      extreme(`alibi ${slope}`, { alibi: 'heads' }, (p) => ({ alibi: p.alibi?.map(() => slope) })),
    ),
    ...sizes.map((x) => extreme(`sink ${x}`, { sink: true }, (p) => ({ sink: p.sink?.map(() => x) }))),
    ...sizes.map((x) =>
      extreme(`relative ${x}`, { relative: 'distance' }, (p) => ({
        relative: p.relative && { ...p.relative, table: filled(p.relative.table, (n) => (n % 3 ? x : x / 4)) },
      })),
    ),
    extreme('large values', {}, (p) => ({ value: filled(p.value, (n) => largest * (0.75 + 0.25 * Math.sin(n))) })),
    extreme('large values of both signs', {}, (p) => ({ value: filled(p.value, (n) => 3e38 * Math.sin(n)) })),
    extreme('large values that some rows see', { causal: true, align: 'topLeft' }, (p) => ({
      value: p.value.map((x, n) => (n >= 20 * p.valueDim ? 3e38 * Math.sin(n) : x)),
    })),
    extreme('large values, dropout', { dropout: { p: 0.5, seed: 4 } }, (p) => ({
      value: filled(p.value, (n) => 1e38 * Math.sin(n)),
    })),
    ...(['query', 'key', 'value'] as const).map((side) =>
      extreme(`small ${side}`, {}, (p) => ({ [side]: filled(p[side], (n) => 1e-44 * (n % 5)) })),
    ),
  ];
}
