import { describe, expect, it } from 'vitest';
import type { Distribution } from '../../lib/inference/sampling.js';
import { acceptGreedy, acceptSampled, lookupTokens, type Proposal } from '../../lib/inference/speculation.js';
import { uniform } from '../../verify/oracle/random.js';
import { codeOf, errorOf } from '../support/codeOf.js';
import { digest, SimulatedDevice } from './simulatedDevice.js';

describe('lookupTokens', () => {
  it('finds what followed the last tokens', () => {
    expect(lookupTokens([1, 2, 3, 4, 9, 1, 2, 3], { count: 3 })).toEqual([4, 9, 1]);
    expect(lookupTokens([1, 2, 8, 1, 2, 9, 1, 2], { count: 1 })).toEqual([9]); // the last one
    expect(lookupTokens([7, 1, 2, 8, 3, 2, 9, 7, 1, 2], { count: 1 })).toEqual([8]); // the longest one
    expect(lookupTokens([7, 1, 2, 8, 3, 2, 9, 7, 1, 2], { count: 1, longest: 1 })).toEqual([9]);
    expect(lookupTokens([3, 2, 9, 1, 2], { shortest: 2 })).toEqual([]);
    expect(lookupTokens([1, 2, 3])).toEqual([]);
    expect(lookupTokens([5])).toEqual([]);
    expect(lookupTokens([])).toEqual([]);
    expect(lookupTokens([5, 5], { count: 0 })).toEqual([]);
  });

  it('continues repetitions', () => {
    expect(lookupTokens([4, 4], { count: 5 })).toEqual([4, 4, 4, 4, 4]);
    expect(lookupTokens(Int32Array.of(0, 1, 2, 3, 1, 2, 3), { count: 7 })).toEqual([1, 2, 3, 1, 2, 3, 1]);
  });

  it('is what its description says: random texts', () => {
    const next = uniform(1);
    const below = (n: number) => Math.floor(next() * n);
    for (let run = 0; run < 2000; run++) {
      const tokens = Array.from({ length: below(30) }, () => below(1 + (run % 5)));
      const longest = 1 + below(5);
      const [shortest, count] = [1 + below(longest), below(12)];
      const last = (n: number, end = tokens.length) => tokens.slice(end - n, end).join();
      const places = (n: number) =>
        Array.from(tokens.keys()).filter((end) => end >= n && end > 0 && last(n, end) === last(n));
      let n = Math.min(longest, tokens.length);
      while (n >= shortest && places(n).length === 0) n--;
      const place = n >= shortest ? places(n).at(-1) : undefined;
      const wanted = [...tokens];
      if (place !== undefined)
        for (let at = place; wanted.length < tokens.length + count; at++) wanted.push(wanted[at]);
      expect(lookupTokens(tokens, { longest, shortest, count })).toEqual(wanted.slice(tokens.length));
    }
  });

  it('refuses bad options', () => {
    for (const options of [{ count: -1 }, { longest: 0 }, { shortest: 4 }, { shortest: 0 }, { n: 3 }])
      expect(codeOf(() => lookupTokens([1, 2], options as never))).toBe('ERR_OPTION');
  });
});

/** Parents of a random tree, or of a chain. */
function anyParents(nodes: number, next: () => number): number[] | undefined {
  if (next() < 0.3) return undefined;
  return Array.from({ length: nodes }, (_, at) => Math.floor(next() * (at + 1)) - 1);
}

