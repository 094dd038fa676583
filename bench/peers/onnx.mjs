// Attention of onnxruntime-web on its WebAssembly backend: what `npm run bench:small` compares with.
//
//   npm run bench:peers                  installs it
//   node bench/peers/onnx.mjs --shapes "1,32,8,32;1,128,8,64" [--kv 1,4096,8,128] [--threads 1] [--rounds 9] [--json]
//
// Shapes are B,N,H,D of float32 tensors; --kv gives the keys and values another length. Prints one line for each shape,
// or with --json [{ name, shape, milliseconds, out }]: the median time of a run, with the first number of the result.
import { parseArgs } from 'node:util';
import * as ort from 'onnxruntime-web';

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
function modelOf([batch, length, heads, dim], keys) {
  const operator = 'MultiHeadAttention';
  const domain = 'com.microsoft';
  const shapes = {
    query: [batch, length, heads * dim],
    key: [batch, keys, heads * dim],
    value: [batch, keys, heads * dim],
  };
  const attribute = [...bytes(1, 'num_heads'), ...number(3, heads), ...number(20, integerAttribute)];
  const node = [
    ...Object.keys(shapes).flatMap((name) => bytes(1, name)),
    ...bytes(2, 'out'),
    ...bytes(4, operator),
    ...bytes(5, attribute),
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

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/** As many runs as take about 20 ms make a sample. */
async function measure(shape, keys, rounds) {
  const { model, shapes } = modelOf(shape, keys);
  const session = await ort.InferenceSession.create(model, { executionProviders: ['wasm'] });
  const feeds = Object.fromEntries(
    Object.entries(shapes).map(([name, dims]) => {
      const size = dims.reduce((a, b) => a * b);
      return [
        name,
        new ort.Tensor(
          'float32',
          Float32Array.from({ length: size }, (_, i) => Math.sin(i)),
          dims,
        ),
      ];
    }),
  );
  const sample = async (runs) => {
    const start = performance.now();
    for (let i = 0; i < runs; i++) await session.run(feeds);
    return (performance.now() - start) / runs;
  };
  for (let i = 0; i < 3; i++) await sample(1);
  const runs = Math.max(1, Math.ceil(20 / (await sample(3))));
  const samples = [];
  for (let round = 0; round < rounds; round++) samples.push(await sample(runs));
  const { out } = await session.run(feeds);
  await session.release();
  return { milliseconds: median(samples), out: out.data[0] };
}

const { values: flags } = parseArgs({
  options: {
    shapes: { type: 'string', default: '1,32,8,32' },
    kv: { type: 'string' },
    threads: { type: 'string', default: '1' },
    rounds: { type: 'string', default: '9' },
    json: { type: 'boolean', default: false },
  },
});
ort.env.wasm.numThreads = Number(flags.threads);
const results = [];
for (const text of flags.shapes.split(';')) {
  const shape = text.split(',').map(Number);
  if (shape.length !== 4 || !shape.every((size) => Number.isInteger(size) && size > 0))
    throw new Error(`--shapes has '${text}'; a shape is B,N,H,D`);
  const keys = flags.kv === undefined ? shape[1] : Number(flags.kv.split(',')[1]);
  const { milliseconds, out } = await measure(shape, keys, Number(flags.rounds));
  results.push({ name: `onnxruntime-web ${text}`, shape, milliseconds, out });
  if (!flags.json) console.log(`${text}  ${milliseconds.toFixed(4)} ms`);
}
if (flags.json) console.log(JSON.stringify(results));
