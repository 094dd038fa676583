/** Attention within parts of a map or clip: the windows of Swin, axes, frames and columns. */
import {
  axialAttention,
  axialAttentionBackward,
  swinAttention,
  swinAttentionBackward,
  type Tensor,
  timesformerAttention,
  timesformerAttentionBackward,
} from 'flashattn';
import type { Adapter, ComputedTensor, Outcome, Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile, type Params } from '../file.js';
import { linear, linearBackward, type Matrix, matrix, sum } from './linear.js';

type Shape4 = readonly [number, number, number, number];
type Shape5 = readonly [number, number, number, number, number];

/** Reads the results, and disposes of them with the workspace. */
async function read(
  results: Readonly<Record<string, Tensor | undefined>>,
  workspace: Workspace,
): Promise<Record<string, ComputedTensor>> {
  const computed: Record<string, ComputedTensor> = {};
  for (const [name, result] of Object.entries(results)) {
    if (result) computed[name] = { values: await workspace.keep(result).toFloat32() };
  }
  return computed;
}

function required(params: Params, name: string): number {
  const value = params.number(name);
  if (value === undefined) throw new GoldenError(`parameter ${name} is missing`);
  return value;
}

export const swin: Adapter = {
  systems: ['swin'],
  async compute(file, workspace) {
    const load = (name: string): Tensor<'float32', Shape5> =>
      workspace.load(file, name) as Tensor<'float32'> as Tensor<'float32', Shape5>;
    const { out, saved } = swinAttention(load('q'), load('k'), load('v'), {
      window: required(file.params, 'window'),
      shift: required(file.params, 'shift'),
      biasTable: workspace.load(file, 'bias_table'),
    });
    const { dBiasTable, ...gradients } = swinAttentionBackward(load('dout'), saved);
    saved.dispose();
    return { tensors: await read({ out, ...gradients, dbias_table: dBiasTable }, workspace) };
  },
};

async function sumOverAxes(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const load = (name: string): Tensor<'float32'> => workspace.load(file, name);
  const { out, saved } = axialAttention(load('q'), load('k'), load('v'));
  const gradients = axialAttentionBackward(load('dout'), saved);
  saved.dispose();
  return { tensors: await read({ out, ...gradients }, workspace) };
}

/** One layer an axis, each with its projections. */
async function layerByLayer(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const { shape, values } = file.tensor('x');
  const [batch = 0, height = 0, width = 0, model = 0] = shape;
  const heads = required(file.params, 'H');
  const grid: Shape5 = [batch, height, width, heads, model / heads];
  const weights = (name: string): Matrix => {
    const stored = file.tensor(name);
    return matrix(stored.values, stored.shape[1] ?? 0);
  };
  const columns = ({ values: all, columns: width_ }: Matrix, begin: number, end: number): Float64Array =>
    all.filter((_, n) => n % width_ >= begin && n % width_ < end);

  let x = matrix(values, model);
  const layers = [];
  for (const axis of [0, 1]) {
    const [toQ, toKv, toOut] = [weights(`to_q${axis}`), weights(`to_kv${axis}`), weights(`to_out${axis}`)];
    const kv = linear(x, toKv);
    const q = workspace.tensor(linear(x, toQ).values, grid);
    const k = workspace.tensor(columns(kv, 0, model), grid);
    const v = workspace.tensor(columns(kv, model, 2 * model), grid);
    const { out, saved } = axialAttention(q, k, v, { axes: [axis] });
    const attended = matrix(Float64Array.from(await workspace.keep(out).toFloat32()), model);
    layers.push({ axis, x, toQ, toKv, toOut, attended, saved });
    x = linear(attended, toOut, file.tensor(`to_out_bias${axis}`).values);
  }

  const tensors: Record<string, ComputedTensor> = { out: { values: x.values } };
  let dy = matrix(file.tensor('dout').values, model);
  for (const { axis, x: input, toQ, toKv, toOut, attended, saved } of layers.reverse()) {
    const projection = linearBackward(dy, attended, toOut);
    const gradients = axialAttentionBackward(workspace.tensor(projection.dx.values, grid), saved);
    saved.dispose();
    const { dq, dk, dv } = await read({ ...gradients }, workspace);
    const dKv = new Float64Array(2 * (dk?.values.length ?? 0)).map((_, n) => {
      const [row, column] = [Math.floor(n / (2 * model)), n % (2 * model)];
      return (column < model ? dk?.values[row * model + column] : dv?.values[row * model + column - model]) ?? NaN;
    });
    const query = linearBackward(matrix(Float64Array.from(dq?.values ?? []), model), input, toQ);
    const keyValue = linearBackward(matrix(dKv, 2 * model), input, toKv);
    tensors[`dto_q${axis}`] = { values: query.dWeight.values };
    tensors[`dto_kv${axis}`] = { values: keyValue.dWeight.values };
    tensors[`dto_out${axis}`] = { values: projection.dWeight.values };
    dy = matrix(sum(query.dx.values, keyValue.dx.values), model);
  }
  return { tensors: { ...tensors, dx: { values: dy.values } } };
}

export const axial: Adapter = {
  systems: ['axial'],
  compute: (file, workspace) => (file.has('x') ? layerByLayer(file, workspace) : sumOverAxes(file, workspace)),
};

/** The parameters of a case do not say which of the three forms it is; its mask does. */
function patternOf(file: GoldenFile): 'space' | 'time' | 'officialSpace' {
  if (!file.has('mask')) return 'officialSpace';
  const { values, shape } = file.tensor('mask');
  // Token 1 is the first patch of the first frame, token 2 its neighbour.
  return values[(shape[1] ?? 0) + 2] ? 'space' : 'time';
}

export const timesformer: Adapter = {
  systems: ['timesformer'],
  async compute(file, workspace) {
    const load = (name: string): Tensor<'float32', Shape4> =>
      workspace.load(file, name) as Tensor<'float32'> as Tensor<'float32', Shape4>;
    const { out, saved } = timesformerAttention(load('q'), load('k'), load('v'), {
      frames: required(file.params, 'frames'),
      patches: required(file.params, 'patches'),
      pattern: patternOf(file),
    });
    const gradients = timesformerAttentionBackward(load('dout'), saved);
    saved.dispose();
    return { tensors: await read({ out, ...gradients }, workspace) };
  },
};
