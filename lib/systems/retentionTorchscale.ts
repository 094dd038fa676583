// Retention as RetNet's own code (microsoft/torchscale) has it: three forms with normalisers of their own, which agree but
// for a number a position, and the group norm that follows takes it out.
import type { Shape4 } from '../attention/attention.js';
import { checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import type { DeviceName } from '../devices/registry.js';
import { recurrence } from '../linear/recurrence.js';
import { abs, clamp, fused } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { max, sum } from '../ops/reduce.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { fromChunks, inChunks } from './chunks.js';
import { checkFloat32State, checkHeads, checkShaped, narrow, wide } from './inputs.js';
import { counted, retentionDecays } from './recurrent.js';

/** gamma^(i - j) / sqrt(s_i) for j <= i, else 0, with s_i = 1 + gamma + ... + gamma^i. */
const decayed = fused(function decayed(i, j, log) {
  const weights = i.add(1).mul(log).expm1().div(log.expm1());
  return j.lessEqual(i).where(i.sub(j).mul(log).exp().mul(weights.rsqrt()), 0);
});
const times = fused(function times(x, y) {
  return x.mul(y);
});
const over = fused(function over(x, y) {
  return x.div(y);
});

/** `decayed` for all pairs of so many positions: [heads, size, size]. */
function decayMatrix(size: number, log: Tensor): Tensor {
  const positions = counted(size, log.device as DeviceName);
  return decayed(positions.reshape([size, 1]), positions.reshape([1, size]), log.reshape([log.shape[0], 1, 1]));
}

/** The sum of the sizes of a row's scores, a constant for gradients. */
const sizes = (scores: Tensor): Tensor => sum(abs(scores.detach()) as Tensor, -1, { keepDims: true });

/**
 * The parallel form of retention (Sun et al. 2023, arXiv:2307.08621) as torchscale has it, of all pairs at once: A_ij = (q_i
 * . k_j) gamma^(i - j) / sqrt(s_i) for j <= i, s_i the sum of gamma^(i - j) over those j, and out_i = sum_j A_ij v_j /
 * clamp(sum_j |A_ij|, 1, 5e4), whose divisor has no gradient. gamma = 1
 * - 2^(-5 - h) of head h. In time and memory that grow with the square of seq, and a token that is not finite is felt by all.
 *
 * @param q [batch, seq, heads, key dim], rotated
 * @param k [batch, seq, heads, key dim], rotated and scaled
 * @param v [batch, seq, heads, value dim]
 * @returns [batch, seq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function retentionTorchscaleParallel<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
): Tensor<D, Shape4> {
  const given = [q, k, v] as unknown as [Tensor, Tensor, Tensor];
  checkHeads(...given, 'any');
  return scope(() => {
    const [queries, keys, values] = given.map((t) => wide(t).transpose(1, 2)) as [Tensor, Tensor, Tensor];
    const decay = decayMatrix(q.shape[1], retentionDecays(q.shape[2], q.device as DeviceName));
    const scores = times(matmul(queries, keys.transpose(-2, -1)), decay);
    const out = over(matmul(scores, values), clamp(sizes(scores), 1, 5e4));
    return narrow(out.transpose(1, 2).contiguous(), given[0]) as unknown as Tensor<D, Shape4>;
  });
}

/** What the recurrent form of torchscale carries on. */
export interface TorchscaleRetentionState {
  /** The sum of gamma^(n - j) k_j v_j^T over all tokens j so far, over sqrt(scale): float32 [batch, heads, key dim, value dim] */
  readonly kv: Tensor<'float32', Shape>;
  /** 1 + gamma + ... over as many tokens: float32 [heads] */
  readonly scale: Tensor<'float32', Shape>;
}

export interface TorchscaleRetention<D extends FloatDType> {
  /** [batch, seq, heads, value dim] */
  readonly out: Tensor<D, Shape4>;
  readonly state: TorchscaleRetentionState;
}

/** scale_n = gamma^n scale_0 + (1 + gamma + ... + gamma^(n - 1)) */
const scalesAfter = fused(function scalesAfter(n, log, start) {
  const power = n.mul(log);
  return power.exp().mul(start).add(power.expm1().div(log.expm1()));
});
const overRoot = fused(function overRoot(x, scale) {
  return x.mul(scale.maximum(1).rsqrt());
});
const timesRoot = fused(function timesRoot(x, scale) {
  return x.mul(scale.sqrt());
});

/**
 * The recurrent form of retention (Sun et al., "Retentive Network", 2023, arXiv:2307.08621) as torchscale has it: scale_n =
 * gamma scale_{n-1} + 1, kv_n = kv_{n-1} sqrt(scale_{n-1}) gamma / sqrt(scale_n) + k_n v_n^T / sqrt(scale_n), out_n = kv_n^T
 * q_n. Since kv_n sqrt(scale_n) is the state of plain retention, all positions are computed at once by the engine, in time
 * that grows with seq.
 *
 * @param q [batch, seq, heads, key dim], rotated
 * @param k [batch, seq, heads, key dim], rotated and scaled
 * @param v [batch, seq, heads, value dim]
 * @param state that another call has left
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function retentionTorchscaleRecurrent<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  state?: TorchscaleRetentionState,
): TorchscaleRetention<D> {
  const given = [q, k, v] as unknown as [Tensor, Tensor, Tensor];
  checkHeads(...given, 'any');
  const [batch, seq, heads, keyDim] = q.shape;
  if (state !== undefined) {
    checkOptions(state, ['kv', 'scale'], 'state');
    const stateShape = [batch, heads, keyDim, v.shape[3]];
    checkShaped(state.kv, 'state.kv', stateShape, 'batch, heads, key dim, value dim', given[0]);
    checkShaped(state.scale, 'state.scale', [heads], 'heads', given[0]);
    for (const name of ['kv', 'scale'] as const) checkFloat32State(state[name], `state.${name}`);
  }
  return scope(() => {
    const device = q.device as DeviceName;
    const log = retentionDecays(heads, device) as Tensor<'float32', Shape>;
    const perHead = (t: Tensor) => t.reshape([heads, 1, 1]);
    const initialState = state && (timesRoot(state.kv, perHead(state.scale as Tensor)) as Tensor<'float32', Shape>);
    const plain = recurrence(given[0], given[1], given[2], { decay: { per: 'head', log }, scale: 1, initialState });
    // [seq + 1, heads]: before the first position and after each.
    const counts = counted(seq + 1, device).reshape([seq + 1, 1]);
    const scales = scalesAfter(counts, log, state ? state.scale : 0);
    const last = scales.select(0, seq);
    const scaled = overRoot(plain.out, scales.slice(0, 1, seq + 1).reshape([seq, heads, 1]));
    return {
      out: narrow(scaled, given[0]) as unknown as Tensor<D, Shape4>,
      state: {
        kv: overRoot(plain.state, perHead(last)) as Tensor<'float32', Shape>,
        scale: last as Tensor<'float32', Shape>,
      },
    };
  });
}

/** gamma^(size (n - 1 - m)) for chunks m before n, else 0. */
const carried = fused(function carried(n, m, log, size) {
  return m.less(n).where(n.sub(m).sub(1).mul(size).mul(log).exp(), 0);
});
/** What the tokens of a chunk weigh in the state that it leaves: gamma^(size - 1 - j) / (1 + ... + gamma^(size - 1)). */
const kept = fused(function kept(j, log, size) {
  const all = log.mul(size).expm1().div(log.expm1());
  return size.sub(1).sub(j).mul(log).exp().div(all);
});
/** gamma^(i + 1) (1 + ... + gamma^(size - 1)) / sqrt(s_i), what a query reads an earlier state with. */
const reads = fused(function reads(i, log, size) {
  const one = log.expm1();
  const all = log.mul(size).expm1().div(one);
  const own = i.add(1).mul(log);
  return own.exp().mul(all).mul(own.expm1().div(one).rsqrt());
});
const normalised = fused(function normalised(within, across, inner, cross) {
  return within.add(across).div(inner.maximum(1).maximum(cross));
});

export interface RetentionChunkwiseOptions {
  /** Tokens of a chunk, of which seq must be a multiple. */
  readonly chunk: number;
}

/**
 * The chunkwise form of retention (Sun et al. 2023, arXiv:2307.08621) as torchscale has it. In a chunk of C tokens from state
 * S, with D_ij = gamma^(i - j) for j <= i, s_i = sum_j D_ij and t = s_{C-1}: a = (q k^T) D / sqrt(s_i), out_i = (a v +
 * gamma^(i + 1) t / sqrt(s_i) q_i S) / max(sum_j |a_ij|, the largest sum over key dims of |S|, 1), whose divisor has no
 * gradient; then S = gamma^C S + k^T (v D_{C-1,j} / t). A token that is not finite is felt by its whole chunk and by all that
 * follow, and through products with 0 by those before.
 *
 * @param q [batch, seq, heads, key dim], rotated
 * @param k [batch, seq, heads, key dim], rotated and scaled
 * @param v [batch, seq, heads, value dim]
 * @returns [batch, seq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function retentionTorchscaleChunkwise<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: RetentionChunkwiseOptions,
): Tensor<D, Shape4> {
  const given = [q, k, v] as unknown as [Tensor, Tensor, Tensor];
  checkHeads(...given, 'any');
  checkOptions(options, ['chunk']);
  const size = checkInteger(options.chunk, 'chunk', 1);
  const [batch, seq, heads, keyDim] = q.shape;
  const valueDim = v.shape[3];
  if (seq % size !== 0)
    throw shapeError(`q has shape ${show(q.shape)}; its seq must be a multiple of chunk, ${size}, in this form`);
  return scope(() => {
    const device = q.device as DeviceName;
    const count = seq / size;
    const log = retentionDecays(heads, device);
    const perHead = log.reshape([heads, 1, 1]);
    // [batch, chunks, heads, size, dim]
    const [queries, keys, values] = given.map((t) => inChunks(wide(t), size)) as [Tensor, Tensor, Tensor];
    const scores = times(matmul(queries, keys.transpose(-2, -1)), decayMatrix(size, log));

    const places = counted(size, device).reshape([size, 1]);
    const own = matmul(keys.transpose(-2, -1), times(values, kept(places, perHead, size)));
    const order = counted(count, device);
    const carry = carried(order.reshape([count, 1]), order.reshape([1, count]), perHead, size);
    const flat = own
      .transpose(1, 2)
      .contiguous()
      .reshape([batch, heads, count, keyDim * valueDim]);
    const states = matmul(carry, flat).reshape([batch, heads, count, keyDim, valueDim]).transpose(1, 2);

    const totals = sum(abs(states.detach()) as Tensor, -2, { keepDims: true });
    const across = matmul(times(queries, reads(places, perHead, size)), states);
    const out = normalised(matmul(scores, values), across, sizes(scores), max(totals, -1, { keepDims: true }));
    return narrow(fromChunks(out, 0, seq), given[0]) as unknown as Tensor<D, Shape4>;
  });
}
