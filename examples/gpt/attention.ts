import {
  add,
  attention,
  type DeviceName,
  matmul,
  mul,
  normal,
  parameter,
  scope,
  softmax,
  sum,
  type Tensor,
  tensor,
} from 'flashattn';

export interface Comparison {
  /** Milliseconds of a layer, forward and backward. */
  readonly fused: number;
  readonly unfused: number;
  /** The largest difference of the results. */
  readonly difference: number;
}

const runs = 7;

/** Attention as its formula says, with all scores in memory: [batch, heads, length, dim]. */
function unfused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor): Tensor {
  const scores = mul(matmul(q, k.transpose(2, 3)), 1 / Math.sqrt(q.shape[3] as number));
  return matmul(softmax(add(scores, mask)), v);
}

/** Both on the same device, in turn. */
export async function compareAttention(
  heads: number,
  dim: number,
  batch: number,
  length: number,
  device: string,
): Promise<Comparison> {
  const on = { device: device as DeviceName };
  const shape = [batch, length, heads, dim];
  const [q, k, v] = [1, 2, 3].map((seed) => {
    using values = normal(shape, { seed, ...on });
    return parameter(values as Tensor);
  }) as [Tensor, Tensor, Tensor];
  const hidden = Float32Array.from({ length: length * length }, (_, at) =>
    at % length > Math.floor(at / length) ? Number.NEGATIVE_INFINITY : 0,
  );
  const mask = tensor(hidden, [length, length], on);
  const passes = {
    fused: () => attention(q, k, v, { causal: true }).out,
    unfused: () => {
      const [first, second, third] = [q, k, v].map((t) => t.transpose(1, 2)) as [Tensor, Tensor, Tensor];
      return unfused(first, second, third, mask).transpose(1, 2);
    },
  };
  const times: Record<keyof typeof passes, number[]> = { fused: [], unfused: [] };
  const results: Partial<Record<keyof typeof passes, Float32Array>> = {};
  for (let run = 0; run <= runs; run++)
    for (const name of ['fused', 'unfused'] as const) {
      const started = performance.now();
      const out = scope(() => {
        const result = passes[name]();
        sum(result).backward();
        return result.detach();
      });
      results[name] = await out.toFloat32();
      out.dispose();
      await q.grad?.data();
      if (run > 0) times[name].push(performance.now() - started);
      for (const t of [q, k, v]) t.grad = undefined;
    }
  for (const t of [q, k, v, mask]) t.dispose();
  const middle = (list: number[]) => list.sort((a, b) => a - b)[runs >> 1] as number;
  const other = results.unfused as Float32Array;
  const difference = (results.fused as Float32Array).reduce(
    (most, x, i) => Math.max(most, Math.abs(x - (other[i] as number))),
    0,
  );
  return { fused: middle(times.fused), unfused: middle(times.unfused), difference };
}
