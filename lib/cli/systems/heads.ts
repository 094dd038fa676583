import { qkv, type SystemEntry, type SystemFamily } from './entry.js';

const systems: readonly SystemEntry[] = [
  {
    name: 'talking-heads',
    title: 'Talking-heads attention (also of CaiT)',
    year: 2020,
    paper: 'arXiv:2003.02436, 2103.17239',
    imports: { 'flashattn/systems': ['talkingHeadsAttention'] },
    runs: ['headMixing'],
    because:
      'On a GPU, where no kernel has all heads of a pair at once yet, their logits are in memory, for blocks of 64 queries, or of 2^20 logits where that is more.',
    cost: 'N^2 (D + 2 H)',
    formula: 'weights = Pw softmax(Pl (scale q k^T) + bl) + bw, with Pl and Pw across heads',
    options: {
      logitsProjection: '[softmax heads, heads of q]',
      weightsProjection: '[heads of v, softmax heads]',
      causal: 'only keys before',
    },
    example: [
      qkv(),
      'const [logitsProjection, weightsProjection] = [4, 5].map((seed) => normal([2, 2], { seed }));',
      'console.log(talkingHeadsAttention(q, k, v, { logitsProjection, weightsProjection, causal: true }).shape);',
    ],
    golden: { talking_heads: 3 },
  },
  {
    name: 'dcmha',
    title: 'Dynamically composable heads (DCFormer)',
    year: 2024,
    paper: 'arXiv:2405.08553',
    imports: { 'flashattn/systems': ['dcmha'] },
    runs: ['headMixing'],
    because: 'As talking heads, with mixtures that differ from token to token.',
    cost: 'N^2 (D + 4 (H + 2 R)), R ranks',
    formula: 'compose(softmax(compose(scale q . k))) v, compose(a) = a (1 + sw + M(x_query) + M(x_key)) across heads',
    options: { window: 'keys before its own; default all', scale: 'default 1 / sqrt(D)' },
    example: [
      qkv(),
      'const w = (...shape: number[]) => normal(shape, { seed: shape.length });',
      'const weights = { dw1: w(8, 4, 16), qkw: w(4, 16, 4, 2), dd: w(8, 8) };',
      'console.log(dcmha(q, k, v, w(1, 32, 8), weights).shape);',
    ],
    golden: { dcmha: 2 },
  },
];

export const heads: SystemFamily = {
  title: 'Across heads',
  about: 'Heads of a pair are mixed before or after the softmax.',
  systems,
};
