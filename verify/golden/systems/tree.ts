/** Trees of tokens: all ancestors of a node, or one level of edges. */
import { masks, patterns } from 'flashattn';
import type { Adapter, ComputedTensor, Outcome, Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';
import { required, solveMasked } from './masked.js';

async function solveTree(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const parents = patterns.medusaParents(required(file.params.lists('choices'), 'choices'));
  const depths: number[] = [];
  for (const parent of parents) depths.push(parent < 0 ? 0 : (depths[parent] ?? NaN) + 1);
  const mask = masks.tree(parents, { prefix: required(file.params.number('prefix'), 'prefix') });
  const tensors: Record<string, ComputedTensor> = {
    ...(await solveMasked(file, workspace, mask)),
    parent: { values: parents, exact: true },
    depth: { values: depths, exact: true },
  };
  return { tensors };
}

const EDGES: Readonly<Record<string, patterns.TreeEdges>> = {
  child_to_parent: 'childToParent',
  parent_from_children: 'parentFromChildren',
  siblings: 'siblings',
};

async function solveEdges(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const kind = EDGES[file.caseName];
  if (!kind) throw new GoldenError(`unknown case ${file.caseName}`);
  const mask = patterns.treeEdges([...file.integers('parent')], kind);
  return { tensors: await solveMasked(file, workspace, mask) };
}

export const tree: Adapter = {
  systems: ['tree_mask', 'tree_edges'],
  compute: (file, workspace) => (file.system === 'tree_mask' ? solveTree : solveEdges)(file, workspace),
};
