/** Worker threads that are terminated while they work: nothing of the process goes with them. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { distUrl, runScript } from '../../support/child.js';
import { cpuPath, hasCpu, onCpu } from '../../support/cpu.js';
import { emulatorPath, hasEmulator, onEmulator } from '../../support/emulator.js';

const devices = [
  { name: onCpu('cpu'), has: hasCpu, path: cpuPath, device: 'cpu', env: { FLASHATTN_THREADS: '1' } },
  {
    name: onEmulator('emulated cuda'),
    has: hasEmulator,
    path: emulatorPath,
    device: 'cuda',
    env: { FLASHATTN_ADDON: emulatorPath },
  },
];

for (const { name, has, path, device, env } of devices)
  describe.skipIf(!has)(name, () => {
    /** A conversion fails once JavaScript is being terminated, and node-addon-api ends the process over its result. */
    it('asks JavaScript for no conversion', () => {
      const imported = readFileSync(path)
        .toString('latin1')
        .match(/napi_\w+/g);
      expect(imported).toContain('napi_get_value_double');
      expect(imported?.filter((symbol) => symbol.startsWith('napi_coerce_'))).toEqual([]);
    });

    it('outlives threads that end in the middle of launches', async () => {
      const { code, stdout, stderr } = await runScript(
        `import { once } from 'node:events';
        import { Worker } from 'node:worker_threads';
        const work = \`
          import { parentPort } from 'node:worker_threads';
          import * as fa from ${JSON.stringify(distUrl)};
          const x = fa.tensor(new Float32Array(64).fill(1), [1, 4, 1, 16], { device: '${device}' });
          parentPort.postMessage('begins');
          for (;;) fa.attention(x, x, x).out.dispose();\`;
        async function terminateOne(after) {
          const worker = new Worker(work, { eval: true });
          await once(worker, 'message');
          await new Promise((resolve) => setTimeout(resolve, after));
          await worker.terminate();
        }
        for (let i = 0; i < 12; i++) await Promise.all([0, 1, 2, 3].map(terminateOne));
        console.log('outlived');`,
        env,
      );
      expect({ code, stdout, stderr }).toMatchObject({ code: 0, stdout: 'outlived\n' });
    }, 300_000);
  });
