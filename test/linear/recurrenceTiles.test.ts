/** Heads that share, packed sequences, dims at the edges of tiles, and every dtype: each against float64. */
import { describe, expect, it } from 'vitest';
import {
  add,
  cast,
  type FloatDType,
  mul,
  parameter,
  type RecurrenceOptions,
  recurrence,
  sum,
  type Tensor,
  tensor,
} from '../../lib/index.js';
import { maxError } from '../../verify/oracle/compare.js';
import * as oracle from '../../verify/oracle/recurrence.js';
import { runScript } from '../support/child.js';
import { testDevices } from '../support/devices.js';
import { hasEmulator, onEmulator } from '../support/emulator.js';
import { noise } from '../support/numbers.js';

interface Case {
  /** Of each sequence. */
  readonly lengths: readonly number[];
  readonly packed?: boolean;
  readonly heads: {
    readonly q: number;
    readonly k: number;
    readonly v: number;
    readonly log?: number;
    readonly beta?: number;
    /** Of corrections of rank one. */
    readonly read?: number;
    readonly write?: number;
  };
  readonly keyDim: number;
  readonly valueDim: number;
  readonly per?: 'head' | 'position' | 'channel';
  readonly bonus?: boolean;
  readonly normalizer?: boolean;
  readonly initial?: boolean;
  readonly dtype?: FloatDType;
}

const tolerances = {
  float32: { out: 2e-5, gradient: 1e-4 },
  // One rounding of what is added up in float32.
  float16: { out: 2 ** -10, gradient: 2 ** -10 },
  bfloat16: { out: 2 ** -7, gradient: 2 ** -7 },
} as const;

function make(c: Case) {
  const { heads, keyDim, valueDim, per, dtype = 'float32' } = c;
  const rows = c.lengths.reduce((a, b) => a + b, 0);
  const { read = 0, write = 0 } = heads;
  const states = Math.max(heads.k, heads.v, heads.log ?? 0, heads.beta ?? 0, read, write);
  const outs = Math.max(heads.q, states);
  const columns = valueDim + (c.normalizer ? 1 : 0);
  const logs = heads.log ?? 0;
  /** What the state is read by is no longer than 1, so that it stays small. A power of two keeps what a dtype can hold. */
  const short = (values: Float32Array) => values.map((x) => x * 2 ** -Math.ceil(Math.log2(keyDim) / 2));
  const k = noise(rows * heads.k * keyDim, 2, dtype);
  return {
    rows,
    states,
    outs,
    columns,
    q: noise(rows * heads.q * keyDim, 1, dtype),
    k: heads.beta ? short(k) : k,
    v: noise(rows * heads.v * valueDim, 3, dtype),
    log: per && noise({ head: 1, position: rows, channel: rows * keyDim }[per] * logs, 4).map((x) => -0.5 * (x + 1)),
    beta: heads.beta ? noise(rows * heads.beta, 5).map((x) => (x + 1) / 2) : undefined,
    read: read ? short(noise(rows * read * keyDim, 11, dtype)) : undefined,
    write: write ? short(noise(rows * write * keyDim, 12, dtype)) : undefined,
    bonus: c.bonus ? noise(states * keyDim, 6) : undefined,
    initial: c.initial ? noise(c.lengths.length * states * keyDim * columns, 7) : undefined,
    dOut: noise(rows * outs * valueDim, 8, dtype),
    dState: noise(c.lengths.length * states * keyDim * columns, 9),
    dNormalizer: c.normalizer ? noise(rows * outs, 10) : undefined,
  };
}

type Made = ReturnType<typeof make>;

/** [rows, own heads, dim] for the heads of out, of one sequence. */
const spread = (values: ArrayLike<number>, from: number, length: number, own: number, outs: number, dim: number) =>
  Float64Array.from({ length: length * outs * dim }, (_, n) => {
    const [row, h, d] = [Math.floor(n / dim / outs), Math.floor(n / dim) % outs, n % dim];
    return values[((from + row) * own + Math.floor((h * own) / outs)) * dim + d] as number;
  });

/** Adds [rows, heads of out, dim] to [rows, own heads, dim]. */
function gather(to: Float64Array, values: ArrayLike<number>, from: number, own: number, outs: number, dim: number) {
  for (let n = 0; n < values.length; n++) {
    const [row, h, d] = [Math.floor(n / dim / outs), Math.floor(n / dim) % outs, n % dim];
    to[((from + row) * own + Math.floor((h * own) / outs)) * dim + d] += values[n] as number;
  }
}

