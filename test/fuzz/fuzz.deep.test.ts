/** The decoders, on inputs near those of the corpus. */
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { runNode } from '../support/child.js';

const program = fileURLToPath(new URL('../../build/fuzz/run.js', import.meta.url));

it.each(['blockMask', 'safetensors'])('%s is right about inputs near those of its corpus', async (name) => {
  const { code, stdout } = await runNode([program, '--target', name, '--executions', '250000', '--seed', '1']);
  expect(stdout).toMatch(new RegExp(`^${name}: 2\\d{5} inputs in \\S+ s \\(seed 1\\), \\d+ characters of code`));
  expect(code).toBe(0);
});
