/** The engine against a float64 loop over positions, forward and backward. */
import { describe, expect, it } from 'vitest';
import { add, mul, parameter, type RecurrenceOptions, recurrence, sum, type Tensor, tensor } from '../../lib/index.js';
import { maxError } from '../../verify/oracle/compare.js';
import * as oracle from '../../verify/oracle/recurrence.js';
import { testDevices } from '../support/devices.js';
import { noise } from '../support/numbers.js';

type Gate = 'mild' | 'none' | 'keep' | 'clear' | 'steep' | 'mixed';

interface Case {
  readonly batch: number;
  readonly length: number;
  readonly heads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  readonly per?: 'head' | 'position' | 'channel';
  readonly gate?: Gate;
  readonly delta?: boolean;
  readonly bonus?: boolean;
  readonly lowRank?: boolean;
  readonly normalizer?: boolean;
  readonly initial?: boolean;
}

function gates(n: number, gate: Gate, seed: number): Float32Array {
  const random = noise(n, seed);
  return random.map((x, i) => {
    if (gate === 'keep') return 0;
    if (gate === 'clear') return -Infinity;
    if (gate === 'steep') return -50;
    if (gate === 'mixed') return [0, -50, -0.01, -3, -20][Math.floor((x + 1) * 2.4999) + 0 * i] as number;
    return -0.5 * (x + 1) ** 2;
  });
}

function make(c: Case, seed = 1) {
  const { batch, length, heads, keyDim, valueDim, per, gate = 'mild' } = c;
  const rows = batch * length * heads;
  const unit = (values: Float32Array) => {
    if (!c.delta && !c.lowRank) return values;
    // The delta rule is stable for keys of length 1.
    for (let r = 0; r < values.length; r += keyDim) {
      const norm = Math.hypot(...values.subarray(r, r + keyDim));
      for (let d = r; d < r + keyDim; d++) values[d] = (values[d] as number) / norm;
    }
    return values;
  };
  const columns = valueDim + (c.normalizer ? 1 : 0);
  const log = per && gates({ head: heads, position: rows, channel: rows * keyDim }[per], gate, seed + 4);
  return {
    q: noise(rows * keyDim, seed),
    k: unit(noise(rows * keyDim, seed + 1)),
    v: noise(rows * valueDim, seed + 2),
    log,
    beta: c.delta ? noise(rows, seed + 5).map((x) => (x + 1) / 2) : undefined,
    read: c.lowRank ? unit(noise(rows * keyDim, seed + 11)) : undefined,
    write: c.lowRank ? unit(noise(rows * keyDim, seed + 12)).map((x) => -0.5 * x) : undefined,
    bonus: c.bonus ? noise(heads * keyDim, seed + 6) : undefined,
    initial: c.initial ? noise(batch * heads * keyDim * columns, seed + 7) : undefined,
    dOut: noise(rows * valueDim, seed + 8),
    dState: noise(batch * heads * keyDim * columns, seed + 9),
    dNormalizer: c.normalizer ? noise(rows, seed + 10) : undefined,
  };
}

type Made = ReturnType<typeof make>;

/** As the oracle has it: every decay by channel, the normalizer as a column of ones. */
function oracleCase(c: Case, x: Made): oracle.RecurrenceCase {
  const { batch, length, heads, keyDim, valueDim } = c;
  const rows = batch * length * heads;
  const columns = valueDim + (c.normalizer ? 1 : 0);
  const wide = (values: ArrayLike<number>, last: (row: number) => number) =>
    Float64Array.from({ length: rows * columns }, (_, n) => {
      const [row, j] = [Math.floor(n / columns), n % columns];
      return j < valueDim ? (values[row * valueDim + j] as number) : last(row);
    });
  const { log } = x;
  const decay =
    log &&
    Float64Array.from({ length: rows * keyDim }, (_, n) => {
      const row = Math.floor(n / keyDim);
      return log[{ head: row % heads, position: row, channel: n }[c.per ?? 'head']] as number;
    });
  const { q, k, beta, read, write, bonus, initial } = x;
  return {
    batch,
    length,
    heads,
    keyDim,
    valueDim: columns,
    scale: 0.5,
    q,
    k,
    v: wide(x.v, () => 1),
    decay,
    beta,
    read,
    write,
    bonus,
    initial,
  };
}

function expectClose(name: string, actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance: number) {
  let most = 1;
  for (let i = 0; i < expected.length; i++) most = Math.max(most, Math.abs(expected[i] as number));
  expect({ name, error: maxError(actual, expected) / most }).toEqual({
    name,
    error: expect.toSatisfy((e: number) => e <= tolerance),
  });
}

