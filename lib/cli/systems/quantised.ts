import { qkv, type SystemEntry, type SystemFamily } from './entry.js';

const inMemory =
  'The scale of the quantised probabilities is that of all of them: they are in memory together, [batch, heads, N, N].';

const layer = {
  runs: [],
  because: 'A linear layer, a product of codes: no attention.',
  cost: 'N (inputs) (outputs)',
} as const;

const systems: readonly SystemEntry[] = [
  {
    name: 'int8-symmetric',
    title: 'Attention with 8-bit codes',
    year: 2022,
    paper: 'arXiv:2203.06390; SymQuantizer of htqin/BiBERT',
    imports: { 'flashattn/systems': ['int8SymmetricAttention'] },
    runs: [],
    because: inMemory,
    cost: 'N^2 D',
    formula: 'out = Q(softmax(Q(q) Q(k)^T / sqrt(D))) Q(v), Q rounds x 127 / max|x|',
    options: { clip: 'numbers are clipped to +-clip first; default 2.5' },
    example: [qkv(), 'console.log(int8SymmetricAttention(q, k, v).shape);'],
    golden: { quantised_attention_int8_sym: 2 },
  },
  {
    name: 'sage-attention',
    title: 'SageAttention, smoothed keys in 8 bits',
    year: 2024,
    paper: 'arXiv:2410.02367',
    imports: { 'flashattn/systems': ['int8SmoothKAttention'] },
    runs: ['attention'],
    because: 'The kernel multiplies the codes as float32: no product of 8-bit integers, so no faster than attention.',
    cost: 'N^2 D',
    formula: 'softmax(Q(q / sqrt(D)) Q(k - mean of k)^T) v, a step for each token and head',
    options: { out: 'of the result; `q` and `k` of it are codes and steps' },
    example: [qkv(), 'console.log(int8SmoothKAttention(q, k, v).out.shape);'],
    golden: { quantised_attention_int8_smoothk: 1 },
  },
  {
    name: 'ternary',
    title: 'Attention to ternary keys and values',
    year: 2016,
    paper: 'arXiv:1605.04711; TwnQuantizer of htqin/BiBERT',
    imports: { 'flashattn/systems': ['ternaryAttention'] },
    runs: ['attention'],
    because: 'The kernel multiplies what codes stand for as float32, so it is no faster than attention.',
    cost: 'N^2 D',
    formula: 'softmax(Q(q) Q(k)^T / sqrt(D)) Q(v), Q(x) = a sign(x) where |x| > 0.7 mean|x|, else 0',
    options: { clip: 'numbers are clipped to +-clip first; default 2.5' },
    example: [qkv(), 'console.log(ternaryAttention(q, k, v).shape);'],
    golden: { quantised_attention_ternary_twn: 2 },
  },
  {
    name: 'bibert',
    title: 'BiBERT, attention of one bit',
    year: 2022,
    paper: 'arXiv:2203.06390',
    imports: { 'flashattn/systems': ['biBertSelfAttention'] },
    runs: [],
    because:
      'Weights are 1 or 0 and no softmax, with a gradient of their own: they are in memory, [batch, heads, N, N].',
    cost: 'N^2 D',
    formula: 'out = A sign(v), A = 1 where sign(q) sign(k)^T / sqrt(D) + mask > 0, else 0',
    options: { heads: 'a divisor of the width', attentionMask: 'added to the scores' },
    example: [
      'const w = (seed: number) => normal([32, 32], { seed });',
      'const b = (seed: number) => normal([32], { seed });',
      'const weights = { query: w(1), queryBias: b(2), key: w(3), keyBias: b(4), value: w(5), valueBias: b(6) };',
      'console.log(biBertSelfAttention(normal([1, 24, 32], { seed: 7 }), weights, { heads: 2 }).shape);',
    ],
    golden: { binary_attention_bibert: 2 },
  },
  {
    name: 'kivi',
    title: 'KIVI, a key/value cache of few bits',
    year: 2024,
    paper: 'arXiv:2402.02750',
    imports: { 'flashattn/systems': ['quantiseKvCache', 'quantisedKvCacheAttention'] },
    runs: ['attention'],
    because:
      'Codes are kept in float16 and made into float32 before the kernel: numbers are those of few bits, memory is not.',
    cost: 'Nq Nk D',
    formula: 'softmax(q k^T / sqrt(D)) v with keys quantised by channel and values by token',
    options: { bits: 'of each number' },
    example: [
      qkv(),
      'const cache = quantiseKvCache(k, v, { bits: 4 });',
      'console.log(quantisedKvCacheAttention(q, cache).shape);',
    ],
    golden: { quantised_kv_cache_attention: 1 },
  },
  {
    ...layer,
    name: 'bitlinear-1.58',
    title: 'BitNet b1.58, the linear layer',
    year: 2024,
    paper: 'arXiv:2402.17764',
    imports: {
      'flashattn/systems': ['bitLinear158', 'bitLinear158Codes', 'BitLinear', 'packBitLinear', 'PackedBitWeight'],
    },
    formula: 'codes of rmsNorm(x) in 8 bits times ternary codes of W, over both scales',
    options: {
      bits: 'of `BitLinear` and `packBitLinear`: 1.58 (default) or 1',
      bias: 'default false',
    },
    example: [
      'const bitLinear = new BitLinear(32, 16, { bits: 1.58 });',
      'console.log(bitLinear.forward(normal([4, 32], { seed: 1 })).shape);',
    ],
    golden: { bitlinear_b158: 2 },
  },
  {
    ...layer,
    name: 'bitlinear-1',
    title: 'BitNet, the linear layer of one bit',
    year: 2023,
    paper: 'arXiv:2310.11453',
    imports: { 'flashattn/systems': ['bitLinear1', 'BitLinear', 'packBitLinear'] },
    formula: 'codes of x sqrt(inputs) / |x| in 8 bits times sign(W - mean W) mean|W|',
    options: { bits: 'of `BitLinear`: 1', bias: 'default false' },
    example: ['console.log(bitLinear1(normal([4, 32], { seed: 1 }), normal([16, 32], { seed: 2 })).shape);'],
    golden: { bitlinear_b1: 2 },
  },
];

export const quantised: SystemFamily = {
  title: 'Quantised',
  about:
    'Numbers of few bits, with gradients straight through the roundings where there are any. Layers multiply codes as integers, exactly and faster than float32; attention by tiles multiplies them as float32.',
  systems,
};
