/** What holds of the engine whatever the numbers are: packed and split sequences, shared heads, dtypes, bad input. */
import { describe, expect, it } from 'vitest';
import {
  add,
  cast,
  mul,
  noGrad,
  parameter,
  type RecurrenceOptions,
  recurrence,
  recurrenceStep,
  sum,
  type Tensor,
  tensor,
  type UpdateOptions,
} from '../../lib/index.js';
import { maxError } from '../../verify/oracle/compare.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { noise } from '../support/numbers.js';

type Kind = 'add' | 'head' | 'position' | 'channel' | 'bonus' | 'delta' | 'lowRank';
const kinds: readonly Kind[] = ['add', 'head', 'position', 'channel', 'bonus', 'delta', 'lowRank'];

const dims = { heads: 2, keyDim: 12, valueDim: 32 };

/** Tensors of `rows` rows of one batch entry, without the batch axis where they are packed. */
function inputs(device: string, rows: readonly number[], kind: Kind, seed = 1) {
  const { heads, keyDim, valueDim } = dims;
  const count = rows.reduce((a, b) => a * b, 1) * heads;
  const on = (values: Float32Array, shape: readonly number[]) =>
    parameter(tensor(values, shape, { device: device as 'cpu' }));
  const gates = (n: number, more: number) => noise(n, seed + more).map((x) => -0.3 * (x + 1));
  const q = on(noise(count * keyDim, seed), [...rows, heads, keyDim]);
  const k = on(
    noise(count * keyDim, seed + 1).map((x) => x / 2),
    [...rows, heads, keyDim],
  );
  const v = on(noise(count * valueDim, seed + 2), [...rows, heads, valueDim]);
  const head = on(gates(heads, 3), [heads]);
  const position = on(gates(count, 4), [...rows, heads]);
  const channel = on(gates(count * keyDim, 5), [...rows, heads, keyDim]);
  const beta = on(
    noise(count, seed + 6).map((x) => (x + 1) / 2),
    [...rows, heads],
  );
  const [read, write] = [8, 9].map((more) =>
    on(
      noise(count * keyDim, seed + more).map((x) => x / 3),
      [...rows, heads, keyDim],
    ),
  ) as [Tensor, Tensor];
  const bonus = on(noise(heads * keyDim, seed + 7), [heads, keyDim]) as Tensor<'float32'>;
  const options: Record<Kind, RecurrenceOptions> = {
    add: { normalizer: true },
    head: { decay: { per: 'head', log: head } },
    position: { decay: { per: 'position', log: position } },
    channel: { decay: { per: 'channel', log: channel } },
    bonus: { decay: { per: 'channel', log: channel }, bonus },
    delta: { decay: { per: 'position', log: position }, update: { kind: 'delta', beta } },
    lowRank: { decay: { per: 'channel', log: channel }, update: { kind: 'lowRank', read, write } },
  };
  return { q, k, v, position, channel, beta, options: options[kind] };
}

/** The same update of what `cut` makes of its tensors. */
function cutUpdate(update: UpdateOptions, cut: (t: Tensor) => Tensor): UpdateOptions {
  if (update.kind === 'delta') return { ...update, beta: cut(update.beta) };
  return update.kind === 'lowRank' ? { ...update, read: cut(update.read), write: cut(update.write) } : update;
}

