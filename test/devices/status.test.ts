/** Which device a name stands for, on machines that have CUDA and on machines that do not. */
import { describe, expect, it } from 'vitest';
import { findDevices } from '../../lib/backends/cuda/support.js';
import { cliPath, runNode, runScript } from '../support/child.js';
import { processor } from '../support/cpu.js';
import { emulatorPath, hasEmulator, onEmulator } from '../support/emulator.js';

/** Prints what a script computes, as JSON, on a machine whose CUDA addon is the emulated one. */
async function ask(expression: string, env: Record<string, string> = {}): Promise<unknown> {
  const script = `
    const attempt = (run) => { try { return run(); } catch (e) { return { code: e.code, message: e.message }; } };
    console.log(JSON.stringify(await (${expression})));`;
  const { code, stdout, stderr } = await runScript(script, { FLASHATTN_ADDON: emulatorPath, ...env });
  expect(stderr).toBe('');
  expect(code).toBe(0);
  return JSON.parse(stdout);
}

const faults: [fault: Record<string, string>, device: string, code: string, hint: string][] = [
  [{ FLASHATTN_EMULATOR_FAULT: 'no-driver' }, 'cuda', 'NO_DRIVER', 'there is no NVIDIA driver: install it'],
  [{ FLASHATTN_EMULATOR_FAULT: 'old-driver' }, 'cuda', 'DRIVER_TOO_OLD', 'is for CUDA 12.4: install one for CUDA 13'],
  [{ FLASHATTN_EMULATOR_FAULT: 'no-device' }, 'cuda', 'NO_DEVICE', 'CUDA_VISIBLE_DEVICES'],
  [
    { FLASHATTN_EMULATOR_ARCH: '7.5' },
    'cuda:0',
    'UNSUPPORTED_ARCHITECTURE',
    'compute capability 7.5: use a GPU with 8.0',
  ],
  [{ FLASHATTN_ADDON: '/nowhere.node' }, 'cuda', 'NO_ADDON', 'the addon /nowhere.node does not load'],
];

describe.skipIf(!hasEmulator)(onEmulator('without a usable GPU'), () => {
  it.each(faults)('%o: auto is the processor and says why', async (env, device, code, hint) => {
    const status = (await ask('fa.status()', env)) as { reasons: unknown[] };
    expect(status).toMatchObject({ device: processor, requested: 'auto' });
    expect(status.reasons[0]).toEqual({ device, code, hint: expect.stringContaining(hint) });
    expect(await ask('fa.tensor([1], [1]).device', env)).toBe(processor);
  });

  it.each(faults)('%o: cuda throws and says why', async (env, device, code, hint) => {
    for (const requested of ['cuda', 'cuda:0']) {
      const result = await ask(`attempt(() => fa.zeros([1], { device: '${requested}' }))`, env);
      const message = expect.stringContaining(`device "${requested}" cannot be used: ${device} (${code}): `);
      expect(result).toEqual({ code: 'ERR_DEVICE', message });
      expect((result as Error).message).toContain(hint);
    }
  });

  it('the command line says so too', async () => {
    const env = { FLASHATTN_ADDON: emulatorPath, FLASHATTN_EMULATOR_FAULT: 'no-driver' };
    const { code, stdout } = await runNode([cliPath, 'doctor'], env);
    expect(code).toBe(0);
    expect(stdout).toMatch(/not cuda +there is no NVIDIA driver: .* \(NO_DRIVER\)/);
    expect(await runNode([cliPath, 'doctor', '--device', 'cuda'], env)).toMatchObject({
      code: 2,
      stdout: expect.stringContaining('NOT healthy'),
    });
  });
});

describe.skipIf(!hasEmulator)(onEmulator('with a GPU'), () => {
  it('auto and cuda are the first device', async () => {
    const names = await ask(`['auto', 'cuda', 'cuda:0'].map((device) => fa.status(device).device)`);
    expect(names).toEqual(['cuda:0', 'cuda:0', 'cuda:0']);
    expect(await ask('fa.status()')).toMatchObject({ computeCapability: '8.0', reasons: [], requested: 'auto' });
    expect(await ask('fa.tensor([1, 2], [2]).data().then((x) => [...x])')).toEqual([1, 2]);
  });

  it('other devices are refused', async () => {
    const refused = (device: string) => ask(`attempt(() => fa.status(${JSON.stringify(device)}))`);
    expect(await refused('cuda:3')).toEqual({
      code: 'ERR_DEVICE',
      message: 'device "cuda:3" cannot be used: cuda:3 (NO_DEVICE): there is no such device: use cuda:0',
    });
    for (const device of ['cuda:', 'cuda:x', 'cuda:00', 'gpu', ''])
      expect(await refused(device)).toMatchObject({
        code: 'ERR_DEVICE',
        message: expect.stringMatching(/^device is "/),
      });
  });

  it('processes end by themselves and without complaint, whatever is under way', async () => {
    const busy = `
      const t = fa.tensor(new Float32Array(1 << 20), [1 << 20]);
      for (let i = 0; i < 8; i++) void t.data();
      console.log(t.device);`;
    const env = { FLASHATTN_ADDON: emulatorPath };
    for (const end of ['', 'process.exit(0);', 'await t.data();'])
      expect(await runScript(busy + end, env)).toEqual({ code: 0, stdout: 'cuda:0\n', stderr: '' });
  });
});

describe('devices that CUDA lists', () => {
  const gpu = (index: number, major: number) => ({
    index,
    name: `GPU ${index}`,
    major,
    minor: 0,
    memory: 1,
    sharedMemory: 1,
    multiprocessors: 1,
    pciBusId: '',
  });
  const addonOf = (list: object) => ({
    addon: {
      kind: 'cuda' as const,
      description: '',
      Context: class {} as never,
      devices: () => ({ driverVersion: 13000, runtimeVersion: 13000, devices: [], ...list }),
    },
  });

  it('are taken one by one', () => {
    const { usable, reasons } = findDevices(addonOf({ devices: [gpu(0, 7), gpu(1, 9)] }));
    expect(usable.map(({ description }) => description.index)).toEqual([1]);
    expect(reasons).toMatchObject([{ device: 'cuda:0', code: 'UNSUPPORTED_ARCHITECTURE' }]);
  });

  it('may fail in other ways', () => {
    const broken = { error: 'cudaErrorSystemDriverMismatch', message: 'words' };
    expect(findDevices(addonOf(broken)).reasons).toMatchObject([
      { code: 'DEVICE_ERROR', hint: expect.stringContaining('cudaErrorSystemDriverMismatch: words') },
    ]);
    expect(findDevices(addonOf({ devices: [{ ...gpu(0, 9), ...broken }] })).reasons).toMatchObject([
      { device: 'cuda:0', code: 'DEVICE_ERROR' },
    ]);
    expect(findDevices(addonOf({})).reasons).toMatchObject([{ code: 'NO_DEVICE' }]);
  });
});
