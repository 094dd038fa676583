// Attention of onnxruntime, for benchmarks to compare with once `npm run bench:peers` has installed it: `node onnx.mjs web`
// on its WebAssembly backend, `node onnx.mjs node` on native threads. A process of its own that answers messages:
//
//   { threads }                                                      before all others
//   { problem: [batch, queries, keys, heads, dim, causal], runs }    -> { milliseconds, out }
//
// milliseconds is the mean of the runs; out, the first number of the result, shows that both compute the same: element i
// of every input is sin(i), in float32.
const native = process.argv[2] === 'node';
const ort = await import(native ? 'onnxruntime-node' : 'onnxruntime-web');

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

const sessions = new Map();

const options = { executionProviders: ['wasm'] };

async function sessionOf([batch, queries, keys, heads, dim, causal]) {
  const { model, shapes } = modelOf([batch, queries, heads, dim], keys, causal);
  const session = await ort.InferenceSession.create(model, options);
  const feeds = Object.fromEntries(
    Object.entries(shapes).map(([name, dims]) => {
      const length = dims.reduce((a, b) => a * b);
      return [
        name,
        new ort.Tensor(
          'float32',
          Float32Array.from({ length }, (_, i) => Math.sin(i)),
          dims,
        ),
      ];
    }),
  );
  const run = () => session.run(feeds);
  for (let i = 0; i < 4; i++) await run();
  return run;
}

process.on('message', async ({ threads, problem, runs }) => {
  if (threads) {
    if (native) Object.assign(options, { executionProviders: ['cpu'], intraOpNumThreads: threads });
    else ort.env.wasm.numThreads = threads;
    return;
  }
  const name = String(problem);
  if (!sessions.has(name)) sessions.set(name, await sessionOf(problem));
  const run = sessions.get(name);
  const start = performance.now();
  for (let i = 1; i < runs; i++) await run();
  const { out } = await run();
  process.send({ milliseconds: (performance.now() - start) / runs, out: out.data[0] });
});
process.on('disconnect', () => process.exit());