/** Of all sequences, by a loop over positions in which every head of out has a state of its own. */
function expectedOf(c: Case, x: Made) {
  const { heads, keyDim, valueDim, per } = c;
  const { outs, states, columns, rows } = x;
  const group = outs / states;
  const stateSize = keyDim * columns;
  const e = {
    out: new Float64Array(rows * outs * valueDim),
    normalizer: new Float64Array(rows * outs),
    state: new Float64Array(c.lengths.length * states * stateSize),
    q: new Float64Array(x.q.length),
    k: new Float64Array(x.k.length),
    v: new Float64Array(x.v.length),
    log: new Float64Array(x.log?.length ?? 0),
    beta: new Float64Array(x.beta?.length ?? 0),
    read: new Float64Array(x.read?.length ?? 0),
    write: new Float64Array(x.write?.length ?? 0),
    bonus: new Float64Array(x.bonus?.length ?? 0),
    initial: new Float64Array(x.initial?.length ?? 0),
  };
  let from = 0;
  for (const [b, length] of c.lengths.entries()) {
    const state = (values: ArrayLike<number> | undefined, shared: boolean) =>
      values &&
      Float64Array.from({ length: outs * stateSize }, (_, n) => {
        const h = Math.floor(n / stateSize);
        if (shared && h % group > 0) return 0;
        return values[(b * states + Math.floor(h / group)) * stateSize + (n % stateSize)] as number;
      });
    const wide = (values: ArrayLike<number>, own: number, last: (n: number) => number) => {
      const narrow = spread(values, from, length, own, outs, valueDim);
      return Float64Array.from({ length: length * outs * columns }, (_, n) => {
        const [row, j] = [Math.floor(n / columns), n % columns];
        return j < valueDim ? (narrow[row * valueDim + j] as number) : last(row);
      });
    };
    const logs = heads.log ?? 1;
    const one: oracle.RecurrenceCase = {
      batch: 1,
      length,
      heads: outs,
      keyDim,
      valueDim: columns,
      scale: 0.5,
      q: spread(x.q, from, length, heads.q, outs, keyDim),
      k: spread(x.k, from, length, heads.k, outs, keyDim),
      v: wide(x.v, heads.v, () => 1),
      decay:
        x.log &&
        Float64Array.from({ length: length * outs * keyDim }, (_, n) => {
          const [row, h] = [from + Math.floor(n / keyDim / outs), Math.floor(n / keyDim) % outs];
          const head = Math.floor((h * logs) / outs);
          const at = per === 'head' ? head : row * logs + head;
          return x.log?.[per === 'channel' ? at * keyDim + (n % keyDim) : at] as number;
        }),
      beta: x.beta && spread(x.beta, from, length, heads.beta ?? 1, outs, 1),
      read: x.read && spread(x.read, from, length, heads.read ?? 1, outs, keyDim),
      write: x.write && spread(x.write, from, length, heads.write ?? 1, outs, keyDim),
      bonus: x.bonus && spread(x.bonus, 0, 1, states, outs, keyDim),
      initial: state(x.initial, false),
    };
    const result = oracle.recurrence(one);
    const dOut = wide(x.dOut, outs, (row) => x.dNormalizer?.[from * outs + row] as number);
    const g = oracle.recurrenceBackward(one, dOut, state(x.dState, true));
    const narrow = (values: Float64Array) => values.filter((_, n) => n % columns < valueDim);
    e.out.set(narrow(result.out), from * outs * valueDim);
    e.normalizer.set(
      result.out.filter((_, n) => n % columns === valueDim),
      from * outs,
    );
    for (let h = 0; h < states; h++)
      e.state.set(
        result.state.subarray(h * group * stateSize, (h * group + 1) * stateSize),
        (b * states + h) * stateSize,
      );
    gather(e.q, g.dq, from, heads.q, outs, keyDim);
    gather(e.k, g.dk, from, heads.k, outs, keyDim);
    gather(e.v, narrow(g.dv), from, heads.v, outs, valueDim);
    if (per === 'channel') gather(e.log, g.dDecay, from, logs, outs, keyDim);
    else if (per) {
      const byHead = new Float64Array(length * outs);
      for (const [n, value] of g.dDecay.entries()) byHead[Math.floor(n / keyDim)] += value;
      if (per === 'position') gather(e.log, byHead, from, logs, outs, 1);
      else for (const [n, value] of byHead.entries()) e.log[Math.floor(((n % outs) * logs) / outs)] += value;
    }
    if (heads.beta) gather(e.beta, g.dBeta, from, heads.beta, outs, 1);
    if (heads.read) gather(e.read, g.dRead, from, heads.read, outs, keyDim);
    if (heads.write) gather(e.write, g.dWrite, from, heads.write, outs, keyDim);
    if (x.bonus) gather(e.bonus, g.dBonus, 0, states, outs, keyDim);
    if (x.initial) gather(e.initial.subarray(b * states * stateSize), g.dInitial, 0, states, outs, stateSize);
    from += length;
  }
  return e;
}

