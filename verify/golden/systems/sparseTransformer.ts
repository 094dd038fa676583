/** Sparse Transformer, as its code and as its paper define it. */
import { type Mask, patterns } from 'flashattn';
import type { Adapter, ComputedTensor, Outcome, Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';
import { required, solveMasked, visibility } from './masked.js';

function codeMask({ params }: GoldenFile, length: number): Mask {
  const [bandwidth, stride] = [params.number('bandwidth'), params.number('stride')];
  if (bandwidth !== undefined) return patterns.sparseTransformerLocal(bandwidth);
  if (stride !== undefined) return patterns.sparseTransformerStrided(stride);
  return patterns.sparseTransformerFixed({
    length,
    heads: required(params.number('H'), 'H'),
    block: required(params.number('block'), 'block'),
    localAttnCtx: required(params.number('local_attn_ctx'), 'local_attn_ctx'),
    numVerts: required(params.number('num_verts'), 'num_verts'),
    vertSize: required(params.number('vertsize'), 'vertsize'),
  });
}

/** Cases are called merged or separate; the latter give the halves of the pattern to the heads. */
function paperMask({ params, caseName }: GoldenFile, length: number): Mask {
  const stride = required(params.number('l'), 'l');
  const summary = params.number('c');
  const heads = caseName.endsWith('separate') ? { heads: required(params.number('H'), 'H') } : {};
  return summary === undefined
    ? patterns.sparseTransformerPaperStrided({ stride, ...heads })
    : patterns.sparseTransformerPaperFixed({ length, stride, summary, ...heads });
}

/** Which blocks show anything. */
function layoutOf(mask: Mask, file: GoldenFile, length: number): ComputedTensor {
  const block = required(file.params.number('block'), 'block');
  const [heads = 0, rows = 0] = file.tensor('layout').shape;
  if (rows * block !== length) throw new GoldenError('a layout of another length');
  const { values: tokens } = visibility(mask, [heads, length, length]);
  const values = new Uint8Array(heads * rows * rows);
  for (let n = 0; n < tokens.length; n++) {
    if (tokens[n] === 0) continue;
    const [row, column] = [Math.floor(n / length), n % length];
    values[Math.floor(row / block) * rows + Math.floor(column / block)] = 1;
  }
  return { values, exact: true };
}

async function compute(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const length = file.tensor('q').shape[2] ?? 0;
  const mask = file.system === 'sparse_transformer' ? codeMask(file, length) : paperMask(file, length);
  const tensors = await solveMasked(file, workspace, mask);
  return { tensors: file.has('layout') ? { ...tensors, layout: layoutOf(mask, file, length) } : tensors };
}

export const sparseTransformer: Adapter = { systems: ['sparse_transformer', 'sparse_transformer_paper'], compute };
