// Nearest neighbours: exact search beside a product of matrices of the same size, and inverted lists beside exact search.
//
//   npm run bench:knn -- [--device cpu|wasm] [--vectors 1000000] [--queries 256] [--rounds 3] [--json results.json]
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { add, cast, embedding, matmul, mul, noGrad, normal, scope, type Tensor, uniform } from 'flashattn';
import { knn, type Neighbours, VectorIndex } from 'flashattn/systems';
import { median } from '../lib/cli/statistics.js';
import { type Column, fixed, headsOf, lineOf, number, percent } from '../lib/cli/table.js';
import { describeProcessor, readProcessor } from './processor.js';

const { values: flags } = parseArgs({
  options: {
    device: { type: 'string', default: 'cpu' },
    vectors: { type: 'string', default: '1000000' },
    queries: { type: 'string', default: '256' },
    rounds: { type: 'string', default: '3' },
    json: { type: 'string' },
  },
});
const device = readProcessor(flags.device);
const [vectors, queries, rounds] = [Number(flags.vectors), Number(flags.queries), Number(flags.rounds)];
const [dim, clusters, count] = [128, 1000, 10];

/** Normal numbers around 1,000 centres that are as far apart as vectors of a cluster are, seeded. */
function mixture(rows: number, seed: number): Tensor {
  return scope(() => {
    const centres = normal([clusters, dim], { seed: 1, device });
    const chosen = cast(mul(uniform([rows], { seed, device }), clusters - 0.001), 'int32');
    return add(
      embedding(centres as Tensor, chosen as never),
      normal([rows, dim], { seed: seed + 1, device }),
    ) as Tensor;
  });
}

async function timed(f: () => { readonly ready: Tensor; readonly dispose: () => void }): Promise<number> {
  const start = performance.now();
  const { ready, dispose } = noGrad(f);
  await ready.ready();
  const time = performance.now() - start;
  dispose();
  return time;
}

const found = ({ values, indices }: Neighbours) => ({
  ready: values as Tensor,
  dispose: () => {
    values.dispose();
    indices.dispose();
  },
});

const machine = describeProcessor(device);
console.log(
  `${machine}; ${vectors} vectors of ${dim} dims in ${clusters} clusters, ${queries} queries, ${count} neighbours`,
);
using all = mixture(vectors, 10);
using asked = mixture(queries, 20);
const start = performance.now();
using index = VectorIndex.build(all, { lists: clusters, metric: 'euclidean' });
const buildMs = performance.now() - start;
console.log(`building ${clusters} lists: ${(buildMs / 1000).toFixed(1)} s`);

const exact = noGrad(() => knn(asked, all, { count, metric: 'euclidean' }));
const wanted = exact.indices.dataSync();
exact.values.dispose();
exact.indices.dispose();

/** Products of as many queries and vectors as exact search compares, some of the vectors at a time. */
const product = () => {
  const step = 8192;
  for (let first = 0; first + step < vectors; first += step)
    scope(() => {
      matmul(asked, all.slice(0, first, first + step).transpose(0, 1) as Tensor);
    });
  const last = matmul(asked, all.slice(0, Math.max(0, vectors - step), vectors).transpose(0, 1) as Tensor);
  return { ready: last, dispose: () => last.dispose() };
};

interface Row {
  readonly probes: number;
  readonly milliseconds: number;
  /** Times as fast as exact search. */
  readonly ratio: number;
  /** Which part of the true neighbours is found. */
  readonly recall: number;
}

const probes = [1, 2, 4, 8, 16, 32];
const times: { readonly product: number; readonly exact: number; readonly lists: readonly number[] }[] = [];
for (let round = -1; round < rounds; round++) {
  const one = {
    product: await timed(product),
    exact: await timed(() => found(knn(asked, all, { count, metric: 'euclidean' }))),
    lists: [] as number[],
  };
  for (const n of probes) one.lists.push(await timed(() => found(index.search(asked, { count, probes: n }))));
  if (round >= 0) times.push(one);
}

function recall(n: number): number {
  const { values, indices } = index.search(asked, { count, probes: n });
  const own = indices.dataSync();
  values.dispose();
  indices.dispose();
  let met = 0;
  for (let i = 0; i < queries; i++) {
    const of = new Set(own.subarray(count * i, count * (i + 1)));
    met += wanted.subarray(count * i, count * (i + 1)).filter((x) => of.has(x)).length;
  }
  return met / wanted.length;
}

const exactMs = median(times.map((t) => t.exact));
const exactOfProduct = median(times.map((t) => t.exact / t.product));
console.log(`exact: ${exactMs.toFixed(0)} ms, ${exactOfProduct.toFixed(2)} times what the products alone take`);
const rows: readonly Row[] = probes.map((n, i) => ({
  probes: n,
  milliseconds: median(times.map((t) => t.lists[i] as number)),
  ratio: median(times.map((t) => t.exact / (t.lists[i] as number))),
  recall: recall(n),
}));
const columns: readonly Column<Row>[] = [
  number('probes', 7, (r) => r.probes),
  number('ms', 8, (r) => r.milliseconds, fixed(1)),
  number('of exact', 9, (r) => r.ratio, fixed(1)),
  number('recall', 7, (r) => r.recall, percent(1)),
];
console.log(headsOf(columns));
for (const row of rows) console.log(lineOf(columns, row));
if (flags.json) {
  const results = { date: new Date().toISOString(), machine, rounds, vectors, queries, dim, clusters, count, buildMs };
  writeFileSync(flags.json, `${JSON.stringify({ ...results, exactMs, exactOfProduct, rows }, null, 2)}\n`);
}