async function check(device: string, c: Case, seed = 1) {
  const { batch, length, heads, keyDim, valueDim, per } = c;
  const x = make(c, seed);
  const columns = valueDim + (c.normalizer ? 1 : 0);
  const on = (values: Float32Array, shape: number[]) => parameter(tensor(values, shape, { device: device as 'cpu' }));
  const rows = [batch, length, heads];
  const p = {
    q: on(x.q, [...rows, keyDim]),
    k: on(x.k, [...rows, keyDim]),
    v: on(x.v, [...rows, valueDim]),
    log: x.log && on(x.log, per === 'head' ? [heads] : per === 'position' ? rows : [...rows, keyDim]),
    beta: x.beta && on(x.beta, rows),
    read: x.read && on(x.read, [...rows, keyDim]),
    write: x.write && on(x.write, [...rows, keyDim]),
    bonus: x.bonus && on(x.bonus, [heads, keyDim]),
    initial: x.initial && on(x.initial, [batch, heads, keyDim, columns]),
  };
  const options: RecurrenceOptions = {
    scale: 0.5,
    ...(per && p.log ? { decay: { per, log: p.log } } : {}),
    ...(p.beta ? { update: { kind: 'delta', beta: p.beta } } : {}),
    ...(p.read && p.write ? { update: { kind: 'lowRank', read: p.read, write: p.write } } : {}),
    ...(p.bonus ? { bonus: p.bonus } : {}),
    ...(p.initial ? { initialState: p.initial } : {}),
    ...(c.normalizer ? { normalizer: true } : {}),
  };
  const result = recurrence(p.q, p.k, p.v, options) as ReturnType<typeof recurrence> & { normalizer?: Tensor };
  const reference = oracleCase(c, x);
  const expected = oracle.recurrence(reference);
  const total = batch * length * heads;
  const part = (values: Float64Array, from: number, to: number) =>
    Float64Array.from({ length: total * (to - from) }, (_, n) => {
      const width = to - from;
      return values[Math.floor(n / width) * columns + from + (n % width)] as number;
    });
  expectClose('out', await result.out.data(), part(expected.out, 0, valueDim), 2e-5);
  expectClose('state', await result.state.data(), expected.state, 2e-5);
  if (result.normalizer)
    expectClose('normalizer', await result.normalizer.data(), part(expected.out, valueDim, columns), 2e-5);

  const dOut = tensor(x.dOut, [...rows, valueDim], { device: device as 'cpu' });
  const dState = tensor(x.dState, [batch, heads, keyDim, columns], { device: device as 'cpu' });
  let loss = add(sum(mul(result.out, dOut)), sum(mul(result.state, dState)));
  if (result.normalizer && x.dNormalizer)
    loss = add(loss, sum(mul(result.normalizer, tensor(x.dNormalizer, rows, { device: device as 'cpu' }))));
  loss.backward();
  const wideOut = Float64Array.from({ length: total * columns }, (_, n) => {
    const [row, j] = [Math.floor(n / columns), n % columns];
    return (j < valueDim ? x.dOut[row * valueDim + j] : x.dNormalizer?.[row]) as number;
  });
  const g = oracle.recurrenceBackward(reference, wideOut, x.dState);
  const grad = async (t: Tensor | undefined) => (await t?.grad?.data()) as Float32Array;
  expectClose('dq', await grad(p.q), g.dq, 1e-4);
  expectClose('dk', await grad(p.k), g.dk, 1e-4);
  expectClose('dv', await grad(p.v), part(g.dv, 0, valueDim), 1e-4);
  if (p.log) {
    const to = new Float64Array(x.log?.length ?? 0);
    for (let n = 0; n < g.dDecay.length; n++) {
      const row = Math.floor(n / keyDim);
      to[{ head: row % heads, position: row, channel: n }[per ?? 'head']] += g.dDecay[n] as number;
    }
    // Where a gate is -Infinity its gradient is 0.
    expectClose('dDecay', await grad(p.log), to, 1e-4);
  }
  if (p.beta) expectClose('dBeta', await grad(p.beta), g.dBeta, 1e-4);
  if (p.read) expectClose('dRead', await grad(p.read), g.dRead, 1e-4);
  if (p.write) expectClose('dWrite', await grad(p.write), g.dWrite, 1e-4);
  if (p.bonus) expectClose('dBonus', await grad(p.bonus), g.dBonus, 1e-4);
  if (p.initial) expectClose('dInitial', await grad(p.initial), g.dInitial, 1e-4);
}

const base = { batch: 2, heads: 2, keyDim: 8, valueDim: 12 } as const;
const kinds: Record<string, Partial<Case>> = {
  'no decay': {},
  'no decay, a normalizer': { normalizer: true },
  'decay by head': { per: 'head' },
  'decay by position': { per: 'position', normalizer: true },
  'decay by channel': { per: 'channel' },
  'decay by channel, a bonus': { per: 'channel', bonus: true },
  'the delta rule': { delta: true },
  'the gated delta rule': { delta: true, per: 'position' },
  'a correction of rank one': { lowRank: true, per: 'channel' },
};

for (const { device, present, title, isSlow } of testDevices)
  describe.skipIf(!present)(title('a recurrence'), () => {
    for (const [name, kind] of Object.entries(kinds)) {
      for (const length of [1, 15, 16, 17, 64, 65, 150])
        it(`of ${length} with ${name}`, () => check(device, { ...base, length, ...kind, initial: length % 2 === 0 }));
      for (const gate of ['keep', 'clear', 'steep', 'mixed'] as const)
        if (kind.per)
          it(`with ${name} and gates: ${gate}`, () => check(device, { ...base, length: 90, ...kind, gate }));
      it.skipIf(isSlow)(`of 4096 with ${name}`, () =>
        check(device, { batch: 1, length: 4096, heads: 1, keyDim: 8, valueDim: 8, ...kind }),
      );
      it(`with ${name} and wide heads`, () =>
        check(device, { batch: 1, length: 70, heads: 1, keyDim: 100, valueDim: 256, ...kind }));
    }
  });
