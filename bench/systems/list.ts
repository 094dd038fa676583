// What is measured: systems that mix the tokens of q, k and v, with the options of their authors where these say one.
import {
  alibiSlopes,
  attention,
  type DenseOptions,
  type DeviceName,
  type Mask,
  masks,
  neg,
  pad,
  patterns,
  type Tensor,
} from 'flashattn';
import {
  adaptiveSpanAttention,
  axialAttention,
  basedAttention,
  binaryPartition,
  binaryPartitionAttention,
  cosformerAttention,
  DynamicConv,
  dcmha,
  deltaRule,
  differentiableAttentionMask,
  efficientAttention,
  forgettingAttention,
  gatedDeltaRule,
  gatedRetention,
  gla,
  hgrnRecurrence,
  hybridGatedWindowLinear,
  hybridLocalLinear,
  infiniAttentionPaper,
  int8SmoothKAttention,
  int8SymmetricAttention,
  kernelAttention,
  LightweightConv,
  lightningAttention,
  linearAttention,
  linformerAttention,
  longnetAttention,
  longT5GlobalAttention,
  longT5GlobalTokens,
  longT5LocalAttention,
  lshRotations,
  MultiHeadLatentAttention,
  mamba2Ssd,
  mambaSelectiveScan,
  nativeSparseAttention,
  nystromformerAttention,
  orthogonalProjection,
  performerAttention,
  performerHyperbolicAttention,
  randomFeatureAttention,
  randomFrequencies,
  reformerAttention,
  retention,
  routingAttention,
  rwkv6Wkv,
  rwkv7Wkv,
  s4d,
  simpleGla,
  sparseBertAttention,
  swinAttention,
  TTTLinear,
  talkingHeadsAttention,
  ternaryAttention,
  topKAttention,
  transformerXLAttention,
  unlimiformerAttention,
  xposAttention,
  xposTables,
} from 'flashattn/systems';

/** [1, length, heads, dim] */
export type Rows = Tensor<'float32', readonly [number, number, number, number]>;
type Run = (q: Rows, k: Rows, v: Rows) => Tensor;

/** Tensors of random numbers, which live as long as the system is measured at this length. */
export interface Make {
  readonly device: DeviceName;
  readonly length: number;
  readonly heads: number;
  readonly dim: number;
  normal(...shape: number[]): Tensor<'float32'>;
  /** Between 0 and 1. */
  uniform(...shape: number[]): Tensor<'float32'>;
  /** Logarithms of decays, from -0.1 to 0. */
  logarithms(...shape: number[]): Tensor<'float32'>;
  keep<T extends Disposable>(t: T): T;
}

export interface System {
  readonly name: string;
  /** Of attention that it is held against. */
  readonly causal: boolean;
  /** Heads of keys and values. Default as many as queries have. */
  readonly kvHeads?: number;
  /** Of queries, where 8 are not what it is for. */
  readonly heads?: number;
  prepare(make: Make): Run;
}

const dense = (name: string, causal: boolean, options: DenseOptions): System => ({
  name,
  causal,
  prepare: () => (q, k, v) => attention(q, k, v, options).out,
});

const plain = (name: string, causal: boolean, run: Run): System => ({ name, causal, prepare: () => run });

/** A pattern that is made for a length. */
const pattern = (name: string, causal: boolean, maskOf: (length: number) => Mask): System => ({
  name,
  causal,
  prepare({ length }) {
    const mask = maskOf(length);
    return (q, k, v) => attention(q, k, v, { mask }).out;
  },
});

/** A layer of the width of all heads, over q with its heads joined. */
const layer = (
  name: string,
  causal: boolean,
  make: (options: { width: number; heads: number; device: DeviceName }) => Disposable & { forward(x: Tensor): Tensor },
): System => ({
  name,
  causal,
  prepare(given) {
    const { heads, dim, device } = given;
    const own = given.keep(make({ width: heads * dim, heads, device }));
    return (q) => own.forward(joined(q));
  },
});

