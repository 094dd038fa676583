import { masks, patterns } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { codeOf } from '../support/codeOf.js';
import { expectVisible, range } from './visible.js';

describe('trees', () => {
  /** Parents in any order, not only before their children. */
  const forest = (nodes: number, seed: number) =>
    range(0, nodes).map((t) => (t < nodes - 3 && (t * seed) % 7 !== 0 ? t + 1 + ((t * seed) % (nodes - t - 1)) : -1));

  it('treeEdges shows one level of a forest', () => {
    for (const nodes of [1, 15, 70, 130]) {
      const parents = forest(nodes, 5);
      const dims = { queries: nodes };
      expectVisible(patterns.treeEdges(parents, 'childToParent'), dims, (i, j) => i === j || parents[i] === j);
      expectVisible(patterns.treeEdges(parents, 'parentFromChildren'), dims, (i, j) => parents[j] === i);
      expectVisible(
        patterns.treeEdges(parents, 'siblings'),
        dims,
        (i, j) => i === j || (parents[i] !== -1 && parents[i] === parents[j]),
      );
    }
  });

  it('treeEdges refuses what is no forest', () => {
    for (const parents of [[1, 0], [0], [5], [-2], [0.5]])
      expect(codeOf(() => patterns.treeEdges(parents, 'siblings'))).toBe('ERR_OPTION');
    expect(codeOf(() => patterns.treeEdges([-1], 'cousins' as patterns.TreeEdges))).toBe('ERR_OPTION');
  });

  it('medusaParents sorts choices by length and then by picks', () => {
    // Nodes: root, [0], [2], [10], [0, 0], [0, 1], [2, 0], [0, 1, 0]
    const parents = patterns.medusaParents([[0, 1, 0], [10], [2, 0], [0, 1], [2], [0], [0, 0]]);
    expect(parents).toEqual([-1, 0, 0, 0, 1, 1, 2, 5]);
    const ancestors = (t: number): number[] => (t < 0 ? [] : [t, ...ancestors(parents[t] ?? -1)]);
    expectVisible(
      masks.tree(parents, { prefix: 3 }),
      { queries: 8, keys: 11 },
      (i, j) => j < 3 || ancestors(i).includes(j - 3),
    );
    expect(patterns.medusaParents([])).toEqual([-1]);
    for (const choices of [[[0, 0]], [[]], [[-1]]])
      expect(codeOf(() => patterns.medusaParents(choices))).toBe('ERR_OPTION');
  });
});
