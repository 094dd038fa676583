/**
 * Problems of the size that people train with, too large for references on the host: 16-bit results against those of the
 * float32 kernels on the same device, which share neither tiles nor products with them.
 */
import { attention, attentionBackward, type DeviceName, type Tensor, tensor } from 'flashattn';
import type { LowDType } from '../oracle/float16.js';
import { normal } from '../oracle/random.js';
import { type Check, ensure, type Settings } from './check.js';
import { owning } from './tensors.js';

/** Largest error in units of the root mean square: P and dS are rounded to 16 bits once each, results once more. */
const TOLERANCE: Readonly<Record<LowDType, number>> = { float16: 2e-3, bfloat16: 1.5e-2 };

type Names = 'out' | 'dq' | 'dk' | 'dv';

interface Size {
  readonly length: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly causal: boolean;
}

function results({ causal }: Size, inputs: readonly Tensor[], dOut: Tensor): Record<Names, Float32Array> {
  return owning((own) => {
    const [q, k, v] = inputs as [Tensor, Tensor, Tensor];
    const { out, lse } = attention(q, k, v, { causal });
    own(out);
    own(lse);
    const { dq, dk, dv } = attentionBackward(dOut, { q, k, v, out, lse }, { causal });
    return {
      out: out.toFloat32Sync(),
      dq: own(dq).toFloat32Sync(),
      dk: own(dk).toFloat32Sync(),
      dv: own(dv).toFloat32Sync(),
    };
  });
}

/** ||found - exact|| / ||exact||; NaN where a number is none. */
function relativeError(found: Float32Array, exact: Float32Array): number {
  let difference = 0;
  let size = 0;
  for (let i = 0; i < exact.length; i++) {
    difference += (found[i] - exact[i]) ** 2;
    size += exact[i] ** 2;
  }
  return Math.sqrt(difference / size);
}

const scaleCheck = (dtype: LowDType, size: Size): Check => ({
  name: `${JSON.stringify(size)} against float32, ${dtype}`,
  run(device: DeviceName) {
    const { length, heads, kvHeads, headDim } = size;
    owning((own) => {
      const low = [heads, kvHeads, kvHeads, heads].map((count, n) => {
        const shape = [1, length, count, headDim];
        return own(tensor(Float32Array.from(normal(length * count * headDim, n + 1)), shape, { dtype, device }));
      });
      const wide = low.map((t) => own(tensor(t.toFloat32Sync(), t.shape, { device })));
      const [found, exact] = [low, wide].map(([q, k, v, dOut]) =>
        results(size, [q, k, v] as Tensor[], dOut as Tensor),
      ) as [Record<Names, Float32Array>, Record<Names, Float32Array>];
      for (const name of Object.keys(exact) as Names[]) {
        const error = relativeError(found[name], exact[name]);
        ensure(error <= TOLERANCE[dtype], `${name} is off by ${error} of its norm, more than ${TOLERANCE[dtype]}`);
      }
    });
  },
});

export const scaleChecks = ({ large }: Settings): Check[] =>
  !large
    ? []
    : (['float16', 'bfloat16'] as const).flatMap((dtype) =>
        [32, 64, 96, 128, 192, 256].flatMap((headDim) =>
          [false, true].map((causal) => {
            const kvHeads = causal ? 1 : 4;
            return scaleCheck(dtype, { length: causal ? 4096 : 3000, heads: 4, kvHeads, headDim, causal });
          }),
        ),
      );