/** [1, length, heads * dim] */
const joined = (t: Rows): Tensor => t.reshape([1, t.shape[1], t.shape[2] * t.shape[3]]) as Tensor;

/** [1, heads * dim, length] */
const channels = (t: Rows): Tensor => joined(t).transpose(1, 2).contiguous();

/** Attention within clusters, buckets or windows has so many keys for a query. */
const near = 256;

export const systems: readonly System[] = [
  dense('dense', false, {}),
  dense('dense-causal', true, { causal: true }),
  dense('sliding-window', true, { causal: true, window: [2 * near - 1, 0] }),
  dense('longformer', false, { mask: patterns.longformer({ window: 2 * near }) }),
  dense('streaming-llm', true, {
    mask: masks.and(masks.causal(), masks.or(masks.slidingWindow(2 * near, 0), masks.globalTokens(4))),
  }),
  pattern('bigbird', false, (length) => patterns.bigBird({ length, block: 64, numRandomBlocks: 3 })),
  pattern('longformer-dilated', true, () =>
    patterns.longformer({ window: near, dilation: [1, 1, 1, 1, 2, 2, 4, 4], autoregressive: true }),
  ),
  pattern('sqrtn', false, (length) => patterns.sqrtN({ length, strided: false })),
  pattern('sparse-transformer-fixed', true, (length) =>
    patterns.sparseTransformerFixed({ length, localAttnCtx: 128, numVerts: 1 }),
  ),
  pattern('sparse-transformer-strided', true, () => patterns.sparseTransformerPaperStrided({ stride: 128, heads: 8 })),
  pattern('deepspeed-fixed', false, (length) => patterns.deepspeedFixed({ length, block: 64 })),
  pattern('deepspeed-variable', false, (length) =>
    patterns.deepspeedVariable({ length, block: 64, numRandomBlocks: 1 }),
  ),
  plain('longnet', true, (q, k, v) => {
    const lengths = [1, 4, 16].map((ratio) => ({ ratio, length: Math.min(q.shape[1], 512 * ratio) }));
    const own = lengths.filter(({ length }, i) => i === 0 || length > (lengths[i - 1]?.length ?? 0));
    return longnetAttention(q, k, v, {
      segmentLengths: own.map(({ length }) => length),
      dilatedRatios: own.map(({ ratio }) => ratio),
      causal: true,
    }).out;
  }),
  {
    name: 'longt5-local',
    causal: false,
    prepare(make) {
      const biasTable = make.normal(32, make.heads);
      return (q, k, v) => longT5LocalAttention(q, k, v, { radius: near / 2, biasTable }).out;
    },
  },
  {
    name: 'longt5-tglobal',
    causal: false,
    prepare(make) {
      const biasTable = make.normal(32, make.heads);
      const blockSize = 16;
      return (q, k, v) => {
        const summary = (t: Rows) =>
          longT5GlobalTokens(t, { blockSize }).reshape([1, t.shape[1] / blockSize, t.shape[2], t.shape[3]]) as Rows;
        return longT5GlobalAttention(q, k, v, summary(k), summary(v), { radius: near / 2, blockSize, biasTable }).out;
      };
    },
  },
  plain('swin', false, (q, k, v) => {
    const map = (t: Rows) => t.reshape([1, t.shape[1] / 32, 32, t.shape[2], t.shape[3]]);
    return swinAttention(map(q) as never, map(k) as never, map(v) as never, { window: 8, shift: 4 }).out as Tensor;
  }),
  plain('axial', false, (q, k, v) => {
    const side = 2 ** Math.ceil(Math.log2(q.shape[1]) / 2);
    const map = (t: Rows) => t.reshape([1, t.shape[1] / side, side, t.shape[2], t.shape[3]]);
    return axialAttention(map(q) as never, map(k) as never, map(v) as never, { axes: [0] }).out as Tensor;
  }),
  {
    name: 'adaptive-span',
    causal: true,
    prepare(make) {
      const longest = 2 * near;
      const span = make.uniform(make.heads);
      const before = [[0, 0], [longest, 0], [0, 0], [0, 0]] as const; // biome-ignore format: a pair an axis
      return (q, k, v) => {
        const [keys, values] = [pad(k, before), pad(v, before)] as Tensor[] as Rows[];
        return adaptiveSpanAttention(q, keys as Rows, values as Rows, { span, ramp: 32 }).out;
      };
    },
  },
  {
    name: 'bpt',
    causal: false,
    prepare(make) {
      // Half as many leaves, which have as many spans above them.
      const graph = binaryPartition(make.length / 2, { step: 2 });
      const relative = make.normal(graph.types, make.dim);
      return (q, k, v) => {
        const nodes = (t: Rows) => t.slice(1, 0, graph.nodes) as Rows;
        return binaryPartitionAttention(nodes(q), nodes(k), nodes(v), { graph, relative });
      };
    },
  },
  plain('topk', true, (q, k, v) => topKAttention(q, k, v, { keep: 32, causal: true }).out),
  plain('unlimiformer', false, (q, k, v) => unlimiformerAttention(q, k, v, { neighbours: 16 }).out),
  {
    name: 'sparsebert',
    causal: false,
    prepare(make) {
      const alphas = make.normal(make.heads, make.length, 2);
      return (q, k, v) => sparseBertAttention(q, k, v, { keep: differentiableAttentionMask(alphas) });
    },
  },
  {
    name: 'nsa',
    causal: true,
    heads: 16,
    kvHeads: 1,
    prepare(make) {
      const [compressed, selected, sliding] = [1, 2, 3].map(() => make.uniform(1, make.length, make.heads));
      const gates = { compressed, selected, sliding } as Record<'compressed' | 'selected' | 'sliding', Tensor>;
      return (q, k, v) => nativeSparseAttention(q, k, v, { gates, blockSize: 64, blockCount: 16, window: 512 }).out;
    },
  },
  {
    name: 'reformer',
    causal: true,
    prepare(make) {
      const { device, length, heads, dim } = make;
      const numBuckets = 2 * Math.ceil(length / 128);
      const rotations = make.keep(lshRotations({ heads, dim, rounds: 2, numBuckets, seed: 3, device }));
      const options = { numBuckets, rotations, chunkLength: 64, causal: true };
      return (q, _, v) => reformerAttention(q, v, options).out;
    },
  },
  {
    name: 'routing-transformer',
    causal: true,
    prepare(make) {
      const means = make.normal(make.heads, Math.ceil(make.length / near), make.dim);
      return (q, k, v) => routingAttention(q, k, v, { means, window: near, causal: true }).out;
    },
  },
  {
    name: 'linformer',
    causal: false,
    prepare(make) {
      const keyProjection = make.normal(make.length, near);
      return (q, k, v) => linformerAttention(q, k, v, { keyProjection });
    },
  },
  plain('nystromformer', false, (q, k, v) => nystromformerAttention(q, k, v, { landmarks: 64 })),
  plain('linear-attention', true, (q, k, v) => linearAttention(q, k, v, { causal: true })),
  {
    name: 'performer',
    causal: true,
    prepare(make) {
      const { device, dim } = make;
      const projection = make.keep(orthogonalProjection({ features: 2 * dim, dim, seed: 4, device }));
      return (q, k, v) => performerAttention(q, k, v, { projection, causal: true });
    },
  },
  {
    name: 'performer-hyperbolic',
    causal: true,
    prepare(make) {
      const { device, dim } = make;
      const omega = make.keep(randomFrequencies({ dim, count: dim, kernel: 'gaussian', seed: 4, device }));
      return (q, k, v) => performerHyperbolicAttention(q, k, v, { omega, causal: true });
    },
  },
  {
    name: 'rfa',
    causal: true,
    prepare(make) {
      const { device, dim } = make;
      const omega = make.keep(randomFrequencies({ dim, count: dim, kernel: 'gaussian', seed: 4, device }));
      return (q, k, v) => randomFeatureAttention(q, k, v, { omega, causal: true });
    },
  },
  plain('cosformer', false, (q, k, v) => cosformerAttention(q, k, v)),
  plain('efficient-attention', false, (q, k, v) => efficientAttention(q, k, v)),
  // With 16 dims of queries and keys, as its authors have it: their features are 1 + 16 + 16 * 16.
  plain('based', true, (q, k, v) => basedAttention(q.slice(3, 0, 15), k.slice(3, 0, 15), v)),
  plain('retention', true, (q, k, v) => retention(q, k, v).out),
  {
    name: 'lightning',
    causal: true,
    prepare(make) {
      const slopes = make.uniform(make.heads);
      return (q, k, v) => lightningAttention(q, k, v, { slopes }).out;
    },
  },
  {
    name: 'gated-retention',
    causal: true,
    prepare(make) {
      const logGates = make.logarithms(1, make.length, make.heads);
      return (q, k, v) => gatedRetention(q, k, v, { logGates }).out;
    },
  },
  {
    name: 'simple-gla',
    causal: true,
    prepare(make) {
      const g = make.logarithms(1, make.length, make.heads);
      return (q, k, v) => simpleGla(q, k, v, { g }).out;
    },
  },
  {
    name: 'gla',
    causal: true,
    prepare(make) {
      const gk = make.logarithms(1, make.length, make.heads, make.dim);
      return (q, k, v) => gla(q, k, v, { gk }).out;
    },
  },
  {
    name: 'gated-deltanet',
    causal: true,
    prepare(make) {
      const g = make.logarithms(1, make.length, make.heads);
      const beta = make.uniform(1, make.length, make.heads);
      return (q, k, v) => gatedDeltaRule(q, k, v, { g, beta }).out;
    },
  },
  {
    name: 'delta-rule',
    causal: true,
    prepare(make) {
      const beta = make.uniform(1, make.length, make.heads);
      return (q, k, v) => deltaRule(q, k, v, { beta }).out;
    },
  },
  {
    name: 'rwkv6',
    causal: true,
    prepare(make) {
      const { length, heads, dim } = make;
      const options = { w: make.logarithms(1, length, heads, dim), u: make.normal(heads, dim) };
      return (q, k, v) => rwkv6Wkv(q, k, v, options).out;
    },
  },
  {
    name: 'rwkv7',
    causal: true,
    prepare(make) {
      const { length, heads, dim } = make;
      const a = make.logarithms(1, length, heads, dim);
      const options = { w: make.logarithms(1, length, heads, dim), a, b: make.keep(neg(a) as Tensor<'float32'>) };
      return (q, k, v) => rwkv7Wkv(q, k, v, options).out;
    },
  },
  {
    name: 'hgrn',
    causal: true,
    prepare(make) {
      const g = make.logarithms(1, make.length, make.heads * make.dim);
      return (q) => hgrnRecurrence(joined(q) as Tensor<'float32'>, g).out as Tensor;
    },
  },
  {
    name: 'mamba',
    causal: true,
    prepare(make) {
      const { length, heads, dim } = make;
      const [states, width] = [16, heads * dim];
      const [b, c] = [make.normal(1, states, length), make.normal(1, states, length)];
      const [a, delta] = [make.logarithms(width, states), make.uniform(1, width, length)];
      return (q) => mambaSelectiveScan(channels(q) as Tensor<'float32'>, delta, a, b, c).out as Tensor;
    },
  },
  {
    name: 'mamba2',
    causal: true,
    prepare(make) {
      const [b, c] = [1, 2].map(() => make.normal(1, make.length, 1, make.dim)) as [Rows, Rows];
      const a = make.logarithms(1, make.length, make.heads);
      return (q) => mamba2Ssd(q, a, b, c).out as Tensor;
    },
  },
  {
    name: 's4d',
    causal: true,
    prepare(make) {
      const width = make.heads * make.dim;
      const pairs = 32;
      const parameters = {
        logDt: make.logarithms(width),
        logAReal: make.logarithms(width, pairs),
        AImag: make.normal(width, pairs),
        C: make.normal(width, pairs, 2),
        D: make.normal(width),
      };
      return (q) => s4d(channels(q) as Tensor<'float32'>, parameters).out as Tensor;
    },
  },
  layer('ttt-linear', true, (options) => new TTTLinear(options)),
  {
    name: 'infini-attention-paper',
    causal: true,
    prepare(make) {
      const gate = make.normal(make.heads);
      return (q, k, v) => infiniAttentionPaper(q, k, v, { gate, segment: 2 * near }).out;
    },
  },
  plain('hybrid-local-linear', true, (q, k, v) =>
    hybridLocalLinear(q, k, v, { localHeads: 2, window: near, causal: true }),
  ),
  {
    name: 'hybrid-gated',
    causal: true,
    prepare(make) {
      const gate = make.normal(make.heads);
      return (q, k, v) => hybridGatedWindowLinear(q, k, v, { gate, window: near });
    },
  },
  {
    name: 'transformer-xl',
    causal: true,
    prepare(make) {
      const { length, heads, dim } = make;
      const r = make.normal(length, heads, dim);
      const [contentBias, distanceBias] = [1, 2].map(() => make.normal(heads, dim)) as [Tensor, Tensor];
      return (q, k, v) => transformerXLAttention(q, k, v, r, { contentBias, distanceBias }) as Tensor;
    },
  },
  layer('mla', true, (options) => {
    const dim = options.width / options.heads;
    return new MultiHeadLatentAttention({ ...options, nopeDim: dim, ropeDim: dim / 2, valueDim: dim, kvRank: 4 * dim });
  }),
  {
    name: 'xpos',
    causal: true,
    prepare(make) {
      const { length, dim, device } = make;
      const tables = xposTables({ length, dim, device });
      for (const { cos, sin } of [tables.queries, tables.keys]) for (const t of [cos, sin]) make.keep(t);
      return (q, k, v) => xposAttention(q, k, v, { tables }).out as Tensor;
    },
  },
  {
    name: 'alibi',
    causal: true,
    prepare({ heads }) {
      const alibi = alibiSlopes(heads);
      return (q, k, v) => attention(q, k, v, { alibi, causal: true }).out;
    },
  },
  plain('int8-symmetric', false, (q, k, v) => int8SymmetricAttention(q, k, v) as Tensor),
  plain('sage-attention', false, (q, k, v) => int8SmoothKAttention(q, k, v).out as Tensor),
  plain('ternary', false, (q, k, v) => ternaryAttention(q, k, v) as Tensor),
  layer('lightweight-conv', true, (options) => new LightweightConv({ ...options, kernelSize: 31, causal: true })),
  layer('dynamic-conv', true, (options) => new DynamicConv({ ...options, kernelSize: 31, causal: true })),
  {
    name: 'forgetting-attention',
    causal: true,
    prepare(make) {
      const g = make.logarithms(1, make.length, make.heads);
      return (q, k, v) => forgettingAttention(q, k, v, g);
    },
  },
  plain('kernel-attention', false, (q, k, v) => kernelAttention(q, k, v, { sigma: 8 })),
  ...[false, true].map(
    (causal): System => ({
      name: causal ? 'causal-talking-heads' : 'talking-heads',
      causal,
      prepare(make) {
        const logitsProjection = make.normal(make.heads, make.heads);
        const weightsProjection = make.normal(make.heads, make.heads);
        return (q, k, v) => talkingHeadsAttention(q, k, v, { logitsProjection, weightsProjection, causal });
      },
    }),
  ),
  {
    name: 'dcmha',
    causal: true,
    prepare(make) {
      const { length, heads } = make;
      const [width, hidden, rank] = [heads * 16, 32, 2];
      const x = make.normal(1, length, width);
      const weights = {
        dw1: make.logarithms(width, 4, hidden),
        qkw: make.logarithms(4, hidden, 2 * rank, heads),
        dd: make.logarithms(width, 4 * heads),
      };
      return (q, k, v) => dcmha(q, k, v, x, weights);
    },
  },
];
