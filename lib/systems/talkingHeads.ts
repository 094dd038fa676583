import { checkBoolean, checkFloat32, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { cumsum } from '../ops/alongAxis.js';
import { add, fused } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { sum } from '../ops/reduce.js';
import { softmax } from '../ops/softmax.js';
import { pad, unsqueeze } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Tensor } from '../tensor/tensor.js';
import { checkAlike, checkShaped, narrow, type Sequence, type Wide, wide } from './inputs.js';
import { type BlockOf, inQueryBlocks } from './queryBlocks.js';
import type { ScaleOption } from './saved.js';

export interface TalkingHeadsOptions extends ScaleOption {
  /** Mixes logits before the softmax, P_l of the paper transposed: [softmax heads, heads of q]. Default: they stay as they are. */
  readonly logitsProjection?: Sequence;
  /** [softmax heads], added to mixed logits. The softmax does not see it, and its gradient is 0 but for rounding. */
  readonly logitsBias?: Sequence;
  /** Mixes probabilities, P_w of the paper transposed: [heads of v, softmax heads]. Default: they stay as they are. */
  readonly weightsProjection?: Sequence;
  /** [heads of v], added to the mixed probability of every key that is seen. */
  readonly weightsBias?: Sequence;
  /** Only keys up to the query's position, aligned at the bottom right. Default false. */
  readonly causal?: boolean;
}

interface Inputs {
  readonly queries: { readonly q: Wide };
  readonly keys: { readonly k: Wide; readonly v: Wide };
  readonly shared: Readonly<Record<'logitsProjection' | 'logitsBias' | 'weightsProjection', Wide | undefined>>;
}

/** [out heads, in heads] times each of [batch, in heads, queries, keys]. */
function mixed(projection: Wide | undefined, pairs: Wide, bias?: Wide): Wide {
  const [batch, heads, queries, keys] = pairs.shape;
  if (!projection) return bias ? (add(pairs, bias.reshape([-1, queries, keys])) as Wide) : pairs;
  const flat = matmul(projection, pairs.reshape([batch, heads, queries * keys]), { ...(bias && { bias }) });
  return flat.reshape([batch, projection.shape[0], queries, keys]);
}

/** Every head's queries, or keys, behind one another: [batch, heads, seq, dim], a view. */
const byHead = (t: Wide): Wide => t.transpose(1, 2);

function rowsOf({ queries: { q }, keys: { k, v }, shared, hiding }: BlockOf<Inputs>, scale: number): Wide {
  const { logitsProjection, logitsBias, weightsProjection } = shared;
  const ofHeads = logitsBias && unsqueeze(logitsBias, 1);
  const ofPairs = hiding?.reshape([1, -1]);
  const bias = ofHeads && ofPairs ? (add(ofHeads, ofPairs) as Wide) : (ofHeads ?? ofPairs);
  // What a step has been computed of is freed, unless its gradient reads it.
  const products = () => matmul(byHead(q), k.permute([0, 2, 3, 1]), { alpha: scale });
  const probabilities = scope(() => softmax(scope(() => mixed(logitsProjection, products(), bias))));
  const weights = mixed(weightsProjection, probabilities);
  return byHead(matmul(weights, byHead(v)));
}

const withTotals = fused((out, bias, totals) => out.add(bias.mul(totals)));

/** Sums of the values that each query sees: [batch, Nq or 1, heads, value dim]. */
function totalsOf(v: Wide, queries: number, causal: boolean): Wide {
  if (!causal) return sum(v, 1, { keepDims: true });
  const keys = v.shape[1];
  const sums = cumsum(v, 1).slice(1, Math.max(0, keys - queries), keys);
  const blind = Math.max(0, queries - keys);
  return blind > 0
    ? (pad(sums, [
        [0, 0],
        [blind, 0],
        [0, 0],
        [0, 0],
      ]) as Wide)
    : sums;
}

