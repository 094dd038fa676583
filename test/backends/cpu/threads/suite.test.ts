/** All checks of a device, in every instruction set that this machine runs. */
import { describe, expect, it } from 'vitest';
import { cliPath, runNode } from '../../../support/child.js';
import { hasCpu, instructionSets, onCpu } from '../../../support/cpu.js';

describe.skipIf(!hasCpu)(onCpu('the device suite'), () => {
  it.each(instructionSets)('%s', async (instructionSet) => {
    const { code, stdout } = await runNode([cliPath, 'verify', '--device', 'cpu'], { FLASHATTN_CPU: instructionSet });
    expect(stdout).toContain(`, ${instructionSet}`);
    expect({
      code,
      failures: stdout.split('\n').filter((line) => /FAIL|failed/.test(line) && !/ 0 failed/.test(line)),
    }).toEqual({
      code: 0,
      failures: [],
    });
  });
});
