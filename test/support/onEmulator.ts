/** Checks of a device as tests on the emulated one. */
import { describe, expect, it } from 'vitest';
import { emulatorControls } from '../../lib/devices/registry.js';
import { type Check, CheckFailure, runCheck, type Settings, schedulesOf } from '../../verify/device/check.js';
import { hasEmulator, onEmulator } from './emulator.js';

const emulator = hasEmulator ? emulatorControls() : undefined;
// Tests of the kernels look at them.
emulator?.configure({ bankConflicts: false });

/** What stays within a minute or two. */
export const emulatorSettings: Settings = { cases: 100, repeats: 4, large: false, emulator };

function describeProblem(problem: Error): string {
  if (!(problem instanceof CheckFailure) || !problem.replay) return problem.message;
  const replay = `FLASHATTN_TEST_DEVICE=emulator FLASHATTN_CASE='${JSON.stringify(problem.replay)}'`;
  return `${problem.message}\n${replay} npx vitest run test/attention.property.test.ts`;
}

/** One test a check. Each finds the emulator in another schedule, unless it goes through several itself. */
export function describeOnEmulator(name: string, checks: readonly Check[]): void {
  describe.skipIf(!hasEmulator)(onEmulator(name), () => {
    const tests = checks.map((check, n) => [check.name, check, n] as const);
    it.each(tests)('%s', async (_, check, n) => {
      const schedules = schedulesOf(n);
      emulatorSettings.emulator?.configure(schedules[n % schedules.length] ?? {});
      const { problems } = await runCheck(check, 'emulator' as 'cuda', emulatorSettings);
      expect(problems.map(describeProblem)).toEqual([]);
    });
  });
}
