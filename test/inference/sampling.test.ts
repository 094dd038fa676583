import { describe, expect, it } from 'vitest';
import { philox, uniformAt } from '../../lib/inference/philox.js';
import {
  logprobs,
  type Sampler,
  type SamplingOptions,
  sampler,
  samplingDistribution,
  tokenAt,
} from '../../lib/inference/sampling.js';
import { philox4x32 } from '../../verify/oracle/philox.js';
import { normal, uniform } from '../../verify/oracle/random.js';
import { chiSquare, chiSquareLimit, probabilities } from '../../verify/oracle/sampling.js';
import { expectFailure } from '../support/failure.js';

const draws = (seed: number) => {
  const next = uniform(seed);
  return { next, below: (n: number) => Math.floor(next() * n) };
};

/** Logits of which some are equal, and some may not come. */
function logitsOf(size: number, seed: number): Float32Array {
  const { next } = draws(seed);
  return Float32Array.from(normal(size, seed, 2), (x) =>
    next() < 0.1 ? Number.NEGATIVE_INFINITY : next() < 0.4 ? Math.round(x) : x,
  );
}

describe('Philox', () => {
  it('has the words of its authors', () => {
    // Random123's kat_vectors.
    expect(philox([0, 0, 0, 0], [0, 0])).toEqual([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    expect(philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0])).toEqual([
      0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1,
    ]);
  });

  it('has those of the oracle', () => {
    const { below } = draws(1);
    const word = () => below(2 ** 32);
    for (let run = 0; run < 200; run++) {
      const [counter, key] = [[word(), word(), word(), word()] as const, [word(), word()] as const];
      expect(philox(counter, key)).toEqual(philox4x32(counter, key));
    }
  });

  it('gives numbers from [0, 1), other ones for each position, draw and seed', () => {
    const seen = new Set<number>();
    for (const seed of [0, 1])
      for (const position of [0, 1, 2 ** 32, 2 ** 40])
        for (const draw of [0, 1]) seen.add(uniformAt([seed, 0], position, draw));
    expect(seen.size).toBe(16);
    for (const u of seen) expect(u >= 0 && u < 1).toBe(true);
  });
});

describe('a distribution', () => {
  it('is that of float64, whatever the options', () => {
    const { next, below } = draws(7);
    const maybe = <T>(value: T) => (next() < 0.5 ? value : undefined);
    for (let run = 0; run < 2000; run++) {
      const size = 1 + below(run % 10 === 0 ? 1000 : 30);
      const logits = logitsOf(size, run + 1);
      if (logits.every((x) => x === Number.NEGATIVE_INFINITY)) continue;
      const text = Array.from({ length: below(20) }, () => below(size));
      const promptLength = below(text.length + 1);
      const given = {
        temperature: maybe(next() < 0.2 ? 0 : next() * 2 + 0.01),
        topK: maybe(1 + below(size + 3)),
        topP: maybe(1 - next() * 0.999),
        minP: maybe(next()),
        repetitionPenalty: maybe(0.5 + next()),
        presencePenalty: maybe(next() * 4 - 2),
        frequencyPenalty: maybe(next() * 4 - 2),
      };
      const options = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
      const wanted = probabilities(logits, text.slice(0, promptLength), text.slice(promptLength), options);
      const before = logits.slice();
      const { tokens, weights, total } = samplingDistribution(options, promptLength)(logits, text);
      expect(logits).toEqual(before);
      const got = new Float64Array(size);
      for (let at = 0; at < tokens.length; at++) got[tokens[at] as number] = (weights[at] as number) / total;
      for (let token = 0; token < size; token++)
        expect(
          Math.abs((got[token] as number) - (wanted[token] as number)),
          JSON.stringify([run, token, options]),
        ).toBeLessThan(1e-12);
      expect([...tokens]).toEqual([...tokens].sort((a, b) => a - b));
    }
  });

  it('takes the largest at temperature 0, of equal ones the lowest number', () => {
    const greedy = sampler({ temperature: 0 });
    expect(greedy(Float32Array.of(1, 3, 3, 2), [], 0)).toBe(1);
    expect(greedy(Float32Array.of(Number.POSITIVE_INFINITY, 3, Number.POSITIVE_INFINITY), [], 0)).toBe(0);
  });

  it('keeps the first of equal logits at the edge of top-k and top-p', () => {
    const equal = Float32Array.of(1, 2, 2, 2, 2);
    expect([...samplingDistribution({ topK: 2 })(equal, []).tokens]).toEqual([1, 2]);
    expect([...samplingDistribution({ topP: 0.6 })(new Float32Array(5), []).tokens]).toEqual([0, 1, 2]);
  });

  it('stays finite at temperatures near 0 and with infinite logits', () => {
    const cold = samplingDistribution({ temperature: 1e-300 })(Float32Array.of(1, 2, 2), []);
    expect([...cold.tokens]).toEqual([1, 2]);
    const infinite = samplingDistribution()(Float32Array.of(1, Number.POSITIVE_INFINITY), []);
    expect([...infinite.tokens]).toEqual([1]);
  });

  it('lets a function change logits, of a copy', () => {
    const seen: (readonly number[])[] = [];
    const banned = sampler({
      temperature: 0,
      logitsProcessor: (logits, tokens) => {
        seen.push(tokens);
        logits[2] = Number.NEGATIVE_INFINITY;
      },
    });
    const logits = Float32Array.of(0, 1, 5);
    expect(banned(logits, Int32Array.of(4, 5), 2)).toBe(1);
    expect(logits[2]).toBe(5);
    expect(seen).toEqual([[4, 5]]);
  });
});

