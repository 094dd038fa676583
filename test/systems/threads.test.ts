/** Systems that hash, route and select: what they choose, and every bit of what comes of it, is the same for any number of threads. */
import { describe, expect, it } from 'vitest';
import { runScript } from '../support/child.js';
import { hasCpu, onCpu } from '../support/cpu.js';

const systemsUrl = new URL('../../dist/systems.js', import.meta.url).href;

/** Prints a hash of the results and gradients of each system. Numbers are rounded, so that there are ties everywhere. */
const script = (device: string) => `
import * as systems from ${JSON.stringify(systemsUrl)};
import { createHash } from 'node:crypto';
const device = ${JSON.stringify(device)};
const { normal, uniform, scope, parameter, sum, mul, cast, div, sort, noGrad } = fa;
let seed = 0;
const seq = 256;
// Quarters: many products are equal.
const rounded = (shape) => {
  const values = normal(shape, { seed: ++seed, device });
  const quarters = values.toFloat32Sync().map((x) => Math.round(4 * x) / 4);
  values.dispose();
  return fa.tensor(quarters, shape, { device });
};
const plain = (shape) => normal(shape, { seed: ++seed, device });
// As many heads, as short queries and no window: attention itself adds up in parts that follow the number of threads where
// heads are few (the gradient of q), and where queries in a window fill more than one tile.
const count = 6;
const heads = [1, seq, count, 16];
const learned = (...shapes) => shapes.map((shape) => parameter(rounded(shape)));
const hashed = (tensors) => {
  const hash = createHash('sha256');
  for (const t of tensors) {
    const { buffer, byteOffset, byteLength } = t.dtype === 'int32' ? t.dataSync() : t.toFloat32Sync();
    hash.update(new Uint8Array(buffer, byteOffset, byteLength));
  }
  return hash.digest('hex').slice(0, 16);
};
const run = (name, inputs, f) => {
  const results = scope(() => [f(...inputs)].flat());
  const [out] = results;
  scope(() => { sum(mul(out, out)).backward(); });
  console.log(name, hashed([...results, ...inputs.map((t) => t.grad)]));
};
const qkv = () => learned(heads, heads, heads);

run('topk', qkv(), (q, k, v) => {
  const { out, lse } = systems.topKAttention(q, k, v, { keep: 9, causal: true });
  return [out, lse];
});
run('topk of all', qkv(), (q, k, v) => systems.topKAttention(q, k, v, { keep: 9, renormalize: false }).out);
run('adaptive span', [...learned([1, 16, count, 16], heads, heads), parameter(uniform([count], { seed: 3, device })), parameter(plain([16, 240]))],
  (q, k, v, span, keyPe) => systems.adaptiveSpanAttention(q, k, v, { span, ramp: 16, keyPe }).out);
run('nsa', qkv(), (q, k, v) => {
  const gate = uniform([1, seq, count], { seed: 9, device });
  const { out, blockIndices } = systems.nativeSparseAttention(q, k, v, {
    gates: { compressed: gate, selected: gate }, blockSize: 8, blockCount: 5, window: 0,
  });
  return [out, blockIndices];
});
for (const duplicates of ['count', 'share'])
  run('reformer ' + duplicates, learned(heads, heads), (qk, v) => {
    const rotations = systems.lshRotations({ heads: count, dim: 16, rounds: 2, numBuckets: 8, seed: 4, device });
    const { out, buckets } = systems.reformerAttention(qk, v, { numBuckets: 8, rotations, chunkLength: 16, causal: true, duplicates });
    return [out, buckets];
  });
run('routing', qkv(), (q, k, v) => {
  const { out } = systems.routingAttention(q, k, v, { means: normal([count, 8, 16], { seed: 5, device }), window: 40, causal: true });
  return out;
});
run('binary partition', learned([1, 2 * seq - 1, count, 16]), (x) => {
  const graph = systems.binaryPartition(seq);
  return systems.binaryPartitionAttention(x, x, x, { graph, relative: normal([graph.types, 16], { seed: 6, device }) });
});
run('sparsebert', [...qkv(), parameter(plain([count, seq, 2]))], (q, k, v, alphas) =>
  systems.sparseBertAttention(q, k, v, { keep: systems.differentiableAttentionMask(alphas) }));
run('unlimiformer', qkv(), (q, k, v) => {
  const { out, indices } = systems.unlimiformerAttention(q, k, v, { neighbours: 7 });
  return [out, indices];
});
noGrad(() => {
  const [queries, keys] = [rounded([50, 16]), rounded([1000, 16])];
  for (const metric of ['dot', 'euclidean']) {
    const { values, indices } = systems.knn(queries, keys, { count: 9, metric });
    console.log('knn', metric, hashed([values, indices]));
    const index = systems.VectorIndex.build(keys, { lists: 30, metric });
    index.add(rounded([100, 16]));
    const found = index.search(queries, { count: 9, probes: 4 });
    console.log('index', metric, hashed([found.values, found.indices]));
  }
  const means = systems.updateRoutingMeans(rounded(heads), plain([count, 8, 16]), { decay: 0.5 });
  console.log('means', hashed([means]));
});
`;

describe.each([
  { device: 'wasm', present: true, title: 'systems that select on wasm' },
  { device: 'cpu', present: hasCpu, title: onCpu('systems that select on cpu') },
])('$title', ({ device, present }) => {
  it.skipIf(!present)('give the same bits with one thread and with several', async () => {
    const runs = [];
    for (const threads of ['1', '2', '3']) runs.push(await runScript(script(device), { FLASHATTN_THREADS: threads }));
    const [one, ...others] = runs;
    expect(one?.stderr).toBe('');
    expect(one?.stdout.trim().split('\n')).toHaveLength(15);
    for (const other of others) expect(other).toEqual(one);
  });
});