type Results = Record<string, Float32Array>;

async function run(device: string, c: Case, x: Made): Promise<Results> {
  const { heads, keyDim, valueDim, per, dtype = 'float32' } = c;
  const on = (values: Float32Array, shape: number[], type: FloatDType = 'float32') =>
    parameter(tensor(values, shape, { device: device as 'cpu', dtype: type }) as Tensor<FloatDType>);
  const rows = c.packed ? [x.rows] : [c.lengths.length, c.lengths[0] as number];
  const sequences = c.lengths.length;
  const offsets = [0];
  for (const length of c.lengths) offsets.push((offsets.at(-1) as number) + length);
  const logs = heads.log ?? 1;
  const p = {
    q: on(x.q, [...rows, heads.q, keyDim], dtype),
    k: on(x.k, [...rows, heads.k, keyDim], dtype),
    v: on(x.v, [...rows, heads.v, valueDim], dtype),
    log: x.log && on(x.log, per === 'head' ? [logs] : [...rows, logs, ...(per === 'channel' ? [keyDim] : [])]),
    beta: x.beta && on(x.beta, [...rows, heads.beta as number]),
    read: x.read && on(x.read, [...rows, heads.read as number, keyDim], dtype),
    write: x.write && on(x.write, [...rows, heads.write as number, keyDim], dtype),
    bonus: x.bonus && on(x.bonus, [x.states, keyDim]),
    initial: x.initial && on(x.initial, [sequences, x.states, keyDim, x.columns]),
  };
  const options: RecurrenceOptions = {
    scale: 0.5,
    ...(per && p.log ? { decay: { per, log: p.log } } : {}),
    ...(p.beta ? { update: { kind: 'delta', beta: p.beta } } : {}),
    ...(p.read && p.write ? { update: { kind: 'lowRank', read: p.read, write: p.write } } : {}),
    ...(p.bonus ? { bonus: p.bonus as Tensor<'float32'> } : {}),
    ...(p.initial ? { initialState: p.initial as Tensor<'float32'> } : {}),
    ...(c.normalizer ? { normalizer: true } : {}),
    ...(c.packed ? { cuSeqlens: offsets } : {}),
  };
  const result = recurrence(p.q, p.k, p.v, options) as ReturnType<typeof recurrence> & { normalizer?: Tensor };
  const like = (values: Float32Array, t: Tensor) => tensor(values, [...t.shape], { device: device as 'cpu' });
  const loss = (t: Tensor, weights: Float32Array) => sum(mul(cast(t, 'float32'), like(weights, t)));
  let total = add(loss(result.out, x.dOut), loss(result.state, x.dState)) as Tensor;
  if (result.normalizer && x.dNormalizer) total = add(total, loss(result.normalizer, x.dNormalizer)) as Tensor;
  total.backward();
  const results: Results = {
    out: (await result.out.toFloat32()) as Float32Array,
    state: await result.state.toFloat32(),
  };
  if (result.normalizer) results.normalizer = await result.normalizer.toFloat32();
  for (const [name, t] of Object.entries(p)) if (t) results[`d ${name}`] = (await t.grad?.toFloat32()) as Float32Array;
  return results;
}

async function check(device: string, c: Case) {
  const x = make(c);
  const expected = expectedOf(c, x) as unknown as Record<string, Float64Array>;
  const results = await run(device, c, x);
  for (const [name, actual] of Object.entries(results)) {
    const gradient = name.startsWith('d ');
    const wide = ['state', 'normalizer', 'd log', 'd beta', 'd bonus', 'd initial'].includes(name);
    const tolerance = tolerances[wide ? 'float32' : (c.dtype ?? 'float32')][gradient ? 'gradient' : 'out'];
    const values = expected[gradient ? name.slice(2) : name] as Float64Array;
    const most = values.reduce((a, b) => Math.max(a, Math.abs(b)), 1);
    expect({ name, error: maxError(actual, values) / most }).toEqual({
      name,
      error: expect.toSatisfy((e: number) => e <= tolerance),
    });
  }
}

