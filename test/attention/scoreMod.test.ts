/** Functions of scores: what they compute, what they hide, their gradients, and what they look up. */
import { describe, expect, it } from 'vitest';
import {
  type AttentionOptions,
  alibiSlopes,
  attention,
  attentionBackward,
  attentionWeights,
  checkpoint,
  type DenseOptions,
  type Expression,
  lookup,
  masks,
  memory,
  mul,
  noGrad,
  parameter,
  plan,
  type ScoreMod,
  type Shape,
  type Shape4,
  scope,
  sum,
  type Tensor,
  type TensorOptions,
  tensor,
  zeros,
} from '../../lib/index.js';
import { MultiHeadAttention } from '../../lib/nn/index.js';
import { type Case, type Instance, instantiate } from '../../verify/cases/case.js';
import { failuresOf, float32Failures } from '../../verify/cases/check.js';
import { widen } from '../../verify/cases/library.js';
import { GRADIENT_TOLERANCE, magnitude, maxError, OUTPUT_TOLERANCE } from '../../verify/oracle/compare.js';
import { normal } from '../../verify/oracle/random.js';
import { SCORE_MOD_KINDS } from '../../verify/oracle/scoreMods.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';

type Own = Tensor<'float32', Shape4>;
type Formula = (score: number, b: number, h: number, i: number, j: number) => number;

