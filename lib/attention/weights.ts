import type { FloatDType } from '../base/dtype.js';
import { optionError } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import { type AttentionProblem, maxHeadDim } from '../kernels/attention.js';
import { withoutRecording } from '../tape/tape.js';
import { elementCount } from '../tensor/shape.js';
import { isTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { attention, type Shape4 } from './attention.js';
import { dimsOf, outShape } from './layout.js';
import { checkInputs } from './operands.js';
import type { AttentionOptions, DenseOptions } from './options.js';
import { readProblem } from './problem.js';
import { bandOf } from './visibility.js';

/** See `attentionWeights`. Each is float32 [batch, heads, Nq, Nk]; dispose of all three. */
export interface AttentionWeights {
  /** scoreMod(softcap(scale * q k^T) + biases), hidden pairs included; -Infinity where a bias is, and for rows that are not real. */
  readonly logits: Tensor<'float32', Shape4>;
  /** The same, -Infinity for every pair that is hidden. */
  readonly masked: Tensor<'float32', Shape4>;
  /** What v is multiplied by: the softmax of `masked`, with `sink` in its denominators, after `dropout`. */
  readonly probabilities: Tensor<'float32', Shape4>;
}

/** Where the rows of a result lie that is [batch, heads, Nq, Nk]. */
const rowOf = (p: AttentionProblem, b: number, h: number, i: number) => (b * p.heads + h) * p.queryLength + i;

/** The logits as the kernels compute them: the log-sum-exp of a row that sees a single key is the logit of that key. */
function logitsOf(q: Tensor, k: Tensor, p: AttentionProblem, options: DenseOptions): Float32Array {
  const { keyLength: keys, queryLength: nq } = p;
  // What hides is left out; what remains sees one column of keys at a time.
  const { causal, window, mask, sink, dropout, attnMask, ...terms } = options;
  const bias = options.bias ?? (isTensor(attnMask) ? attnMask : undefined);
  const logits = new Float32Array(p.batch * p.heads * nq * keys);
  const column = new Uint8Array(keys);
  for (let j = 0; j < keys; j++) {
    column.fill(0)[j] = 1;
    const visible = { data: column, shape: [keys] };
    const { out, lse } = attention<FloatDType, Shape>(q, k, k, { ...terms, ...(bias && { bias }), attnMask: visible });
    const values = lse.dataSync();
    out.dispose();
    lse.dispose();
    for (let row = 0; row < values.length; row++) logits[row * keys + j] = values[row];
  }
  return logits;
}

/** The probabilities as the kernels use them: those of the keys [begin, begin + count) of an identity matrix in v's place. */
function probabilitiesOf(q: Tensor, k: Tensor, p: AttentionProblem, options: DenseOptions): Float32Array {
  const layout = options.layout ?? 'bshd';
  const { batch, keyLength: keys, kvHeads, heads, queryLength } = p;
  const probabilities = new Float32Array(batch * heads * queryLength * keys);
  for (let begin = 0; begin < keys; begin += maxHeadDim) {
    const count = Math.min(maxHeadDim, keys - begin);
    const shape = outShape({ batch, rows: keys, heads: kvHeads, dim: count }, layout);
    const identity = new Float32Array(elementCount(shape));
    const [rowStride, headStride] = layout === 'bshd' ? [kvHeads * count, count] : [count, keys * count];
    for (let b = 0; b < batch; b++)
      for (let h = 0; h < kvHeads; h++)
        for (let c = 0; c < count; c++)
          identity[b * keys * kvHeads * count + (begin + c) * rowStride + h * headStride + c] = 1;
    const v = tensor(identity, shape, { dtype: q.dtype, device: q.device as 'wasm' });
    const { out, lse } = attention<FloatDType, Shape>(q, k, v as Tensor, options);
    const values = out.toFloat32Sync();
    for (const t of [v, out, lse]) t.dispose();
    const dims = dimsOf(out.shape, layout);
    const [rows, head] = layout === 'bshd' ? [heads * count, count] : [count, dims.rows * count];
    for (let b = 0; b < batch; b++)
      for (let h = 0; h < heads; h++)
        for (let i = 0; i < queryLength; i++) {
          const from = b * dims.rows * heads * count + i * rows + h * head;
          probabilities.set(values.subarray(from, from + count), rowOf(p, b, h, i) * keys + begin);
        }
  }
  return probabilities;
}

/** -Infinity where the band, the real lengths or the block mask hide a pair. */
function hide(logits: Float32Array, p: AttentionProblem): Float32Array {
  const masked = logits.slice();
  for (let b = 0; b < p.batch; b++) {
    const shown = bandOf(p, b);
    for (let h = 0; h < p.heads; h++)
      for (let i = 0; i < p.queryLength; i++) {
        const [begin, end] = shown(i);
        const row = rowOf(p, b, h, i) * p.keyLength;
        for (let j = 0; j < p.keyLength; j++)
          if (j < begin || j >= end || p.blockMask?.visible(b, h, i, j) === false) masked[row + j] = -Infinity;
      }
  }
  return masked;
}

/**
 * The matrix that `attention` never holds, for small shapes and debugging. The numbers are those of the kernels: the
 * logits are read off rows that see one key, the probabilities off an identity matrix in the place of v, so they are
 * rounded to the dtype of q.
 *
 * Blocks, and runs one launch for each key.
 *
 * @param q [batch, Nq, heads, dim], or in the order of `options.layout`
 * @param k [batch, Nk, kv heads, dim]
 * @param options those of `attention`, without packed sequences
 * @throws as `attention`
 */
export function attentionWeights<D extends FloatDType>(
  q: Tensor<D, Shape>,
  k: Tensor<NoInfer<D>, Shape>,
  options: DenseOptions = {},
): AttentionWeights {
  checkInputs(q, k, k);
  const problem = readProblem(q.shape, k.shape, k.shape, q.dtype, options as AttentionOptions);
  if (problem.layout === 'varlen')
    throw optionError('cuSeqlensQ is given; attentionWeights takes one batch entry or sequence at a time: slice it');
  const { batch, heads, queryLength, keyLength } = problem;
  const [probabilities, logits] = withoutRecording(() => [
    probabilitiesOf(q, k, problem, options),
    logitsOf(q, k, problem, options),
  ]);
  const shape: Shape4 = [batch, heads, queryLength, keyLength];
  const upload = (data: Float32Array) => tensor(data, shape, { device: q.device as 'wasm' });
  return { logits: upload(logits), masked: upload(hide(logits, problem)), probabilities: upload(probabilities) };
}