const one = { q: 1, k: 1, v: 1 };
const cases: Record<string, Case> = {
  'queries in groups': { lengths: [70], heads: { q: 4, k: 2, v: 2 }, keyDim: 40, valueDim: 20 },
  'queries in groups, with decays by position and a normalizer': {
    lengths: [70, 70],
    heads: { q: 4, k: 1, v: 2, log: 2 },
    keyDim: 24,
    valueDim: 33,
    per: 'position',
    normalizer: true,
  },
  'queries in groups, with decays by channel and a bonus': {
    lengths: [83],
    heads: { q: 6, k: 2, v: 1, log: 2 },
    keyDim: 40,
    valueDim: 20,
    per: 'channel',
    bonus: true,
    initial: true,
  },
  'queries in groups, with the delta rule': {
    lengths: [83],
    heads: { q: 4, k: 2, v: 2, log: 1, beta: 2 },
    keyDim: 33,
    valueDim: 31,
    per: 'head',
    initial: true,
  },
  'queries in groups, with corrections of rank one': {
    lengths: [83],
    heads: { q: 6, k: 2, v: 1, log: 2, read: 1, write: 2 },
    keyDim: 40,
    valueDim: 20,
    per: 'channel',
    initial: true,
  },
  'queries and keys that states with corrections of rank one share': {
    lengths: [40],
    heads: { q: 1, k: 1, v: 2, log: 1, read: 2, write: 1 },
    keyDim: 16,
    valueDim: 16,
    per: 'channel',
  },
  'shared queries and keys': {
    lengths: [40],
    heads: { q: 1, k: 2, v: 4, log: 4 },
    keyDim: 16,
    valueDim: 16,
    per: 'channel',
  },
  'packed sequences': {
    lengths: [3, 0, 64, 1, 130],
    packed: true,
    heads: { q: 2, k: 1, v: 2 },
    keyDim: 20,
    valueDim: 9,
    initial: true,
  },
  'packed sequences with decays by head': {
    lengths: [65, 63, 17],
    packed: true,
    heads: { q: 2, k: 2, v: 2, log: 2 },
    keyDim: 20,
    valueDim: 40,
    per: 'head',
    normalizer: true,
  },
  'packed sequences with decays by channel and a bonus': {
    lengths: [65, 0, 63, 17, 0],
    packed: true,
    heads: { q: 2, k: 2, v: 2, log: 2 },
    keyDim: 36,
    valueDim: 40,
    per: 'channel',
    bonus: true,
    initial: true,
  },
  'packed sequences with corrections of rank one': {
    lengths: [65, 0, 63, 17, 0],
    packed: true,
    heads: { q: 2, k: 2, v: 2, log: 2, read: 2, write: 2 },
    keyDim: 36,
    valueDim: 40,
    per: 'channel',
    initial: true,
  },
  'packed sequences with the gated delta rule': {
    lengths: [65, 2, 130],
    packed: true,
    heads: { q: 2, k: 2, v: 2, log: 2, beta: 2 },
    keyDim: 20,
    valueDim: 40,
    per: 'position',
    initial: true,
  },
};
for (const [keyDim, valueDim] of [
  [1, 1],
  [31, 32],
  [32, 33],
  [128, 64],
  [129, 65],
  [256, 255],
] as const)
  cases[`a key dim of ${keyDim} and a value dim of ${valueDim}`] = {
    lengths: [66],
    heads: { ...one, log: 1 },
    keyDim,
    valueDim,
    per: 'position',
    normalizer: true,
    initial: true,
  };
for (const [keyDim, valueDim] of [
  [1, 1],
  [32, 33],
  [64, 64],
  [65, 31],
  [256, 32],
] as const)
  cases[`corrections of rank one, a key dim of ${keyDim} and a value dim of ${valueDim}`] = {
    lengths: [66],
    heads: { ...one, log: 1, read: 1, write: 1 },
    keyDim,
    valueDim,
    per: 'channel',
    initial: true,
  };
