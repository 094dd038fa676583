/** Rotary positions, before causal attention. */
import { attention, rope, type Shape4, type Tensor } from 'flashattn';
import { ropeFrequencies } from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { numberOf } from '../file.js';
import { solveTaped } from './taped.js';

export const rotary: Adapter = {
  systems: ['rope'],
  compute(file, workspace) {
    const [length, dim, offset] = [numberOf(file, 'N'), numberOf(file, 'rotary_dim'), numberOf(file, 'offset')];
    const frequencies = ropeFrequencies({ dims: dim, base: numberOf(file, 'base') });
    const table = (f: (angle: number) => number) =>
      workspace.tensor(
        Float64Array.from({ length: (length * dim) / 2 }, (_, i) => {
          const position = offset + Math.floor(i / frequencies.length);
          return f(position * (frequencies[i % frequencies.length] as number));
        }),
        [length, dim / 2],
      );
    const angles = { cos: table(Math.cos), sin: table(Math.sin) };
    const pairs = file.params.boolean('interleaved') ? 'interleaved' : 'half';
    return solveTaped(file, workspace, (input) => {
      const of = (name: string) => input(name).transpose(1, 2) as Tensor<'float32', Shape4>;
      const [q, k, v] = [of('q'), of('k'), of('v')];
      const { out, lse } = attention(q, k, v, { causal: true, rope: { ...angles, pairs } });
      const turned = (t: Tensor) => rope(t, angles, { pairs }).transpose(1, 2);
      return { out: out.transpose(1, 2), lse, q_rot: turned(q), k_rot: turned(k) };
    });
  },
};
