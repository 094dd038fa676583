// Attention whose heads are mixed: by its kernel on processors, composed of other operations where a device has none.
import { type HeadMixingOptions, type HeadMixture, headMixing } from '../attention/headMixing.js';
import type { FloatDType } from '../base/dtype.js';
import { headMixing as headMixingOperation } from '../kernels/headMixing.js';
import { cumsum } from '../ops/alongAxis.js';
import { add, fused, mul } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { sum } from '../ops/reduce.js';
import { softmax } from '../ops/softmax.js';
import { pad, unsqueeze } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { narrow, type Sequence, type Wide, wide } from './inputs.js';
import { type BlockOf, inQueryBlocks } from './queryBlocks.js';

type Named = Readonly<Record<string, Wide | undefined>>;

/** What mixes heads, by the name of what they are mixed of. */
interface Mixing {
  readonly queries: Named;
  readonly keys: Named;
  readonly shared: Named;
}

interface Inputs extends Mixing {
  readonly queries: Named & { readonly q: Wide };
  readonly keys: Named & { readonly k: Wide; readonly v: Wide };
}

const withDiagonal = fused((mixed, pairs, diagonal) => mixed.add(pairs.mul(diagonal)));
const withPart = fused((total, part, up) => total.add(part.mul(up)));

/** By key, which is the last axis of pairs: [batch, keys, heads] -> [batch, heads, 1, keys]. */
const keysLast = (t: Wide): Wide => unsqueeze(t.transpose(1, 2), 2).contiguous() as Wide;

function mixingOf(name: 'logits' | 'weights', mixture: HeadMixture | undefined): Mixing {
  const { matrix, bias, ofKeys } = mixture ?? {};
  const own = matrix?.shape.length === 4;
  return {
    queries: { [`${name}Matrix`]: own ? matrix : undefined },
    keys: { [`${name}Down`]: ofKeys?.down, [`${name}Up`]: ofKeys?.up, [`${name}Diagonal`]: ofKeys?.diagonal },
    // A bias of weights is what comes after them.
    shared: { [`${name}Matrix`]: own ? undefined : matrix, [`${name}Bias`]: name === 'logits' ? bias : undefined },
  };
}

/** pairs [batch, in heads, queries, keys] -> [batch, out heads, queries, keys] */
function mixed(block: BlockOf<Inputs>, name: 'logits' | 'weights', pairs: Wide): Wide {
  const [batch, heads, queries, keys] = pairs.shape;
  const own = block.queries[`${name}Matrix`];
  const shared = block.shared[`${name}Matrix`];
  if (!own && !shared) return pairs;
  let total = own
    ? matmul(own, pairs.transpose(1, 2)).transpose(1, 2)
    : matmul(shared as Wide, pairs.reshape([batch, heads, queries * keys])).reshape([batch, -1, queries, keys]);
  const bias = block.shared[`${name}Bias`];
  if (bias) total = add(total, bias.reshape([-1, 1, 1])) as Wide;
  const [down, up, diagonal] = ['Down', 'Up', 'Diagonal'].map((part) => block.keys[`${name}${part}`]);
  if (diagonal) total = withDiagonal(total, pairs, keysLast(diagonal)) as Wide;
  for (let r = 0; down && up && r < down.shape[2]; r++) {
    const before = total;
    total = scope(() => {
      const part = sum(mul(pairs, keysLast(down.select(2, r) as Wide)), 1, { keepDims: true });
      return withPart(before, part, keysLast(up.select(2, r) as Wide)) as Wide;
    });
    before.dispose();
  }
  return total;
}

/** Every head's queries, or keys, behind one another: [batch, heads, seq, dim], a view. */
const byHead = (t: Wide): Wide => t.transpose(1, 2);

function rowsOf(block: BlockOf<Inputs>, scale: number): Wide {
  const { queries, keys, hiding } = block;
  // What a step has been computed of is freed, unless its gradient reads it.
  const products = () => matmul(byHead(queries.q), keys.k.permute([0, 2, 3, 1]), { alpha: scale });
  const hidden = (logits: Wide) => (hiding ? (add(logits, hiding) as Wide) : logits);
  const probabilities = scope(() => softmax(hidden(scope(() => mixed(block, 'logits', products())))));
  const weights = scope(() => mixed(block, 'weights', probabilities));
  return byHead(matmul(weights, byHead(keys.v)));
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

function inBlocks(q: Wide, k: Wide, v: Wide, options: HeadMixingOptions): Wide {
  const { logits, weights, left, right, scale } = options;
  const [ofLogits, ofWeights] = [mixingOf('logits', logits), mixingOf('weights', weights)];
  const inputs: Inputs = {
    queries: { ...ofLogits.queries, ...ofWeights.queries, q },
    keys: { ...ofLogits.keys, ...ofWeights.keys, k, v },
    shared: { ...ofLogits.shared, ...ofWeights.shared },
  };
  const causal = right !== undefined;
  const heads = Math.max(q.shape[2], v.shape[2], logits?.matrix.shape.at(-2) ?? 0);
  const out = inQueryBlocks(inputs, { heads, causal, window: left }, (block) => rowsOf(block, scale));
  if (!weights?.bias) return out;
  // A weight that all keys have in common adds the sum of their values.
  return withTotals(out, unsqueeze(weights.bias, 1), totalsOf(v, q.shape[1], causal)) as Wide;
}

/**
 * `headMixing` on every device. Where there is no kernel, queries are taken in blocks of 64, or of as many as have 2^20 logits
 * over all heads where those are more; a block computes logits, mixtures and softmax in memory, and once more for its gradient.
 * There values must be finite, also where they are hidden.
 *
 * @param options `right` is 0 or undefined
 */
export function mixedHeads<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<D>,
  v: Sequence<D>,
  options: HeadMixingOptions,
): Sequence<D> {
  if (q.backend.has(headMixingOperation)) return headMixing(q, k, v, options);
  const [query, key, value] = [q, k, v].map((t) => wide(t as Sequence)) as [Wide, Wide, Wide];
  return narrow(inBlocks(query, key, value, options), q);
}
