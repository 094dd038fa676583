/** Random problems with all options combined. The cases follow from fixed seeds. */

import fc from 'fast-check';
import type { DeviceName } from 'flashattn';
import { denseCases, packedCases } from '../cases/arbitraries.js';
import type { Case } from '../cases/case.js';
import { failureOf } from '../cases/check.js';
import { drawMaskedCase } from '../cases/maskCases.js';
import { shrink } from '../cases/shrink.js';
import { type Check, CheckFailure, type Settings } from './check.js';
import { DTYPES } from './grid.js';

/** Emulated devices are slow: a failing case is made simpler only so far. */
const SHRINK_ATTEMPTS = 80;

/** Throws for the simplest case found that fails like `found`. */
function failSimplest(found: Case, device: DeviceName, { emulator }: Settings): never {
  const failing = (c: Case): string | undefined => {
    // Every finding is reported once until it is cleared.
    emulator?.clearReports();
    return failureOf(c, device);
  };
  const simplest = shrink(found, (c) => failing(c) !== undefined, SHRINK_ATTEMPTS);
  throw new CheckFailure(failing(simplest) ?? 'fails only sometimes', simplest);
}

function sampleCheck(name: string, cases: fc.Arbitrary<Case>, seed: number, settings: Settings): Check {
  return {
    name: `${settings.cases} cases, ${name}`,
    run(device) {
      for (const c of fc.sample(cases, { numRuns: settings.cases, seed }))
        if (failureOf(c, device) !== undefined) failSimplest(c, device, settings);
    },
  };
}

const SEED = 20_261_122;

export const propertyChecks = (settings: Settings): Check[] =>
  DTYPES.flatMap((dtype, n) => [
    sampleCheck(`dense, ${dtype}`, denseCases(dtype), SEED + n, settings),
    sampleCheck(`packed, ${dtype}`, packedCases(dtype), SEED - n, settings),
  ]);

const LONGEST_MASK = 200;

export const maskPropertyChecks = (settings: Settings): Check[] =>
  DTYPES.map((dtype, n) => ({
    name: `${settings.cases} random masks, ${dtype}`,
    run(device) {
      for (let i = 0; i < settings.cases; i++) {
        const c = drawMaskedCase(5000 * (n + 1) + i, dtype, LONGEST_MASK);
        if (failureOf(c, device) !== undefined) failSimplest(c, device, settings);
      }
    },
  }));
