import type { HeadMixture } from '../attention/headMixing.js';
import { checkFloat32, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { cumsum } from '../ops/alongAxis.js';
import { fused, gelu, tanh } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { rmsNorm } from '../ops/norm.js';
import { split, unsqueeze } from '../ops/split.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { checkAlike, checkHeads, checkShaped, type Sequence, type Wide, wide } from './inputs.js';
import { mixedHeads } from './mixedHeads.js';
import type { ScaleOption } from './saved.js';

/**
 * By the names of DCFormer, without its axis of groups. The axis of 4 is what is composed by whom: logits by the query's state,
 * logits by the key's, probabilities by the query's, probabilities by the key's.
 */
export interface DcmhaWeights {
  /** [model, 4, hidden] */
  readonly dw1: Sequence;
  /** [4, hidden, 2 rank, heads]: what heads are read with, and what they are written with. */
  readonly qkw: Sequence;
  /** [model, 4 heads] */
  readonly dd: Sequence;
  /** [heads in, heads out], the same for all tokens and beside the identity, of logits. Default: none. */
  readonly swPre?: Sequence;
  /** The same of probabilities. */
  readonly swPost?: Sequence;
}

export interface DcmhaOptions extends ScaleOption {
  /** How many keys before its own a query sees. Default: all. */
  readonly window?: number;
}

/** How tokens compose heads: heads come in through `down` and go out through `up`, both [batch, seq, rank, heads]. */
interface Composition {
  readonly down: Wide;
  readonly up: Wide;
  /** [batch, seq, heads] */
  readonly diagonal: Wide;
}

/** The four compositions that hidden states [batch, seq, model] ask for. */
function compositionsOf(x: Wide, { dw1, qkw, dd }: DcmhaWeights): Composition[] {
  const [batch, seq, model] = x.shape;
  const [kinds, hidden, rows, heads] = qkw.shape;
  const states = gelu(
    matmul(
      x,
      wide(dw1)
        .contiguous()
        .reshape([model, kinds * hidden]),
    ),
  );
  const byKind = states.reshape([batch, seq, kinds, hidden]).transpose(1, 2);
  const factors = matmul(
    byKind,
    wide(qkw)
      .contiguous()
      .reshape([kinds, hidden, rows * heads]),
  );
  const ofKinds = factors.reshape([batch, kinds, seq, rows, heads]);
  const diagonals = tanh(matmul(x, wide(dd))).reshape([batch, seq, kinds, heads]);
  return Array.from({ length: kinds }, (_, kind) => {
    const [down, up] = split(ofKinds.select(1, kind), rows / 2, 2) as [Wide, Wide];
    return {
      down: rmsNorm(down, undefined, { epsilon: 1e-6 }) as Wide,
      up,
      diagonal: diagonals.select(2, kind) as Wide,
    };
  });
}

const withDiagonal = fused((matrix, diagonal, row, column) => matrix.add(row.equal(column).where(diagonal.add(1), 0)));

/** What a query's state makes of heads, with themselves and what all tokens do: [batch, seq, heads out, heads in]. */
function matrixOf({ down, up, diagonal }: Composition, fixed: Sequence | undefined): Wide {
  const others = matmul(up.transpose(-2, -1), down, { ...(fixed && { bias: wide(fixed).transpose(0, 1) }) });
  const heads = diagonal.shape[2];
  const places = cumsum(filled(diagonal.backend, [heads], 'float32', 1));
  return withDiagonal(others, unsqueeze(diagonal, -1), places.reshape([heads, 1]), places) as Wide;
}

const mixture = (ofQuery: Composition, ofKey: Composition, fixed: Sequence | undefined): HeadMixture => ({
  matrix: matrixOf(ofQuery, fixed),
  ofKeys: { down: ofKey.down, up: ofKey.up, diagonal: ofKey.diagonal },
});

/**
 * Dynamically composable multi-head attention (DCMHA), causal: out_n = compose_post(softmax(compose_pre(scale q . k)))_n v_n, where
 * compose(a)_n,ts = a_n,ts + sum_m a_m,ts (sw_mn + M(x_t)_mn + M'(x_s)_mn) mixes the heads of a pair as its query's and its key's
 * hidden states say. M(x) = sum_i down_i,m up_i,n + diag(tanh(x dd))_mn, with [down, up] = gelu(x dw1) qkw and down divided by its
 * RMS over heads (epsilon 1e-6). Xiao et al., "Improving Transformers with Dynamically Composable Multi-Head Attention" (2024),
 * arXiv:2405.08553, as DCFormer's PyTorch code computes it, with as many rows of down as of up.
 *
 * All heads of a pair are needed at once. On processors a kernel of its own holds them for a tile of queries and keys at a time:
 * memory beside the inputs is 2 heads^2 numbers a token and grows with seq; time grows with its square, or with seq times window.
 * Each of the two compositions takes 2 heads (heads + 2 rank) operations a pair. NaN in a token does not reach what does not see
 * it. On a GPU, which has no such kernel yet, queries are taken in blocks that compute logits, compositions and softmax in
 * memory, and again for the gradient; there values and states must be finite, also where they are hidden.
 *
 * @param q [batch, seq, heads, dim]
 * @param k [batch, seq, heads, dim]
 * @param v [batch, seq, heads, value dim]
 * @param x hidden states [batch, seq, model]
 * @param weights of any floating-point dtype
 * @returns out [batch, seq, heads, value dim] of the dtype of q, computed in float32
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function dcmha<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  x: Sequence<NoInfer<D>>,
  weights: DcmhaWeights,
  options: DcmhaOptions = {},
): Sequence<D> {
  checkHeads(q as Sequence, k as Sequence, v as Sequence, 'any');
  const [batch, seq, heads, dim] = q.shape;
  checkAlike(x, 'x', [batch, seq, -1], 'batch, seq, model', q as Sequence);
  checkOptions(weights, ['dw1', 'qkw', 'dd', 'swPre', 'swPost']);
  checkWeights(weights, x.shape[2], heads, q as Sequence);
  checkOptions(options, ['window', 'scale']);
  const { window, scale = 1 / Math.sqrt(dim) } = options;
  if (window !== undefined) checkInteger(window, 'window', 0);
  checkFloat32(scale, 'scale');
  return scope(() => {
    const [preQuery, preKey, postQuery, postKey] = compositionsOf(wide(x as Sequence), weights) as [
      Composition,
      Composition,
      Composition,
      Composition,
    ];
    return mixedHeads(q, k, v, {
      logits: mixture(preQuery, preKey, weights.swPre),
      weights: mixture(postQuery, postKey, weights.swPost),
      left: window,
      right: 0,
      scale,
    });
  });
}

function checkWeights(weights: DcmhaWeights, model: number, heads: number, like: Sequence): void {
  const { dw1, qkw, dd, swPre, swPost } = weights;
  checkShaped(dw1, 'dw1', [model, 4, -1], 'model, 4, hidden', like);
  checkShaped(qkw, 'qkw', [4, dw1.shape[2], -1, heads], '4, hidden, 2 rank, heads', like);
  if (qkw.shape[2] % 2 !== 0 || qkw.shape[2] === 0)
    throw shapeError(`qkw has shape ${show(qkw.shape)}; its axis 2 must be twice a rank of at least 1`);
  checkShaped(dd, 'dd', [model, 4 * heads], 'model, 4 heads', like);
  for (const [name, t] of Object.entries({ swPre, swPost }))
    if (t !== undefined) checkShaped(t, name, [heads, heads], 'heads in, heads out', like);
}
