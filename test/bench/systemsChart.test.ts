import { describe, expect, it } from 'vitest';
import { drawSystems } from '../../bench/systems/chart.js';
import { systems } from '../../bench/systems/list.js';
import { families } from '../../lib/cli/systems/index.js';

const draw = () =>
  drawSystems({
    machine: 'a < b',
    systems: [
      { name: 'slow', rows: [{ length: 512, bothRatio: 0.25 }], exponents: { both: 2 } },
      {
        name: 'fast',
        rows: [
          { length: 512, bothRatio: 4, memory: 1.25 },
          { length: 1024, bothRatio: 16 },
          { length: 2048, bothRatio: 1e9 },
        ],
        exponents: { both: 1.04 },
      },
      { name: 'none', rows: [], exponents: {} },
    ],
  });

const bars = (svg: string) =>
  [...svg.matchAll(/<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="12" class="(\w+)"\/>/g)].map(
    ([, x, y, width, kind]) => ({ x: Number(x), y: Number(y), width: Number(width), kind }),
  );

describe('the chart of systems', () => {
  it('draws bars by the logarithm of a ratio, to the left where it is below 1, those that grow least first', () => {
    const [four, sixteen, most, slow, ...more] = bars(draw());
    expect(more).toEqual([]);
    expect([four?.kind, sixteen?.kind, most?.kind, slow?.kind]).toEqual(['good', 'good', 'good', 'other']);
    expect((sixteen?.width ?? 0) / (four?.width ?? 1)).toBeCloseTo(2, 1);
    expect(most?.width).toBeCloseTo(1.5 * (sixteen?.width ?? 0), 1);
    expect(slow?.width).toBe(four?.width);
    expect((slow?.x ?? 0) + (slow?.width ?? 0)).toBe(four?.x);
    expect(slow?.y).toBeGreaterThan(four?.y ?? 0);
  });

  it('writes what was measured, and leaves out what was not', () => {
    const svg = draw();
    for (const text of ['a &lt; b', 'N^1.04', 'N^2.00', '1,024', '>0.25<', '>1.3<']) expect(svg).toContain(text);
    expect(svg).not.toContain('none');
  });
});

it('measures systems by names of the catalogue', () => {
  const names = systems.map(({ name }) => name);
  expect(new Set(names).size).toBe(names.length);
  const known = new Set(families.flatMap((family) => family.systems.map(({ name }) => name)));
  const variants = [
    'dense',
    'dense-causal',
    'sparse-transformer-fixed',
    'sparse-transformer-strided',
    'causal-talking-heads',
  ];
  expect(names.filter((name) => !known.has(name))).toEqual(variants);
});
