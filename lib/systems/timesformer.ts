import type { Shape4 } from '../attention/attention.js';
import { checkInteger, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { RowMap, releaseCopies } from '../ops/gather.js';
import type { Tensor } from '../tensor/tensor.js';
import { Packing, pack, packedAttention, packedBackward, type Sequence, unpack } from './packing.js';
import {
  checkGradient,
  checkInputs,
  checkOptions,
  type Regrouped,
  type RegroupedGradients,
  type SavedAttention,
  type ScaleOption,
  scaleOf,
  scoped,
  shapesOf,
} from './saved.js';

const patterns = ['space', 'time', 'officialSpace'] as const;

export interface TimesformerOptions extends ScaleOption {
  readonly frames: number;
  /** Patches of a frame. */
  readonly patches: number;
  /**
   * 'space': a patch sees the CLS token and its frame, CLS sees everything; 'time': a patch sees CLS and the same patch
   * of all frames, CLS sees everything; 'officialSpace': as 'space', but CLS attends to itself and each frame on its
   * own, and its results are averaged. (The official time attention leaves CLS out: that is `axialAttention` over the
   * frames of the patches alone.)
   */
  readonly pattern: (typeof patterns)[number];
}

/** How `timesformerAttention` regroups tokens. */
export interface TimesformerLayout {
  readonly packing: Packing;
  /** From packed rows to tokens, each sum to be multiplied by `scale`. */
  readonly result: RowMap;
  readonly scale: number;
}

const layouts = new Remember<TimesformerLayout>(releaseCopies);

function layoutOf({ frames, patches, pattern }: TimesformerOptions): TimesformerLayout {
  return layouts.get([frames, patches, pattern], () => {
    const tokens = 1 + frames * patches;
    const token = (frame: number, patch: number) => 1 + frame * patches + patch;
    const range = (length: number) => Array.from({ length }, (_, i) => i);
    const groups =
      pattern === 'time'
        ? range(patches).map((patch) => range(frames).map((frame) => token(frame, patch)))
        : range(frames).map((frame) => range(patches).map((patch) => token(frame, patch)));
    const perFrame = pattern === 'officialSpace';
    const sequences: Sequence[] = groups.map((group) => ({
      queries: perFrame ? [0, ...group] : group,
      keys: [0, ...group],
    }));
    if (!perFrame) sequences.unshift({ queries: [0], keys: range(tokens) });
    const packing = new Packing(sequences, tokens, tokens);
    const copies = packing.queries.transposed();
    if (!perFrame) return { packing, result: copies, scale: 1 };
    // The CLS token has a row in every frame. Patches are added up as often, so that one factor serves them all.
    const lists = range(tokens).map((at) => {
      const rows = [...copies.indices.subarray(copies.offsets[at], copies.offsets[at + 1])];
      return at === 0 ? rows : range(frames).map(() => rows[0]);
    });
    return { packing, result: RowMap.fromLists(lists, copies.sourceRows), scale: 1 / frames };
  });
}

function readLayout(options: TimesformerOptions, tokens: number): TimesformerLayout {
  checkOptions(options, ['frames', 'patches', 'pattern']);
  const { frames, patches } = options;
  checkInteger(frames, 'frames', 1);
  checkInteger(patches, 'patches', 1);
  checkWord(options.pattern, 'pattern', patterns);
  if (tokens !== 1 + frames * patches)
    throw shapeError(
      `q has ${tokens} tokens; ${frames} frames of ${patches} patches and the CLS token are ${1 + frames * patches}`,
    );
  return layoutOf(options);
}

const order = ['batch', 'tokens', 'heads', 'dim'];

/**
 * Divided space-time attention of TimeSformer (Bertasius et al. 2021) over a CLS token and the patches of a clip:
 * out_i = softmax(scale * q_i k_G(i)^T) v_G(i), where G(i) is CLS and the frame (space) or the column (time) of patch i.
 *
 * @param q [batch, 1 + frames * patches, heads, dim]: CLS, then the patches frame by frame
 * @param k the same tokens, [batch, tokens, kv heads, dim]
 * @param v [batch, tokens, kv heads, value dim]
 * @returns out [batch, tokens, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function timesformerAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<D, Shape4>,
  v: Tensor<D, Shape4>,
  options: TimesformerOptions,
): Regrouped<D, Shape4, TimesformerLayout> {
  checkInputs(q, k, v, order);
  const layout = readLayout(options, q.shape[1]);
  return scoped(({ keep }) => {
    const saved = packedAttention<D, TimesformerLayout>(
      'timesformerAttention',
      { q, k, v },
      layout,
      shapesOf(q, k, v),
      scaleOf(options),
    );
    for (const t of [saved.q, saved.k, saved.v, saved.out, saved.lse]) keep(t);
    const out = unpack(saved.out, layout.result.transposed(), layout.scale) as Tensor<D, Shape4>;
    return { out, saved };
  });
}

/**
 * The gradients of `timesformerAttention`.
 *
 * @param dOut the shape and dtype of out
 * @param saved what the forward pass saved
 * @throws as `timesformerAttention`
 */
export function timesformerAttentionBackward<D extends FloatDType>(
  dOut: Tensor<D, Shape4>,
  saved: SavedAttention<D, TimesformerLayout>,
): RegroupedGradients<D, Shape4> {
  checkGradient(dOut, saved, 'timesformerAttention');
  const { result, scale } = saved.layout;
  return scoped(({ use }) => {
    const packed = use(pack<D>(dOut, result.transposed(), scale));
    return packedBackward(packed, saved) as RegroupedGradients<D, Shape4>;
  });
}