describe('acceptGreedy', () => {
  it('takes the longest path of the model itself', () => {
    const chain = { tokens: [5, 6, 7] };
    expect(acceptGreedy(chain, [5, 6, 7, 8])).toEqual({ nodes: [0, 1, 2], token: 8 });
    expect(acceptGreedy(chain, [5, 9, 7, 8])).toEqual({ nodes: [0], token: 9 });
    expect(acceptGreedy(chain, [4, 6, 7, 8])).toEqual({ nodes: [], token: 4 });
    expect(acceptGreedy({ tokens: [] }, Int32Array.of(3))).toEqual({ nodes: [], token: 3 });
    const tree = { tokens: [1, 2, 3, 4, 5], parents: [-1, -1, 1, 0, 2] };
    expect(acceptGreedy(tree, [2, 0, 3, 5, 0, 7])).toEqual({ nodes: [1, 2, 4], token: 7 });
  });

  it('generates what the model does without: random trees', () => {
    const vocabulary = 4;
    const best = (past: readonly number[]) => past.reduce(digest, 0) % vocabulary;
    for (let seed = 0; seed < 300; seed++) {
      const next = uniform(seed);
      const plain = [1];
      while (plain.length < 60) plain.push(best(plain));
      const tokens = [1];
      while (tokens.length < 60) {
        const nodes = Math.floor(next() * 8);
        const parents = anyParents(nodes, next);
        const proposal: Proposal = {
          tokens: Array.from({ length: nodes }, () => Math.floor(next() * vocabulary)),
          ...(parents && { parents }),
        };
        const pastOf = (node: number): number[] =>
          node < 0 ? tokens : [...pastOf(parents?.[node] ?? node - 1), proposal.tokens[node]];
        const choices = Array.from({ length: nodes + 1 }, (_, at) => best(pastOf(at - 1)));
        const { nodes: accepted, token } = acceptGreedy(proposal, choices);
        tokens.push(...accepted.map((at) => proposal.tokens[at]), token);
      }
      expect(tokens.slice(0, 60)).toEqual(plain);
    }
  });

  it('generates the same through blocks, whose refused positions are forgotten', () => {
    let proposed = 0;
    let accepted = 0;
    for (let seed = 0; seed < 100; seed++) {
      const device = new SimulatedDevice({ blocks: 30, blockSize: 1 + (seed % 4) });
      // What the model chooses, by what lies in memory at a position: tokens that come again after some.
      const choice = (past: number) => past % 5;
      const next = (tokens: readonly number[]) => choice(tokens.slice(-2).reduce(digest, seed));
      const plain = [seed % 3, 1];
      while (plain.length < 28) plain.push(next(plain));
      const tokens = plain.slice(0, 2);
      const sequence = device.pool.sequence();
      sequence.extend([tokens[0]]);
      device.write(sequence, 0);
      sequence.commit();
      const fork = sequence.fork(); // it shares what is written next to
      while (tokens.length < 28) {
        const proposal = { tokens: lookupTokens(tokens, { count: Math.min(4, 27 - tokens.length) }) };
        const from = sequence.length;
        sequence.extend([tokens[from], ...proposal.tokens]);
        device.write(sequence, from);
        const read = (at: number) => device.read(sequence, at)?.token as number;
        const best = Array.from({ length: sequence.length - from }, (_, at) =>
          next([read(from + at - 1), read(from + at)]),
        );
        const { nodes, token } = acceptGreedy(proposal, best);
        sequence.truncate(from + 1 + nodes.length);
        sequence.commit();
        tokens.push(...nodes.map((at) => proposal.tokens[at]), token);
        proposed += proposal.tokens.length;
        accepted += nodes.length;
        expect(sequence.tokens).toEqual(tokens.slice(0, -1));
      }
      expect(tokens.slice(0, 28)).toEqual(plain);
      expect(device.read(fork, 0)?.token).toBe(plain[0]);
      sequence.free();
      fork.free();
      const again = device.pool.sequence(plain);
      for (let at = 0; at < again.length; at++) expect(device.read(again, at)?.token).toBe(plain[at]);
      again.free();
      expect(device.pool.available).toBe(30);
    }
    expect([accepted > 200, proposed - accepted > 200]).toEqual([true, true]);
  });

  it('refuses what does not fit', () => {
    expect(errorOf(() => acceptGreedy({ tokens: [1, 2] }, [1, 2]))).toMatch(
      /ERR_OPTION: best has 2 tokens; .* 2 proposed/,
    );
    expect(codeOf(() => acceptGreedy({ tokens: [1, 2], parents: [-1] }, [1, 2, 3]))).toBe('ERR_OPTION');
    expect(errorOf(() => acceptGreedy({ tokens: [1, 2], parents: [-1, 1] }, [1, 2, 3]))).toMatch(/parents\[1\] is 1/);
    expect(codeOf(() => acceptGreedy({ tokens: [1, 2], parents: [-1, -2] }, [1, 2, 3]))).toBe('ERR_OPTION');
  });
});

