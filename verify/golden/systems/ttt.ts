/** Test-time training: layers with an inner model that learns from every mini-batch. */
import { parameter, type Tensor } from 'flashattn';
import { TTTLinear, tttLinear, tttMlp } from 'flashattn/systems';
import type { Adapter, ComputedTensor } from '../adapter.js';
import { GoldenError } from '../file.js';
import { type Inputs, tapedTensors } from './taped.js';

type Shape4 = readonly [number, number, number, number];

/** [batch, heads, seq, ...] of a file with heads and seq swapped. */
const swapped = (t: Tensor): Tensor<'float32', Shape4> => t.transpose(1, 2) as Tensor as Tensor<'float32', Shape4>;

const optionsOf = (input: Inputs, form: 'dual' | 'primal') => ({
  lr: swapped(input('lr')) as unknown as Tensor,
  tokenCoef: input('token_coef'),
  norm: { gain: input('ln_w'), bias: input('ln_b') },
  form,
});

export const tttCores: Adapter = {
  systems: ['ttt_linear', 'ttt_mlp'],
  async compute(file, workspace) {
    const form = file.params.string('form') ?? 'dual';
    if (form !== 'dual' && form !== 'primal') throw new GoldenError(`unknown form ${form}`);
    const tensors = await tapedTensors(file, workspace, (input) => {
      const [q, k, v] = [swapped(input('q')), swapped(input('k')), swapped(input('v'))];
      const options = optionsOf(input, form);
      if (file.system === 'ttt_linear') {
        const { out, weights } = tttLinear(q, k, v, { W: input('W0'), b: input('b0') }, options);
        return { out: out as Tensor as Tensor, final_W: weights.W, final_b: weights.b };
      }
      const [W1, b1, W2, b2] = ['W1', 'b1', 'W2', 'b2'].map(input) as [Tensor, Tensor, Tensor, Tensor];
      const { out, weights } = tttMlp(q, k, v, { W1, b1, W2, b2 }, options);
      const { W1: final_W1, b1: final_b1, W2: final_W2, b2: final_b2 } = weights;
      return { out: out as Tensor as Tensor, final_W1, final_b1, final_W2, final_b2 };
    });
    return { tensors };
  },
};

/** Names of the file -> of the module. */
const moduleNames: Readonly<Record<string, string>> = {
  q_proj__weight: 'qProj.weight',
  k_proj__weight: 'kProj.weight',
  v_proj__weight: 'vProj.weight',
  o_proj__weight: 'oProj.weight',
  learnable_token_idx: 'learnableTokenIdx',
  learnable_ttt_lr_weight: 'learnableTttLrWeight',
  learnable_ttt_lr_bias: 'learnableTttLrBias',
  ttt_norm_weight: 'tttNormWeight',
  ttt_norm_bias: 'tttNormBias',
  W1: 'W1',
  b1: 'b1',
  post_norm__weight: 'postNorm.weight',
  post_norm__bias: 'postNorm.bias',
};

export const tttModule: Adapter = {
  systems: ['ttt_linear_module'],
  async compute(file, workspace) {
    const { params } = file;
    const [heads, miniBatch, baseLr, ropeTheta] = ['heads', 'mini_batch', 'base_lr', 'rope_theta'].map((name) => {
      const value = params.number(name);
      if (value === undefined) throw new GoldenError(`parameter ${name} is missing`);
      return value;
    }) as [number, number, number, number];
    const width = file.tensor('x').shape[2] ?? 0;
    const layer = new TTTLinear({ width, heads, miniBatch, baseLr, ropeTheta, device: workspace.device });
    try {
      const own = Object.entries(moduleNames).map(([name, to]) => [to, workspace.load(file, name) as Tensor] as const);
      layer.loadStateDict(Object.fromEntries(own));
      const x = workspace.keep(parameter(workspace.load(file, 'x') as Tensor));
      const out = workspace.keep(layer.forward(x));
      out.backward(workspace.load(file, 'dout'));
      const tensors: Record<string, ComputedTensor> = { out: { values: await out.toFloat32() } };
      const inputs = layer.namedParameters().set('x', x);
      for (const [name, to] of [...Object.entries(moduleNames), ['x', 'x'] as const]) {
        const gradient = inputs.get(to)?.grad;
        if (gradient) tensors[`grad_${name}`] = { values: await gradient.toFloat32() };
      }
      return { tensors };
    } finally {
      layer.dispose();
    }
  },
};
