import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { runNode } from '../support/child.js';
import { hasCpu, onCpu } from '../support/cpu.js';
import { hasEmulator, onEmulator } from '../support/emulator.js';

const program = fileURLToPath(new URL('../../build/soak/soak.js', import.meta.url));
const soak = (...args: string[]) => runNode([program, ...args]);

describe('mixed operations, some tensors disposed and others left to the collector', () => {
  it('leave nothing behind on wasm', async () => {
    const { code, stdout, stderr } = await soak('--operations', '1500');
    expect(stderr).toBe('');
    expect(stdout).toContain('no memory has leaked on wasm in 1500 operations');
    expect(code).toBe(0);
  });

  it.skipIf(!hasCpu)(onCpu('leave nothing behind on cpu'), async () => {
    const { code, stdout, stderr } = await soak('--device', 'cpu', '--operations', '3000');
    expect(stderr).toBe('');
    expect(stdout).toContain('no memory has leaked on cpu in 3000 operations');
    expect(code).toBe(0);
  });

  it.skipIf(!hasEmulator)(onEmulator('leave nothing behind on the emulator'), async () => {
    const { code, stdout, stderr } = await soak('--device', 'emulator', '--operations', '500');
    expect(stderr).toBe('');
    expect(stdout).toContain('no memory has leaked on emulator in 500 operations');
    expect(code).toBe(0);
  });

  it.each(
    ['wasm', 'cpu', 'emulator'].filter((device) => device === 'wasm' || (device === 'cpu' ? hasCpu : hasEmulator)),
  )('leave nothing behind on %s in thousands of steps of training', async (device) => {
    const steps = device === 'emulator' ? '500' : '10000';
    const { code, stdout, stderr } = await soak('--device', device, '--training-steps', steps);
    expect(stderr).toBe('');
    expect(stdout).toContain(`no memory has leaked on ${device} in ${steps} steps of training`);
    expect(code).toBe(0);
  });

  it.each([
    ['host', /arrayBuffers has grown by \S+ MiB, more than 4\.0 MiB/],
    ['device', /1 tensors are left; \d+ bytes of device memory are left/],
  ])('are seen to leak %s memory when they do', async (kind, message) => {
    const { code, stderr } = await soak('--operations', '300', '--leak', kind);
    expect(stderr).toMatch(message);
    expect(code).toBe(1);
  });
});
