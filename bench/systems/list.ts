// What is measured: systems that mix the tokens of q, k and v, with the options of their authors where these say one.
import { attention, type DenseOptions, type DeviceName, masks, patterns, type Tensor } from 'flashattn';
import {
  basedAttention,
  cosformerAttention,
  dcmha,
  efficientAttention,
  forgettingAttention,
  gatedDeltaRule,
  gla,
  kernelAttention,
  linearAttention,
  linformerAttention,
  lshRotations,
  nativeSparseAttention,
  nystromformerAttention,
  orthogonalProjection,
  performerAttention,
  reformerAttention,
  retention,
  routingAttention,
  talkingHeadsAttention,
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
  keep<T extends Tensor>(t: T): T;
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

/** Attention within clusters, buckets or windows has so many keys for a query. */
const near = 256;

export const systems: readonly System[] = [
  dense('sliding-window', true, { causal: true, window: [2 * near - 1, 0] }),
  dense('longformer', false, { mask: patterns.longformer({ window: 2 * near }) }),
  dense('streaming-llm', true, {
    mask: masks.and(masks.causal(), masks.or(masks.slidingWindow(2 * near, 0), masks.globalTokens(4))),
  }),
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
  plain('cosformer', false, (q, k, v) => cosformerAttention(q, k, v)),
  plain('efficient-attention', false, (q, k, v) => efficientAttention(q, k, v)),
  // With 16 dims of queries and keys, as its authors have it: their features are 1 + 16 + 16 * 16.
  plain('based', true, (q, k, v) => basedAttention(q.slice(3, 0, 15), k.slice(3, 0, 15), v)),
  plain('retention', true, (q, k, v) => retention(q, k, v).out),
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
