/** What is recorded, what is freed and when, and what is refused. */
import { describe, expect, it, vi } from 'vitest';
import * as fa from '../../lib/index.js';
import {
  add,
  cast,
  concat,
  exp,
  gatherRows,
  grad,
  matmul,
  memory,
  mul,
  noGrad,
  parameter,
  RowMap,
  scope,
  sum,
  type Tensor,
  tanh,
  tensor,
  valueAndGrad,
  zeros,
} from '../../lib/index.js';
import { codeOf } from '../support/codeOf.js';
import { devicesWith } from '../support/devices.js';

const numbers = (t: { toFloat32Sync(): Float32Array } | undefined) => t && [...t.toFloat32Sync()];

describe.each(devicesWith('elementwise', 'reduce', 'matmul', 'gather'))(
  '$device',
  ({ device, present, title, runs }) => {
    const of = (values: readonly number[], shape: readonly number[] = [values.length]): Tensor =>
      tensor(values, [...shape], { device }) as Tensor;
    /** A parameter that is the only handle of its memory. */
    const parameterOf = (values: readonly number[], shape?: readonly number[]): Tensor => {
      using t = of(values, shape);
      return parameter(t);
    };

    /** Runs f, and checks that it left neither tensors nor memory. */
    const leavesNothing = (f: () => void) => {
      const before = memory(device);
      f();
      const after = memory(device);
      expect([after.tensors, after.bytesInUse]).toEqual([before.tensors, before.bytesInUse]);
    };

    describe.skipIf(!present)(title('the tape'), () => {
      it('adds up gradients of several passes, and of several uses', () =>
        leavesNothing(() => {
          using p = parameterOf([1, 2, 3]);
          using y = mul(p, p);
          using z = add(y, p);
          using loss = sum(z);
          loss.backward(undefined, { retainGraph: true });
          expect(numbers(p.grad)).toEqual([3, 5, 7]);
          loss.backward(undefined, { retainGraph: true });
          expect(numbers(p.grad)).toEqual([6, 10, 14]);
          loss.backward();
          expect(numbers(p.grad)).toEqual([9, 15, 21]);
          p.grad = undefined;
          expect(p.grad).toBeUndefined();
        }));

      it.each(['a parameter', 'a result'])('adds up the gradients of parts of %s in one place', (which) =>
        leavesNothing(() => {
          using p = parameterOf([1, 2, 3, 4, 5, 6, 7, 8], [2, 4]);
          using whole = which === 'a result' ? mul(p, 2) : mul(p, 1);
          const source = which === 'a result' ? whole : p;
          const factor = which === 'a result' ? 2 : 1;
          const rows = [0, 1].map((row) => source.select(0, row));
          const [left, odd] = [source.slice(1, 0, 3), source.slice(1, 1, 4, 2)];
          const parts = [...rows, left, odd];
          // Weights by part, so that overlapping parts can be told apart.
          const weighted = parts.map((part, i) => {
            using scaled = mul(part, 10 ** i);
            return sum(scaled);
          });
          using loss = weighted.reduce((a, b) => {
            const total = add(a, b);
            a.dispose();
            b.dispose();
            return total;
          });
          const filled: unknown[] = [];
          const { backend } = p;
          const spy = vi.spyOn(backend, 'launch').mockImplementation((operation, operands) => {
            const { inputs, outputs } = operands as { inputs?: unknown[]; outputs?: { shape: readonly number[] }[] };
            if (inputs?.length === 0 && outputs?.[0]?.shape.join() === '2,4') filled.push(operation);
            original.call(backend, operation as never, operands as never);
          });
          const original = Object.getPrototypeOf(backend).launch as typeof backend.launch;
          loss.backward();
          spy.mockRestore();
          expect(numbers(p.grad)).toEqual([101, 1101, 101, 1001, 110, 1110, 110, 1010].map((g) => g * factor));
          expect(filled).toHaveLength(1);
          for (const part of parts) part.dispose();
        }),
      );

      it('adds parts to the gradients of other uses, in any order', () =>
        leavesNothing(() => {
          using p = parameterOf([1, 2, 3, 4]);
          using twice = mul(p, 2);
          using early = p.slice(0, 0, 2);
          using square = mul(p, p);
          using late = p.slice(0, 1, 3);
          using a = sum(square);
          using b = sum(early);
          using c = sum(late);
          using d = sum(twice);
          using ab = add(a, b);
          using abc = add(ab, c);
          using loss = add(abc, d);
          loss.backward(undefined, { retainGraph: true });
          expect(numbers(p.grad)).toEqual([5, 8, 9, 10]);
          loss.backward();
          expect(numbers(p.grad)).toEqual([10, 16, 18, 20]);
        }));

      it('has freed a graph after a pass that does not retain it, and says which operation', () =>
        leavesNothing(() => {
          using p = parameterOf([1, 2]);
          using e = exp(p);
          using loss = sum(e);
          loss.backward();
          const first = numbers(p.grad);
          expect(() => loss.backward()).toThrow(
            'sum has freed what it kept, in an earlier backward(): pass retainGraph: true to that one',
          );
          using g = of([1, 1]);
          expect(codeOf(() => e.backward(g))).toBe('ERR_AUTOGRAD');
          expect(numbers(p.grad)).toEqual(first);
          expect(memory(device).tensors).toBeGreaterThan(0);
        }));

      it('walks from tensors of more elements given their gradient, and refuses to guess it', () =>
        leavesNothing(() => {
          using p = parameterOf([1, 2, 3, 4], [2, 2]);
          using y = mul(p, 2);
          expect(() => y.backward()).toThrow('backward() of a tensor of shape [2, 2] needs a gradient of that shape');
          using g = of([1, 10, 100, 1000], [2, 2]);
          using wrong = of([1, 2, 3, 4]);
          using half = cast(g, 'float16');
          expect(codeOf(() => y.backward(wrong))).toBe('ERR_SHAPE');
          expect(codeOf(() => y.backward(half as never))).toBe('ERR_DTYPE');
          expect(codeOf(() => y.backward(1 as never))).toBe('ERR_OPTION');
          expect(codeOf(() => y.backward(g, { retain: true } as never))).toBe('ERR_OPTION');
          expect(codeOf(() => y.backward(g, { retainGraph: 1 as never }))).toBe('ERR_OPTION');
          const gone = of([1, 2, 3, 4], [2, 2]);
          gone.dispose();
          expect(codeOf(() => y.backward(gone))).toBe('ERR_DISPOSED');
          expect(codeOf(() => g.backward())).toBe('ERR_AUTOGRAD');
          using turned = g.transpose(0, 1);
          y.backward(turned);
          expect(numbers(p.grad)).toEqual([2, 200, 20, 2000]);
          // The gradient that was given is still the user's, and no parameter shares it.
          p.backward(g);
          expect(numbers(g)).toEqual([1, 10, 100, 1000]);
          p.grad?.write([0, 0, 0, 0]);
          expect(numbers(g)).toEqual([1, 10, 100, 1000]);
        }));

      it('refuses to walk over what has been written since, and names who needs it', () => {
        const ways: readonly [string, (t: Tensor) => void][] = [
          ['write', (t) => t.write([5, 6, 7, 8])],
          ['copyInto', (t) => of([5, 6, 7, 8], [2, 2]).copyInto(t)],
          ['copyInto of a view', (t) => of([5, 6]).copyInto(t.select(0, 0))],
          [
            'accumulateInto',
            (t) => noGrad(() => matmul(of([1, 0, 0, 1], [2, 2]), of([1, 1, 1, 1], [2, 2]), { accumulateInto: t })),
          ],
        ];
        for (const [name, write] of ways) {
          using p = parameterOf([1, 2, 3, 4], [2, 2]);
          using x = of([1, 2, 3, 4], [2, 2]);
          using y = mul(p, x);
          using loss = sum(y);
          write(x);
          expect(() => loss.backward(), name).toThrow(
            'mul needs tensor 0 of those that it kept, [2, 2] float32, as it was; it has been written since',
          );
          expect(p.grad).toBeUndefined();
          using z = matmul(p, x);
          using other = sum(z);
          write(x);
          expect(() => other.backward(), name).toThrow('matmul needs tensor 0');
        }
        // What no gradient is read from may be written: here only x is needed.
        using p = parameterOf([1, 2]);
        using x = of([3, 4]);
        using y = mul(p, x);
        using loss = sum(y);
        p.write([9, 9]);
        y.write([0, 0]);
        loss.backward();
        expect(numbers(p.grad)).toEqual([3, 4]);
      });

      it('keeps what gradients are read from, when users dispose theirs', () =>
        leavesNothing(() => {
          using p = parameterOf([0.5, -1, 2, 0.25], [2, 2]);
          const x = of([1, 2, 3, 4], [2, 2]);
          const y = matmul(p, x);
          const z = tanh(y);
          const turned = z.transpose(0, 1);
          const w = mul(turned, x);
          using loss = sum(w);
          const wanted = (() => {
            loss.backward(undefined, { retainGraph: true });
            const got = numbers(p.grad);
            p.grad = undefined;
            return got;
          })();
          for (const t of [x, y, z, turned, w]) t.dispose();
          loss.backward();
          expect(numbers(p.grad)).toEqual(wanted);
        }));

      it('frees what nobody can walk to, without a pass', () =>
        leavesNothing(() => {
          using p = parameterOf([1, 2, 3]);
          let x = exp(p);
          for (let i = 0; i < 3000; i++) {
            const next = mul(x, x.size === 3 ? 0.999 : 1);
            x.dispose();
            x = next;
          }
          x.dispose();
          // A branch that the loss does not see.
          using y = exp(p);
          const unseen = mul(y, y);
          unseen.dispose();
          using loss = sum(y);
          loss.backward();
        }));

      it('walks deep graphs', () =>
        leavesNothing(() => {
          using p = parameterOf([1]);
          const all: Tensor[] = [];
          let x: Tensor = p;
          for (let i = 0; i < runs(4000); i++) {
            x = add(x, 1);
            all.push(x);
          }
          x.backward();
          expect(numbers(p.grad)).toEqual([1]);
          for (const t of all) t.dispose();
        }));

      it('records nothing within noGrad, nor through detach, comparisons and what is no number', () =>
        leavesNothing(() => {
          using p = parameterOf([1, 2]);
          noGrad(() => {
            using y = mul(p, 2);
            expect(y.requiresGrad).toBe(false);
            expect(codeOf(() => y.backward())).toBe('ERR_AUTOGRAD');
          });
          expect(codeOf(() => noGrad(async () => 1))).toBe('ERR_OPTION');
          expect(() =>
            noGrad(() => {
              throw new Error('of the user');
            }),
          ).toThrow('of the user');
          using cut = p.detach();
          using bool = fa.less(p, 2);
          using whole = cast(p, 'int32');
          expect([cut.requiresGrad, bool.requiresGrad, whole.requiresGrad]).toEqual([false, false, false]);
          expect(() => {
            (cut as Tensor).grad = undefined;
          }).toThrow('only a parameter has a gradient');
          using half = mul(cut, p);
          using loss = sum(half);
          loss.backward();
          expect(numbers(p.grad)).toEqual([1, 2]);
        }));

      it('gives parameters gradients of their own memory alone', () =>
        leavesNothing(() => {
          using a = parameterOf([1, 2]);
          using b = parameterOf([3]);
          using joined = concat([a, b]);
          using wide = joined.expand([500, 3]);
          using loss = sum(wide);
          loss.backward();
          expect([numbers(a.grad), numbers(b.grad)]).toEqual([[500, 500], [500]]);
          const before = memory(device).bytesInUse;
          b.grad = undefined;
          a.grad = undefined;
          expect(before - memory(device).bytesInUse).toBeLessThanOrEqual(256);
        }));

      it('takes a gradient only of the tensor`s kind, and one that was disposed for none', () =>
        leavesNothing(() => {
          using p = parameterOf([1, 2]);
          using three = of([1, 2, 3]);
          using ids = tensor([1, 2], [2], { dtype: 'int32', device });
          expect(
            codeOf(() => {
              p.grad = three as never;
            }),
          ).toBe('ERR_SHAPE');
          expect(
            codeOf(() => {
              p.grad = ids as never;
            }),
          ).toBe('ERR_DTYPE');
          expect(
            codeOf(() => {
              p.grad = 3 as never;
            }),
          ).toBe('ERR_OPTION');
          p.grad = of([10, 20]) as never;
          using y = mul(p, 3);
          using ones = of([1, 1]);
          y.backward(ones);
          expect(numbers(p.grad)).toEqual([13, 23]);
          (p.grad as Tensor | undefined)?.dispose();
          expect(p.grad).toBeUndefined();
          using z = mul(p, 3);
          z.backward(ones);
          expect(numbers(p.grad)).toEqual([3, 3]);
        }));

      it('refuses parameters of what was computed, and of whole numbers', () => {
        using p = parameterOf([1, 2]);
        using y = mul(p, 2);
        expect(() => parameter(y)).toThrow('t has been computed of parameters; detach() it first');
        expect(codeOf(() => parameter(zeros([1], { dtype: 'int32', device }) as never))).toBe('ERR_DTYPE');
        expect(codeOf(() => parameter(3 as never))).toBe('ERR_OPTION');
        using target = zeros([2, 2], { device });
        using square = parameterOf([1, 2, 3, 4], [2, 2]);
        expect(() => matmul(square, square, { accumulateInto: target })).toThrow(
          'accumulateInto cannot be differentiated',
        );
        expect(p.requiresGrad && y.requiresGrad).toBe(true);
      });

      it('sends gradients through casts and gathered rows', () => {
        const map = RowMap.fromLists([[0, 2], [2], []], 3);
        // Its lists stay on the device for as long as it lives.
        for (const each of [map, map.transposed()])
          scope(() => {
            gatherRows(zeros([1, each.sourceRows, 2], { device }), each);
          });
        leavesNothing(() => {
          using p = parameterOf([1, 2, 3, 4, 5, 6], [1, 3, 2]);
          using half = cast(p, 'float16');
          using rows = gatherRows(half as Tensor, map, { scale: 2 });
          using wide = cast(rows, 'float32');
          using weights = of([1, 10, 100, 1000, 7, 7], [1, 3, 2]);
          using weighed = mul(wide, weights);
          using loss = sum(weighed);
          loss.backward();
          expect(p.grad?.dtype).toBe('float32');
          expect(numbers(p.grad)).toEqual([2, 20, 0, 0, 202, 2020]);
        });
      });
    });

    describe.skipIf(!present)(title('scope'), () => {
      it('frees everything but what is returned, in whatever it is returned', () =>
        leavesNothing(() => {
          const kept = scope(() => {
            const t = of([1, 2]);
            exp(t);
            return {
              list: [mul(t, 2)],
              map: new Map([['a', add(t, 1)]]),
              set: new Set([exp(t)]),
              more: { n: 3, t: t.slice(0, 1, 2) },
            };
          });
          expect(numbers(kept.list[0])).toEqual([2, 4]);
          expect(numbers(kept.map.get('a'))).toEqual([2, 3]);
          expect(numbers(kept.more.t)).toEqual([2]);
          for (const t of [...kept.list, ...kept.map.values(), ...kept.set, kept.more.t]) t.dispose();
        }));

      it('frees everything when the function throws, also what was recorded', () =>
        leavesNothing(() => {
          using p = parameterOf([1, 2]);
          expect(() =>
            scope(() => {
              mul(exp(p), 3);
              throw new Error('of the user');
            }),
          ).toThrow('of the user');
          expect(codeOf(() => scope(async () => of([1])))).toBe('ERR_OPTION');
          expect(codeOf(() => scope(() => scope(() => add(of([1, 2]), of([1, 2, 3])))))).toBe('ERR_SHAPE');
        }));

      it('hands what an inner scope returns to the outer one', () =>
        leavesNothing(() => {
          const result = scope(() => {
            const inner = scope(() => [of([1]), of([2])] as const);
            return add(inner[0], inner[1]);
          });
          expect(numbers(result)).toEqual([3]);
          result.dispose();
        }));

      it('keeps the graph of what it returns, and nothing else of it', () =>
        leavesNothing(() => {
          using p = parameterOf([1, 2]);
          const loss = scope(() => {
            exp(exp(p));
            return scope(() => sum(mul(exp(p), p)));
          });
          loss.backward();
          const wanted = [1, 2].map((x) => Math.exp(x) * (1 + x));
          for (const [i, got] of (numbers(p.grad) ?? []).entries()) expect(got).toBeCloseTo(wanted[i] as number, 4);
          loss.dispose();
        }));

      it('adds up gradients of parts and of rows, overlapping ones too, in the memory of one sum', () =>
        leavesNothing(() => {
          const table = parameterOf([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [4, 3]);
          const ids = tensor([3, 0, 3], [3], { device, dtype: 'int32' });
          const weights = of([1, 2, 3], [3, 1]);
          const loss = scope(() =>
            [
              sum(mul(fa.embedding(table, ids), weights)), // 3: 1 + 3, 0: 2
              sum(mul(table.slice(0, 1, 3), 10)),
              sum(mul(table.slice(0, 2, 4).slice(1, 0, 2), 100)),
              sum(mul(table.transpose(0, 1).select(0, 2), 1000)),
              sum(mul(table.select(0, 1), 10_000)),
              sum(table),
            ].reduce((total, part) => add(total, part)),
          );
          loss.backward();
          expect(numbers(table.grad)).toEqual([3, 3, 1003, 10_011, 10_011, 11_011, 111, 111, 1011, 105, 105, 1005]);
          for (const t of [table, ids, weights, loss]) t.dispose();
        }));

      it('does not write to gradients that somebody has', () =>
        leavesNothing(() => {
          const p = parameterOf([1, 2, 3, 4]);
          const given = of([1, 1, 1, 1]);
          const twice = add(p, p); // both gradients are the one that is given
          twice.backward(given, { retainGraph: true });
          expect(numbers(p.grad)).toEqual([2, 2, 2, 2]);
          const held = p.grad as Tensor;
          const view = held.detach();
          scope(() => add(twice, concat([p.slice(0, 2, 4), p.slice(0, 0, 2)], 0)).backward(given));
          expect(numbers(p.grad)).toEqual([5, 5, 5, 5]);
          expect([numbers(given), numbers(view)]).toEqual([
            [1, 1, 1, 1],
            [2, 2, 2, 2],
          ]);
          for (const t of [p, given, twice, view]) t.dispose();
        }));

      it('leaves gradients of parameters alone', () =>
        leavesNothing(() => {
          using p = parameterOf([1, 2]);
          scope(() => sum(mul(p, p)).backward());
          expect(numbers(p.grad)).toEqual([2, 4]);
        }));

      it('makes 2,000 steps of training without a byte more', { timeout: 300_000 }, () =>
        leavesNothing(() => {
          using w = parameterOf([0.1, -0.2, 0.3, 0.1, 0.2, -0.1], [3, 2]);
          using b = parameterOf([0, 0]);
          const step = (i: number) =>
            scope(() => {
              const x = of([Math.sin(i), Math.cos(i), 1, Math.sin(2 * i), Math.cos(2 * i), 1], [2, 3]);
              const y = tanh(add(matmul(x, w), b));
              const loss = fa.mean(fa.square(fa.sub(y, x.slice(1, 0, 2))));
              loss.backward();
              noGrad(() => {
                for (const p of [w, b]) {
                  fa.sub(p, mul(p.grad as Tensor, 0.05)).copyInto(p);
                  p.grad = undefined;
                }
              });
              return loss.toFloat32Sync()[0] as number;
            });
          const first = step(0);
          const before = memory(device);
          let last = 0;
          for (let i = 1; i < runs(2000); i++) {
            last = step(i);
            if (i % 500 === 1) expect(memory(device).bytesInUse).toBe(before.bytesInUse);
          }
          expect(memory(device).tensors).toBe(before.tensors);
          if (runs(2000) > 1000) expect(last).toBeLessThan(first / 4);
        }),
      );
    });

    describe.skipIf(!present)(title('valueAndGrad and grad'), () => {
      it('give the value and the gradients of all inputs, and of parameters besides', () =>
        leavesNothing(() => {
          using w = parameterOf([2, 3]);
          using x = of([1, 2]);
          using ids = tensor([7], [1], { dtype: 'int32', device });
          using unused = of([5]);
          const f = valueAndGrad((a: Tensor, n: Tensor<'int32', fa.Shape>, _: Tensor) => {
            expect(n).toBe(ids);
            return sum(mul(mul(a, a), w));
          });
          const { value, grads } = f(x, ids, unused);
          expect(numbers(value)).toEqual([14]);
          expect(numbers(grads[0])).toEqual([4, 12]);
          expect([grads[1], grads[2]]).toEqual([undefined, undefined]);
          expect(numbers(w.grad)).toEqual([1, 4]);
          expect([value.requiresGrad, x.requiresGrad]).toEqual([false, false]);
          value.dispose();
          grads[0]?.dispose();
          const [own] = grad((a: Tensor) => a)(unused);
          expect(numbers(own)).toEqual([1]);
          own?.dispose();
        }));

      it('differentiate within noGrad, and of parameters without their own grad', () =>
        leavesNothing(() => {
          using p = parameterOf([3]);
          const [dp] = noGrad(() => grad((a: Tensor) => sum(mul(a, a)))(p));
          expect(numbers(dp)).toEqual([6]);
          expect(p.grad).toBeUndefined();
          dp?.dispose();
        }));

      it('leave nothing behind when something is wrong', () =>
        leavesNothing(() => {
          using x = of([1, 2]);
          expect(codeOf(() => grad((a: Tensor) => exp(a))(x))).toBe('ERR_SHAPE');
          expect(codeOf(() => grad((_: Tensor) => 3 as never)(x))).toBe('ERR_OPTION');
          expect(codeOf(() => grad((async (a: Tensor) => sum(a)) as never)(x))).toBe('ERR_OPTION');
          expect(codeOf(() => grad((a: Tensor, _: Tensor) => sum(a))(x, 3 as never))).toBe('ERR_OPTION');
          expect(codeOf(() => grad(3 as never))).toBe('ERR_OPTION');
          expect(() =>
            grad((a: Tensor): Tensor => {
              exp(a);
              throw new Error('of the user');
            })(x),
          ).toThrow('of the user');
          const gone = of([1]);
          gone.dispose();
          expect(codeOf(() => grad((a: Tensor, b: Tensor) => sum(add(a, b)))(x, gone))).toBe('ERR_DISPOSED');
        }));
    });
  },
);
