/** Gradients of attention through the tape: those of `attentionBackward`, bit for bit. */
import { describe, expect, it } from 'vitest';
import {
  type AttentionOptions,
  add,
  attention,
  attentionBackward,
  attentionWeights,
  exp,
  memory,
  mergeStates,
  mergeStatesBackward,
  mul,
  noGrad,
  parameter,
  plan,
  type Shape,
  scope,
  sum,
  type Tensor,
  tensor,
} from '../../lib/index.js';
import { type Case, instantiate } from '../../verify/cases/case.js';
import { lseShape, optionsOf, shapeOf } from '../../verify/cases/library.js';
import { normal } from '../../verify/oracle/random.js';
import { codeOf } from '../support/codeOf.js';
import { devicesWith } from '../support/devices.js';
import { CASES } from '../support/references.js';

type Own = Tensor<'float32', Shape>;
const bits = (t: Tensor | undefined) => t && [...new Uint32Array(t.toFloat32Sync().buffer)];

describe.each(devicesWith('elementwise', 'reduce'))('$device', ({ device, present, title, runs }) => {
  const make = (values: ArrayLike<number>, shape: readonly number[]): Tensor<'float32', Shape> =>
    tensor(Float32Array.from(values), [...shape], { device });

  const everyCase = Object.entries(CASES) as [string, Case][];
  const cases = everyCase.filter((_, i) => i % Math.ceil(everyCase.length / runs(everyCase.length)) === 0);

  describe.skipIf(!present)(title('attention through the tape'), () => {
    it.each(cases)('%s: has the bits of attentionBackward, and leaves nothing behind', (_, c) => {
      const { problem: p, dOut, dLse } = instantiate(c);
      const before = memory(device);
      scope(() => {
        const all = optionsOf(p, 'float32', (t) => t, device) as AttentionOptions;
        const plain = { ...all, deterministic: true } as AttentionOptions;
        const [q, k, v] = [
          make(p.query, shapeOf(p, 'query')),
          make(p.key, shapeOf(p, 'key')),
          make(p.value, shapeOf(p, 'value')),
        ] as [Own, Own, Own];
        const gradient = make(dOut, shapeOf(p, 'out'));
        const ofLse = dLse && make(dLse, lseShape(p));
        const saved = { q, k, v, ...attention(q, k, v, plain) };
        const wanted = attentionBackward(gradient, saved, ofLse && { dLse: ofLse as Tensor<'float32'> });

        const parameters = { q, k, v, bias: plain.bias, table: plain.relativeBias?.table, sink: plain.sink };
        const own = Object.fromEntries(
          Object.entries(parameters).map(([name, t]) => [name, t && parameter(t as Own)]),
        ) as unknown as Record<keyof typeof parameters, Own>;
        try {
          const result = attention(own.q, own.k, own.v, {
            ...plain,
            ...(own.bias && { bias: own.bias }),
            ...(own.sink && { sink: own.sink }),
            ...(own.table && { relativeBias: { ...plain.relativeBias, table: own.table } }),
          } as AttentionOptions);
          const weighed = sum(mul(result.out as Tensor, gradient));
          const loss = ofLse ? add(weighed, sum(mul(result.lse, ofLse))) : weighed;
          // What the options held and what came out may go.
          result.out.dispose();
          result.lse.dispose();
          (loss as Tensor).backward();
          const names = { q: 'dq', k: 'dk', v: 'dv', bias: 'dBias', table: 'dRelativeBias', sink: 'dSink' } as const;
          for (const [name, key] of Object.entries(names)) {
            const { grad } = own[name as 'q'] ?? {};
            expect(bits(grad), name).toEqual(bits(wanted[key] as Tensor | undefined));
          }
        } finally {
          for (const t of Object.values(own)) t?.dispose();
        }
      });
      expect(memory(device).tensors).toBe(before.tensors);
    });

    it('finds the gradients of one input alone, and of lse alone', () =>
      scope(() => {
        const shape = [1, 5, 2, 4];
        const [q, k, v] = [1, 2, 3].map((seed) => make(normal(40, seed), shape)) as [Own, Own, Own];
        const onlyK = parameter(k);
        const { lse } = attention(q, onlyK, v, { causal: true });
        (sum(lse) as Tensor).backward();
        const saved = { q, k, v, ...attention(q, k, v, { causal: true }) };
        const zero = make(new Float32Array(40), shape);
        const ones = make(new Float32Array(10).fill(1), [1, 2, 5]);
        const { dk } = attentionBackward(zero, saved, { dLse: ones as Tensor<'float32'> });
        expect(bits(onlyK.grad)).toEqual(bits(dk));
        onlyK.dispose();
      }));

    it('takes gradients that are views, in whatever order they lie', () =>
      scope(() => {
        const shape = [2, 3, 2, 4];
        const [a, k, v] = [1, 2, 3].map((seed) => make(normal(48, seed), shape)) as [Own, Own, Own];
        const gradient = make(normal(48, 4), [4, 2, 3, 2]);
        const q = parameter(a);
        const out = attention(q, k, v).out as Tensor;
        out.permute([3, 2, 1, 0]).backward(gradient);
        const saved = { q: a, k, v, ...attention(a, k, v) };
        const { dq } = attentionBackward(gradient.permute([3, 2, 1, 0]).contiguous() as Tensor, saved as never);
        expect(bits(q.grad)).toEqual(bits(dq as Tensor));
        q.dispose();
      }));

    it('merges states with the gradients of mergeStatesBackward', () =>
      scope(() => {
        const shape = [1, 3, 2, 4];
        const states = [1, 2].map((seed) => ({
          out: make(normal(24, seed), shape),
          lse: make(normal(6, seed + 5), [1, 2, 3]) as Tensor<'float32'>,
        }));
        const own = states.map(({ out, lse }) => ({ out: parameter(out), lse: parameter(lse) }));
        const merged = mergeStates(own);
        const dOut = make(normal(24, 9), shape);
        const dLse = make(normal(6, 10), [1, 2, 3]) as Tensor<'float32'>;
        (add(sum(mul(merged.out, dOut)), sum(mul(merged.lse, dLse))) as Tensor).backward();
        const wanted = mergeStatesBackward(dOut, { states, ...mergeStates(states) }, { dLse });
        for (const [i, each] of own.entries()) {
          expect(bits(each.out.grad)).toEqual(bits(wanted[i]?.dOut));
          expect(bits(each.lse.grad)).toEqual(bits(wanted[i]?.dLse as Tensor));
          each.out.dispose();
          each.lse.dispose();
        }
      }));

    it('refuses what it cannot differentiate, before it computes anything', () =>
      scope(() => {
        const shape = [1, 3, 2, 4];
        const q = parameter(make(normal(24, 1), shape));
        const alibi = parameter(make([0.5, 0.25], [2]));
        const before = memory(device).tensors;
        expect(() => attention(q, q, q, { alibi } as never)).toThrow('alibi needs a gradient, and has none');
        expect(memory(device).tensors).toBe(before);
        const planned = plan({ q: shape, device } as never);
        expect(codeOf(() => planned.run(q, q, q))).toBe('ERR_AUTOGRAD');
        const { out } = noGrad(() => planned.run(q, q, q));
        // A plan overwrites its results: who kept them is told.
        const p = parameter(make(normal(24, 2), shape));
        const loss = sum(mul(p, out as Tensor));
        noGrad(() => planned.run(q, q, q));
        expect(() => loss.backward()).toThrow('mul needs tensor 0');
        planned.dispose();
        const made = memory(device).tensors;
        const weights = attentionWeights(q, q);
        expect(weights.logits.requiresGrad).toBe(false);
        for (const t of Object.values(weights)) t.dispose();
        expect(memory(device).tensors).toBe(made);
        for (const t of [q, alibi, p]) t.dispose();
      }));

    it('names attention where its inputs have been written', () =>
      scope(() => {
        const shape = [1, 3, 2, 4];
        const x = make(normal(24, 1), shape);
        const q = parameter(make(normal(24, 2), shape));
        const { out } = attention(q, x, x);
        x.write(Float32Array.from(normal(24, 3)));
        expect(() => sum(exp(out as Tensor)).backward()).toThrow('attention needs tensor 1');
        q.dispose();
      }));
  });
});