const part = (t: Tensor, axis: number, begin: number, end: number): Tensor => t.slice(axis, begin, end) as Tensor;

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('a recurrence'), () => {
    for (const kind of kinds) {
      it(`of packed sequences is each of them, bit for bit: ${kind}`, async () => {
        const lengths = [70, 0, 1, 64, 33];
        const total = lengths.reduce((a, b) => a + b, 0);
        const cuSeqlens = [0];
        for (const n of lengths) cuSeqlens.push((cuSeqlens.at(-1) as number) + n);
        const x = inputs(device, [total], kind);
        const packed = recurrence(x.q, x.k, x.v, { ...x.options, cuSeqlens });
        const dOut = tensor(noise(total * 64, 9), [total, 2, 32], { device });
        sum(mul(packed.out, dOut)).backward();
        const [out, state, dq, dk, dv] = [packed.out, packed.state, x.q.grad, x.k.grad, x.v.grad].map((t) =>
          (t as Tensor).dataSync(),
        ) as Float32Array[];
        for (const [s, length] of lengths.entries()) {
          const [begin, end] = [cuSeqlens[s] as number, cuSeqlens[s + 1] as number];
          const y = inputs(device, [total], kind);
          const own = (t: Tensor) =>
            parameter(
              part(t.detach(), 0, begin, end)
                .contiguous()
                .reshape([1, length, ...t.shape.slice(1)]),
            );
          const { decay, update } = y.options;
          const cut = (log: Tensor) => (log.shape[0] === total ? own(log) : log);
          const options = {
            ...y.options,
            ...(decay ? { decay: { ...decay, log: cut(decay.log) } } : {}),
            ...(update ? { update: cutUpdate(update, own) } : {}),
          };
          const [q, k, v] = [own(y.q), own(y.k), own(y.v)];
          const alone = recurrence(q, k, v, options);
          sum(mul(alone.out, part(dOut, 0, begin, end).reshape(alone.out.shape))).backward();
          const rowsOf = (all: Float32Array, width: number) => all.slice(begin * width, end * width);
          expect(alone.out.dataSync()).toEqual(rowsOf(out, 64));
          const states = state.length / lengths.length;
          expect(alone.state.dataSync()).toEqual(state.slice(s * states, (s + 1) * states));
          expect((q.grad as Tensor).dataSync()).toEqual(rowsOf(dq, 24));
          expect((k.grad as Tensor).dataSync()).toEqual(rowsOf(dk, 24));
          expect((v.grad as Tensor).dataSync()).toEqual(rowsOf(dv, 64));
        }
      });

      it(`that is split anywhere goes on from its state: ${kind}`, () => {
        const length = 83;
        const x = inputs(device, [1, length], kind, 5);
        const whole = recurrence(x.q, x.k, x.v, x.options);
        const [out, state] = [whole.out.dataSync(), whole.state.dataSync()] as Float32Array[];
        for (const at of [1, 16, 40, 64, 82]) {
          let carried: Tensor<'float32'> | undefined;
          const outs: number[] = [];
          for (const [begin, end] of [
            [0, at],
            [at, length],
          ] as const) {
            const cut = (t: Tensor) => (t.shape[1] === length ? part(t, 1, begin, end) : t);
            const { decay, update } = x.options;
            const piece = recurrence(cut(x.q), cut(x.k), cut(x.v), {
              ...x.options,
              ...(decay ? { decay: { ...decay, log: cut(decay.log) } } : {}),
              ...(update ? { update: cutUpdate(update, cut) } : {}),
              initialState: carried,
            });
            carried = piece.state;
            outs.push(...piece.out.dataSync());
          }
          expect(maxError(outs, out as Float32Array)).toBeLessThan(2e-5);
          expect(maxError((carried as Tensor).dataSync() as Float32Array, state as Float32Array)).toBeLessThan(2e-5);
        }
      });

      it(`goes on a step at a time, its states where they lie: ${kind}`, () => {
        const length = 20;
        const x = inputs(device, [2, length], kind, 13);
        const expected = recurrence(x.q, x.k, x.v, x.options);
        const state = tensor(new Float32Array(expected.state.size), expected.state.shape, {
          device,
        }) as Tensor<'float32'>;
        const outs: Float32Array[] = [];
        noGrad(() => {
          for (let t = 0; t < length; t++) {
            const at = (whole: Tensor): Tensor => {
              const { shape } = whole;
              return shape[1] === length
                ? part(whole, 1, t, t + 1)
                    .contiguous()
                    .reshape([2, ...shape.slice(2)])
                : whole;
            };
            const { decay, update } = x.options;
            const { out } = recurrenceStep(at(x.q), at(x.k), at(x.v), {
              ...x.options,
              ...(decay ? { decay: { ...decay, log: at(decay.log) } } : {}),
              ...(update ? { update: cutUpdate(update, at) } : {}),
              state,
            });
            outs.push(out.dataSync() as Float32Array);
          }
        });
        const width = 2 * dims.valueDim;
        const wanted = expected.out.dataSync() as Float32Array;
        for (const [t, out] of outs.entries())
          for (const b of [0, 1]) {
            const begin = (b * length + t) * width;
            expect(
              maxError(out.subarray(b * width, (b + 1) * width), wanted.subarray(begin, begin + width)),
            ).toBeLessThan(2e-5);
          }
        expect(maxError(state.dataSync(), expected.state.dataSync())).toBeLessThan(2e-5);
      });

      it(`has the same bits on every run: ${kind}`, () => {
        const run = () => {
          const x = inputs(device, [2, 70], kind, 3);
          const { out, state } = recurrence(x.q, x.k, x.v, x.options);
          add(sum(mul(out, out)), sum(state)).backward();
          return [out, state, x.q.grad, x.k.grad, x.v.grad].map((t) => (t as Tensor).dataSync());
        };
        expect(run()).toEqual(run());
      });

      it(`lets nothing that is not finite reach what came before: ${kind}`, () => {
        const length = 90;
        const rows = { q: 24, k: 24, v: 64 } as const;
        const clean = inputs(device, [1, length], kind, 7);
        const expected = recurrence(clean.q, clean.k, clean.v, clean.options).out.dataSync() as Float32Array;
        for (const name of ['q', 'k', 'v'] as const)
          for (const at of [5, 63, 70]) {
            const x = inputs(device, [1, length], kind, 7);
            const values = x[name].dataSync().slice() as Float32Array;
            values[at * rows[name]] = Number.NaN;
            const bad = tensor(values, x[name].shape, { device });
            const all = { q: x.q, k: x.k, v: x.v, [name]: bad };
            const out = recurrence(all.q, all.k, all.v, x.options).out.dataSync() as Float32Array;
            // Chunks with such numbers may be multiplied in another way, with other rounding.
            expect(maxError(out.slice(0, at * 64), expected.slice(0, at * 64))).toBeLessThan(2e-5);
            expect(out.slice(at * 64, (at + 1) * 64).some(Number.isNaN)).toBe(true);
            if (name === 'q')
              expect(maxError(out.slice((at + 1) * 64), expected.slice((at + 1) * 64))).toBeLessThan(2e-5);
          }
      });
    }

    for (const dtype of ['float16', 'bfloat16'] as const)
      it(`takes ${dtype}, with states of float32`, () => {
        const x = inputs(device, [1, 70], 'position', 11);
        const narrow = (t: Tensor) => parameter(cast(t.detach(), dtype));
        const [q, k, v] = [narrow(x.q), narrow(x.k), narrow(x.v)];
        const result = recurrence(q, k, v, x.options);
        expect([result.out.dtype, result.state.dtype]).toEqual([dtype, 'float32']);
        sum(result.out).backward();
        expect([q, k, v].map((t) => t.grad?.dtype)).toEqual([dtype, dtype, dtype]);
        const wide = (t: Tensor) => parameter(cast(t.detach(), 'float32'));
        const same = [wide(q), wide(k), wide(v)] as const;
        const exact = recurrence(...same, x.options);
        sum(exact.out).backward();
        const step = dtype === 'float16' ? 2 ** -10 : 2 ** -7;
        const close = (a: Tensor | undefined, b: Tensor | undefined) => {
          const [got, wanted] = [(a as Tensor).toFloat32Sync(), (b as Tensor).toFloat32Sync()];
          const most = wanted.reduce((m, value) => Math.max(m, Math.abs(value)), 0);
          expect(maxError(got, wanted)).toBeLessThan(step * most);
        };
        close(result.out, exact.out);
        close(result.state, exact.state);
        for (const [i, t] of [q, k, v].entries()) close(t.grad, same[i]?.grad);
      });

    for (const kind of ['head', 'position', 'channel', 'delta'] as const)
      it(`takes gates of 16 bits: ${kind}`, () => {
        const x = inputs(device, [1, 40], kind, 15);
        const { decay, update } = x.options;
        const run = (log: Tensor, beta: Tensor | undefined) => {
          const options = {
            ...(decay ? { decay: { ...decay, log } } : {}),
            ...(beta ? { update: { kind: 'delta', beta } as const } : {}),
          };
          const { out } = recurrence(x.q, x.k, x.v, options);
          sum(mul(out, x.v)).backward();
          return [out, log.grad, beta?.grad].map((t) => t && { dtype: t.dtype, values: t.toFloat32Sync() });
        };
        const beta = update?.kind === 'delta' ? update.beta : undefined;
        const narrow = (t: Tensor) => parameter(cast(t.detach(), 'bfloat16'));
        const log = narrow(decay?.log as Tensor);
        const narrowBeta = beta && narrow(beta);
        const wide = (t: Tensor) => parameter(cast(t.detach(), 'float32'));
        const expected = run(wide(log), narrowBeta && wide(narrowBeta));
        const got = run(log, narrowBeta);
        expect(got[0]?.values).toEqual(expected[0]?.values);
        for (const i of [1, 2]) {
          const [one, other] = [got[i], expected[i]];
          if (!one || !other) continue;
          expect(one.dtype).toBe('bfloat16');
          const most = other.values.reduce((m, value) => Math.max(m, Math.abs(value)), 0);
          expect(maxError(one.values, other.values)).toBeLessThan(most / 128);
        }
      });

    it('of nothing is nothing, and keeps the state', () => {
      const at = (...shape: number[]) => tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)), shape, { device });
      const initialState = tensor(noise(2 * 3 * 4 * 5, 1), [2, 3, 4, 5], { device });
      const { out, state } = recurrence(at(2, 0, 3, 4), at(2, 0, 3, 4), at(2, 0, 3, 5), { initialState });
      expect(out.shape).toEqual([2, 0, 3, 5]);
      expect(state.dataSync()).toEqual(initialState.dataSync());
      expect(recurrence(at(0, 4, 3, 4), at(0, 4, 3, 4), at(0, 4, 3, 5)).out.shape).toEqual([0, 4, 3, 5]);
    });
  });

