import { attention, type Shape4 } from '../attention/attention.js';
import { checkBoolean, checkFloat32, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { zeros } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { eluPlusOne } from '../linear/featureMaps.js';
import type { Mask } from '../masks/mask.js';
import { documents } from '../masks/positions.js';
import { concat } from '../ops/concat.js';
import { ones } from '../ops/create.js';
import { fused } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import type { RopeAngles, RopeOptions } from '../ops/rope.js';
import { stack, unbind, unsqueeze } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { fromChunks, inChunks, sumsBefore } from './chunks.js';
import { checkFloat32State, checkHeads, checkShaped, narrow, wide } from './inputs.js';

/** What all segments that have ended have left, float32. */
export interface InfiniMemory {
  /** The sum of phi(k) v^T [batch, heads, dim, value dim] */
  readonly M: Tensor<FloatDType, Shape>;
  /** The sum of phi(k) [batch, heads, dim] */
  readonly z: Tensor<FloatDType, Shape>;
}

/** Where a sequence was left off, wherever that was. */
export interface InfiniState {
  /** Of the segments that have ended; absent in the first one. */
  readonly memory?: InfiniMemory;
  /** The tokens of the segment that has not ended [batch, up to segment - 1, heads, dim]; absent where there are none. */
  readonly k?: Tensor<FloatDType, Shape>;
  readonly v?: Tensor<FloatDType, Shape>;
}

export interface InfiniOptions {
  /** Of memory against attention, one for each head, before the sigmoid: [heads]. */
  readonly gate: Tensor<FloatDType, Shape>;
  /** Tokens of a segment. */
  readonly segment: number;
  /** Whether a key's value is stored less what the memory already holds for it. Default false. */
  readonly delta?: boolean;
  /** Of the scores within a segment. Default 1 / sqrt(dim). */
  readonly scale?: number;
  /**
   * Rotary positions for the attention within segments; the memory knows none, as in the paper. Angles for as many positions
   * as there are tokens with those of the state's segment.
   */
  readonly rope?: RopeAngles & RopeOptions;
  /** That another call has left. */
  readonly state?: InfiniState;
}

export interface InfiniResult<D extends FloatDType> {
  /** [batch, seq, heads, value dim] */
  readonly out: Tensor<D, Shape4>;
  /** After the last token, as if its segment ended there. */
  readonly memory: InfiniMemory;
  /** To go on from. Its tensors may be those of `memory`. */
  readonly state: InfiniState;
}

const masks = new Remember<Mask>();

/** Every segment by itself: the queries are the last of the keys. */
function segmentsOf(segment: number, before: number, keys: number): Mask {
  return masks.get([segment, before, keys], () => {
    const lengths = Array.from({ length: Math.ceil(keys / segment) }, (_, i) => Math.min(segment, keys - i * segment));
    return documents([segment - before, ...lengths.slice(1)], lengths);
  });
}

const recalled = fused(function recalled(sums, weight) {
  return sums.div(weight.maximum(1e-10));
});
const unknown = fused(function unknown(v, sums, weight) {
  return v.sub(sums.div(weight.maximum(1e-10)));
});
const mix = fused(function gated(gate, a, b) {
  return gate.sigmoid().mul(a.sub(b)).add(b);
});

/** M before each segment and after the last, each segment storing what those before it do not: a loop over segments. */
function deltaMemories(k: Tensor, v: Tensor, z: Tensor, first: Tensor): Tensor {
  const weight = unbind(matmul(k, z), 1);
  const values = unbind(v, 1);
  const made = [first];
  for (const [s, keys] of unbind(k, 1).entries()) {
    const M = made[s] as Tensor;
    const added = unknown(values[s], matmul(keys, M), weight[s]);
    made.push(matmul(keys.transpose(-2, -1), added, { bias: M }));
  }
  return stack(made, 1);
}

interface Memories {
  /** A_mem [batch, seq, heads, value dim]: phi(q) M / (phi(q) z), of the memory that the segment of each query began with. */
  readonly recalled: Tensor;
  /** After so many segments. */
  readonly after: (segments: number) => InfiniMemory;
}

/** The compressive memory: equations 3 to 5 of the paper, for all segments at once where they only add. */
function memories(q: Tensor, k: Tensor, v: Tensor, { segment, delta = false, state = {} }: InfiniOptions): Memories {
  const [batch, tokens, heads, dim] = q.shape as Shape4;
  const before = k.shape[1] - tokens;
  const device = q.device as DeviceName;
  const queries = inChunks(eluPlusOne(q), segment, before);
  const keys = inChunks(eluPlusOne(k), segment);
  const values = inChunks(wide(v), segment);
  const count = keys.shape[1];
  const { M, z } = state.memory ?? {};
  const zs = sumsBefore(keys, ones([segment, 1], { device }) as Tensor, z && unsqueeze(z, -1));
  const zBefore = zs.slice(1, 0, count);
  const first = M ?? (zeros([batch, heads, dim, v.shape[3]], { device }) as Tensor);
  const Ms = delta ? deltaMemories(keys, values, zBefore, first) : sumsBefore(keys, values, first);
  const found = recalled(matmul(queries, Ms.slice(1, 0, count)), matmul(queries, zBefore));
  return {
    recalled: fromChunks(found, before, tokens),
    after: (segments) => ({ M: Ms.select(1, segments), z: zs.select(1, segments).select(-1, 0) }),
  };
}

function checkState(state: InfiniState, segment: number, q: Tensor, v: Tensor): void {
  checkOptions(state, ['memory', 'k', 'v'], 'state');
  const [batch, , heads, dim] = q.shape as Shape4;
  const valueDim = v.shape[3];
  if (state.memory !== undefined) {
    const { memory } = state;
    checkOptions(memory, ['M', 'z'], 'state.memory');
    checkShaped(memory.M, 'state.memory.M', [batch, heads, dim, valueDim], 'batch, heads, dim, value dim', q);
    checkShaped(memory.z, 'state.memory.z', [batch, heads, dim], 'batch, heads, dim', q);
    for (const name of ['M', 'z'] as const) checkFloat32State(memory[name], `state.memory.${name}`);
  }
  if ((state.k === undefined) !== (state.v === undefined))
    throw optionError(`state has ${state.k ? 'k and no v' : 'v and no k'}; it must have both or neither`);
  if (state.k === undefined) return;
  checkTensor(state.k, 'state.k');
  const began = state.k.shape[1] ?? 0;
  if (state.k.shape.length !== 4 || began < 1 || began >= segment)
    throw shapeError(
      `state.k has shape ${show(state.k.shape)}; it must be [batch, 1 to ${segment - 1} tokens of a segment, heads, dim]`,
    );
  for (const [name, t, last] of [
    ['state.k', state.k, dim],
    ['state.v', state.v, valueDim],
  ] as const) {
    checkShaped(t, name, [batch, began, heads, last], 'batch, tokens, heads, dim', q);
    if (t.dtype !== q.dtype)
      throw new FlashAttnError('ERR_DTYPE', `${name} is ${t.dtype} and q is ${q.dtype}; they must be the same`);
  }
}

/** How memory and attention are mixed: the authors' equation, or public code, whose first segment has no memory. */
type Gating = 'paper' | 'code';

function run<D extends FloatDType>(
  [q, k, v]: readonly [Tensor, Tensor, Tensor],
  options: InfiniOptions,
  gating: Gating,
): InfiniResult<D> {
  checkHeads(q, k, v, 'any');
  checkOptions(options, ['gate', 'segment', 'delta', 'scale', 'rope', 'state']);
  const { gate, segment, delta = false, scale, rope, state = {} } = options;
  const [, tokens, heads] = q.shape as Shape4;
  checkShaped(gate, 'gate', [heads], 'heads', q);
  checkInteger(segment, 'segment', 1);
  checkBoolean(delta, 'delta');
  if (scale !== undefined) checkFloat32(scale, 'scale');
  checkState(state, segment, q, v);
  return scope(() => {
    const keys = state.k ? concat([state.k, k], 1) : k;
    const values = state.v ? concat([state.v, v], 1) : v;
    const total = keys.shape[1];
    const before = total - tokens;
    const isOne = total <= segment || q.size === 0;
    const mask = isOne ? {} : { mask: segmentsOf(segment, before, total) };
    const within = { causal: true, ...mask, ...(rope && { rope }) };
    const { out: local } = attention(q, keys, values, scale === undefined ? within : { ...within, scale });
    const { recalled: memory, after } = memories(q, keys, values, options);

    const g = wide(gate).reshape([heads, 1]);
    const gated = (from: number) => {
      const [a, b] = [memory, local].map((t) => (from > 0 ? t.slice(1, from, tokens) : t)) as [Tensor, Tensor];
      return narrow(gating === 'paper' ? mix(g, a, b) : mix(g, b, a), q);
    };
    const alone = gating === 'code' && !state.memory ? Math.min(segment - before, tokens) : 0;
    const out = alone === 0 ? gated(0) : concat([local.slice(1, 0, alone), gated(alone)], 1);

    const ended = Math.floor(total / segment);
    const kept = total - ended * segment;
    const rest = (t: Tensor) => t.slice(1, total - kept, total).contiguous();
    const next: InfiniState = {
      ...((ended > 0 || state.memory) && { memory: after(ended) }),
      ...(kept > 0 && { k: rest(keys), v: rest(values) }),
    };
    return { out: out as unknown as Tensor<D, Shape4>, memory: after(Math.ceil(total / segment)), state: next };
  });
}

/**
 * Infini-attention (Munkhdalai et al. 2024) as public code (lucidrains/infini-transformer-pytorch) has it: causal attention
 * within segments of tokens, and a memory of all segments before, with phi(x) = elu(x) + 1:
 *
 * mem_i = phi(q_i) M / max(phi(q_i).z, 1e-10), of the M and z that the segment began with; then z += sum_j phi(k_j) and
 * M += sum_j phi(k_j) v_j^T, with `delta` of v_j - phi(k_j) M / max(phi(k_j).z, 1e-10) in place of v_j.
 *
 * out = local in the first segment, and sigmoid(gate) local + (1 - sigmoid(gate)) mem in later ones: the paper has the gate
 * the other way round, see `infiniAttentionPaper`. Memory is float32.
 *
 * @param q [batch, seq, heads, dim]
 * @param k of the shape of q
 * @param v [batch, seq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export const infiniAttention = <D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: InfiniOptions,
): InfiniResult<D> => run([q, k, v] as unknown as [Tensor, Tensor, Tensor], options, 'code');

/**
 * Infini-attention as in the paper (Munkhdalai, Faruqui and Gopal, "Leave No Context Behind", 2024, arXiv:2404.07143,
 * equations 3 to 6): as `infiniAttention`, but out = sigmoid(gate) mem + (1 - sigmoid(gate)) local in every segment, with
 * mem = 0 in the first.
 *
 * @param q [batch, seq, heads, dim]
 * @param k of the shape of q
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim], and the state that the next call goes on from
 * @throws as `infiniAttention`
 */
export const infiniAttentionPaper = <D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: InfiniOptions,
): InfiniResult<D> => run([q, k, v] as unknown as [Tensor, Tensor, Tensor], options, 'paper');
