/** Backward knows its forward: what a result carries, what may be given besides, and what contradicts it. */
import {
  type AttentionOptions,
  attention,
  attentionBackward,
  FlashAttnError,
  masks,
  plan,
  type Tensor,
} from 'flashattn';
import { describe, expect, it } from 'vitest';
import { type Case, instantiate } from '../../verify/cases/case.js';
import { failuresIn } from '../../verify/cases/check.js';
import { optionsOf, shapeOf, widen } from '../../verify/cases/library.js';
import { make } from '../../verify/cases/views.js';
import { testDevice } from '../support/device.js';
import { CASES } from '../support/references.js';

function tensorsOf(c: Case) {
  const instance = instantiate(c);
  const { problem: p, dOut } = instance;
  const of = (values: Float64Array, side: 'query' | 'key' | 'value' | 'out') =>
    make(values, shapeOf(p, side), 'float32');
  const options = optionsOf(p, 'float32', (t) => t);
  const [q, k, v] = [of(p.query, 'query'), of(p.key, 'key'), of(p.value, 'value')];
  return { instance, q, k, v, dOut: of(dOut, 'out'), options };
}

const errorOf = (run: () => unknown): FlashAttnError => {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(FlashAttnError);
    return error as FlashAttnError;
  }
  throw new Error('nothing was thrown');
};

const named = ({ dq, dk, dv, dBias, dRelativeBias, dSink }: ReturnType<typeof attentionBackward>) =>
  Object.fromEntries(
    Object.entries({ dQuery: dq, dKey: dk, dValue: dv, dBias, dRelativeBias, dSink }).flatMap(([name, t]) =>
      t ? [[name, widen(t)]] : [],
    ),
  );

describe('the options of a result', () => {
  it.each(['causal', 'dense, with everything', 'packed, causal, with everything', 'causal after other keys'] as const)(
    '%s: are all that backward needs',
    (name) => {
      const { instance, q, k, v, dOut, options } = tensorsOf({ ...CASES[name], dLse: false });
      const result = attention(q, k, v, options as object);
      const gradients = named(attentionBackward(dOut, { q, k, v, ...result }));
      const actual = { out: widen(result.out), lse: widen(result.lse), ...gradients };
      expect(failuresIn(instance, 'float32', actual)).toEqual([]);
    },
  );

  it('are a frozen copy: later writes to the options or their arrays change nothing', () => {
    const { q, k, v, dOut } = tensorsOf(CASES.plain);
    const kLens = Int32Array.from([3, 5]);
    const options: AttentionOptions = { causal: true, kLens };
    const result = attention(q, k, v, options as object);
    const expected = widen(attentionBackward(dOut, { q, k, v, ...result }).dq);
    options.causal = false;
    kLens.fill(1);
    expect(Object.isFrozen(result.options)).toBe(true);
    expect(result.options.causal).toBe(true);
    expect(widen(attentionBackward(dOut, { q, k, v, ...result }).dq)).toEqual(expected);
  });

  it('are read anew for tensors of other shapes', () => {
    const { q, k, v, dOut } = tensorsOf({ ...CASES.plain, queryLength: 4, keyLength: 4 });
    const { options } = attention(q, k, v, { causal: true });
    const half = (t: Tensor) => t.slice(1, 0, 2) as typeof t;
    const [a, b, c] = [half(q), half(k), half(v)];
    const { out, lse } = attention(a, b, c, { causal: true });
    const expected = attentionBackward(half(dOut), { q: a, k: b, v: c, out, lse }, { causal: true });
    const found = attentionBackward(half(dOut), { q: a, k: b, v: c, out, lse, options });
    expect(widen(found.dk)).toEqual(widen(expected.dk));
  });

  it('come from plans too', () => {
    const { q, k, v, dOut } = tensorsOf(CASES.plain);
    using planned = plan({ q: q.shape, k: k.shape, v: v.shape, causal: true, backward: true, device: testDevice });
    const result = planned.run(q as never, k as never, v as never);
    const direct = widen(attentionBackward(dOut as never, { q, k, v, ...result } as never).dq);
    expect(direct).toEqual(widen(planned.runBackward(dOut as never).dq));
  });
});

describe('options given to backward', () => {
  const { q, k, v, dOut } = tensorsOf(CASES.plain);
  const mask = masks.slidingWindow(2, 0);
  const forward = { causal: true, window: [2, 0] as const, dropout: { p: 0.5, seed: 3 }, mask, scale: 0.5 };
  const saved = { q, k, v, ...attention(q, k, v, forward) };

  it.each([
    ['nothing', {}],
    ['the same', forward],
    ['some of them, in other objects', { window: [2, 0] as const, dropout: { p: 0.5, seed: 3n } }],
    ['undefined ones', { scale: undefined as never, mask: undefined as never }],
    ['what is the default', { softcap: 0, align: 'bottomRight' as const, layout: 'bshd' as const }],
  ])('may be %s', (_, options) => {
    expect(widen(attentionBackward(dOut, saved, options).dv)).toEqual(widen(attentionBackward(dOut, saved).dv));
  });

  it.each([
    ['causal', { causal: false }],
    ['window', { window: [2, 1] as const }],
    ['mask', { mask: masks.slidingWindow(2, 0) }],
    ['scale', { scale: 1 }],
    ['softcap', { softcap: 3 }],
    ['dropout', { dropout: { p: 0.5, seed: 4 } }],
    ['kLens', { kLens: [1, 1] }],
  ])('must not contradict the forward pass: %s', (name, options) => {
    const { code, message } = errorOf(() => attentionBackward(dOut, saved, options));
    expect({ code, message }).toMatchObject({ code: 'ERR_OPTION', message: expect.stringMatching(`^${name} is `) });
  });

  it('knows the default scale', () => {
    const plain = { q, k, v, ...attention(q, k, v) };
    expect(() => attentionBackward(dOut, plain, { scale: 1 / Math.sqrt(q.shape.at(-1) ?? 1) })).not.toThrow();
    expect(errorOf(() => attentionBackward(dOut, plain, { scale: 0.1 })).message).toMatch(/^scale is 0.1 and was/);
  });

  it('may ask for determinism on its own', () => {
    expect(() => attentionBackward(dOut, saved, { deterministic: true })).not.toThrow();
    expect(errorOf(() => attentionBackward(dOut, saved, { deterministic: 1 as never })).message).toContain(
      'deterministic',
    );
  });

  it('are refused when misspelt', () => {
    expect(errorOf(() => attentionBackward(dOut, saved, { casual: true } as never)).message).toContain('"causal"');
  });
});

it('never guesses what the forward pass was', () => {
  const { q, k, v, dOut } = tensorsOf(CASES.plain);
  const { out, lse } = attention(q, k, v, { causal: true });
  const bare = { q, k, v, out, lse };
  expect(errorOf(() => attentionBackward(dOut, bare))).toMatchObject({ code: 'ERR_OPTION' });
  expect(errorOf(() => attentionBackward(dOut, bare, { dLse: lse })).message).toContain('saved.options is undefined');
  expect(() => attentionBackward(dOut, bare, { causal: true, dLse: lse })).not.toThrow();
  expect(() => attentionBackward(dOut, { ...bare, options: {} }, { dLse: lse })).not.toThrow();
});
