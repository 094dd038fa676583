// TensorFlow.js on its WebAssembly backend, with SIMD, for benchmarks to compare with once `npm run bench:peers` has
// installed it. serve.mjs says what it is asked.
import { causalMask, loadTensorFlow } from './load.mjs';
import { serve, waves } from './serve.mjs';

let tf;

async function start(wanted) {
  const { threads, ...loaded } = await loadTensorFlow(wanted);
  ({ tf } = loaded);
  return threads;
}

/** On [B, H, N, D]. */
function allHeads(q, k, v, mask) {
  const [queries, keys, values] = [q, k, v].map((x) => x.transpose([0, 2, 1, 3]));
  const scores = tf.matMul(queries, keys, false, true);
  return tf.matMul(tf.softmax(mask ? scores.add(mask) : scores), values).transpose([0, 2, 1, 3]);
}

/** Head by head, since only products of two plain matrices, neither to be transposed, run on its fast kernels. */
function headByHead(q, k, v, mask) {
  const [batch, queryLength, heads, dim] = q.shape;
  const keyLength = k.shape[1];
  const matrices = (x, order, shape) => tf.unstack(x.transpose(order).reshape([batch * heads, ...shape]));
  const queries = matrices(q, [0, 2, 1, 3], [queryLength, dim]);
  const keys = matrices(k, [0, 2, 3, 1], [dim, keyLength]);
  const values = matrices(v, [0, 2, 1, 3], [keyLength, dim]);
  const out = queries.map((query, i) => {
    const scores = tf.matMul(query, keys[i]);
    return tf.matMul(tf.softmax(mask ? scores.add(mask) : scores), values[i]);
  });
  return tf.stack(out).reshape([batch, heads, queryLength, dim]).transpose([0, 2, 1, 3]);
}

/** From so many queries on head by head is faster: before, packing the keys costs more than it saves. */
const queriesToSplit = 64;

function prepare([batch, queries, keys, heads, dim, causal]) {
  const input = (rows) => tf.tensor(waves(batch * rows * heads * dim), [batch, rows, heads, dim]);
  const [q, k, v] = [input(queries), input(keys), input(keys)];
  const mask = causal ? tf.tidy(() => causalMask(tf, queries, keys)) : undefined;
  const attend = queries < queriesToSplit ? allHeads : headByHead;
  const scale = 1 / Math.sqrt(dim);
  return async () => {
    const out = tf.tidy(() => attend(q.mul(scale), k, v, mask));
    const data = await out.data();
    out.dispose();
    return data;
  };
}

serve(start, prepare);
