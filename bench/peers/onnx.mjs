// onnxruntime, for benchmarks to compare with once `npm run bench:peers` has installed it: `node onnx.mjs web` on its
// WebAssembly backend, `node onnx.mjs node` on native threads. serve.mjs says what it is asked.
import { serve, waves } from './serve.mjs';

const native = process.argv[2] === 'node';

const varint = (value) => {
  const bytes = [];
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return [...bytes, rest];
    bytes.push((rest % 128) + 128);
  }
};
/** Fields of protocol buffers: a number, and text, bytes or a message. */
const number = (field, value) => [...varint(field * 8), ...varint(value)];
const bytes = (field, value) => {
  const content = typeof value === 'string' ? [...new TextEncoder().encode(value)] : value;
  return [...varint(field * 8 + 2), ...varint(content.length), ...content];
};

const float32 = 1;
const integerAttribute = 2;

const valueInfo = (name, shape) => {
  const dims = shape.flatMap((size) => bytes(1, number(1, size)));
  return [...bytes(1, name), ...bytes(2, bytes(1, [...number(1, float32), ...bytes(2, dims)]))];
};

/** An ONNX model of one node: MultiHeadAttention on [B, N, H * D]. */
function modelOf([batch, length, heads, dim], keys, causal) {
  const operator = 'MultiHeadAttention';
  const domain = 'com.microsoft';
  const shapes = {
    query: [batch, length, heads * dim],
    key: [batch, keys, heads * dim],
    value: [batch, keys, heads * dim],
  };
  const attribute = (name, value) => [...bytes(1, name), ...number(3, value), ...number(20, integerAttribute)];
  const node = [
    ...Object.keys(shapes).flatMap((name) => bytes(1, name)),
    ...bytes(2, 'out'),
    ...bytes(4, operator),
    ...bytes(5, attribute('num_heads', heads)),
    ...(causal ? bytes(5, attribute('unidirectional', 1)) : []),
    ...bytes(7, domain),
  ];
  const graph = [
    ...bytes(1, node),
    ...bytes(2, 'graph'),
    ...Object.entries(shapes).flatMap(([name, shape]) => bytes(11, valueInfo(name, shape))),
    ...bytes(12, valueInfo('out', shapes.query)),
  ];
  const opset = (name, version) => bytes(8, [...(name ? bytes(1, name) : []), ...number(2, version)]);
  const model = Uint8Array.from([...number(1, 8), ...bytes(7, graph), ...opset('', 17), ...opset(domain, 1)]);
  return { model, shapes };
}

let ort;
const options = { executionProviders: ['wasm'] };

async function start(threads) {
  ort = await import(native ? 'onnxruntime-node' : 'onnxruntime-web');
  if (native) Object.assign(options, { executionProviders: ['cpu'], intraOpNumThreads: threads });
  else ort.env.wasm.numThreads = threads;
  return threads;
}

async function prepare([batch, queries, keys, heads, dim, causal]) {
  const { model, shapes } = modelOf([batch, queries, heads, dim], keys, causal);
  const session = await ort.InferenceSession.create(model, options);
  const feeds = Object.fromEntries(
    Object.entries(shapes).map(([name, dims]) => {
      const length = dims.reduce((a, b) => a * b);
      return [name, new ort.Tensor('float32', waves(length), dims)];
    }),
  );
  return async () => {
    const { out } = await session.run(feeds);
    return out.data;
  };
}

serve(start, prepare);
