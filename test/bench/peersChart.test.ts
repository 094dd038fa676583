import { describe, expect, it } from 'vitest';
import { drawPeers } from '../../bench/peersChart.js';

const draw = () =>
  drawPeers({
    machine: 'a < b',
    names: ['cpu', 'other'],
    rows: [
      // 4 * 8 * 64 * 32 * 32 operations: 1 and 2 ms are 2.1 and 1.0 GFLOP/s.
      { problem: [1, 32, 32, 8, 64, 0], threads: 1, milliseconds: { cpu: 1, other: 2 } },
      { problem: [1, 32, 32, 8, 64, 0], threads: 2, milliseconds: { cpu: 0.5 } },
      { problem: [2, 3, 3, 8, 64, 1], threads: 1, milliseconds: { cpu: 1, other: undefined } },
    ],
  });

const attributes = (svg: string, name: string) =>
  [...svg.matchAll(new RegExp(`<rect [^>]*\\b${name}="([\\d.]+)"[^>]*class="(?:good|other)"`, 'g'))].map(([, value]) =>
    Number(value),
  );

describe('the chart of peers', () => {
  it('draws bars to scale, one for each measurement', () => {
    const [first, second, fastest, causal, ...more] = attributes(draw(), 'width') as [number, number, number, number];
    expect(more).toEqual([]);
    expect(first / second).toBeCloseTo(2, 1);
    expect(fastest / first).toBeCloseTo(2, 1);
    // Six pairs of two batches see each other, of 32 x 32 of one.
    expect(causal / first).toBeCloseTo(12 / 1024, 2);
  });

  it('puts threads side by side and problems below each other', () => {
    const svg = draw();
    const [x1, , x2, x3] = attributes(svg, 'x') as [number, number, number, number];
    expect(x2).toBeGreaterThan(x1);
    expect(x3).toBe(x1);
    const [y1, , y2, y3] = attributes(svg, 'y') as [number, number, number, number];
    expect(y2).toBe(y1);
    expect(y3).toBeGreaterThan(y1);
  });

  it('names what it shows, also what is missing', () => {
    const svg = draw();
    expect(svg).toContain('a &lt; b');
    for (const text of [
      '1 thread',
      '2 threads',
      '(32, 32, 8, 64) full',
      '(2, 3, 3, 8, 64) causal',
      'other',
      '2.1',
      '-',
    ])
      expect(svg).toContain(`>${text}</text>`);
    expect(svg).not.toMatch(/NaN|Infinity|undefined/);
  });

  it('has colours for both schemes', () => {
    expect(draw()).toContain('@media (prefers-color-scheme: dark)');
  });
});
