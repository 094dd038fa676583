import type { SystemEntry, SystemFamily } from './entry.js';

const grouped = (heads: number) => [
  'const q = normal([1, 32, 8, 16], { seed: 1 });',
  `const [k, v] = [2, 3].map((seed) => normal([1, 32, ${heads}, 16], { seed }));`,
  'console.log(attention(q, k, v, { causal: true }).out.shape);',
];

const systems: readonly SystemEntry[] = [
  {
    name: 'mqa',
    title: 'Multi-query attention',
    year: 2019,
    paper: 'arXiv:1911.02150',
    imports: { flashattn: ['attention'], 'flashattn/nn': ['MultiHeadAttention'] },
    runs: ['attention'],
    cost: 'N^2 D; keys and values of one head',
    formula: 'all query heads read the one head of k and v',
    options: { kvHeads: 'of `MultiHeadAttention`; of `attention` the heads of k and v' },
    example: grouped(1),
    golden: { mqa: 1 },
  },
  {
    name: 'gqa',
    title: 'Grouped-query attention',
    year: 2023,
    paper: 'arXiv:2305.13245',
    imports: { flashattn: ['attention'], 'flashattn/nn': ['MultiHeadAttention'] },
    runs: ['attention'],
    cost: 'N^2 D; keys and values of each group',
    formula: 'query head h reads kv head floor(h / (heads / kv heads))',
    options: { kvHeads: 'of `MultiHeadAttention`; of `attention` the heads of k and v' },
    example: grouped(2),
    golden: { gqa: 1 },
  },
  {
    name: 'mla',
    title: 'Multi-head latent attention (DeepSeek)',
    year: 2024,
    paper: 'arXiv:2405.04434',
    imports: { 'flashattn/systems': ['multiHeadLatentAttention', 'MultiHeadLatentAttention'] },
    runs: ['attention'],
    because:
      'The absorbed form of more than 256 dims is a composition: a product, a softmax and a product for some queries at a time.',
    cost: 'N^2 (nope + rope + value dims); kept of each token: kv rank + rope dim',
    formula: '[q_nope | rope(q_rope)] . [k_nope | rope(k_rope)] with k_nope and v made of one latent of each token',
    options: {
      kvRank: 'dims of the latent',
      ropeDim: 'dims with positions',
      form: "of the function: 'naive' or 'absorbed'",
    },
    example: [
      'const layer = new MultiHeadLatentAttention({',
      '  width: 32, heads: 2, nopeDim: 16, ropeDim: 8, valueDim: 16, kvRank: 24,',
      '});',
      'console.log(layer.forward(normal([1, 24, 32], { seed: 1 })).shape);',
    ],
    golden: { mla: 3 },
  },
  {
    name: 'yoco',
    title: 'YOCO, one cache for all layers',
    year: 2024,
    paper: 'arXiv:2405.05254',
    imports: { 'flashattn/systems': ['Yoco', 'YocoSelfDecoder', 'YocoCrossDecoder', 'SlidingWindowAttention'] },
    runs: ['recurrence', 'attention'],
    cost: 'N D^2 of the first half of layers, N^2 D of the second; keys and values of one layer',
    formula: 'gated retention or a window in the first half; the second attends to keys and values that are made once',
    options: { layers: 'of both halves', selfHeads: 'of the first', window: 'of the first; default gated retention' },
    example: [
      'const model = new Yoco({ width: 32, layers: 2, selfHeads: 2, heads: 2, hidden: 64 });',
      'console.log(model.forward(normal([1, 24, 32], { seed: 1 })).shape);',
    ],
    golden: { yoco: 2 },
  },
  {
    name: 'paged-attention',
    title: 'Keys and values in pages (PagedAttention)',
    year: 2023,
    paper: 'arXiv:2309.06180',
    imports: { 'flashattn/inference': ['pagedAttention', 'kvCache', 'attentionWithCache'] },
    runs: ['attention'],
    cost: 'queries x N D; time is that of reading keys and values once for all heads that share them',
    formula: 'out_i = sum_j softmax_j(scale q_i . k_j) v_j, where position j is slot j % size of page table[j / size]',
    options: {
      blockTable: 'of each sequence, its pages in the order of positions',
      lengths: 'positions of each sequence; its queries are the last of them',
      window: 'keys left and right of the own position',
    },
    example: [
      'const [q, pages] = [normal([2, 1, 4, 16], { seed: 1 }), normal([6, 8, 2, 16], { seed: 2 })];',
      'const { out } = pagedAttention(q, pages, pages, { blockTable: [[3, 0], [5, 1]], lengths: [11, 16] });',
      'console.log(out.shape);',
    ],
    golden: { paged_kv: 3 },
  },
];

export const keys: SystemFamily = {
  title: 'Compressed keys and values',
  about: 'What has to be kept of each token is less.',
  systems,
};
