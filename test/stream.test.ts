/** Reading results while later work is still running: a lost wake-up would hang, so it happens in processes of its own. */
import { describe, expect, it } from 'vitest';
import { runScript } from './support/child.js';

/** Backward with a sink launches work behind dq, which may end at any moment around the read of dq. */
const script = (read: string): string => `
  const q = fa.tensor(new Float32Array(128).fill(0.1), [2, 8, 2, 4]);
  const sink = fa.zeros([2]);
  for (let n = 0; n < 5000; n++) {
    const result = fa.attention(q, q, q, { sink });
    const gradients = fa.attentionBackward(q, { q, k: q, v: q, ...result }, { sink });
    ${read};
    for (const t of [...Object.values(result), ...Object.values(gradients)]) t.dispose();
  }
  console.log('done');`;

describe('a read in the middle of the stream always returns', () => {
  it.each(['gradients.dq.dataSync()', 'await gradients.dq.data()'])('%s', async (read) => {
    expect(await runScript(script(read))).toMatchObject({ code: 0, stdout: 'done\n' });
  });
});
