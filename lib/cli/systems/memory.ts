import { qkv, type SystemEntry, type SystemFamily } from './entry.js';

const infini = {
  year: 2024,
  runs: ['attention'],
  because: 'The memory is a composition: products with the sums of all segments before, at once for all segments.',
  cost: 'N (segment + D) D',
  options: {
    gate: 'of memory against attention, before the sigmoid: [heads]',
    segment: 'tokens of a segment',
    delta: 'whether the memory stores by the delta rule',
  },
} as const satisfies Partial<SystemEntry>;

const infiniExample = (name: string) => [
  qkv(),
  `const { out } = ${name}(q, k, v, { gate: normal([2], { seed: 4 }), segment: 8 });`,
  'console.log(out.shape);',
];

const systems: readonly SystemEntry[] = [
  {
    name: 'transformer-xl',
    title: 'Transformer-XL',
    year: 2019,
    paper: 'arXiv:1901.02860',
    imports: { 'flashattn/systems': ['transformerXLAttention', 'TransformerXLAttention', 'distanceSinusoids'] },
    runs: ['attention'],
    because:
      'The term of distances is a number for each pair of a segment and its memory, given to the kernel as a bias.',
    cost: 'n (n + m) D, segments of n and m before',
    formula: 'softmax over j of scale ((q_i + u) . k_j + (q_i + v) . r_(i - j))',
    options: {
      contentBias: 'u: [heads, D]',
      distanceBias: 'v: [heads, D]',
      memory: 'of the layer: tokens before a segment',
    },
    example: [
      'const layer = new TransformerXLAttention({ width: 32, heads: 2, memory: 8, segment: 8 });',
      'console.log(layer.forward(normal([1, 24, 32], { seed: 1 })).shape);',
    ],
    golden: { transformer_xl: 2 },
  },
  {
    name: 'rmt',
    title: 'Recurrent Memory Transformer',
    year: 2022,
    paper: 'arXiv:2207.06881',
    imports: {
      'flashattn/systems': ['recurrentMemory', 'RecurrentMemoryTransformer'],
      'flashattn/nn': ['TransformerBlock'],
    },
    runs: ['attention'],
    cost: 'N (segment + 2 m) D, m memory tokens',
    formula: '[memory | segment | memory] through a model, whose last tokens are the memory of the next segment',
    options: { segment: 'tokens of a segment', kind: "'decoder' (default) or 'encoder'" },
    example: [
      'const block = new TransformerBlock({ width: 32, heads: 2, causal: true });',
      'const memory = normal([2, 32], { seed: 1 });',
      'const { out } = recurrentMemory(normal([1, 20, 32], { seed: 2 }), memory, (z) => block.forward(z), { segment: 8 });',
      'console.log(out.shape);',
    ],
    golden: { rmt: 3 },
  },
  {
    ...infini,
    name: 'infini-attention',
    title: 'Infini-attention, as its code',
    paper: 'arXiv:2404.07143; lucidrains/infini-transformer-pytorch',
    imports: { 'flashattn/systems': ['infiniAttention', 'InfiniAttention'] },
    formula:
      'sigmoid(gate) softmax within a segment + (1 - sigmoid(gate)) memory of those before; the first: softmax alone',
    example: infiniExample('infiniAttention'),
    golden: { infini_attention: 2 },
  },
  {
    ...infini,
    name: 'infini-attention-paper',
    title: 'Infini-attention, as its paper',
    paper: 'arXiv:2404.07143',
    imports: { 'flashattn/systems': ['infiniAttentionPaper', 'InfiniAttention'] },
    formula: 'sigmoid(gate) memory of the segments before + (1 - sigmoid(gate)) softmax within a segment',
    example: infiniExample('infiniAttentionPaper'),
    golden: { infini_attention_paper: 2 },
  },
  {
    name: 'unlimiformer',
    title: 'Unlimiformer',
    year: 2023,
    paper: 'arXiv:2305.01625',
    imports: { 'flashattn/systems': ['unlimiformerAttention'] },
    runs: ['attention'],
    because: 'The search is a composition, exact: products and a top-k, a tile of queries and keys at a time.',
    cost: 'Nq Nk D to search, then Nq m D',
    formula: 'softmax over the m keys with the largest q . k',
    options: { neighbours: 'm', mask: 'which keys are real' },
    example: [qkv(), 'console.log(unlimiformerAttention(q, k, v, { neighbours: 4 }).out.shape);'],
    golden: { unlimiformer: 2 },
  },
  {
    name: 'knn',
    title: 'Nearest keys: exact search, and inverted lists',
    year: 2022,
    paper: 'arXiv:2203.08913',
    imports: { 'flashattn/systems': ['knn', 'VectorIndex'] },
    runs: [],
    because: 'Products and a top-k, a tile of queries and keys at a time: never all pairs.',
    cost: 'Nq Nk D; of inverted lists Nq (lists + probes Nk / lists) D',
    formula: 'the `count` keys with the largest q . k or the smallest |q - k| of each query',
    options: { count: 'how many', metric: "'dot' (default) or 'euclidean'", mask: 'which keys may be found' },
    example: [
      'const keys = normal([2, 100, 16], { seed: 1 });',
      'const exact = knn(normal([2, 8, 16], { seed: 2 }), keys, { count: 4 });',
      'const index = VectorIndex.build(keys.reshape([200, 16]), { lists: 8 });',
      'const near = index.search(normal([3, 16], { seed: 3 }), { count: 4, probes: 2 });',
      'console.log(exact.indices.shape, near.indices.shape);',
    ],
    golden: {},
  },
  {
    name: 'retro',
    title: 'RETRO, chunked cross-attention',
    year: 2021,
    paper: 'arXiv:2112.04426',
    imports: { 'flashattn/systems': ['retroCrossAttention'] },
    runs: ['attention'],
    cost: 'N (neighbours) (tokens of each) D',
    formula: 'tokens from the end of a chunk on attend to all neighbours retrieved for it, and to a learned null',
    options: { chunk: 'tokens of a chunk', nullKey: '[heads, D]', nullValue: '[heads, D]' },
    example: [
      'const q = normal([1, 24, 2, 16], { seed: 1 });',
      'const [k, v] = [2, 3].map((seed) => normal([1, 3, 2, 12, 2, 16], { seed }));',
      'const [nullKey, nullValue] = [4, 5].map((seed) => normal([2, 16], { seed }));',
      'console.log(retroCrossAttention(q, k, v, { chunk: 8, nullKey, nullValue }).shape);',
    ],
    golden: { retro_cca: 2 },
  },
];

export const memory: SystemFamily = {
  title: 'Memory and retrieval',
  about: 'Tokens see more than their sequence: segments before it, or what was found elsewhere.',
  systems,
};