function checkProjection(
  t: unknown,
  bias: unknown,
  name: 'logits' | 'weights',
  heads: readonly number[],
  q: Tensor,
): void {
  const axes = name === 'logits' ? 'softmax heads, heads of q' : 'heads of v, softmax heads';
  if (t !== undefined) checkShaped(t, `${name}Projection`, heads, axes, q);
  if (bias === undefined) return;
  if (t === undefined)
    throw optionError(`${name}Bias is ${show(bias)} without a ${name}Projection; give both or neither`);
  checkShaped(bias, `${name}Bias`, [(t as Tensor).shape[0]], name === 'logits' ? 'softmax heads' : 'heads of v', q);
}

/**
 * Talking-heads attention: heads are mixed before and after the softmax, logits'_g = sum_h projection_gh scale q_h . k_h + bias_g,
 * weights_g = sum_h projection_gh softmax(logits'_h) + bias_g, out_g = weights_g v_g, where keys that a query does not see have
 * weight 0. Heads of q and k, of the softmax and of v may differ in number. Shazeer et al., "Talking-Heads Attention" (2020),
 * arXiv:2003.02436; with biases, Touvron et al., "Going deeper with Image Transformers" (CaiT, 2021), arXiv:2103.17239.
 *
 * All heads of a pair are needed at once, which no fused kernel has: queries are taken in blocks of 64, or of as many as have
 * 2^20 logits over all heads where those are more, and every block computes logits, both mixtures and softmax in memory. Memory
 * beside q, k, v and out is that of a few blocks, 256 bytes times heads times keys each where the keys are many, and grows with
 * seq; time grows with its square as in attention. Mixing adds 2 softmax heads (heads of q + heads of v) operations a pair, and
 * passes over memory; the gradient computes each block once more. On the processor forward takes 2 to 4 times as long as that of
 * attention, and with the gradient 3 to 6 times. Values must be finite, also where they are hidden.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, heads, dim]
 * @param v [batch, Nk, value heads, value dim]
 * @returns out [batch, Nq, value heads, value dim] of the dtype of q, computed in float32; 0 of queries that see no key
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function talkingHeadsAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: TalkingHeadsOptions = {},
): Sequence<D> {
  checkTensor(q, 'q');
  if (q.shape.length !== 4) throw shapeError(`q has shape ${show(q.shape)}; it must be [batch, seq, heads, dim]`);
  const [batch, queries, heads, dim] = q.shape;
  checkAlike(k, 'k', [batch, -1, heads, dim], 'batch, seq, heads, dim', q as Sequence);
  checkAlike(v, 'v', [batch, k.shape[1], -1, -1], 'batch, seq, heads, dim', q as Sequence);
  checkOptions(options, ['logitsProjection', 'logitsBias', 'weightsProjection', 'weightsBias', 'causal', 'scale']);
  const { causal = false, scale = 1 / Math.sqrt(dim) } = options;
  checkBoolean(causal, 'causal');
  checkFloat32(scale, 'scale');
  const { logitsProjection, logitsBias, weightsProjection, weightsBias } = options;
  checkProjection(logitsProjection, logitsBias, 'logits', [-1, heads], q as Sequence);
  const softmaxHeads = logitsProjection?.shape[0] ?? heads;
  const valueHeads = v.shape[2];
  checkProjection(weightsProjection, weightsBias, 'weights', [valueHeads, softmaxHeads], q as Sequence);
  if (!weightsProjection && softmaxHeads !== valueHeads)
    throw shapeError(
      `v has ${valueHeads} heads and the softmax ${softmaxHeads}; give a weightsProjection [${valueHeads}, ${softmaxHeads}]`,
    );
  return scope(() => {
    const value = wide(v as Sequence);
    const inputs: Inputs = {
      queries: { q: wide(q as Sequence) },
      keys: { k: wide(k as Sequence), v: value },
      shared: {
        logitsProjection: logitsProjection && wide(logitsProjection),
        logitsBias: logitsBias && wide(logitsBias),
        weightsProjection: weightsProjection && wide(weightsProjection),
      },
    };
    const most = Math.max(heads, softmaxHeads, valueHeads);
    const mixedValues = inQueryBlocks(inputs, { heads: most, causal }, (block) => rowsOf(block, scale));
    if (!weightsBias) return narrow(mixedValues, q);
    // A weight that all keys have in common adds the sum of their values.
    const bias = unsqueeze(wide(weightsBias), 1);
    return narrow(withTotals(mixedValues, bias, totalsOf(value, queries, causal)) as Wide, q);
  });
}
