/** Functions of scores that are refused, and what `explain` says of the others. */
import { afterEach, describe, expect, it } from 'vitest';
import {
  attention,
  attentionBackward,
  type DenseOptions,
  type Expression,
  explain,
  fused,
  lookup,
  memory,
  type Shape4,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js';
import { errorOf } from '../support/codeOf.js';

describe('functions that are refused', () => {
  const shape: Shape4 = [1, 3, 1, 4];
  const made: { dispose(): void }[] = [];
  afterEach(() => {
    for (const each of made.splice(0)) each.dispose();
  });

  const message = (scoreMod: unknown) => {
    const q = zeros(shape, { device: 'wasm' });
    made.push(q);
    const before = memory('wasm').bytesInUse;
    const found = errorOf(() => {
      const { out, lse } = attention(q, q, q, { scoreMod } as DenseOptions);
      made.push(out, lse);
    });
    if (found !== 'none') expect(memory('wasm').bytesInUse).toBe(before);
    return found;
  };

  it('what is no function', () => {
    for (const value of [1, 'tanh', {}, null]) expect(message(value)).toContain('ERR_OPTION: scoreMod');
  });

  it('what returns no expression', () => {
    const results: readonly unknown[] = [undefined, null, true, 'x', {}, Promise.resolve(1)];
    for (const result of results) expect(message(() => result)).toContain('ERR_OPTION: scoreMod returned');
    expect(message((score: Expression) => `${score} + 1`)).toContain('operators do not work on expressions');
    expect(
      message((_s: Expression, _b: Expression, _h: Expression, i: Expression, j: Expression) => i === j),
    ).toContain('scoreMod returned false');
  });

  it('what is made of the arguments of another function', () => {
    let kept: Expression | undefined;
    using x = tensor([1], [1], { device: 'wasm' });
    using _ = fused((a: Expression, b: Expression) => {
      kept = a;
      return a.add(b);
    })(x, x);
    expect(message((score: Expression) => score.add(kept as Expression))).toContain(
      'the arguments of another function',
    );
  });

  it('what is longer than a kernel holds', () => {
    const long = (steps: number) => (score: Expression) => {
      let x = score;
      for (let n = 0; n < steps; n++) x = x.add(n % 2 ? score : 1).sin();
      return x;
    };
    expect(message(long(3))).toBe('none');
    expect(message(long(40))).toMatch(
      /^ERR_OPTION: scoreMod, with its derivative, has \d+ instructions; one kernel holds at most 72/,
    );
    const wide = (score: Expression) =>
      Array.from({ length: 30 }, (_, n) => score.add(n + 1)).reduce((a, b) => a.add(b));
    expect(message(wide)).toMatch(/constants; one kernel holds at most 24/);
    const deep = (score: Expression) => {
      const all = Array.from({ length: 13 }, (_, n) => score.mul(n + 2).floor());
      return all.reduceRight((a, b) => b.mul(a));
    };
    expect(message(deep)).toMatch(/intermediate results at one time; one kernel holds at most 12/);
  });

  it('other functions in backward than in forward', () => {
    const q = zeros(shape, { device: 'wasm' });
    const result = attention(q, q, q, { scoreMod: (score) => score });
    made.push(q, result.out, result.lse);
    expect(errorOf(() => attentionBackward(q, { q, k: q, v: q, ...result }, { scoreMod: (score) => score }))).toContain(
      'ERR_OPTION: scoreMod is',
    );
  });

  it('lookups in formulas of other operations', () => {
    let kept: Expression | undefined;
    using table = tensor([1, 2], [2], { device: 'wasm' });
    expect(message((score: Expression) => (kept = lookup(table as Tensor<'float32'>, score)))).toBe('none');
    const other = fused((x: Expression) => x.add(kept as Expression));
    expect(errorOf(() => other(table))).toContain('has a lookup, which only scoreMod of attention can have');
  });
});

describe('explain', () => {
  it('counts the instructions of a function', () => {
    const q = [1, 8, 1, 16] as const;
    const { scoreMod } = explain({ q, device: 'wasm', scoreMod: (score) => score.div(20).tanh().mul(20) });
    expect(scoreMod?.forward).toBe(3);
    expect(scoreMod?.backward).toBeGreaterThan(4);
    expect(explain({ q, device: 'wasm' }).scoreMod).toBeUndefined();
  });
});