describe('a recurrence refuses', () => {
  const at = (...shape: number[]) =>
    tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)), shape, { device: 'wasm' });
  const [q, k, v] = [at(2, 6, 4, 8), at(2, 6, 4, 8), at(2, 6, 4, 16)];
  const cases: [string, () => unknown, string, RegExp][] = [
    [
      'tensors of another rank',
      () => recurrence(at(6, 4, 8), k, v),
      'ERR_SHAPE',
      /q has shape \[6, 4, 8\]; it must have 4 axes, \[batch, seq, heads, key dim\]/,
    ],
    [
      'rows that differ',
      () => recurrence(q, at(2, 5, 4, 8), v),
      'ERR_SHAPE',
      /k has shape \[2, 5, 4, 8\]; it must be \[2, 6, \.\.\.\] as q is/,
    ],
    [
      'key dims that differ',
      () => recurrence(q, at(2, 6, 4, 9), v),
      'ERR_SHAPE',
      /k has head dim 9; it must be 8, that of q/,
    ],
    [
      'head dims above 256',
      () => recurrence(q, k, at(2, 6, 4, 257)),
      'ERR_SHAPE',
      /v has head dim 257; it must be from 1 to 256/,
    ],
    [
      'heads that do not divide',
      () => recurrence(q, at(2, 6, 3, 8), v),
      'ERR_SHAPE',
      /k has 3 heads; their number must divide 4, that of the states/,
    ],
    [
      'queries of another group',
      () => recurrence(at(2, 6, 6, 8), k, v),
      'ERR_SHAPE',
      /q has 6 heads; their number must be a multiple of 4/,
    ],
    [
      'a dtype that differs',
      () => recurrence(q, k, cast(v, 'float16') as never),
      'ERR_DTYPE',
      /v is float16 and q is float32/,
    ],
    [
      'a state of another family',
      () => recurrence(q, k, v, { initialState: at(2, 4, 8, 17) as never }),
      'ERR_SHAPE',
      /initialState has shape \[2, 4, 8, 17\]; it must be \[2, 4, 8, 16\]/,
    ],
    [
      'a state without its normalizer',
      () => recurrence(q, k, v, { normalizer: true, initialState: at(2, 4, 8, 16) as never }),
      'ERR_SHAPE',
      /it must be \[2, 4, 8, 17\]/,
    ],
    [
      'a decay of another shape',
      () => recurrence(q, k, v, { decay: { per: 'position', log: at(2, 6, 4, 8) } }),
      'ERR_SHAPE',
      /decay\.log has shape \[2, 6, 4, 8\]; it must have 3 axes, \[batch, seq, heads\]/,
    ],
    [
      'a decay of no kind',
      () => recurrence(q, k, v, { decay: { per: 'row' as never, log: at(4) } }),
      'ERR_OPTION',
      /decay\.per is "row"; it must be 'head', 'position' or 'channel'/,
    ],
    [
      'a bonus without decays by channel',
      () => recurrence(q, k, v, { bonus: at(4, 8) as never }),
      'ERR_OPTION',
      /bonus needs decay\.per 'channel'/,
    ],
    [
      'the delta rule with decays by channel',
      () =>
        recurrence(q, k, v, {
          decay: { per: 'channel', log: at(2, 6, 4, 8) },
          update: { kind: 'delta', beta: at(2, 6, 4) },
        }),
      'ERR_OPTION',
      /the delta rule takes decays by head or by position/,
    ],
    [
      'a step that would need a gradient',
      () => recurrenceStep(parameter(at(2, 4, 8)), at(2, 4, 8), at(2, 4, 16), { state: at(2, 4, 8, 16) as never }),
      'ERR_AUTOGRAD',
      /has no gradient/,
    ],
    [
      'a step from a state of another family',
      () => recurrenceStep(at(2, 4, 8), at(2, 4, 8), at(2, 4, 16), { state: at(2, 4, 8, 15) as never }),
      'ERR_SHAPE',
      /state has shape \[2, 4, 8, 15\]/,
    ],
    ['an unknown option', () => recurrence(q, k, v, { chunk: 3 } as never), 'ERR_OPTION', /chunk/],
    [
      'offsets that fall',
      () => recurrence(at(6, 4, 8), at(6, 4, 8), at(6, 4, 8), { cuSeqlens: [0, 4, 3, 6] }),
      'ERR_OPTION',
      /cuSeqlens\[2\] = 3 comes after 4/,
    ],
    [
      'offsets that end early',
      () => recurrence(at(6, 4, 8), at(6, 4, 8), at(6, 4, 8), { cuSeqlens: [0, 4] }),
      'ERR_OPTION',
      /cuSeqlens ends at 4; it must end at 6/,
    ],
    [
      'a gate that is no decay, where it is asked to look',
      () =>
        recurrence(q, k, v, {
          checkGates: true,
          decay: {
            per: 'position',
            log: tensor(
              Float32Array.from({ length: 48 }, (_, i) => (i === 29 ? 0.5 : -1)),
              [2, 6, 4],
              { device: 'wasm' },
            ),
          },
        }),
      'ERR_OPTION',
      /decay\.log\[1, 1, 1\] is 0\.5; it must be 0 or less/,
    ],
    [
      'a NaN beta, where it is asked to look',
      () =>
        recurrence(q, k, v, {
          checkGates: true,
          update: {
            kind: 'delta',
            beta: tensor(
              Float32Array.from({ length: 48 }, (_, i) => (i === 47 ? Number.NaN : 1)),
              [2, 6, 4],
              { device: 'wasm' },
            ),
          },
        }),
      'ERR_OPTION',
      /update\.beta\[1, 5, 3\] is NaN; it must be a finite number/,
    ],
  ];
  for (const [what, f, code, message] of cases)
    it(what, () => expect(errorOf(f)).toMatch(new RegExp(`^${code}: .*${message.source}`)));
});