const bits = (t: Tensor | undefined) => t && Buffer.from((t as Tensor).dataSync().buffer).toString('hex');

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  const on = { device } as TensorOptions & { device: 'wasm' };
  const make = (values: ArrayLike<number>, shape: readonly number[]) =>
    tensor(Float32Array.from(values), [...shape], on) as unknown as Own;
  const ints = (values: readonly number[]) =>
    tensor(Int32Array.from(values), [values.length], { ...on, dtype: 'int32' });
  const random = (shape: readonly number[], seed: number) =>
    make(
      normal(
        shape.reduce((a, n) => a * n, 1),
        seed,
      ),
      shape,
    );
  /** Few on the emulator. */
  const some = <T>(all: readonly T[]): readonly T[] =>
    all.filter((_, n) => n % Math.ceil(all.length / runs(all.length)) === 0);

  describe.skipIf(!present)(title('the references'), () => {
    const shapes: readonly Omit<Case, 'seed'>[] = [
      {
        layout: 'bshd',
        batch: 2,
        queryLength: 40,
        keyLength: 70,
        kvHeads: 2,
        group: 2,
        headDim: 33,
        causal: true,
        dLse: true,
      },
      { layout: 'bhsd', batch: 2, queryLength: 3, keyLength: 600, kvHeads: 2, group: 2, headDim: 16 },
      { layout: 'varlen', qLens: [1, 33, 5], kLens: [40, 3, 77], headDim: 8, valueDim: 20, window: [20, 9] },
      {
        layout: 'bshd',
        queryLength: 70,
        keyLength: 70,
        headDim: 16,
        kvHeads: 2,
        blockMask: { expression: { kind: 'strided', step: 3 }, blockSize: 64 },
      },
    ];
    const all = SCORE_MOD_KINDS.flatMap((scoreMod, s) =>
      shapes.flatMap((shape, n) =>
        (['float32', 'float16', 'bfloat16'] as const).map((dtype): [string, Case] => [
          `${scoreMod}, ${dtype}, ${n}`,
          { seed: 10 * s + n, dtype, scoreMod, ...shape },
        ]),
      ),
    );
    it.each(some(all))('%s', (_, c) => {
      expect(failuresOf(c, device)).toEqual([]);
    });
  });

  describe.skipIf(!present)(title('any function'), () => {
    /** Runs a function and its like in float64, whose derivative is taken by differences. */
    function failures(own: ScoreMod, formula: Formula, c: Partial<Case> = {}): string[] {
      const made = instantiate({
        seed: 5,
        layout: 'bshd',
        batch: 2,
        queryLength: 5,
        keyLength: 7,
        kvHeads: 2,
        group: 2,
        headDim: 4,
        ...c,
      } as Case);
      const step = 1e-5;
      const instance: Instance = {
        ...made,
        problem: {
          ...made.problem,
          scoreMod: {
            kind: 'table',
            tables: [],
            value: formula,
            slope: (s, b, h, i, j) => (formula(s + step, b, h, i, j) - formula(s - step, b, h, i, j)) / (2 * step),
          },
        },
      };
      const p = made.problem;
      return scope(() => {
        const [q, k, v, dOut] = [p.query, p.key, p.value, made.dOut].map((values, n) =>
          make(values, n === 1 || n === 2 ? [2, 7, 2, 4] : [2, 5, 4, 4]),
        ) as [Own, Own, Own, Own];
        const options = { scoreMod: own, causal: c.causal ?? false };
        const result = attention(q, k, v, options);
        const { dq, dk, dv } = attentionBackward(dOut, { q, k, v, ...result });
        const named = { out: result.out, lse: result.lse, dQuery: dq, dKey: dk, dValue: dv };
        return float32Failures(
          instance,
          Object.fromEntries(Object.entries(named).map(([name, t]) => [name, widen(t as Tensor)])),
        );
      });
    }

    it('of each instruction', () => {
      const everything: readonly [string, ScoreMod, Formula][] = [
        ['identity', (s) => s, (s) => s],
        ['a number', () => 0.5, () => 0.5],
        [
          'positions alone',
          (_s, b, h, i, j) => b.add(h).mul(i).sub(j).mul(0.1),
          (_s, b, h, i, j) => ((b + h) * i - j) * 0.1,
        ],
        ['position of the query', (_s, _b, _h, i) => i, (_s, _b, _h, i) => i],
        ['square', (s) => s.square().mul(-1), (s) => -s * s],
        ['pow', (s) => s.abs().add(1).pow(1.5), (s) => (Math.abs(s) + 1) ** 1.5],
        ['exp', (s) => s.exp().neg(), (s) => -Math.exp(s)],
        ['expm1', (s) => s.minimum(1).expm1(), (s) => Math.expm1(Math.min(s, 1))],
        ['log', (s) => s.square().add(1).log(), (s) => Math.log(s * s + 1)],
        ['log1p', (s) => s.square().log1p(), (s) => Math.log1p(s * s)],
        ['sin', (s) => s.sin().add(s.cos()), (s) => Math.sin(s) + Math.cos(s)],
        ['sigmoid', (s) => s.sigmoid().mul(3), (s) => 3 / (1 + Math.exp(-s))],
        ['sqrt', (s) => s.square().add(1).sqrt(), (s) => Math.sqrt(s * s + 1)],
        ['rsqrt', (s) => s.square().add(1).rsqrt(), (s) => 1 / Math.sqrt(s * s + 1)],
        ['div', (s, _b, _h, i) => s.div(i.add(1)), (s, _b, _h, i) => s / (i + 1)],
        ['where', (s, _b, _h, i, j) => i.less(j).where(s, s.mul(2)), (s, _b, _h, i, j) => (i < j ? s : 2 * s)],
        [
          'hides',
          (s, _b, _h, i, j) => i.add(j).sub(3).abs().less(2).where(-Infinity, s),
          (s, _b, _h, i, j) => (Math.abs(i + j - 3) < 2 ? -Infinity : s),
        ],
        [
          'distance',
          (s, _b, h, i, j) => s.sub(j.sub(i).abs().mul(h.add(1)).mul(0.25)),
          (s, _b, h, i, j) => s - Math.abs(j - i) * (h + 1) * 0.25,
        ],
        ['erf', (s) => s.mul(0.7).tanh().add(s.floor().mul(0)), (s) => Math.tanh(0.7 * s)],
      ];
      for (const causal of runs(8) === 8 ? [false, true] : [true])
        for (const [name, own, formula] of some(everything))
          expect(failures(own, formula, { causal }), name).toEqual([]);
    });

    it('is traced once', () => {
      let calls = 0;
      const counted: ScoreMod = (score, _b, _h, i, j) => {
        calls++;
        return score.add(j.sub(i));
      };
      const formula: Formula = (s, _b, _h, i, j) => s + j - i;
      expect(failures(counted, formula)).toEqual([]);
      expect(failures(counted, formula, { causal: true })).toEqual([]);
      expect(calls).toBe(1);
    });

    it('that fails is called again', () => {
      let calls = 0;
      const failing: ScoreMod = (score) => {
        if (calls++ === 0) throw new RangeError('not yet');
        return score;
      };
      expect(() => failures(failing, (s) => s)).toThrow(new RangeError('not yet'));
      expect(failures(failing, (s) => s)).toEqual([]);
    });
  });

  describe.skipIf(!present)(title('what PyTorch users write'), () => {
    const [batch, length, heads, dim] = [2, 40, 4, 8];
    const shape = [batch, length, heads, dim];

    /** Out, lse and gradients of the same inputs. */
    function results(options: AttentionOptions): Record<string, Float64Array> {
      const [q, k, v, dOut] = [1, 2, 3, 4].map((seed) => random(shape, seed)) as [Own, Own, Own, Own];
      const result = attention(q, k, v, options as DenseOptions);
      const { dq, dk, dv } = attentionBackward(dOut, { q, k, v, ...result });
      const named = { out: result.out, lse: result.lse, dq, dk, dv };
      return Object.fromEntries(Object.entries(named).map(([name, t]) => [name, widen(t as Tensor)]));
    }

    function expectSame(options: AttentionOptions, other: AttentionOptions): void {
      const [found, wanted] = [results(options), results(other)];
      for (const [name, values] of Object.entries(wanted)) {
        const tolerance =
          (name === 'out' || name === 'lse' ? OUTPUT_TOLERANCE : GRADIENT_TOLERANCE) * magnitude(values);
        expect(maxError(found[name] ?? [], values), name).toBeLessThan(tolerance);
      }
    }

    it('is what the options for it compute', () =>
      scope(() => {
        const alibi = alibiSlopes(heads);
        const slopes = make(alibi, [heads]);
        expectSame(
          {
            causal: true,
            scoreMod: (score, _b, h, i, j) => score.sub(lookup(slopes as Tensor<'float32'>, h).mul(i.sub(j).abs())),
          },
          { causal: true, alibi },
        );
        expectSame({ scoreMod: (score) => score.div(2).tanh().mul(2) }, { softcap: 2 });
        expectSame({ scoreMod: (score, _b, _h, i, j) => i.greaterEqual(j).where(score, -Infinity) }, { causal: true });
        const bias = random([1, heads, length, length], 9) as Tensor<'float32', Shape>;
        expectSame({ scoreMod: (score, _b, h, i, j) => score.add(lookup(bias, 0, h, i, j)) }, { bias });
        const starts = [0, 13, 14, 31, length];
        const document = ints(Array.from({ length }, (_, i) => starts.findLastIndex((start) => start <= i)));
        expectSame(
          { scoreMod: (score, _b, _h, i, j) => lookup(document, i).equal(lookup(document, j)).where(score, -Infinity) },
          { mask: masks.documents(starts.slice(1).map((end, s) => end - (starts[s] as number))) },
        );
      }));

    it('comes after the other terms', () =>
      scope(() => {
        const bias = random([length], 3) as Tensor<'float32', Shape>;
        const all = { softcap: 3, alibi: alibiSlopes(heads), causal: true } as const;
        expectSame({ ...all, scoreMod: (score, _b, _h, _i, j) => score.add(lookup(bias, j)) }, { ...all, bias });
        const negative = results({ ...all, scoreMod: (score) => score.mul(-1) });
        const [q, k] = [1, 2].map((seed) => random(shape, seed)) as [Own, Own];
        const { masked } = attentionWeights(q, k, all);
        const { masked: negated } = attentionWeights(q, k, { ...all, scoreMod: (score) => score.mul(-1) });
        const found = negated.dataSync();
        masked.dataSync().forEach((x, n) => {
          if (x === -Infinity) expect(found[n]).toBe(-Infinity);
          else expect(found[n]).toBeCloseTo(-x, 4);
        });
        expect(negative.out?.every(Number.isFinite)).toBe(true);
      }));

    it('goes through modules and checkpoints', () =>
      scope(() => {
        const scoreMod: ScoreMod = (score, _b, h, i, j) => score.sub(i.sub(j).abs().mul(h.add(1)).mul(0.1));
        const layer = new MultiHeadAttention({ width: 16, heads: 2, scoreMod, seed: 1, device } as never);
        const plain = new MultiHeadAttention({ width: 16, heads: 2, alibi: [0.1, 0.2], seed: 1, device } as never);
        const x = parameter(random([1, 20, 16], 1) as unknown as Tensor<'float32', Shape>);
        const y = parameter(random([1, 20, 16], 1) as unknown as Tensor<'float32', Shape>);
        const weight = random([1, 20, 16], 2) as unknown as Tensor;
        (
          sum(
            mul(
              checkpoint((t: Tensor) => layer.forward(t), x as Tensor),
              weight,
            ),
          ) as Tensor
        ).backward();
        (sum(mul(plain.forward(y as Tensor), weight)) as Tensor).backward();
        const [found, wanted] = [widen(x.grad as Tensor), widen(y.grad as Tensor)];
        expect(maxError(found, wanted)).toBeLessThan(GRADIENT_TOLERANCE * magnitude(wanted));
        for (const own of [layer, plain, x, y]) own.dispose();
      }));
  });

  describe.skipIf(!present)(title('what is hidden'), () => {
    const shape = [1, 6, 1, 4];

    it('a row that sees nothing is empty, and its gradients are 0', () =>
      scope(() => {
        const [q, k, v, dOut] = [1, 2, 3, 4].map((seed) => random(shape, seed)) as [Own, Own, Own, Own];
        const scoreMod: ScoreMod = (score, _b, _h, i) => i.equal(2).where(-Infinity, score);
        const saved = { q, k, v, ...attention(q, k, v, { scoreMod }) };
        const { dq } = attentionBackward(dOut, saved);
        expect([...saved.out.dataSync().slice(8, 12), ...dq.dataSync().slice(8, 12)]).toEqual(new Array(8).fill(0));
        expect(saved.lse.dataSync()[2]).toBe(-Infinity);
        expect(saved.lse.dataSync().filter(Number.isFinite)).toHaveLength(5);
        const none = attention(q, k, v, { scoreMod: () => -Infinity });
        expect([...none.out.dataSync()]).toEqual(new Array(24).fill(0));
        expect([...none.lse.dataSync()]).toEqual(new Array(6).fill(-Infinity));
        const gradients = attentionBackward(dOut, { q, k, v, ...none });
        for (const t of [gradients.dq, gradients.dk, gradients.dv])
          expect([...t.dataSync()]).toEqual(new Array(24).fill(0));
      }));

    it('NaN and Infinity of hidden keys and values reach nothing, and those of others do', () =>
      scope(() => {
        const hides: ScoreMod = (score, _b, _h, i, j) => i.less(3).equal(j.less(3)).where(score, -Infinity);
        const clean = [1, 2, 3, 4].map((seed) => random(shape, seed)) as [Own, Own, Own, Own];
        const [q, , , dOut] = clean;
        const poisonedAt = (t: Own) => {
          const values = t.dataSync().slice();
          values[4 * 4 + 1] = Number.NaN;
          values[5 * 4 + 2] = Number.POSITIVE_INFINITY;
          return make(values, shape);
        };
        const [k, v] = [poisonedAt(clean[1]), poisonedAt(clean[2])];
        const run = (k: Own, v: Own) => {
          const saved = { q, k, v, ...attention(q, k, v, { scoreMod: hides }) };
          const { dq, dk, dv } = attentionBackward(dOut, saved);
          return [saved.out, dq, dk, dv].map((t) => t.dataSync());
        };
        const [found, wanted] = [run(k, v), run(clean[1], clean[2])];
        for (const [n, values] of found.entries()) {
          const [own, other] = [[...values.slice(0, 12)], [...(wanted[n] as Float32Array).slice(0, 12)]];
          for (const [at, x] of own.entries()) expect(x, `${n}[${at}]`).toBeCloseTo(other[at] as number, 5);
        }
        expect(found[0]?.slice(12).some(Number.isNaN)).toBe(true);
      }));

    it('a score that is NaN makes its row NaN', () =>
      scope(() => {
        const [q, k, v] = [1, 2, 3].map((seed) => random(shape, seed)) as [Own, Own, Own];
        const scoreMod: ScoreMod = (score, _b, _h, i, j) => i.equal(1).mul(j.equal(4)).where(Number.NaN, score);
        const { out, lse } = attention(q, k, v, { scoreMod });
        expect([...lse.dataSync()].map(Number.isNaN)).toEqual([false, true, false, false, false, false]);
        expect(out.dataSync().slice(4, 8).every(Number.isNaN)).toBe(true);
        expect(out.dataSync().slice(8).every(Number.isFinite)).toBe(true);
        // What a mask hides may be anything.
        const beyond = attention(q, k, v, { causal: true, scoreMod });
        expect(beyond.out.dataSync().every(Number.isFinite)).toBe(true);
      }));

    it('slopes of hidden pairs are not looked at', () =>
      scope(() => {
        const [q, k, v, dOut] = [1, 2, 3, 4].map((seed) => random(shape, seed)) as [Own, Own, Own, Own];
        // Beyond the diagonal 0 / 0.
        const scoreMod: ScoreMod = (score, _b, _h, i, j) => {
          const none = i.sub(j).maximum(-1).add(1).minimum(1);
          return score.mul(none).div(none);
        };
        const saved = { q, k, v, ...attention(q, k, v, { causal: true, scoreMod }) };
        const plain = { q, k, v, ...attention(q, k, v, { causal: true }) };
        const [found, wanted] = [attentionBackward(dOut, saved), attentionBackward(dOut, plain)];
        for (const name of ['dq', 'dk', 'dv'] as const) {
          const [a, b] = [widen(found[name]), widen(wanted[name])];
          expect(maxError(a, b), name).toBeLessThan(1e-5);
        }
      }));
  });

  describe.skipIf(!present)(title('lookups'), () => {
    const shape = [1, 5, 2, 4];
    const inputs = () => [1, 2, 3].map((seed) => random(shape, seed)) as [Own, Own, Own];
    /** What a function of positions makes of scores of 0. */
    function scoresOf(scoreMod: ScoreMod): number[] {
      return scope(() => {
        const q = zeros(shape as unknown as Shape4, on) as Own;
        return [...attentionWeights(q, q, { scoreMod }).logits.dataSync()];
      });
    }

    it('read the element that the indices name, or the nearest', () =>
      scope(() => {
        const [flat, table] = [ints([10, -20, 30]), random([2, 3, 2], 4) as unknown as Tensor<'float32', Shape>];
        const values = table.dataSync();
        const at = (n: number, count: number) => Math.min(Math.max(Math.floor(n), 0), count - 1);
        const all = (f: (h: number, i: number, j: number) => number) =>
          [0, 1].flatMap((h) => [0, 1, 2, 3, 4].flatMap((i) => [0, 1, 2, 3, 4].map((j) => Math.fround(f(h, i, j)))));
        expect(scoresOf((_s, _b, _h, i, j) => lookup(flat, i.sub(j))).map(Math.round)).toEqual(
          all((_h, i, j) => [10, -20, 30][at(i - j, 3)] as number),
        );
        expect(scoresOf((_s, _b, _h, i) => lookup(flat, i.mul(0.6))).map(Math.round)).toEqual(
          all((_h, i) => [10, -20, 30][at(i * 0.6, 3)] as number),
        );
        const found = scoresOf((_s, _b, h, i, j) => lookup(table, h, i.sub(1), j.mul(0.5)));
        const wanted = all((h, i, j) => values[(h * 3 + at(i - 1, 3)) * 2 + at(j / 2, 2)] as number);
        for (const [n, x] of wanted.entries()) expect(found[n]).toBeCloseTo(x, 5);
        expect(scoresOf(() => lookup(flat, 2)).map(Math.round)).toEqual(all(() => 30));
        const constant = scoresOf(() => lookup(table, 1, 9, -3));
        expect(constant[0]).toBeCloseTo(values[10] as number, 5);
      }));

    it('of several tensors, of views, and of what other lookups gave', () =>
      scope(() => {
        const order = ints([4, 2, 0, 1, 3]);
        const base = random([4, 5], 7) as unknown as Tensor<'float32', Shape>;
        const row = base.select(0, 2) as Tensor<'float32', Shape>;
        const heads = make([0.5, -0.5], [2]) as unknown as Tensor<'float32', Shape>;
        const found = scoresOf((_s, _b, h, i, j) =>
          lookup(row, lookup(order, i)).add(lookup(heads, h)).add(lookup(order, j)),
        );
        const [r, o] = [row.dataSync(), [4, 2, 0, 1, 3]];
        let n = 0;
        for (let h = 0; h < 2; h++)
          for (let i = 0; i < 5; i++)
            for (let j = 0; j < 5; j++)
              expect(found[n++]).toBeCloseTo((r[o[i] as number] as number) + (h ? -0.5 : 0.5) + (o[j] as number), 4);
      }));

    it('see what is written later, and outlive what they read until backward', () =>
      scope(() => {
        const [q, k, v] = inputs();
        const bias = make([0, 1, 2, 3, 4], [5]) as unknown as Tensor<'float32', Shape>;
        const scoreMod: ScoreMod = (score, _b, _h, _i, j) => score.add(lookup(bias, j));
        const first = bits(attention(q, k, v, { scoreMod }).out as Tensor);
        bias.write([4, 3, 2, 1, 0]);
        const second = attention(q, k, v, { scoreMod });
        expect(bits(second.out as Tensor)).not.toBe(first);
        const { dq } = attentionBackward(
          v as never,
          { q: q as never, k: q as never, v, ...attention(q, q, v, { scoreMod }) } as never,
        );

        const own = parameter(q);
        const { out } = attention(own, q, v, { scoreMod });
        bias.dispose();
        (out as Tensor).backward(v as Tensor);
        expect(bits(own.grad as Tensor)).toBe(bits(dq as Tensor));
        own.dispose();
        expect(errorOf(() => attention(q, k, v, { scoreMod }))).toContain('ERR_DISPOSED');
      }));

    it('refuse what they cannot read', () =>
      scope(() => {
        const [q, k, v] = inputs();
        const tables = [1, 2, 3, 4, 5].map((seed) => random([5], seed) as unknown as Tensor<'float32', Shape>);
        const [table] = tables as [Tensor<'float32', Shape>];
        const half = tensor([1, 2], [2], { ...on, dtype: 'float16' });
        const turned = (random([2, 3], 1) as unknown as Tensor<'float32', Shape>).transpose(0, 1);
        const empty = zeros([0], on);
        const before = memory(device).bytesInUse;
        const message = (f: (score: Expression, j: Expression) => unknown) =>
          errorOf(() => attention(q, k, v, { scoreMod: ((s, _b, _h, _i, j) => f(s, j)) as ScoreMod }));
        expect(errorOf(() => lookup(table, 0))).toBe(
          'ERR_OPTION: lookup is called outside of a scoreMod: it is for the function given to attention',
        );
        expect(message((_s, j) => lookup(half as never, j))).toContain('ERR_DTYPE: the tensor of lookup is float16');
        expect(message((_s, j) => lookup([1, 2] as never, j))).toContain('ERR_OPTION: the tensor of lookup is');
        expect(message((_s, j) => lookup(turned as never, j, j))).toContain('must be contiguous');
        expect(message((_s, j) => lookup(table, j, j))).toContain('lookup has 2 indices for a tensor of shape [5]');
        expect(message(() => lookup(table, 'j' as never))).toContain('index 0 of lookup is');
        expect(message((_s, j) => lookup(empty as never, j))).toContain('has shape [0]');
        expect(message((s, j) => tables.reduce((x, t) => x.add(lookup(t, j)), s))).toContain('more than 4 tensors');
        expect(memory(device).bytesInUse).toBe(before);
      }));

    it('have no gradient, and say so', () =>
      scope(() => {
        const [q, k, v] = inputs();
        const bias = parameter(make([0, 1, 2, 3, 4], [5]) as unknown as Tensor<'float32', Shape>);
        const scoreMod: ScoreMod = (score, _b, _h, _i, j) => score.add(lookup(bias as Tensor<'float32'>, j));
        const found = errorOf(() => attention(q, k, v, { scoreMod }));
        expect(found).toContain('ERR_AUTOGRAD: tensor 0 that scoreMod looks up needs a gradient');
        expect(found).toContain('give it as the option bias');
        expect(noGrad(() => attention(q, k, v, { scoreMod })).out.shape).toEqual(shape);
        bias.dispose();
      }));

    it('are of one device', () =>
      scope(() => {
        const [q, k, v] = inputs();
        const other = device === 'wasm' ? undefined : tensor([1, 2], [2], { device: 'wasm' });
        if (!other) return;
        const scoreMod: ScoreMod = (score, _b, _h, _i, j) => score.add(lookup(other as Tensor<'float32'>, j));
        expect(errorOf(() => attention(q, k, v, { scoreMod }))).toContain(
          'ERR_DEVICE: tensor 0 that scoreMod looks up',
        );
      }));
  });

  describe.skipIf(!present)(title('plans'), () => {
    it('run, repeat and record functions with what they look up', () =>
      scope(() => {
        const shape = [1, 20, 2, 8] as const;
        const [q, k, v, dOut] = [1, 2, 3, 4].map((seed) => random(shape, seed)) as [Own, Own, Own, Own];
        const slopes = make([0.5, 0.25], [2]) as unknown as Tensor<'float32', Shape>;
        const scoreMod: ScoreMod = (score, _b, h, i, j) => score.sub(i.sub(j).abs().mul(lookup(slopes, h))).tanh();
        const result = attention(q, k, v, { scoreMod });
        const { dq } = attentionBackward(dOut, {
          q,
          k,
          v,
          ...result,
          options: { ...result.options, deterministic: true },
        } as never);
        using planned = plan({ q: shape, device, scoreMod, backward: true, deterministic: true } as never);
        expect(bits(planned.run(q, k, v).out as Tensor)).toBe(bits(result.out as Tensor));
        expect(bits(planned.runBackward(dOut).dq as Tensor)).toBe(bits(dq as Tensor));
        using captured = planned.capture(q, k, v, dOut);
        slopes.write([0.125, 1]);
        const replayed = captured.replay();
        const again = attention(q, k, v, { scoreMod });
        expect(bits(replayed.out as Tensor)).toBe(bits(again.out as Tensor));
        expect(bits(again.out as Tensor)).not.toBe(bits(result.out as Tensor));
        slopes.dispose();
        expect(errorOf(() => captured.replay())).toContain('ERR_DISPOSED: tensor 0 that scoreMod looks up');
      }));
  });

  describe.skipIf(!present)(title('float16'), () => {
    it('holds gradients of steep functions', () =>
      scope(() => {
        const shape = [1, 40, 1, 16] as const;
        const half = (seed: number, factor = 1) =>
          tensor(
            normal(640, seed).map((x) => x * factor),
            [...shape],
            { ...on, dtype: 'float16' },
          ) as Tensor<'float16', Shape4>;
        const [q, k, v, dOut] = [half(1, 0.01), half(2), half(3, 8), half(4, 8)];
        const steep = { q, k, v, ...attention(q, k, v, { scoreMod: (score) => score.mul(200) }) };
        const scaled = { q, k, v, ...attention(q, k, v, { scale: 200 / 4 }) };
        const [found, wanted] = [attentionBackward(dOut, steep), attentionBackward(dOut, scaled)];
        for (const name of ['dq', 'dk', 'dv'] as const) {
          const [a, b] = [widen(found[name] as Tensor), widen(wanted[name] as Tensor)];
          expect(maxError(a, b) / magnitude(b), name).toBeLessThan(5e-3);
        }
      }));
  });
});
