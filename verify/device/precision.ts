/** The rule for 16-bit results on tensors large enough that chance plays no part in it. */

import { type Case, instantiate } from '../cases/case.js';
import { runLibrary } from '../cases/library.js';
import { judge, unfused } from '../oracle/lowPrecision.js';
import { solve } from '../oracle/sensitivity.js';
import { type Check, CheckFailure } from './check.js';

const base = { seed: 31, layout: 'bshd', queryLength: 192, keyLength: 224, kvHeads: 2, headDim: 64 } as const;

const PROBLEMS: Readonly<Record<string, Omit<Case, 'dtype'>>> = {
  plain: base,
  'causal, grouped heads': { ...base, kvHeads: 1, group: 2, causal: true },
  'wide heads, softcap': { ...base, headDim: 160, valueDim: 96, kvHeads: 1, softcap: 5 },
  'bias and a gradient for lse': { ...base, bias: [false, false, false, false], dLse: true },
  'sharp softmax': { ...base, scale: 0.5 },
};

export const precisionChecks = (): Check[] =>
  (['float16', 'bfloat16'] as const).flatMap((dtype) =>
    Object.entries(PROBLEMS).map(([name, problem]) => ({
      name: `${name}, ${dtype}`,
      run(device) {
        const c: Case = { ...problem, dtype };
        const instance = instantiate(c);
        const actual = runLibrary(instance, { dtype, device });
        const exact = solve(instance.problem, instance.dOut, instance.dLse);
        const reference = unfused(instance.problem, dtype, instance.dOut, instance.dLse);
        for (const tensor of Object.keys(exact).filter((other) => other !== 'lse')) {
          const values = [actual[tensor], exact[tensor], reference[tensor]] as [
            Float64Array,
            Float64Array,
            Float64Array,
          ];
          const verdict = judge(dtype, values[0], values[1], [values[2]], Infinity);
          if (!verdict.ok) throw new CheckFailure(`${tensor}: ${JSON.stringify(verdict)}`, c);
        }
      },
    })),
  );