/** Of weights by token, without those that are 0; not normalised. */
function distribution(weights: readonly number[]): Distribution {
  const tokens = Int32Array.from(weights.keys()).filter((token) => weights[token] > 0);
  return {
    tokens,
    weights: Float64Array.from(tokens, (token) => weights[token]),
    total: weights.reduce((sum, weight) => sum + weight, 0),
  };
}

const drawFrom = ({ tokens, weights, total }: Distribution, u: number) => {
  let rest = u * total;
  return tokens.find((_, at) => (rest -= weights[at]) < 0) ?? (tokens.at(-1) as number);
};

/** Weights that differ much, some of them 0, by all tokens before. */
function weightsOf(past: readonly number[], vocabulary: number, kind: number): number[] {
  const word = past.reduce(digest, kind);
  const weights = Array.from({ length: vocabulary }, (_, token) => {
    const each = digest(word, token);
    return each % 4 === 0 ? 0 : (each % 1000) / 100;
  });
  return weights.some((weight) => weight > 0) ? weights : weights.map(() => 1);
}

const vocabulary = 4;
const depth = 3;

/** What is asked for often. */
function remembering(make: (past: readonly number[]) => Distribution): (past: readonly number[]) => Distribution {
  const made = new Map<number, Distribution>();
  return (past) => {
    const key = past.reduce((sum, token) => sum * (vocabulary + 1) + token + 1, 0);
    const known = made.get(key) ?? make(past);
    made.set(key, known);
    return known;
  };
}

type Propose = (draft: (past: readonly number[]) => Distribution, next: () => number) => Proposal;

/** Draws the tokens of a tree: those that follow the same one each on its own. */
const drawn =
  (parents: readonly number[]): Propose =>
  (draft, next) => {
    const tokens: number[] = [];
    const drawnFrom: Distribution[] = [];
    const pastOf = (node: number): number[] => (node < 0 ? [] : [...pastOf(parents[node]), tokens[node]]);
    for (const parent of parents) {
      drawnFrom.push(draft(pastOf(parent)));
      tokens.push(drawFrom(drawnFrom.at(-1) as Distribution, next()));
    }
    return { tokens, parents, drawnFrom };
  };

/** Likewise without those that were drawn before, as long as there are others. */
const drawnWithout =
  (parents: readonly number[]): Propose =>
  (draft, next) => {
    const tokens: number[] = [];
    const drawnFrom: Distribution[] = [];
    const pastOf = (node: number): number[] => (node < 0 ? [] : [...pastOf(parents[node]), tokens[node]]);
    for (const [node, parent] of parents.entries()) {
      const { tokens: all, weights } = draft(pastOf(parent));
      const used = tokens.filter((_, other) => other < node && parents[other] === parent);
      const rest = new Array<number>(vocabulary).fill(0);
      for (const [at, token] of all.entries()) if (!used.includes(token)) rest[token] = weights[at];
      drawnFrom.push(rest.some((weight) => weight > 0) ? distribution(rest) : draft(pastOf(parent)));
      tokens.push(drawFrom(drawnFrom[node], next()));
    }
    return { tokens, parents, drawnFrom };
  };

