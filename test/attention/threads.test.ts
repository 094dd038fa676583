/** With `deterministic`, results and gradients have the same bits for any number of threads. */
import { describe, expect, it } from 'vitest';
import { runScript } from '../support/child.js';
import { hasCpu, onCpu } from '../support/cpu.js';

/** Prints a hash of everything that each kind of attention gives. */
const script = (device: string) => `
import { createHash } from 'node:crypto';
const device = ${JSON.stringify(device)};
let seed = 0;
const normal = (shape) => fa.normal(shape, { seed: ++seed, device });
const cases = {
  'few heads': [[1, 300, 2, 40], [1, 300, 2, 40], { causal: true }],
  'a window': [[1, 128, 2, 24], [1, 256, 1, 24], { window: [127, 0] }],
  'a window of many queries': [[1, 1000, 8, 32], [1, 1000, 8, 32], { window: [100, 100] }],
  'one head, long': [[1, 700, 1, 64], [1, 2100, 1, 64], {}],
  'a block mask': [[1, 512, 2, 32], [1, 512, 2, 32], { mask: fa.masks.slidingWindow(70, 70) }],
  'few queries': [[1, 3, 4, 64], [1, 3000, 2, 64], { causal: true }],
};
for (const [name, [ofQueries, ofKeys, given]] of Object.entries(cases)) {
  const options = { ...given, deterministic: true };
  const [q, k, v, dOut] = [normal(ofQueries), normal(ofKeys), normal(ofKeys), normal(ofQueries)];
  const saved = { q, k, v, ...fa.attention(q, k, v, options) };
  const hash = createHash('sha256');
  for (const t of [saved.out, saved.lse, ...Object.values(fa.attentionBackward(dOut, saved))]) hash.update(t.toFloat32Sync());
  console.log(name, hash.digest('hex').slice(0, 16));
}
`;

describe.each([
  { device: 'wasm', present: true, title: 'deterministic attention on wasm' },
  { device: 'cpu', present: hasCpu, title: onCpu('deterministic attention on cpu') },
])('$title', ({ device, present }) => {
  it.skipIf(!present)('gives the same bits with one thread and with several', async () => {
    const runs = [];
    for (const threads of ['1', '2', '3', '7'])
      runs.push(await runScript(script(device), { FLASHATTN_THREADS: threads }));
    const [one, ...others] = runs;
    expect(one?.stderr).toBe('');
    expect(one?.stdout.trim().split('\n')).toHaveLength(6);
    for (const other of others) expect(other).toEqual(one);
  });
});
