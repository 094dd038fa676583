import { checkArray, checkIntegers, checkWord } from '../base/check.js';
import { optionError, show } from '../base/errors.js';
import { edges } from '../masks/index.js';
import type { Mask } from '../masks/mask.js';
import { checkParents } from '../masks/sparse.js';

export type TreeEdges = 'childToParent' | 'parentFromChildren' | 'siblings';

/**
 * One level of a forest, parentOf[t] being the parent of node t and -1 at a root:
 * - 'childToParent': a node sees itself and its parent; a root only itself;
 * - 'parentFromChildren': a node sees its children and not itself; a leaf sees nothing and gives 0;
 * - 'siblings': a node sees itself and the nodes with the same parent; a root only itself.
 *
 * `masks.tree` is the one where nodes see all of their ancestors.
 *
 * @throws ERR_OPTION
 */
export function treeEdges(parentOf: readonly number[], kind: TreeEdges): Mask {
  checkWord(kind, 'kind', ['childToParent', 'parentFromChildren', 'siblings']);
  const parents = checkParents(parentOf);
  const children: number[][] = parents.map(() => []);
  for (const [node, parent] of parents.entries()) if (parent >= 0) children[parent].push(node);
  const keysOf = {
    childToParent: (node: number) => (parents[node] < 0 ? [node] : [node, parents[node]]),
    parentFromChildren: (node: number) => children[node],
    siblings: (node: number) => (parents[node] < 0 ? [node] : children[parents[node]]),
  }[kind];
  const pairs = parents.flatMap((_, node) => keysOf(node).map((key): [number, number] => [node, key]));
  return edges(pairs, { queries: parents.length });
}

/**
 * The token tree of Medusa (Cai et al. 2024; FasterDecoding/Medusa, generate_medusa_buffers) as parents for `masks.tree`.
 * A choice is a path of top-k picks, one for each head. Node 0 is the root; the nodes after it are the choices, sorted by
 * length and then by their picks.
 *
 * @throws ERR_OPTION when the beginning of a choice is not a choice itself
 */
export function medusaParents(choices: readonly (readonly number[])[]): number[] {
  const paths = checkArray(choices, 'choices', 'a list of paths', (path, argument) => checkIntegers(path, argument, 0));
  const sorted = paths.toSorted((a, b) => {
    const differs = a.findIndex((pick, at) => pick !== b[at]);
    return a.length - b.length || (differs < 0 ? 0 : a[differs] - b[differs]);
  });
  const nodes = new Map([['', 0], ...sorted.map((choice, at) => [choice.join(), at + 1] as const)]);
  const parents = sorted.map((choice) => {
    const parent = choice.length === 0 ? undefined : nodes.get(choice.slice(0, -1).join());
    if (parent === undefined) throw optionError(`choices has ${show(choice)}; the path to it must be a choice as well`);
    return parent;
  });
  return [-1, ...parents];
}
