/** Attention of LongT5 to the neighbours, and to global tokens that are made of the layer's own input. */
import {
  longT5GlobalAttention,
  longT5GlobalAttentionBackward,
  longT5GlobalTokens,
  longT5GlobalTokensBackward,
  longT5LocalAttention,
  longT5LocalAttentionBackward,
  type Tensor,
} from 'flashattn';
import type { Adapter, ComputedTensor, Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';
import { linear, linearBackward, type Matrix, matrix, sum } from './linear.js';

type Shape4 = readonly [number, number, number, number];
type Tokens = Tensor<'float32', Shape4>;

function optionsOf(file: GoldenFile, workspace: Workspace) {
  const radius = file.params.number('local_radius');
  const lens = file.params.numbers('lens');
  const maxDistance = file.params.number('max_distance');
  if (radius === undefined || !lens || !maxDistance) throw new GoldenError('incomplete parameters');
  return { radius, lens, maxDistance, biasTable: workspace.load(file, 'bias_table') };
}

async function read(workspace: Workspace, t: Tensor | undefined): Promise<Float64Array> {
  return t ? Float64Array.from(await workspace.keep(t).toFloat32()) : new Float64Array(0);
}

export const longT5Local: Adapter = {
  systems: ['longt5_local'],
  async compute(file, workspace) {
    const load = (name: string): Tokens => workspace.load(file, name) as Tensor<'float32'> as Tokens;
    const { out, saved } = longT5LocalAttention(load('q'), load('k'), load('v'), optionsOf(file, workspace));
    const { dBiasTable, ...gradients } = longT5LocalAttentionBackward(load('dout'), saved);
    saved.dispose();
    const tensors: Record<string, ComputedTensor> = {};
    for (const [name, result] of Object.entries({ out, ...gradients, dbias_table: dBiasTable })) {
      tensors[name] = { values: await read(workspace, result) };
    }
    return { tensors };
  },
};

const EPSILON = 1e-6;

/** T5's layer norm: no mean, no bias. */
function rmsNorm(x: Matrix, weight: Float64Array): { y: Matrix; inverse: Float64Array } {
  const rows = x.values.length / x.columns;
  const inverse = Float64Array.from({ length: rows }, (_, r) => {
    const row = x.values.subarray(r * x.columns, (r + 1) * x.columns);
    return 1 / Math.sqrt(row.reduce((total, value) => total + value * value, 0) / x.columns + EPSILON);
  });
  const y = x.values.map(
    (value, n) => value * (inverse[Math.floor(n / x.columns)] ?? NaN) * (weight[n % x.columns] ?? NaN),
  );
  return { y: matrix(y, x.columns), inverse };
}

function rmsNormBackward(
  dy: Matrix,
  x: Matrix,
  weight: Float64Array,
  inverse: Float64Array,
): { dx: Float64Array; dWeight: Float64Array } {
  const { columns } = x;
  const dWeight = new Float64Array(columns);
  const dx = new Float64Array(x.values.length);
  for (const [r, inv] of inverse.entries()) {
    const at = (m: Matrix, c: number): number => m.values[r * columns + c] ?? NaN;
    let projected = 0;
    for (let c = 0; c < columns; c++) {
      projected += at(dy, c) * (weight[c] ?? NaN) * at(x, c);
      dWeight[c] = (dWeight[c] ?? NaN) + at(dy, c) * at(x, c) * inv;
    }
    for (let c = 0; c < columns; c++) {
      dx[r * columns + c] = inv * (at(dy, c) * (weight[c] ?? NaN) - (at(x, c) * projected * inv * inv) / columns);
    }
  }
  return { dx, dWeight };
}

export const longT5Global: Adapter = {
  systems: ['longt5_tglobal'],
  async compute(file, workspace) {
    const stored = file.tensor('x');
    const [batch = 0, length = 0, model = 0] = stored.shape;
    const heads = file.params.number('H');
    const blockSize = file.params.number('global_block_size');
    if (!heads || !blockSize) throw new GoldenError('parameter H or global_block_size is missing');
    const local = optionsOf(file, workspace);
    const tokenOptions = { blockSize, lens: local.lens };
    const options = { ...local, blockSize, globalBiasTable: workspace.load(file, 'global_bias_table') };
    const x = matrix(stored.values, model);
    const [wq, wk, wv] = (['wq', 'wk', 'wv'] as const).map((name) => matrix(file.tensor(name).values, model));
    const norm = file.tensor('ln_weight').values;
    if (!wq || !wk || !wv) throw new GoldenError('incomplete weights');

    const sums = await read(workspace, longT5GlobalTokens(workspace.load(file, 'x'), tokenOptions));
    const blocks = sums.length / (batch * model);
    const blockSums = matrix(sums, model);
    const { y: side, inverse } = rmsNorm(blockSums, norm);
    const project = (input: Matrix, weight: Matrix, tokens: number): Tokens =>
      workspace.tensor(linear(input, weight).values, [
        batch,
        tokens,
        heads,
        model / heads,
      ]) as Tensor<'float32'> as Tokens;
    const { out, saved } = longT5GlobalAttention(
      project(x, wq, length),
      project(x, wk, length),
      project(x, wv, length),
      project(side, wk, blocks),
      project(side, wv, blocks),
      options,
    );
    const gradients = longT5GlobalAttentionBackward(workspace.load(file, 'dout') as Tensor<'float32'> as Tokens, saved);
    saved.dispose();

    const rows = async (t: Tensor): Promise<Matrix> => matrix(await read(workspace, t), model);
    const query = linearBackward(await rows(gradients.dq), x, wq);
    const key = linearBackward(await rows(gradients.dk), x, wk);
    const value = linearBackward(await rows(gradients.dv), x, wv);
    const sideKey = linearBackward(await rows(gradients.dkGlobal), side, wk);
    const sideValue = linearBackward(await rows(gradients.dvGlobal), side, wv);
    const dSide = matrix(sum(sideKey.dx.values, sideValue.dx.values), model);
    const normed = rmsNormBackward(dSide, blockSums, norm, inverse);
    const dSums = workspace.tensor(normed.dx, [batch, blocks, model]);
    const throughSums = await read(workspace, longT5GlobalTokensBackward(dSums, length, tokenOptions));
    return {
      tensors: {
        out: { values: await read(workspace, out) },
        dx: { values: sum(query.dx.values, key.dx.values, value.dx.values, throughSums) },
        dwq: { values: query.dWeight.values },
        dwk: { values: sum(key.dWeight.values, sideKey.dWeight.values) },
        dwv: { values: sum(value.dWeight.values, sideValue.dWeight.values) },
        dbias_table: { values: await read(workspace, gradients.dBiasTable) },
        dglobal_bias_table: { values: await read(workspace, gradients.dGlobalBiasTable) },
        dln_weight: { values: normed.dWeight },
      },
    };
  },
};
