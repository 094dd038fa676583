// The libraries that have a WebAssembly backend, loaded so that they run on it.

/** jax-js, and on how many threads it runs. */
export async function loadJax() {
  const jax = await import('@jax-js/jax');
  const ready = await jax.init('wasm');
  if (!ready.includes('wasm')) throw new Error('its WebAssembly backend does not start');
  jax.defaultDevice('wasm');
  // Its threads are Workers as browsers have them, of which Node.js has none; where it finds some, it takes every core.
  return { jax, threads: typeof Worker === 'undefined' ? 1 : navigator.hardwareConcurrency };
}

/** TensorFlow.js, and on how many of `wanted` threads it runs. */
export async function loadTensorFlow(wanted) {
  const { default: tf } = await import('@tensorflow/tfjs');
  const { setThreadsCount, getThreadsCount } = await import('@tensorflow/tfjs-backend-wasm');
  setThreadsCount(wanted);
  if (!(await tf.setBackend('wasm'))) throw new Error('its WebAssembly backend does not start');
  // In Node.js it takes its build without threads, whatever it is told.
  return { tf, threads: (await tf.env().getAsync('WASM_HAS_MULTITHREAD_SUPPORT')) ? getThreadsCount() : 1 };
}

/** [queries, keys]: 0 where a query sees the key and -Infinity elsewhere; TensorFlow.js has no mask of its own. */
export function causalMask(tf, queries, keys) {
  const seen = tf.linalg.bandPart(tf.ones([queries, keys]), -1, 0).cast('bool');
  return tf.where(seen, tf.scalar(0), tf.scalar(-Infinity));
}