for (const dtype of ['float16', 'bfloat16'] as const) {
  cases[`${dtype} with corrections of rank one`] = {
    lengths: [90],
    heads: { q: 2, k: 2, v: 2, log: 2, read: 2, write: 2 },
    keyDim: 48,
    valueDim: 40,
    per: 'channel',
    initial: true,
    dtype,
  };
  cases[`${dtype} with decays by channel`] = {
    lengths: [90],
    heads: { q: 2, k: 2, v: 2, log: 2 },
    keyDim: 48,
    valueDim: 40,
    per: 'channel',
    dtype,
  };
  cases[`${dtype} with a bonus, of few heads`] = {
    lengths: [90],
    heads: { q: 1, k: 1, v: 2, log: 2 },
    keyDim: 24,
    valueDim: 40,
    per: 'channel',
    bonus: true,
    dtype,
  };
  cases[`${dtype} with the gated delta rule`] = {
    lengths: [90],
    heads: { q: 2, k: 2, v: 2, log: 2, beta: 2 },
    keyDim: 48,
    valueDim: 40,
    per: 'position',
    initial: true,
    dtype,
  };
  cases[`${dtype} with queries in groups and a normalizer`] = {
    lengths: [70],
    heads: { q: 2, k: 1, v: 1, log: 1 },
    keyDim: 40,
    valueDim: 32,
    per: 'position',
    normalizer: true,
    dtype,
  };
  cases[`${dtype} with the delta rule and queries in groups`] = {
    lengths: [70],
    heads: { q: 2, k: 1, v: 1, beta: 1 },
    keyDim: 40,
    valueDim: 36,
    dtype,
  };
  cases[`${dtype} with decays by head`] = {
    lengths: [130],
    heads: { q: 2, k: 2, v: 2, log: 2 },
    keyDim: 64,
    valueDim: 64,
    per: 'head',
    dtype,
  };
}

/** What may hold what is not finite at a position, and what of the results lies before it. */
const families: Record<string, Partial<Case>> = {
  'decays by position': { heads: { ...one, log: 1 }, per: 'position' },
  'decays by channel': { heads: { ...one, log: 1 }, per: 'channel' },
  'decays by channel and a bonus': { heads: { ...one, log: 1 }, per: 'channel', bonus: true },
  'the delta rule': { heads: { ...one, beta: 1 } },
  'corrections of rank one': { heads: { ...one, log: 1, read: 1, write: 1 }, per: 'channel' },
};
/** Those of its inputs that have rows, by name. */
const gateRows = ['log', 'beta', 'read', 'write'] as const;

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('shapes of a recurrence'), () => {
    for (const [name, c] of Object.entries(cases)) it(name, () => check(device, c));

    it('has the same bits for a sequence by itself and packed', async () => {
      for (const kind of Object.values(families)) {
        const base = { keyDim: 20, valueDim: 24, ...kind } as Case;
        const packed = { ...base, lengths: [30, 70, 9], packed: true };
        const x = make(packed);
        const all = await run(device, packed, x);
        const alone = { ...base, lengths: [70] };
        const rows = (values: Float32Array) => values.slice((values.length / 109) * 30, (values.length / 109) * 100);
        const mine = { ...x, rows: 70, q: rows(x.q), k: rows(x.k), v: rows(x.v), dOut: rows(x.dOut) } as Made;
        for (const name of gateRows) if (x[name]) mine[name] = rows(x[name]);
        mine.dState = x.dState.slice(x.dState.length / 3, (x.dState.length / 3) * 2);
        const its = await run(device, alone, mine);
        for (const name of ['out', 'd q', 'd k', 'd v', ...gateRows.filter((n) => x[n]).map((n) => `d ${n}`)])
          expect({ name, same: rows(all[name] as Float32Array) }).toEqual({ name, same: its[name] });
      }
    });

    it('goes on from a state as if it had not been split', async () => {
      for (const kind of Object.values(families)) {
        const c = { lengths: [100], keyDim: 20, valueDim: 24, ...kind } as Case;
        const x = make(c);
        const whole = await run(device, c, x);
        for (const at of [1, 37, 64]) {
          const part = (from: number, to: number, initial?: Float32Array) => {
            const rows = (values: Float32Array) =>
              values.slice((values.length / 100) * from, (values.length / 100) * to);
            const made = {
              ...x,
              rows: to - from,
              q: rows(x.q),
              k: rows(x.k),
              v: rows(x.v),
              dOut: rows(x.dOut),
              initial,
            };
            for (const name of gateRows) if (x[name]) made[name] = rows(x[name]);
            return run(device, { ...c, lengths: [to - from], initial: initial !== undefined }, made as Made);
          };
          const first = await part(0, at);
          const second = await part(at, 100, first.state);
          const out = Float32Array.of(...(first.out as Float32Array), ...(second.out as Float32Array));
          expect(maxError(out, whole.out as Float32Array)).toBeLessThan(2e-5);
          expect(maxError(second.state as Float32Array, whole.state as Float32Array)).toBeLessThan(2e-5);
        }
      }
    });

    for (const [name, kind] of Object.entries(families))
      it(`with ${name} lets nothing that is not finite reach what came before it`, async () => {
        const c = { lengths: [100], keyDim: 20, valueDim: 24, ...kind } as Case;
        const x = make(c);
        const clean = await run(device, c, x);
        const at = 77;
        for (const input of ['q', 'k', 'v', ...gateRows] as const)
          for (const poison of [NaN, Infinity]) {
            const values = x[input];
            if (!values || (input === 'log' && poison === Infinity)) continue;
            const dim = values.length / 100;
            const poisoned = values.slice();
            poisoned[at * dim] = poison;
            const results = await run(device, c, { ...x, [input]: poisoned });
            const before = (row: Float32Array) => row.subarray(0, (row.length / 100) * at);
            const error = maxError(before(results.out as Float32Array), before(clean.out as Float32Array));
            expect({ input, poison, error }).toEqual({
              input,
              poison,
              error: expect.toSatisfy((e: number) => e < 1e-5),
            });
            expect((results.out as Float32Array).some((v) => !Number.isFinite(v))).toBe(true);
          }
        // The gradient of out reaches what came before, and nothing behind.
        const dOut = x.dOut.slice();
        dOut[at * c.valueDim] = NaN;
        const results = await run(device, c, { ...x, dOut });
        const behind = (row: Float32Array) => row.subarray((row.length / 100) * (at + 1));
        for (const gradient of ['d q', 'd k', 'd v']) {
          const error = maxError(behind(results[gradient] as Float32Array), behind(clean[gradient] as Float32Array));
          expect({ gradient, error }).toEqual({ gradient, error: expect.toSatisfy((e: number) => e < 1e-4) });
          expect((results[gradient] as Float32Array).some((v) => Number.isNaN(v))).toBe(true);
        }
      });
  });

