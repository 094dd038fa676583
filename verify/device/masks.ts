/** Block masks: every named pattern, a mask for each batch entry, both block sizes. */
import { blockMask, type Mask, masks, patterns } from 'flashattn';
import { type Case, instantiate } from '../cases/case.js';
import { failuresIn } from '../cases/check.js';
import { runLibrary } from '../cases/library.js';
import type { CaseDType } from '../cases/views.js';
import { type Check, CheckFailure } from './check.js';
import { DTYPES } from './grid.js';

const LENGTH = 140;

/** Attention under a mask against the oracle with the elements that the mask says are visible. */
function maskCheck(name: string, mask: Mask, blockSize: 64 | 128, c: Case): Check {
  return {
    name: `${name}, blocks of ${blockSize}, ${c.dtype}`,
    run(device) {
      const [batch, heads] = [c.batch ?? 1, (c.kvHeads ?? 1) * (c.group ?? 1)];
      const { problem, ...rest } = instantiate(c);
      const { queryLength: nq, keyLength: nk } = problem;
      const compiled = blockMask(mask, { batch, heads, nq, nk, blockSize });
      const values = new Uint8Array(batch * heads * nq * nk);
      let at = 0;
      for (let b = 0; b < batch; b++)
        for (let h = 0; h < heads; h++)
          for (let i = 0; i < nq; i++) for (let j = 0; j < nk; j++) values[at++] = compiled.visible(b, h, i, j) ? 1 : 0;
      const instance = { ...rest, problem: { ...problem, mask: { values, shape: [batch, heads, nq, nk] as const } } };
      const actual = runLibrary(instance, { dtype: c.dtype, device, mask: compiled });
      const failures = failuresIn(instance, c.dtype ?? 'float32', actual);
      if (failures.length > 0) throw new CheckFailure(failures.join('; '));
    },
  };
}

const square = { layout: 'bshd', queryLength: LENGTH, keyLength: LENGTH, headDim: 20 } as const;

const patternChecks = (): Check[] =>
  patterns.gallery.map(({ name, make }, n) => {
    const dtype = DTYPES[n % DTYPES.length] as CaseDType;
    return maskCheck(name, make(LENGTH), n % 2 === 0 ? 64 : 128, { seed: n, ...square, dtype, dLse: n % 3 === 0 });
  });

const combined = masks.perBatch([
  masks.perHead([masks.causal(), masks.prefix(70), masks.slidingWindow(9, 9), masks.strided(5)]),
  masks.or(masks.globalTokens([3, 90]), masks.circularWindow(5, 40)),
]);

export const maskChecks = (): Check[] => [
  ...patternChecks(),
  ...DTYPES.flatMap((dtype, n) =>
    ([64, 128] as const).map((blockSize) =>
      maskCheck('another mask for each batch entry and head', combined, blockSize, {
        seed: 60 + n,
        ...square,
        dtype,
        batch: 2,
        kvHeads: 2,
        group: 2,
        sink: true,
        qLens: [LENGTH, 77],
      }),
    ),
  ),
];
