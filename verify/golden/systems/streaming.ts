/** StreamingLLM, without positions and with keys that are rotated by their place in the cache. */
import { attention, attentionBackward, type Mask, masks, mergeStates, mergeStatesBackward, patterns } from 'flashattn';
import type { Adapter, ComputedTensor, Outcome, Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';
import { required, solveMasked, visibility } from './masked.js';

const BASE = 10000;

/**
 * Rotary embedding in halves: pairs (x[d], x[d + dim / 2]) turn by position * base^(-2d / dim). `direction` -1 turns
 * back, which is also the gradient.
 */
function rotate(
  values: ArrayLike<number>,
  length: number,
  dim: number,
  positionOf: (token: number) => number,
  direction: 1 | -1,
): Float64Array {
  const rotated = Float64Array.from(values);
  const half = dim / 2;
  for (let row = 0; row * dim < rotated.length; row++)
    for (let d = 0; d < half; d++) {
      const angle = direction * positionOf(row % length) * BASE ** (-d / half);
      const [a, b] = [values[row * dim + d] ?? NaN, values[row * dim + d + half] ?? NaN];
      rotated[row * dim + d] = a * Math.cos(angle) - b * Math.sin(angle);
      rotated[row * dim + d + half] = b * Math.cos(angle) + a * Math.sin(angle);
    }
  return rotated;
}

/**
 * Sinks are nearer to the query in the cache than in the text, so the query has another position towards them: one
 * attention over the sinks, one over the recent keys, merged.
 */
async function solveRotated(file: GoldenFile, workspace: Workspace, start: number, recent: number): Promise<Outcome> {
  const layout = 'bhsd';
  const mask = patterns.streamingLLM({ start, recent });
  const { values, shape } = file.tensor('q');
  const [length = 0, dim = 0] = shape.slice(2);
  const token = (at: number) => at;
  const parts: { mask: Mask; position: (token: number) => number }[] = [
    { mask: masks.and(mask, masks.prefix(start)), position: (at) => Math.min(at, start + recent) },
    { mask: masks.and(mask, masks.not(masks.prefix(start))), position: token },
  ];
  const k = workspace.tensor(rotate(file.tensor('k').values, length, dim, token, 1), shape);
  const v = workspace.load(file, 'v');
  const states = parts.map((part) => {
    const q = workspace.tensor(rotate(values, length, dim, part.position, 1), shape);
    const { out, lse } = attention(q, k, v, { layout, mask: part.mask });
    return { q, k, v, out: workspace.keep(out), lse: workspace.keep(lse) };
  });
  const merged = mergeStates(states, { layout });
  const out = workspace.keep(merged.out);
  const lse = workspace.keep(merged.lse);
  const gradients = mergeStatesBackward(workspace.load(file, 'dout'), { states, out, lse }, { layout });

  const sums = {
    dq: new Float64Array(values.length),
    dk: new Float64Array(values.length),
    dv: new Float64Array(values.length),
  };
  for (const [n, { mask: partMask, position }] of parts.entries()) {
    const [state, gradient] = [states[n], gradients[n]];
    if (!state || !gradient) throw new GoldenError('a part without gradient');
    const dOut = workspace.keep(gradient.dOut);
    const dLse = workspace.keep(gradient.dLse);
    const { dq, dk, dv } = attentionBackward(dOut, state, { layout, mask: partMask, dLse });
    const add = (sum: Float64Array, part: ArrayLike<number>) => {
      for (const [at, value] of sum.entries()) sum[at] = value + (part[at] ?? NaN);
    };
    add(sums.dq, rotate(await workspace.keep(dq).toFloat32(), length, dim, position, -1));
    add(sums.dk, rotate(await workspace.keep(dk).toFloat32(), length, dim, token, -1));
    add(sums.dv, await workspace.keep(dv).toFloat32());
  }
  const tensors: Record<string, ComputedTensor> = {
    out: { values: await out.toFloat32() },
    lse: { values: await lse.toFloat32() },
    mask: visibility(mask, [length, length]),
  };
  for (const [name, sum] of Object.entries(sums)) tensors[name] = { values: sum };
  return { tensors };
}

export const streamingLLM: Adapter = {
  systems: ['streaming_llm'],
  async compute(file, workspace) {
    const start = required(file.params.number('start'), 'start');
    const recent = required(file.params.number('recent'), 'recent');
    if (file.params.boolean('rope')) return solveRotated(file, workspace, start, recent);
    return { tensors: await solveMasked(file, workspace, patterns.streamingLLM({ start, recent })) };
  },
};