/** The draft's own tokens, the most probable first; no chance in it. */
const chosen =
  (parents: readonly number[]): Propose =>
  (draft) => {
    const tokens: number[] = [];
    const pastOf = (node: number): number[] => (node < 0 ? [] : [...pastOf(parents[node]), tokens[node]]);
    for (const [node, parent] of parents.entries()) {
      const { tokens: all, weights } = draft(pastOf(parent));
      const order = Array.from(all.keys()).sort((a, b) => weights[b] - weights[a]);
      const before = parents.slice(0, node).filter((other) => other === parent).length;
      tokens.push(all[order[before % order.length]]);
    }
    return { tokens, parents };
  };

const chain = [-1, 0, 1];
const tree = [-1, -1, 0, 0, 1, 2, -1, 4, 4];

/**
 * The statistic of chi squared over all sequences of `depth` tokens, and its bound at the level of 10^-6 (Wilson and
 * Hilferty 1931). Rounds of proposals go on until there are enough tokens.
 */
function chiSquared(
  propose: Propose,
  accept: typeof acceptSampled,
  kind: number,
  runs = 20_000,
): { readonly statistic: number; readonly bound: number; readonly accepted: number } {
  const next = uniform(77 + kind);
  const target = remembering((past) => distribution(weightsOf(past, vocabulary, kind)));
  const draft = remembering((past) => distribution(weightsOf(past, vocabulary, kind + 1000)));
  const counts = new Map<string, number>();
  let accepted = 0;
  for (let run = 0; run < runs; run++) {
    const past: number[] = [];
    while (past.length < depth) {
      const proposal = propose((more) => draft([...past, ...more]), next);
      const { tokens, parents = [] } = proposal;
      const pathOf = (node: number): number[] => (node < 0 ? [] : [...pathOf(parents[node]), tokens[node]]);
      const { nodes, token } = accept(proposal, (node) => target([...past, ...pathOf(node)]), next);
      if (nodes.some((node, at) => parents[node] !== (nodes[at - 1] ?? -1))) expect.fail(`${nodes} is no path`);
      accepted += nodes.length / runs;
      past.push(...nodes.map((node) => tokens[node]), token);
    }
    const name = past.slice(0, depth).join();
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  let statistic = 0;
  let cells = 0;
  let rare = { wanted: 0, got: 0 };
  const cell = (wanted: number, got: number) => {
    statistic += (got - wanted) ** 2 / wanted;
    cells++;
  };
  const visit = (past: readonly number[], probability: number) => {
    if (past.length === depth) {
      const wanted = probability * runs;
      const got = counts.get(past.join()) ?? 0;
      if (probability === 0 && got > 0) statistic = Number.POSITIVE_INFINITY;
      // Cells of few are counted together.
      if (wanted < 10) rare = { wanted: rare.wanted + wanted, got: rare.got + got };
      else cell(wanted, got);
      return;
    }
    const { total } = target(past);
    for (const [token, weight] of weightsOf(past, vocabulary, kind).entries())
      visit([...past, token], (probability * weight) / total);
  };
  visit([], 1);
  if (rare.wanted >= 10) cell(rare.wanted, rare.got);
  const freedom = cells - 1;
  const normal = 4.7534; // of the level 10^-6, one-sided
  const bound = freedom * (1 - 2 / (9 * freedom) + normal * Math.sqrt(2 / (9 * freedom))) ** 3;
  return { statistic, bound, accepted };
}

describe('acceptSampled', () => {
  const ways: [string, Propose][] = [
    ['a chain that was drawn', drawn(chain)],
    ['a chain that was chosen', chosen(chain)],
    ['a tree that was drawn', drawn(tree)],
    ['a tree that was drawn without putting back', drawnWithout([-1, -1, -1, 0, 0])],
    ['a tree that was chosen', chosen(tree)],
    ['nothing', drawn([])],
  ];

  it.each(ways)('leaves the distribution as it is: %s', (name, propose) => {
    for (let kind = 0; kind < 3; kind++) {
      const { statistic, bound, accepted } = chiSquared(propose, acceptSampled, kind);
      expect(statistic).toBeLessThan(bound);
      if (name !== 'nothing') expect(accepted).toBeGreaterThan(0.3);
    }
  });

  it('would be found out if it took all', () => {
    const takeAll: typeof acceptSampled = (proposal, target, draw) => {
      const nodes = proposal.tokens.map((_, at) => at);
      return { nodes, token: drawFrom(target(nodes.at(-1) ?? -1), draw()) };
    };
    const { statistic, bound } = chiSquared(drawn(chain), takeAll, 0, 3000);
    expect(statistic).toBeGreaterThan(2 * bound);
  });

  it('would be found out if it drew from the target where it refuses', () => {
    const noResidual: typeof acceptSampled = (proposal, target, draw) => {
      const { nodes, token } = acceptSampled(proposal, target, draw);
      const isRefused = nodes.length < proposal.tokens.length;
      return { nodes, token: isRefused ? drawFrom(target(nodes.at(-1) ?? -1), draw()) : token };
    };
    const { statistic, bound } = chiSquared(drawn(chain), noResidual, 0);
    expect(statistic).toBeGreaterThan(2 * bound);
  });

  it('accepts as often as both distributions have in common', () => {
    const next = uniform(5);
    for (let kind = 0; kind < 20; kind++) {
      const [p, q] = [kind, kind + 500].map((each) => distribution(weightsOf([], vocabulary, each)));
      const of = ({ tokens, weights, total }: Distribution, token: number) =>
        (weights[tokens.indexOf(token)] ?? 0) / total;
      let common = 0;
      for (let token = 0; token < vocabulary; token++) common += Math.min(of(p, token), of(q, token));
      const runs = 4000;
      let accepted = 0;
      for (let run = 0; run < runs; run++) {
        const proposal = { tokens: [drawFrom(q, next())], drawnFrom: [q] };
        accepted += acceptSampled(proposal, () => p, next).nodes.length;
      }
      // Five deviations.
      expect(Math.abs(accepted / runs - common)).toBeLessThanOrEqual(
        5 * Math.sqrt((common * (1 - common)) / runs) + 1e-9,
      );
    }
  });

  it('accepts all that was drawn from the same distribution, and asks only along its path', () => {
    const next = uniform(9);
    for (let run = 0; run < 500; run++) {
      const target = (past: readonly number[]) => distribution(weightsOf(past, vocabulary, 3));
      const proposal = drawn(chain)(target, next);
      const asked: number[] = [];
      const { nodes } = acceptSampled(
        proposal,
        (node) => {
          asked.push(node);
          return target(proposal.tokens.slice(0, node + 1));
        },
        next,
      );
      expect(nodes).toEqual([0, 1, 2]);
      expect(asked).toEqual([-1, 0, 1, 2]);
    }
  });

  it('gives a token also where rounding leaves nothing', () => {
    const p = distribution([0.1, 0.2, 0.7]);
    const q = distribution([0.1 * 3, 0.2 * 3, 0.7 * 3].map((weight) => weight * (1 + 2 ** -40)));
    for (const token of [0, 1, 2]) {
      const { nodes, token: last } = acceptSampled(
        { tokens: [token], drawnFrom: [q] },
        () => p,
        () => 1 - 2 ** -53,
      );
      expect(nodes.length).toBeLessThanOrEqual(1);
      expect([0, 1, 2]).toContain(last);
    }
  });

  it('refuses what does not fit', () => {
    const p = distribution([1, 0, 1]);
    const accept = (proposal: Proposal) =>
      codeOf(() =>
        acceptSampled(
          proposal,
          () => p,
          () => 0.5,
        ),
      );
    expect(accept({ tokens: [0, 2], drawnFrom: [p] })).toBe('ERR_OPTION');
    expect(accept({ tokens: [1], drawnFrom: [p] })).toBe('ERR_OPTION'); // cannot have been drawn from it
    expect(accept({ tokens: [1], parents: [0] })).toBe('ERR_OPTION');
    expect(accept({ tokens: [1], parents: [] })).toBe('ERR_OPTION');
  });
});
