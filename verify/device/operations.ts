/** Plans, merging, gathering and transfers. */
import {
  type AttentionOptions,
  type DeviceName,
  type FloatDType,
  gatherRows,
  memory,
  plan,
  RowMap,
  type Tensor,
  tensor,
} from 'flashattn';
import { type Case, instantiate, roundTo } from '../cases/case.js';
import { LibraryProblem, lseShape, optionsOf, shapeOf } from '../cases/library.js';
import type { CaseDType } from '../cases/views.js';
import { make } from '../cases/views.js';
import { OUTPUT_TOLERANCE } from '../oracle/compare.js';
import { round, ulp } from '../oracle/float16.js';
import { normal, uniform } from '../oracle/random.js';
import { type Check, ensure } from './check.js';
import { DTYPES } from './grid.js';
import { FORMS, mergeCheck } from './merging.js';
import { ensureClose, owning } from './tensors.js';

const PLANNED: Readonly<Record<string, Omit<Case, 'dtype'>>> = {
  'every term': {
    seed: 3,
    layout: 'bshd',
    batch: 2,
    kvHeads: 2,
    group: 2,
    queryLength: 35,
    keyLength: 70,
    headDim: 33,
    valueDim: 20,
    causal: true,
    softcap: 2,
    bias: [false, false, true, false],
    alibi: 'heads',
    relative: 'positions',
    sink: true,
    dropout: { p: 0.3, seed: 7 },
    dLse: true,
  },
  packed: { seed: 4, layout: 'varlen', group: 2, qLens: [4, 0, 33, 2], kLens: [5, 3, 40, 4], headDim: 64, dLse: true },
};

const planned = (name: string, problem: Omit<Case, 'dtype'>, dtype: FloatDType): Check => ({
  name: `a plan, ${name}, ${dtype}: run and replayed, bit-equal to attention, and allocates nothing`,
  run(device) {
    const c: Case = { ...problem, dtype, deterministic: true };
    const instances = [instantiate(c), instantiate({ ...c, seed: c.seed + 100 })];
    const [first] = instances;
    if (!first) return;
    owning((own) => {
      const p = first.problem;
      const options: AttentionOptions = { ...optionsOf(p, dtype, own, device), deterministic: true };
      const shapes = { q: shapeOf(p, 'query'), k: shapeOf(p, 'key'), v: shapeOf(p, 'value') };
      const made = plan<FloatDType>({ ...shapes, dtype, device, backward: true, ...options });
      try {
        // Other inputs in between, so that nothing is left of an earlier run.
        for (const {
          problem: { query, key, value },
          dOut,
          dLse,
        } of [...instances, ...instances]) {
          const q = own(make(query, shapes.q, dtype, device));
          const k = own(make(key, shapes.k, dtype, device));
          const v = own(make(value, shapes.v, dtype, device));
          const g = own(make(dOut, shapeOf(p, 'out'), dtype, device));
          const gLse = dLse && (own(make(dLse, lseShape(p), 'float32', device)) as Tensor<'float32'>);
          const before = memory(device);
          const results = { ...made.run(q, k, v), ...made.runBackward(g, gLse) };
          const after = memory(device);
          ensure(
            after.bytesInUse === before.bytesInUse && after.tensors === before.tensors,
            'the plan allocated memory',
          );
          const named: Readonly<Record<string, Tensor | undefined>> = {
            out: results.out,
            lse: results.lse,
            dQuery: results.dq,
            dKey: results.dk,
            dValue: results.dv,
            dBias: results.dBias,
            dRelativeBias: results.dRelativeBias,
            dSink: results.dSink,
          };
          // The terms are those of the first instance.
          const terms = { ...p, query, key, value };
          const expected = new LibraryProblem({ problem: terms, dOut, dLse }, { dtype, device, deterministic: true });
          try {
            const same = expected.results((t) => t.dataSync());
            const compare = (when: string) => {
              for (const [tensorName, data] of Object.entries(same)) {
                const found = named[tensorName]?.dataSync();
                ensure(
                  found !== undefined && data.every((x, n) => Object.is(x, found[n])),
                  `${tensorName} differs ${when}`,
                );
              }
            };
            compare('after run');
            const captured = made.capture(q, k, v, g, gLse);
            try {
              for (const t of Object.values(named)) t?.write(new Array(t.size).fill(Number.NaN));
              captured.replay();
              compare('after replay');
            } finally {
              captured.dispose();
            }
          } finally {
            expected.dispose();
          }
        }
      } finally {
        made.dispose();
      }
    });
  },
});

/** Lists of several rows, of one, and of none. */
function randomLists(rows: number, sourceRows: number): number[][] {
  const next = uniform(rows);
  return Array.from({ length: rows }, (_, row) =>
    Array.from({ length: row % 4 }, () => Math.floor(next() * sourceRows)),
  );
}

const gathered = (dtype: CaseDType, width: number): Check => ({
  name: `gathering rows of ${width}, ${dtype}`,
  run: (device) =>
    owning((own) => {
      const [entries, sourceRows, rows, scale] = [2, 23, 41, 0.75];
      const source = roundTo(normal(entries * sourceRows * width, width), dtype);
      const lists = randomLists(rows, sourceRows);
      const whole = own(make(source, [entries, sourceRows, width], dtype, device));
      const result = own(gatherRows(whole, RowMap.fromLists(lists, sourceRows), { scale }));
      const exact = new Float64Array(entries * rows * width);
      for (let b = 0; b < entries; b++)
        for (const [row, list] of lists.entries())
          for (let d = 0; d < width; d++) {
            const at = (b * rows + row) * width + d;
            exact[at] = scale * list.reduce((sum, r) => sum + (source[(b * sourceRows + r) * width + d] ?? NaN), 0);
          }
      const nearest = dtype === 'float32' ? exact : exact.map((x) => round(x, dtype));
      ensureClose('result', result, nearest, dtype === 'float32' ? OUTPUT_TOLERANCE : ulp(1, dtype));
    }),
});

const transfers = (device: DeviceName): void =>
  owning((own) => {
    const values = Float32Array.from(normal(7 * 11 * 13, 5));
    const t = own(tensor(values, [7, 11, 13], { device }));
    const view = own(own(t.slice(1, 2, 9)).transpose(0, 1));
    ensure(
      t.dataSync().every((x, n) => x === values[n]),
      'a tensor does not read back as it was written',
    );
    const found = view.dataSync();
    for (let n = 0; n < found.length; n++) {
      const [i, j, d] = [Math.floor(n / (7 * 13)), Math.floor(n / 13) % 7, n % 13];
      ensure(found[n] === values[(j * 11 + i + 2) * 13 + d], `element ${n} of a view is another`);
    }
    t.write(values.map((x) => -x));
    ensure(
      t.dataSync().every((x, n) => x === -(values[n] ?? NaN)),
      'a tensor does not read back as it was overwritten',
    );
  });

export const operationChecks = (): Check[] => [
  { name: 'tensors and views read back', run: transfers },
  ...DTYPES.flatMap((dtype) => Object.entries(PLANNED).map(([name, problem]) => planned(name, problem, dtype))),
  ...DTYPES.flatMap((dtype) => FORMS.flatMap((form) => [1, 2, 17].map((parts) => mergeCheck(form, parts, dtype)))),
  ...DTYPES.flatMap((dtype) => [1, 7, 64, 200].map((width) => gathered(dtype, width))),
];
