import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { GPT, writeSafetensors } from 'flashattn/nn';
import { describe, expect, it } from 'vitest';
import { readWeights } from '../../bench/peers/train/serve.mjs';
import { drawLines } from '../../bench/train/chart.js';
import { batchOf, cases, flopsOf, gpt2, parametersOf, sweeps, tokensOf } from '../../bench/train/work.js';

describe('what is trained', () => {
  it('has the parameters of the model', () => {
    for (const { model } of cases) {
      const gpt = new GPT({ ...model, device: 'wasm' });
      expect(parametersOf(model)).toBe(gpt.parameterCount);
      gpt.dispose();
    }
    expect(parametersOf(gpt2.model)).toBe(124_439_808 - (1024 - 64) * 768); // GPT-2 has a context of 1024
  });

  it('counts the operations of products and of causal attention', () => {
    const [{ model, size }] = cases as unknown as [(typeof cases)[0]];
    const one = { name: '', size: 1, model: { layers: 1, heads: 1, width: 1, context: 2, vocabulary: 1 } };
    // 12 weights of layers, 13 and 2 of norms and biases, 1 of the vocabulary; 7 for scores of 2 tokens by 2 keys.
    expect(flopsOf(one)).toBe(2 * (6 * 28 + 7 * 2));
    expect(tokensOf({ name: '', model, size })).toBe(512);
  });

  it('takes tokens of the vocabulary, each with the next one', () => {
    for (const training of [...cases, gpt2, ...sweeps.context]) {
      const { ids, targets } = batchOf(training);
      expect(ids.length).toBe(tokensOf(training));
      expect(targets.slice(0, -1)).toEqual(ids.slice(1));
      for (const id of [...ids, targets.at(-1) as number])
        expect(Number.isInteger(id) && id >= 0 && id < training.model.vocabulary).toBe(true);
    }
  });

  it('is read from a file as it was written', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'flashattn-test-'));
    try {
      const path = join(folder, 'weights.safetensors');
      const data = Float32Array.of(1, -2, 3, 0.5, 5, 6);
      await writeSafetensors(path, [{ name: 'a.weight', dtype: 'F32', shape: [2, 3], data }]);
      expect(readWeights(path)).toEqual([['a.weight', [2, 3], data]]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe('the chart of lines', () => {
  const svg = drawLines({
    title: 'a < b',
    subtitle: '',
    label: 'context',
    unit: 'ms',
    lines: [
      {
        name: 'one',
        points: [
          [1, 1],
          [10, 10],
          [100, 100],
        ],
      },
      { name: 'alone', points: [[10, 50]] },
    ],
  });

  it('has both axes logarithmic', () => {
    const [, points] = /points="([^"]*)"/.exec(svg) as unknown as [string, string];
    const [a, b, c] = points.split(' ').map((p) => p.split(',').map(Number)) as [number[], number[], number[]];
    for (const axis of [0, 1]) expect(2 * (b[axis] as number)).toBeCloseTo((a[axis] as number) + (c[axis] as number));
  });

  it('escapes text', () => {
    expect(svg).toContain('a &lt; b');
    expect(svg).not.toContain('NaN');
  });
});
