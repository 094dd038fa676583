/**
 * Random problems with all options combined, forward and backward, against the references.
 *
 *   FLASHATTN_RUNS=10      ten times as many cases
 *   FLASHATTN_SEED=<n>     other cases
 *   FLASHATTN_CASE=<json>  one case alone, as printed by a failure
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { denseCases, packedCases } from '../../verify/cases/arbitraries.js';
import type { Case } from '../../verify/cases/case.js';
import { failureOf, failuresOf } from '../../verify/cases/check.js';
import { shrink } from '../../verify/cases/shrink.js';

const RUNS = Number(process.env.FLASHATTN_RUNS ?? 1);
const SEED = Number(process.env.FLASHATTN_SEED ?? 20_230_717);
const REPLAY = process.env.FLASHATTN_CASE;

function assertAll(name: string, cases: fc.Arbitrary<Case>, count: number): void {
  // Every group has its own cases.
  const seed = [...name].reduce((hash, letter) => (Math.imul(hash, 31) + letter.charCodeAt(0)) | 0, SEED);
  const property = fc.property(cases, (c) => failureOf(c) === undefined);
  const outcome = fc.check(property, { numRuns: count * RUNS, seed, endOnFailure: true });
  const [found] = outcome.counterexample ?? [];
  if (!found) return;
  const c = shrink(found, (candidate) => failureOf(candidate) !== undefined);
  expect.fail(`${failureOf(c)}\nFLASHATTN_CASE='${JSON.stringify(c)}' npx vitest run test/attention.property.test.ts`);
}

describe.skipIf(REPLAY !== undefined)('attention', () => {
  it.each([
    ['dense, float32', denseCases('float32'), 800],
    ['packed, float32', packedCases('float32'), 500],
    ['dense, float16', denseCases('float16'), 250],
    ['packed, float16', packedCases('float16'), 150],
    ['dense, bfloat16', denseCases('bfloat16'), 250],
    ['packed, bfloat16', packedCases('bfloat16'), 150],
  ] as const)('%s', (name, cases, count) => assertAll(name, cases, count), 600_000);
});

it.runIf(REPLAY !== undefined)('replay', () => {
  const c = JSON.parse(REPLAY ?? '') as Case;
  expect(failuresOf(c)).toEqual([]);
});
