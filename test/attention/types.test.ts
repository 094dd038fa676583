/** What the types accept and refuse: checked by the compiler (`npm run typecheck`); nothing here runs. */
import {
  attention,
  attentionBackward,
  type FloatDType,
  lookup,
  mergeStates,
  plan,
  type ScoreMod,
  type Shape3,
  type Shape4,
  type Tensor,
  tensor,
  zeros,
} from 'flashattn';
import { describe, expectTypeOf, it } from 'vitest';

declare const single: Tensor<'float32', Shape4>;
declare const half: Tensor<'float16', Shape4>;
declare const packed: Tensor<'float32', Shape3>;
declare const lse: Tensor<'float32', Shape3>;
declare const unknownTensor: Tensor;

/** Compiled, never called. */
function compiled(check: () => void): void {
  void check;
}

describe('types', () => {
  it('tensors know their dtype and rank', () =>
    compiled(() => {
      expectTypeOf(tensor([1, 2], [2, 1])).toEqualTypeOf<Tensor<'float32', readonly [number, number]>>();
      expectTypeOf(zeros([1, 2, 3, 4], { dtype: 'bfloat16' })).toEqualTypeOf<Tensor<'bfloat16', Shape4>>();
      expectTypeOf(single.dataSync()).toEqualTypeOf<Float32Array>();
      expectTypeOf(half.dataSync()).toEqualTypeOf<Uint16Array>();
      expectTypeOf(half.data()).toEqualTypeOf<Promise<Uint16Array>>();
      expectTypeOf(half.toFloat32Sync()).toEqualTypeOf<Float32Array>();
      // @ts-expect-error bit patterns mean nothing without a dtype
      tensor(new Uint16Array(4), [4]);
      // @ts-expect-error no such dtype
      zeros([4], { dtype: 'float64' });
      // @ts-expect-error no such device
      zeros([4], { device: 'gpu' });
    }));

  it('functions of scores take and give expressions', () =>
    compiled(() => {
      const scoreMod: ScoreMod = (score, _b, h, i, j) => score.add(lookup(zeros([4]), h)).sub(i.sub(j).abs());
      attention(half, half, half, { scoreMod });
      attention(packed, packed, packed, { cuSeqlensQ: [0, 4], cuSeqlensK: [0, 4], scoreMod: () => 0 });
      attention(single, single, single, {
        scoreMod: (score) => lookup(tensor([1, 2], [2], { dtype: 'int32' }), score),
      });
      // @ts-expect-error a truth value is no score
      attention(single, single, single, { scoreMod: (_score, _b, _h, i, j) => i === j });
      // @ts-expect-error operators do not work on expressions
      attention(single, single, single, { scoreMod: (score) => score + 1 });
      // @ts-expect-error tables are float32 or int32
      attention(single, single, single, { scoreMod: (_score, _b, _h, i) => lookup(half, 0, 0, 0, i) });
    }));

  it('attention keeps dtype and rank', () =>
    compiled(() => {
      expectTypeOf(attention(half, half, half).out).toEqualTypeOf<Tensor<'float16', Shape4>>();
      expectTypeOf(attention(half, half, half).lse).toEqualTypeOf<Tensor<'float32', Shape3>>();
      const offsets = { cuSeqlensQ: [0, 4], cuSeqlensK: [0, 4] };
      expectTypeOf(attention(packed, packed, packed, offsets).out).toEqualTypeOf<Tensor<'float32', Shape3>>();
      expectTypeOf(attention(packed, packed, packed, offsets).lse).toEqualTypeOf<
        Tensor<'float32', readonly [number, number]>
      >();
      // Tensors of unknown dtype and rank are checked when they run.
      expectTypeOf(attention(unknownTensor, unknownTensor, unknownTensor).out.dtype).toEqualTypeOf<FloatDType>();
    }));

  it('attention refuses what cannot be', () =>
    compiled(() => {
      // @ts-expect-error mixed dtypes
      attention(single, half, single);
      // @ts-expect-error mixed dtypes
      attention(half, half, single);
      // @ts-expect-error mixed ranks
      attention(single, packed, packed);
      // @ts-expect-error packed sequences need their offsets
      attention(packed, packed, packed);
      // @ts-expect-error a layout is for rank 4
      attention(packed, packed, packed, { cuSeqlensQ: [0, 4], cuSeqlensK: [0, 4], layout: 'bhsd' });
      // @ts-expect-error no such option
      attention(single, single, single, { casual: true });
      // @ts-expect-error no such layout
      attention(single, single, single, { layout: 'sbhd' });
      // @ts-expect-error a window has two sides
      attention(single, single, single, { window: [3] });
      // @ts-expect-error a gradient for lse is for the backward pass
      attention(single, single, single, { dLse: lse });
      // @ts-expect-error slopes are float32
      attention(half, half, half, { alibi: half });
    }));

  it('gradients have the types of what they are gradients of', () =>
    compiled(() => {
      const saved = { q: half, k: half, v: half, out: half, lse };
      expectTypeOf(attentionBackward(half, saved).dq).toEqualTypeOf<Tensor<'float16', Shape4>>();
      expectTypeOf(attentionBackward(half, saved, { dLse: lse, deterministic: true }).dv).toEqualTypeOf<
        Tensor<'float16', Shape4>
      >();
      // @ts-expect-error another dtype than out
      attentionBackward(single, saved);
      // @ts-expect-error dLse is float32
      attentionBackward(half, saved, { dLse: half });
      // @ts-expect-error lse is missing
      attentionBackward(half, { q: half, k: half, v: half, out: half });
    }));

  it('merging and planning keep them too', () =>
    compiled(() => {
      expectTypeOf(mergeStates([{ out: half, lse }]).out).toEqualTypeOf<Tensor<'float16', Shape4>>();
      const planned = plan({ q: [1, 2, 3, 4], dtype: 'float16' });
      expectTypeOf(planned.run(half, half, half).out.dtype).toEqualTypeOf<'float16'>();
      // @ts-expect-error another dtype than planned
      planned.run(single, single, single);
    }));
});
