/** The same run on every device: its losses stay together, although float32 sums come in other orders. */
import { describe, expect, it } from 'vitest';
import type { DeviceName } from '../../lib/index.js';
import { AdamW, GPT, schedule, TokenBatches, textTokens, train } from '../../lib/nn/index.js';
import { testDevices } from '../support/devices.js';

const text = 'the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. '.repeat(30);
const characters = [...new Set(text)].toSorted();
const tokens = textTokens(text, { encode: (part: string) => Int32Array.from(part, (c) => characters.indexOf(c)) });

async function lossesOn(device: DeviceName, steps: number): Promise<number[]> {
  using model = new GPT({
    ...{ vocabulary: characters.length, context: 16, layers: 2, heads: 2, kvHeads: 1, width: 16, hidden: 40, device },
    ...{ norm: 'rms', activation: 'swiglu', rope: {}, dropout: 0.05 },
  });
  using optimizer = new AdamW(model.parameters(), { learningRate: 0.01 });
  const batches = new TokenBatches({ tokens, batch: 2, context: 16 });
  const rate = schedule({ kind: 'cosine', warmup: 10, steps });
  const losses: number[] = [];
  await train({ model, optimizer, batches, steps, rate, onStep: ({ loss }) => void losses.push(loss) });
  return losses;
}

describe('200 steps of training', () => {
  const present = testDevices.filter(({ present }) => present).map(({ device }) => device);

  it(`has the same losses on ${present.join(', ')}: within 1e-3 at step 20, 2e-2 at step 200`, async () => {
    const runs = new Map<DeviceName, number[]>();
    for (const device of present) runs.set(device, await lossesOn(device, 200));
    const [first] = runs.values() as unknown as [number[]];
    expect(first[199]).toBeLessThan((first[0] as number) - 0.8);
    for (const [device, losses] of runs)
      for (const [step, tolerance] of [
        [0, 1e-5],
        [19, 1e-3],
        [199, 2e-2],
      ] as const)
        expect(
          Math.abs((losses[step] as number) - (first[step] as number)),
          `${device}, step ${step + 1}`,
        ).toBeLessThan(tolerance);
  });
});
