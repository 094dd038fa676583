// jax-js on its WebAssembly backend, for benchmarks to compare with once `npm run bench:peers` has installed it: its
// dotProductAttention, compiled as a whole. Needs Node.js 24. serve.mjs says what it is asked.
import { loadJax } from './load.mjs';
import { serve, waves } from './serve.mjs';

let jax;

async function start() {
  const { threads, ...loaded } = await loadJax();
  ({ jax } = loaded);
  return threads;
}

function prepare([batch, queries, keys, heads, dim, causal]) {
  const { jit, nn, numpy } = jax;
  const input = (rows) => numpy.array(waves(batch * rows * heads * dim)).reshape([batch, rows, heads, dim]);
  const [q, k, v] = [input(queries), input(keys), input(keys)];
  const attend = jit((...tensors) => nn.dotProductAttention(...tensors, { isCausal: causal === 1 }));
  // A function takes possession of what it is given: .ref gives a share of it.
  return () => attend(q.ref, k.ref, v.ref).data();
}

serve(start, prepare);
