import { qkv, type SystemEntry, type SystemFamily } from './entry.js';

const pseudoInverse =
  'The two softmaxes with all tokens are the kernel; the pseudo-inverse between them is six steps of products of landmarks.';

const systems: readonly SystemEntry[] = [
  {
    name: 'linformer',
    title: 'Linformer',
    year: 2020,
    paper: 'arXiv:2006.04768',
    imports: { 'flashattn/systems': ['linformerAttention', 'LinformerAttention'] },
    runs: ['attention'],
    cost: 'N m D, m projected keys',
    formula: 'softmax(scale q (E^T k)^T) (F^T v)',
    options: { keyProjection: 'E: [N, m], or for each head', valueProjection: 'F; default E' },
    example: [
      qkv(),
      'console.log(linformerAttention(q, k, v, { keyProjection: normal([32, 8], { seed: 4 }) }).shape);',
    ],
    golden: { linformer: 3 },
  },
  {
    name: 'nystromformer',
    title: 'Nystromformer',
    year: 2021,
    paper: 'arXiv:2102.03902',
    imports: { 'flashattn/systems': ['nystromformerAttention', 'iterativePseudoInverse'] },
    runs: ['attention'],
    because: pseudoInverse,
    cost: 'N m D + m^3, m landmarks',
    formula: 'softmax(Q Kl^T) pinv(softmax(Ql Kl^T)) (softmax(Ql K^T) V), Ql and Kl means of tokens',
    options: {
      landmarks: 'm, a divisor of N',
      convWeight: 'a residual convolution: [heads, 1, size, 1]',
      mask: 'which positions are real',
    },
    example: [qkv(), 'console.log(nystromformerAttention(q, k, v, { landmarks: 8 }).shape);'],
    golden: { nystromformer: 2 },
  },
  {
    name: 'nystrom-padded',
    title: 'Nystrom attention for any length',
    year: 2021,
    paper: 'arXiv:2102.03902; lucidrains/nystrom-attention',
    imports: { 'flashattn/systems': ['nystromAttentionPadded'] },
    runs: ['attention'],
    because: pseudoInverse,
    cost: 'N m D + m^3, m landmarks',
    formula: 'as nystromformer, of a sequence with zeros before it up to a multiple of m',
    options: { landmarks: 'm', convWeight: 'a residual convolution', iterations: 'of the pseudo-inverse; default 6' },
    example: [qkv('[1, 30, 2, 16]'), 'console.log(nystromAttentionPadded(q, k, v, { landmarks: 8 }).shape);'],
    golden: { nystrom_attention_padded: 2 },
  },
  {
    name: 'lowrank-svd',
    title: 'The best attention of low rank',
    year: 1936,
    paper: 'Eckart and Young',
    imports: { 'flashattn/systems': ['lowRankSvdAttention'] },
    runs: [],
    because:
      'It is a bound for the others and no faster than softmax: the matrix of probabilities itself is decomposed, up to 256 tokens.',
    cost: 'N^2 D + N^3',
    formula: 'out = U_r S_r V_r^T v of A = softmax(scale q k^T)',
    options: { rank: 'r', causal: 'keys up to i alone' },
    example: [qkv(), 'console.log(lowRankSvdAttention(q, k, v, { rank: 8 }).out.shape);'],
    golden: { lowrank_svd_attention: 2 },
  },
];

export const lowRank: SystemFamily = {
  title: 'Low rank and landmarks',
  about: 'A few keys stand for all of them.',
  systems,
};
