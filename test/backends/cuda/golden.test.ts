/** The golden vectors on the emulated device: all of them in float32, what is one attention in 16 bits too. */
import { basename, join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { goldenFiles, runFile } from '../../../verify/golden/compute.js';
import { hasEmulator, onEmulator } from '../../support/emulator.js';
import { emulatorSettings } from '../../support/onEmulator.js';

const FOLDER = join(import.meta.dirname, '../../../verify/golden/vectors');
const FILES = goldenFiles(FOLDER).map((path) => [basename(path), path] as const);

describe.skipIf(!hasEmulator)(onEmulator('golden vectors'), () => {
  const { emulator } = emulatorSettings;
  afterEach(() => {
    const reports = emulator?.reports();
    emulator?.clearReports();
    expect(reports).toEqual([]);
  });

  it.each(FILES)('%s, float32', async (_, path) => {
    expect(await runFile(path, { device: 'emulator' as 'cuda' })).toMatchObject({ status: 'pass' });
  });

  it.each(FILES)('%s, 16 bits', async (_, path) => {
    for (const dtype of ['float16', 'bfloat16'] as const)
      expect((await runFile(path, { device: 'emulator' as 'cuda', dtype }))?.status).not.toBe('fail');
  });
});
