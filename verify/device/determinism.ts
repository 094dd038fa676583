/**
 * The same call gives the same bits. An emulated device runs everything in the order of its schedule; it counts what
 * threads add to a sum in an order that only chance decides.
 */
import { type Case, instantiate } from '../cases/case.js';
import { LibraryProblem } from '../cases/library.js';
import { type Check, CheckFailure, type Settings } from './check.js';
import { DTYPES, HEAD_DIMS } from './grid.js';

function repeatCheck(name: string, c: Case, settings: Settings): Check {
  return {
    name,
    run(device) {
      const problem = new LibraryProblem(instantiate(c), { ...c, device });
      const bits = () => problem.results((t) => Buffer.from(t.dataSync().buffer));
      const unordered = () => settings.emulator?.statistics().unorderedAdds ?? 0;
      const before = unordered();
      try {
        const first = bits();
        for (let repeat = 1; repeat <= settings.repeats; repeat++) {
          // Threads take turns in another order in every repeat.
          settings.emulator?.configure({ schedule: repeat, eagerCopies: repeat % 2 === 1 });
          const again = bits();
          const different = Object.keys(first).filter((tensor) => !first[tensor]?.equals(again[tensor] as Buffer));
          if (different.length > 0) throw new CheckFailure(`${different.join(', ')} differ in repeat ${repeat}`, c);
        }
        const count = unordered() - before;
        if (count > 0) throw new CheckFailure(`${count} additions to sums are in no fixed order`, c);
      } finally {
        problem.dispose();
      }
    },
  };
}

/** Several tiles of keys add to the gradient of each query, and several heads to that of each key. */
const small = { layout: 'bshd', group: 2, queryLength: 100, keyLength: 140, causal: true } as const;
const large = { ...small, kvHeads: 2, queryLength: 300, keyLength: 400 } as const;

const everyTerm = {
  layout: 'varlen',
  kvHeads: 2,
  qLens: [70, 3, 40],
  kLens: [80, 9, 33],
  bias: [true, false, false, true],
  alibi: 'batch',
  relative: 'positions',
  sink: true,
  dropout: { p: 0.2, seed: 99 },
} as const;

export const determinismChecks = (settings: Settings): Check[] =>
  DTYPES.flatMap((dtype, n) => [
    ...Object.keys(HEAD_DIMS).map((bucket) => {
      const size = settings.large ? large : small;
      const c: Case = { seed: n, ...size, dtype, headDim: Number(bucket), deterministic: true };
      return repeatCheck(`${settings.repeats} repeats, ${dtype}, head dim ${bucket}`, c, settings);
    }),
    repeatCheck(
      `${settings.repeats} repeats with every term, ${dtype}`,
      { seed: n, ...everyTerm, dtype, headDim: 40, deterministic: true },
      settings,
    ),
  ]);
