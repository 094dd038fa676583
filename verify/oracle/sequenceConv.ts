/** Lightweight and dynamic convolutions in float64, tap by tap: x is [batch, seq, channels]. */
import { linear, type Numbers, range, row, softmax, total } from './dense.js';

export interface SequenceConv {
  readonly batch: number;
  readonly seq: number;
  readonly channels: number;
  readonly heads: number;
  readonly taps: number;
  readonly causal: boolean;
  readonly weightSoftmax: boolean;
}

type KernelOf = (b: number, t: number, c: number) => readonly number[];

/** out[t, c] = the sum of taps j of kernel[j] x[t + j - left, c]. */
function convolve(d: SequenceConv, x: Numbers, kernelOf: KernelOf, bias?: Numbers): Float64Array {
  const left = d.causal ? d.taps - 1 : Math.floor((d.taps - 1) / 2);
  const out = new Float64Array(d.batch * d.seq * d.channels);
  for (const b of range(d.batch))
    for (const t of range(d.seq))
      for (const c of range(d.channels)) {
        const products = kernelOf(b, t, c).map((weight, j) => {
          const at = t + j - left;
          return at < 0 || at >= d.seq ? 0 : weight * x[(b * d.seq + at) * d.channels + c];
        });
        out[(b * d.seq + t) * d.channels + c] = total(products) + (bias?.[c] ?? 0);
      }
  return out;
}

export function lightweight(
  d: SequenceConv & { readonly interleaved: boolean },
  { x, kernels, bias }: { readonly x: Numbers; readonly kernels: Numbers; readonly bias?: Numbers },
): Float64Array {
  const each = d.channels / d.heads;
  return convolve(
    d,
    x,
    (_b, _t, c) => {
      const weights = row(kernels, d.interleaved ? c % d.heads : Math.floor(c / each), d.taps);
      return d.weightSoftmax ? softmax(weights) : weights;
    },
    bias,
  );
}

export interface DynamicWeights {
  readonly x: Numbers;
  readonly kernels: Numbers;
  readonly kernelsBias?: Numbers;
  readonly bias?: Numbers;
}

export function dynamic(
  d: SequenceConv & { readonly renormPadding: boolean; readonly inputProjection: boolean },
  { x, kernels, kernelsBias, bias }: DynamicWeights,
): Float64Array {
  const left = d.causal ? d.taps - 1 : Math.floor((d.taps - 1) / 2);
  const projected = range(d.batch * d.seq).map((r) => linear(row(x, r, d.channels), kernels, kernelsBias));
  const inputs = d.inputProjection ? projected.flatMap((made) => made.slice(0, d.channels)) : x;
  const each = d.channels / d.heads;
  const kernelOf: KernelOf = (b, t, c) => {
    const own = projected[b * d.seq + t].slice(d.inputProjection ? d.channels : 0);
    const logits = row(own, Math.floor(c / each), d.taps).map((logit, j) => {
      const at = t + j - left;
      return d.renormPadding && (at < 0 || at >= d.seq) ? Number.NEGATIVE_INFINITY : logit;
    });
    return d.weightSoftmax ? softmax(logits) : logits;
  };
  return convolve(d, inputs, kernelOf, bias);
}
