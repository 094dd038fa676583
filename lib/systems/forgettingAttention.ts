import { attention } from '../attention/attention.js';
import { lookup, type ScoreMod } from '../attention/scoreMod.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { cumsum } from '../ops/alongAxis.js';
import { concat } from '../ops/concat.js';
import { maximum, sub } from '../ops/elementwise.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { sameShape } from '../tensor/shape.js';
import { checkTensor, type Shape } from '../tensor/tensor.js';
import { checkQkv, type Sequence, type Wide } from './inputs.js';
import { checkOptions, type ScaleOption, scaleOf } from './saved.js';

/** Far more than scores differ by: what is forgotten like that has probability 0. */
const mostForgotten = 2 ** 20;
/** As many as a scoreMod can look up. */
const mostGates = 2 ** 24;

interface Cumulated {
  /** c_t = g_1 + ... + g_t, rounded: [batch, heads, seq]. Without a gradient. */
  readonly sums: Wide;
  /** [batch, heads, 1, seq]: what the sums are short of -c_j, with the gradient of -c_j. */
  readonly bias: Wide;
}

/**
 * c in two float32 numbers, so that differences of sums are as exact far from 0 as near it.
 *
 * Rows of a softmax do not know what is added to all of their scores: the gradient of c is that of -c_j alone, as of a bias by
 * key. So the bias has all of it, and not of the sums, which are looked up.
 */
function cumulated(gates: Wide): Cumulated {
  const [batch, heads, seq] = gates.shape;
  const own = cumsum(gates, -1);
  const sums = own.detach();
  const before = concat([filled(gates.backend, [batch, heads, 1], 'float32', 0), sums.slice(2, 0, seq - 1)], 2);
  // What each step of the rounded sums is short of its gate.
  const rests = cumsum(sub(gates.detach(), sub(sums, before)) as Wide, -1);
  return { sums, bias: sub(sub(sums, own), rests).reshape([batch, heads, 1, seq]) as Wide };
}

/**
 * Forgetting attention: softmax over j <= i of scale q_i . k_j + (g_{j+1} + ... + g_i), which is one fused kernel, forward and
 * backward. Lin et al., "Forgetting Transformer" (2025), arXiv:2503.02130.
 *
 * @param q [batch, seq, heads, dim]
 * @param k [batch, seq, kv heads, dim]; heads a multiple of kv heads, query head h reads kv head floor(h / (heads / kv heads))
 * @param v [batch, seq, kv heads, value dim]
 * @param g logarithms of the forget gates, at most 0, float32 [batch, seq, heads] of at most 2^24 elements; one below -2^20, such
 *   as -Infinity, is taken for -2^20, which forgets all
 * @returns out [batch, seq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function forgettingAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  g: Sequence<'float32'>,
  options: ScaleOption = {},
): Sequence<D> {
  checkQkv(q, k, v, { grouped: true, self: true });
  checkGates(g, q);
  checkOptions(options, []);
  if (g.size === 0) return scope(() => attention<D, Shape>(q, k, v, { ...scaleOf(options), causal: true }).out);
  return scope(() => {
    const { sums, bias } = cumulated((maximum(g, -mostForgotten) as Wide).transpose(1, 2).contiguous());
    const scoreMod: ScoreMod = (score, b, h, i, j) => score.add(lookup(sums, b, h, i).sub(lookup(sums, b, h, j)));
    return attention<D, Shape>(q, k, v, { ...scaleOf(options), causal: true, bias, scoreMod }).out;
  });
}

function checkGates(g: unknown, q: Sequence): asserts g is Wide {
  checkTensor(g, 'g');
  const [batch, seq, heads] = q.shape;
  if (g.dtype !== 'float32') throw new FlashAttnError('ERR_DTYPE', `g is ${g.dtype}; it must be float32`);
  if (!sameShape(g.shape, [batch, seq, heads]))
    throw shapeError(`g has shape ${show(g.shape)}; it must be [batch, seq, heads], here [${batch}, ${seq}, ${heads}]`);
  if (g.size > mostGates) throw shapeError(`g has ${g.size} elements; a kernel looks up at most 2^24`);
  g.operand('g', q.backend);
}
