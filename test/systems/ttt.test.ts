/** TTT-Linear and TTT-MLP: against a token-by-token definition, both forms, and states left anywhere. */
import { concat, type DeviceName, memory, noGrad, type Tensor, tensor, zeros } from 'flashattn';
import {
  TTTLinear,
  type TTTLinearWeights,
  TTTMlp,
  type TTTMlpWeights,
  type TTTState,
  tttLinear,
  tttMlp,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import { normal } from '../../verify/oracle/random.js';
import { type Heads, ttt } from '../../verify/oracle/segments.js';
import { codeOf, errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, expectSame, type Inputs, input, type Named, run } from './taped.js';

type Shape4 = readonly [number, number, number, number];
type Tokens = Tensor<'float32', Shape4>;

interface Case extends Omit<Heads, 'valueDim'> {
  readonly size: number;
  /** Of TTT-MLP. */
  readonly hidden?: number;
}

function inputsOf({ batch, seq, heads, dim, size, hidden }: Case): Inputs {
  const tokens = [batch, seq, heads, dim];
  const wide = hidden ?? dim;
  return {
    q: input(tokens, 1),
    k: input(tokens, 2),
    v: input(tokens, 3),
    lr: input([batch, seq, heads], 4, 0.02, 0.1),
    tokenCoef: input([size], 5, 0.1, 0.4),
    gain: input([heads, dim], 6, 0.2, 1),
    bias: input([heads, dim], 7, 0.2),
    W1: input([heads, dim, wide], 8, 0.3),
    b1: input([heads, 1, wide], 9, 0.2),
    ...(hidden && { W2: input([heads, hidden, dim], 10, 0.3), b2: input([heads, 1, dim], 11, 0.2) }),
  };
}

const optionsOf = (t: Named<Tensor>, form: 'dual' | 'primal', from?: number, to?: number) => ({
  lr: (from === undefined ? t.lr : t.lr?.slice(1, from, to ?? 0)) as Tensor,
  tokenCoef: t.tokenCoef as Tensor,
  norm: { gain: t.gain as Tensor, bias: t.bias as Tensor },
  form,
});

interface Result {
  readonly out: Tensor;
  readonly weights: Named<Tensor>;
  readonly state: TTTState<Named<Tensor>>;
}

/** Some of the tokens, from a state or from the start. */
function step(t: Named<Tensor>, form: 'dual' | 'primal', range?: [number, number], state?: Result['state']): Result {
  const part = (x: Tensor | undefined) => (range ? x?.slice(1, ...range) : x) as Tensor<'float32'> as Tokens;
  const [q, k, v] = [part(t.q), part(t.k), part(t.v)];
  const options = optionsOf(t, form, ...(range ?? []));
  const { W1, b1, W2, b2 } = t as Record<string, Tensor>;
  if (W2 && b2) {
    const start = { W1, b1, W2, b2 } as TTTMlpWeights;
    return tttMlp(q, k, v, (state as TTTState<TTTMlpWeights> | undefined) ?? start, options) as unknown as Result;
  }
  const start = { W: W1, b: b1 } as TTTLinearWeights;
  return tttLinear(q, k, v, (state as TTTState<TTTLinearWeights> | undefined) ?? start, options) as unknown as Result;
}

const cases: readonly Case[] = [
  { batch: 2, seq: 11, heads: 2, dim: 4, size: 4 },
  { batch: 1, seq: 3, heads: 1, dim: 5, size: 8 },
  { batch: 2, seq: 7, heads: 2, dim: 4, size: 1 },
  { batch: 1, seq: 10, heads: 2, dim: 4, size: 3, hidden: 6 },
];

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('test-time training'), () => {
    describe.each(['dual', 'primal'] as const)('%s', (form) => {
      it.each(cases)('$batch x $seq tokens, $heads heads of $dim, mini-batches of $size, hidden $hidden', (c) => {
        const definition = (values: Named<Float64Array>) =>
          ttt({ ...c, valueDim: c.dim }, values as unknown as Parameters<typeof ttt>[1]);
        checkSystem(device, inputsOf(c), (t) => step(t, form).out, definition);
      });
    });

    it.each(cases)('both forms agree, weights after the last token too: $seq tokens by $size', (c) => {
      const inputs = inputsOf(c);
      const both = (['dual', 'primal'] as const).map((form) =>
        run(
          device,
          inputs,
          (t) => {
            const { out, weights } = step(t, form);
            return { out, ...weights };
          },
          {
            out: normal(c.batch * c.seq * c.heads * c.dim, 30),
            [c.hidden ? 'W1' : 'W']: normal(c.batch * c.heads * c.dim * (c.hidden ?? c.dim), 31),
          },
        ),
      );
      expectSame(both[0] as (typeof both)[0], both[1] as (typeof both)[0]);
    });

    it.each([
      [cases[0] as Case, [4]],
      [cases[0] as Case, [2, 3, 9]],
      [cases[0] as Case, [0, 11]],
      [cases[1] as Case, [1, 2]],
      [cases[3] as Case, [1, 5, 6]],
    ])('%j left at %j goes on as if in one call', (c, cuts) => {
      const inputs = inputsOf(c);
      const size = c.batch * c.seq * c.heads * c.dim;
      const cotangents = { out: normal(size, 40) };
      const whole = run(device, inputs, (t) => ({ out: step(t, 'dual').out }), cotangents);
      const inParts = run(
        device,
        inputs,
        (t) => {
          const results: Result[] = [];
          for (const [i, from] of [0, ...cuts].entries())
            results.push(step(t, i % 2 === 0 ? 'dual' : 'primal', [from, cuts[i] ?? c.seq], results.at(-1)?.state));
          return {
            out: concat(
              results.map((r) => r.out),
              1,
            ),
          };
        },
        cotangents,
      );
      expectSame(whole, inParts);
    });

    it('computes 16-bit inputs in float32, with a float32 state', () => {
      const c = cases[0] as Case;
      const half = (x: Float64Array, shape: readonly number[]) =>
        tensor(Float32Array.from(x), shape, { device, dtype: 'bfloat16' });
      noGrad(() => {
        const before = memory(device).tensors;
        const inputs = inputsOf(c);
        const t = Object.fromEntries(
          Object.entries(inputs).map(([name, { shape, data }]) => [name, half(data, shape) as Tensor]),
        );
        const { out, weights, state } = step(t, 'dual');
        expect(out.dtype).toBe('bfloat16');
        expect(Object.values(weights).map((w) => w.dtype)).toEqual(['float32', 'float32']);
        const rounded = Object.fromEntries(
          Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
        );
        const exact = ttt({ ...c, valueDim: c.dim }, rounded as unknown as Parameters<typeof ttt>[1]);
        expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(2 ** -6);
        dispose({ weights, state });
        for (const each of [out, ...Object.values(t)]) each.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty sequences and batches', () => {
      for (const c of [
        { ...(cases[0] as Case), seq: 0 },
        { ...(cases[0] as Case), batch: 0 },
      ]) {
        const { outputs } = run(
          device,
          inputsOf(c),
          (t) => {
            const { out, weights } = step(t, 'dual');
            return { out, ...weights };
          },
          undefined,
        );
        expect(outputs.out).toHaveLength(0);
        expect(outputs.W).toHaveLength(c.batch * c.heads * c.dim * c.dim);
      }
    });

    it.each([TTTLinear, TTTMlp])('%o: a sequence in one call and in several', (Layer) => {
      const layer = new Layer({ width: 8, heads: 2, miniBatch: 4, device, seed: 3 });
      const x = tensor(Float32Array.from(normal(2 * 11 * 8, 50)), [2, 11, 8], { device }) as Tensor;
      noGrad(() => {
        const before = memory(device).tensors;
        const whole = layer.forward(x);
        const parts: Tensor[] = [];
        let state: TTTState<never> | undefined;
        for (const [from, to] of [
          [0, 3],
          [3, 4],
          [4, 11],
        ] as const) {
          const piece = x.slice(1, from, to).contiguous();
          const { out, state: after } = layer.next(piece, state as never);
          if (state) dispose({ state });
          state = after as unknown as TTTState<never>;
          parts.push(out);
          piece.dispose();
        }
        if (state) dispose({ state });
        const joined = concat(parts, 1);
        expect(maxError(joined.toFloat32Sync(), whole.toFloat32Sync())).toBeLessThan(2e-5);
        for (const t of [whole, joined, ...parts]) t.dispose();
        // Tables of angles and factors stay with the layer.
        expect(memory(device).tensors - before).toBeLessThanOrEqual(3 + 3);
      });
      x.dispose();
      layer.dispose();
    });
  });
});

