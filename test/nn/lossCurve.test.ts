import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type LossPoint, lossCurve } from '../../lib/nn/lossCurve.js';
import { expectFailure } from '../support/failure.js';

/** The points of the lines of a drawing, run by run. */
function runsOf(svg: string, name: 'train' | 'validation'): number[][][] {
  const d = svg.match(new RegExp(`<path [^>]* d="([^"]*)"><title>${name}</title></path>`))?.[1] ?? '';
  return d
    .split('M')
    .slice(1)
    .map((run) =>
      run
        .replace('h0', '')
        .split('L')
        .map((point) => point.split(' ').map(Number)),
    );
}

/** What a label stands at: those of the vertical axis end before it, those of the horizontal one stand in the middle. */
function ticksOf(svg: string, anchor: 'end' | 'middle'): [at: number, value: number][] {
  const labels = svg.matchAll(new RegExp(`<text x="([^"]*)" y="([^"]*)" text-anchor="${anchor}">([^<]*)</text>`, 'g'));
  return Array.from(labels, ([, x, y, text]): [number, number] => [
    anchor === 'end' ? Number(y) - 4 : Number(x),
    Number(text),
  ]).filter(([, value]) => !Number.isNaN(value));
}

/** The value that a pixel stands for, by the first and the last label. */
function valueAt(pixel: number, ticks: [number, number][]): number {
  const [[a, from], [b, to]] = [ticks[0], ticks[ticks.length - 1]];
  return from + ((pixel - a) / (b - a)) * (to - from);
}

const points = (count: number, loss: (step: number) => number): LossPoint[] =>
  Array.from({ length: count }, (_, step) => ({ step, train: loss(step) }));

describe('lossCurve', () => {
  it('draws each loss where the axes say it is', () => {
    const losses = points(50, (step) => 4 * 0.95 ** step + 1.3);
    const validation = [
      { step: 40, validation: 2 },
      { step: 0, validation: 5.5 },
    ];
    const svg = lossCurve([...losses.toReversed(), ...validation]);
    const [xs, ys] = [ticksOf(svg, 'middle'), ticksOf(svg, 'end')];
    expect(ys.length).toBeGreaterThan(3);
    expect(xs.map(([, step]) => step)).toEqual([0, 10, 20, 30, 40]);
    const [train] = runsOf(svg, 'train');
    expect(train).toHaveLength(50);
    for (const [step, [x, y]] of train.entries()) {
      expect(valueAt(x, xs)).toBeCloseTo(step, 1);
      expect(valueAt(y, ys)).toBeCloseTo(4 * 0.95 ** step + 1.3, 1);
    }
    const [held] = runsOf(svg, 'validation');
    expect(held.map(([x, y]) => [Math.round(valueAt(x, xs)), valueAt(y, ys).toFixed(1)])).toEqual([
      [0, '5.5'],
      [40, '2.0'],
    ]);
  });

  it('has gaps where a loss is no number, and dots for losses alone', () => {
    const losses = [3, Number.NaN, 2, 2, Number.POSITIVE_INFINITY].map((train, step) => ({ step, train }));
    const svg = lossCurve(losses);
    expect(runsOf(svg, 'train').map((run) => run.length)).toEqual([1, 2]);
    expect(svg).toMatch(/d="M[\d.]+ [\d.]+h0M/);
    expect(svg).not.toContain('NaN');
    expect(svg).not.toContain('<title>validation</title>');
  });

  it('does not break a line at steps that have no loss of its kind', () => {
    const svg = lossCurve([
      { step: 0, train: 2 },
      { step: 1, validation: 3 },
      { step: 2, train: 1 },
    ]);
    expect(runsOf(svg, 'train').map((run) => run.length)).toEqual([2]);
  });

  it('keeps the extremes of a long run and stays small', () => {
    const spike = (step: number) => (step === 77_777 ? 9 : step === 55_555 ? 0.5 : 3);
    const svg = lossCurve(points(100_000, spike));
    expect(svg.length).toBeLessThan(30_000);
    const ys = ticksOf(svg, 'end');
    const values = runsOf(svg, 'train')[0].map(([, y]) => valueAt(y, ys));
    expect(Math.max(...values)).toBeCloseTo(9, 1);
    expect(Math.min(...values)).toBeCloseTo(0.5, 1);
  });

  it('labels close values apart', () => {
    const svg = lossCurve([
      { step: 100_000, train: 3.2101 },
      { step: 100_003, train: 3.2109 },
    ]);
    for (const anchor of ['end', 'middle'] as const) {
      const labels = ticksOf(svg, anchor).map(([, value]) => value);
      expect(labels.length).toBeGreaterThan(2);
      expect(new Set(labels).size).toBe(labels.length);
    }
  });

  it('is well formed and finite for any points', () => {
    const loss = fc.option(fc.oneof(fc.double({ min: -1e6, max: 1e6 }), fc.double()), {
      nil: undefined,
    });
    const point = fc.record({ step: fc.integer({ min: 0, max: 1e9 }), train: loss, validation: loss });
    fc.assert(
      fc.property(fc.array(point), fc.string(), (list, title) => {
        const svg = lossCurve(list, { title });
        const open: string[] = [];
        const texts = svg.replaceAll(
          /<(\/?)(\w+)((?: [\w-]+="[^"<>]*")*) ?(\/?)>/g,
          (_, end, name, attributes, empty) => {
            if (/="[^"]*(NaN|Infinity)/.test(attributes)) throw new Error(attributes);
            if (end) expect(open.pop()).toBe(name);
            else if (!empty) open.push(name);
            return '';
          },
        );
        expect(open).toEqual([]);
        expect(texts).not.toMatch(/[<>]/);
      }),
    );
  });

  it('refuses what is no point', async () => {
    await expectFailure(() => lossCurve(3 as never), 'ERR_OPTION', 'points is 3');
    await expectFailure(() => lossCurve([{ step: Number.NaN }]), 'ERR_OPTION', 'points[0].step is NaN');
    await expectFailure(() => lossCurve([{ step: 1, train: '3' as never }]), 'ERR_OPTION', 'points[0].train is "3"');
    await expectFailure(() => lossCurve([], { name: 'a' } as never), 'ERR_OPTION', '"name"');
  });
});