/** Bits of a recurrence and its gradients, as on a device with so many multiprocessors. */
async function bitsWith(multiprocessors: string): Promise<string> {
  const script = `
    const noise = (shape, seed) => fa.parameter(fa.normal(shape, { seed, device: 'emulator' }));
    const q = noise([1, 70, 1, 40], 1), k = noise([1, 70, 1, 40], 2), v = noise([1, 70, 1, 70], 3);
    const log = fa.neg(fa.exp(noise([1, 70, 1], 4)));
    const channels = fa.neg(fa.exp(noise([1, 70, 1, 40], 5)));
    const beta = fa.sigmoid(noise([1, 70, 1], 6));
    const small = fa.mul(k, 0.1);
    const calls = [
      fa.recurrence(q, k, v, { decay: { per: 'position', log }, normalizer: true }),
      fa.recurrence(q, k, v, { decay: { per: 'channel', log: channels } }),
      fa.recurrence(q, small, v, { update: { kind: 'delta', beta } }),
      fa.recurrence(q, k, v, { decay: { per: 'channel', log: channels }, update: { kind: 'lowRank', read: small, write: small } }),
    ];
    let loss;
    for (const { out, state } of calls) {
      const all = fa.add(fa.sum(fa.mul(out, out)), fa.sum(state));
      loss = loss ? fa.add(loss, all) : all;
    }
    loss.backward();
    const sums = [];
    for (const t of [...calls.map(({ out }) => out), calls[0].state, q.grad, k.grad, v.grad])
      sums.push(Buffer.from((await t.data()).buffer).toString('base64'));
    console.log(sums.join(' '));`;
  const { code, stdout, stderr } = await runScript(script, { FLASHATTN_MULTIPROCESSORS: multiprocessors });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return stdout;
}

describe.skipIf(!hasEmulator)(onEmulator('tiles of a recurrence'), () => {
  it('give the same bits, wide or narrow', async () => {
    const wide = await bitsWith('1');
    expect(wide.length).toBeGreaterThan(10_000);
    expect(await bitsWith('132')).toBe(wide);
  });
});