describe('draws', () => {
  const rules: SamplingOptions[] = [
    {},
    { temperature: 0.6 },
    { topK: 5 },
    { topP: 0.8, temperature: 1.3 },
    { minP: 0.1 },
    { topK: 9, topP: 0.9, minP: 0.02, repetitionPenalty: 1.3, presencePenalty: 0.4, frequencyPenalty: -0.3 },
  ];

  it.each(rules)('are as frequent as probabilities are, at a level of 1e-6: %j', (options) => {
    const logits = logitsOf(24, 3);
    const text = [3, 3, 5, 7, 3, 9];
    const wanted = probabilities(logits, text.slice(0, 2), text.slice(2), options as object);
    const sample = sampler({ ...options, seed: 12345 }, 2);
    const counts = new Float64Array(24);
    for (let position = 0; position < 40_000; position++) {
      const token = sample(logits, text, position);
      counts[token] = (counts[token] as number) + 1;
    }
    const { statistic, degrees } = chiSquare(counts, wanted);
    expect(statistic).toBeLessThan(chiSquareLimit(degrees));
    // And the test can fail: the same draws are none of a distribution nearby.
    const other = probabilities(logits, [], [], { temperature: 1.1 });
    expect(chiSquare(counts, other).statistic).toBeGreaterThan(chiSquareLimit(23));
  });

  it('are independent from one position to the next', () => {
    const sample = sampler({ seed: 99n });
    const logits = new Float32Array(6);
    const counts = new Float64Array(36);
    for (let position = 0; position < 20_000; position += 2) {
      const pair = 6 * sample(logits, [], position) + sample(logits, [], position + 1);
      counts[pair] = (counts[pair] as number) + 1;
    }
    expect(chiSquare(counts, new Float64Array(36).fill(1 / 36)).statistic).toBeLessThan(chiSquareLimit(35));
  });

  it('are a function of seed and position alone', () => {
    const logits = logitsOf(50, 4);
    const all = (sample: Sampler, positions: readonly number[]) => positions.map((at) => sample(logits, [1], at));
    const positions = Array.from({ length: 64 }, (_, at) => at);
    const wanted = all(sampler({ seed: 5 }), positions);
    expect(all(sampler({ seed: 5 }), positions.toReversed())).toEqual(wanted.toReversed());
    expect(all(sampler({ seed: 6 }), positions)).not.toEqual(wanted);
    expect(all(sampler({}), positions)).not.toEqual(all(sampler({}), positions));
  });

  it('never take what has no weight', () => {
    const distribution = { tokens: Int32Array.of(2, 7), weights: Float64Array.of(1, 3), total: 4 };
    expect([0, 0.2499, 0.25, 1 - 2 ** -53].map((u) => tokenAt(distribution, u))).toEqual([2, 2, 7, 7]);
  });
});

describe('logarithms of probabilities', () => {
  it('are those of float64', () => {
    const logits = logitsOf(40, 11);
    const wanted = probabilities(logits, [], [], {});
    const order = [...wanted.keys()].sort((a, b) => (wanted[b] as number) - (wanted[a] as number) || a - b);
    const { logprob, top } = logprobs(logits, 17, 5);
    expect(logprob).toBeCloseTo(Math.log(wanted[17] as number), 10);
    expect(top.map(({ token }) => token)).toEqual(order.slice(0, 5));
    for (const each of top) expect(each.logprob).toBeCloseTo(Math.log(wanted[each.token] as number), 10);
    expect(logprobs(logits, 17).top).toEqual([]);
  });
});

describe('options of sampling', () => {
  it.each<[object, RegExp]>([
    [{ temperature: -1 }, /temperature is -1/],
    [{ temperature: Number.NaN }, /temperature is NaN/],
    [{ topK: 0 }, /topK is 0; .* >= 1/],
    [{ topK: 1.5 }, /topK is 1\.5/],
    [{ topP: 0 }, /topP is 0; it must be a number above 0/],
    [{ topP: 1.1 }, /topP is 1\.1/],
    [{ minP: 2 }, /minP is 2/],
    [{ repetitionPenalty: 0 }, /repetitionPenalty is 0/],
    [{ presencePenalty: 3 }, /presencePenalty is 3/],
    [{ frequencyPenalty: '1' }, /frequencyPenalty is "1"/],
    [{ seed: -1 }, /seed is -1/],
    [{ seed: 2n ** 64n }, /seed is/],
    [{ logitsProcessor: 1 }, /logitsProcessor is 1/],
    [{ topp: 1 }, /no option "topp" in sampling; did you mean "topP"/],
  ])('are refused (%#)', async (options, message) => {
    await expectFailure(() => sampler(options as SamplingOptions), 'ERR_OPTION', message);
  });

  it('are refused where logits leave nothing to draw', async () => {
    const sample = sampler({ seed: 1 });
    await expectFailure(() => sample(Float32Array.of(0, Number.NaN), [], 0), 'ERR_OPTION', /NaN at 1/);
    await expectFailure(
      () => sample(new Float32Array(2).fill(Number.NEGATIVE_INFINITY), [], 0),
      'ERR_OPTION',
      /among 2/,
    );
    await expectFailure(() => logprobs(new Float32Array(2), 2), 'ERR_OPTION', /token is 2/);
    await expectFailure(() => sampler({}, -1), 'ERR_OPTION', /promptLength is -1/);
  });
});
