/** The rule for 16-bit results on tensors large enough that chance plays no part in it. */
import { describe, expect, it } from 'vitest';
import { judge, unfused } from './oracle/lowPrecision.js';
import { solve } from './oracle/sensitivity.js';
import { type Case, instantiate } from './support/case.js';
import { runLibrary } from './support/library.js';

const base = { seed: 31, layout: 'bshd', queryLength: 192, keyLength: 224, kvHeads: 2, headDim: 64 } as const;

const PROBLEMS: Readonly<Record<string, Omit<Case, 'dtype'>>> = {
  plain: base,
  'causal, grouped heads': { ...base, kvHeads: 1, group: 2, causal: true },
  'wide heads, softcap': { ...base, headDim: 160, valueDim: 96, kvHeads: 1, softcap: 5 },
  'bias and a gradient for lse': { ...base, bias: [false, false, false, false], dLse: true },
  'sharp softmax': { ...base, scale: 0.5 },
};

describe.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
  it.each(Object.entries(PROBLEMS))('%s', (_, problem) => {
    const instance = instantiate({ ...problem, dtype });
    const actual = runLibrary(instance, { dtype });
    const exact = solve(instance.problem, instance.dOut, instance.dLse);
    const reference = unfused(instance.problem, dtype, instance.dOut, instance.dLse);
    for (const name of Object.keys(exact).filter((tensor) => tensor !== 'lse')) {
      const values = [actual[name], exact[name], reference[name]] as [Float64Array, Float64Array, Float64Array];
      const verdict = judge(dtype, values[0], values[1], [values[2]], Infinity);
      expect(verdict, name).toMatchObject({ ok: true });
    }
  });
});