/** Everything but the output; what is the same tensor at two places may be disposed twice. */
function dispose({
  weights,
  state,
}: {
  weights?: object;
  state: { readonly weights: object; readonly sums?: object };
}) {
  for (const each of [weights ?? {}, state.weights, state.sums ?? {}])
    for (const t of Object.values(each)) (t as Tensor).dispose();
}

describe('bad arguments of test-time training', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor as Tensor<'float32'> as never;
  const good = () => ({
    q: of(2, 5, 2, 4),
    start: { W: of(2, 4, 4), b: of(2, 1, 4) },
    options: { lr: of(2, 5, 2), tokenCoef: of(3), norm: { gain: of(2, 4), bias: of(2, 4) } },
  });
  type Good = ReturnType<typeof good>;
  const call = (change: (g: Good) => { [name in 'q' | 'k' | 'v' | 'start' | 'options']?: unknown }) => {
    const g = good();
    const c = change(g);
    const [q, k, v] = [c.q ?? g.q, c.k ?? g.q, c.v ?? g.q];
    return () =>
      tttLinear(q as never, k as never, v as never, (c.start ?? g.start) as never, (c.options ?? g.options) as never);
  };

  it.each<[string, Parameters<typeof call>[0], RegExp]>([
    ['rank of q', () => ({ q: of(2, 5, 8) }), /^ERR_SHAPE: q has shape \[2, 5, 8\]/],
    ['tokens of k', () => ({ k: of(2, 6, 2, 4) }), /^ERR_SHAPE: .*tokens|^ERR_SHAPE: .*seq/],
    ['dim of v', () => ({ v: of(2, 5, 2, 3) }), /^ERR_SHAPE: .*same head dim/],
    ['shape of lr', ({ options }) => ({ options: { ...options, lr: of(2, 2, 5) } }), /^ERR_SHAPE: lr has shape/],
    ['no mini-batch', ({ options }) => ({ options: { ...options, tokenCoef: of(0) } }), /^ERR_SHAPE: tokenCoef/],
    ['gain', ({ options }) => ({ options: { ...options, norm: { gain: of(4), bias: of(2, 4) } } }), /norm\.gain/],
    ['W', ({ start }) => ({ start: { ...(start as object), W: of(2, 4, 5) } }), /^ERR_SHAPE: start\.W has shape/],
    ['b', ({ start }) => ({ start: { ...(start as object), b: of(2, 4) } }), /^ERR_SHAPE: start\.b has shape/],
    ['weights of the other kind', () => ({ start: { W1: of(2, 4, 4), b1: of(2, 1, 4) } }), /^ERR_OPTION: .*"W1"/],
    ['form', ({ options }) => ({ options: { ...options, form: 'quick' } }), /^ERR_OPTION: form is "quick"/],
    ['an unknown option', ({ options }) => ({ options: { ...options, lrs: 1 } }), /^ERR_OPTION: .*did you mean "lr"/],
    ['no options', () => ({ options: 3 }), /^ERR_OPTION: options is 3/],
    [
      'a place in the mini-batch',
      () => ({ start: { weights: { W: of(2, 2, 4, 4), b: of(2, 2, 1, 4) }, position: 3 } }),
      /^ERR_OPTION: start\.position is 3; it must be an integer from 0 to 2/,
    ],
    [
      'a state of another batch',
      () => ({ start: { weights: { W: of(1, 2, 4, 4), b: of(1, 2, 1, 4) }, position: 0 } }),
      /^ERR_SHAPE: start\.weights\.W has shape/,
    ],
    [
      'a state without its sums',
      () => ({ start: { weights: { W: of(2, 2, 4, 4), b: of(2, 2, 1, 4) }, position: 1 } }),
      /^ERR_OPTION: start\.sums is undefined/,
    ],
  ])('%s', (_, change, message) => {
    const before = memory(device).tensors;
    const attempt = call(change);
    const made = memory(device).tensors;
    expect(errorOf(attempt)).toMatch(message);
    expect(memory(device).tensors).toBe(made);
    expect(made).toBeGreaterThan(before);
  });

  it('refuses layers that no head fits', () => {
    expect(codeOf(() => new TTTLinear({ width: 9, heads: 2 }))).toBe('ERR_OPTION');
    expect(codeOf(() => new TTTLinear({ width: 6, heads: 2 }))).toBe('ERR_OPTION');
    expect(codeOf(() => new TTTLinear({ width: 8, heads: 2, miniBatch: 0 }))).toBe('ERR_OPTION');
    expect(codeOf(() => new TTTMlp({ width: 8, heads: 2, batch: 4 } as never))).toBe('ERR_OPTION');
    const layer = new TTTLinear({ width: 8, heads: 2, device });
    expect(codeOf(() => layer.forward(of(2, 4, 6)))).toBe('ERR_SHAPE');
    layer.dispose();
  });
});
