/** Layers of recurrent systems with the weights of a file: RetNet's retention and YOCO's decoders. */
import { concat, type DeviceName, parameter, type Tensor } from 'flashattn';
import type { Module } from 'flashattn/nn';
import { MultiScaleRetention, Yoco } from 'flashattn/systems';
import type { Adapter, ComputedTensor, Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';

/** A weight of a module and the tensors of the file that it is made of, one behind the other. */
type Sources = ReadonlyMap<string, readonly string[]>;

const camel = (name: string): string => name.replaceAll(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());

function sourcesOf(file: GoldenFile): Sources {
  const sources = new Map<string, string[]>();
  for (const name of file.names) {
    if (!name.endsWith('__weight') || name.startsWith('grad_')) continue;
    const target = name
      .split('__')
      .map(camel)
      .join('.')
      .replace('mixerLayerNorm', 'mixerNorm')
      .replace('finalLayerNorm', 'mlpNorm')
      .replace('kvLayerNorm', 'kvNorm')
      .replace(/ffn\.(fc1|gate)/, 'mlp.up')
      .replace('ffn.fc2', 'mlp.down');
    sources.set(target, [...(sources.get(target) ?? []), name]);
  }
  return sources;
}

/** Loads the weights of a file, runs the module on its x, and differentiates sum(out * dout). */
async function solveModule(
  file: GoldenFile,
  workspace: Workspace,
  module: Module,
  run: (x: Tensor) => Readonly<Record<string, Tensor>>,
): Promise<Record<string, ComputedTensor>> {
  try {
    const sources = sourcesOf(file);
    const weights = [...sources].map(([target, names]) => {
      const parts = names.map((name) => workspace.load(file, name) as Tensor);
      return [target, parts.length === 1 ? (parts[0] as Tensor) : workspace.keep(concat(parts, 0) as Tensor)] as const;
    });
    module.loadStateDict(Object.fromEntries(weights));
    const x = workspace.keep(parameter(workspace.load(file, 'x') as Tensor));
    const outputs = run(x);
    for (const t of Object.values(outputs)) workspace.keep(t);
    (outputs.out as Tensor).backward(workspace.load(file, 'dout'));
    const tensors: Record<string, ComputedTensor> = {};
    for (const [name, t] of Object.entries(outputs)) tensors[name] = { values: await t.toFloat32() };
    const own = module.namedParameters();
    for (const [target, names] of [...sources, ['x', ['x']] as const]) {
      const gradient = target === 'x' ? x.grad : own.get(target)?.grad;
      const values = await gradient?.toFloat32();
      let at = 0;
      for (const name of names) {
        const size = file.tensor(name).values.length;
        if (values) tensors[`grad_${name}`] = { values: values.subarray(at, at + size) };
        at += size;
      }
    }
    return tensors;
  } finally {
    module.dispose();
  }
}

function number(file: GoldenFile, name: string): number {
  const value = file.params.number(name);
  if (value === undefined) throw new GoldenError(`parameter ${name} is missing`);
  return value;
}

export const retnetModule: Adapter = {
  systems: ['retnet_msr_module'],
  async compute(file, workspace) {
    const form = file.params.string('form');
    if (form !== 'parallel' && form !== 'recurrent' && form !== 'chunkwise')
      throw new GoldenError(`unknown form ${form}`);
    const [valueWidth = 0, width = 0] = file.tensor('v_proj__weight').shape;
    const layer = new MultiScaleRetention({
      width,
      valueWidth,
      heads: number(file, 'heads'),
      form,
      chunk: number(file, 'chunk'),
      epsilon: number(file, 'rms_eps'),
      device: workspace.device as DeviceName,
    });
    return { tensors: await solveModule(file, workspace, layer, (x) => ({ out: layer.forward(x) })) };
  },
};

export const yoco: Adapter = {
  systems: ['yoco'],
  async compute(file, workspace) {
    const window = file.params.number('sliding_window');
    const model = new Yoco({
      width: number(file, 'dim'),
      layers: number(file, 'n_layers'),
      hidden: number(file, 'hidden_dim'),
      selfHeads: number(file, 'n_self_heads'),
      heads: number(file, 'n_attn_heads'),
      kvHeads: number(file, 'n_attn_kv_heads'),
      ropeTheta: number(file, 'rope_theta'),
      epsilon: number(file, 'norm_eps'),
      ...(window !== undefined && { window }),
      device: workspace.device as DeviceName,
    });
    const tensors = await solveModule(file, workspace, model, (x) => {
      const self_decoder_out = model.selfDecoder.forward(x);
      return { self_decoder_out, out: model.crossDecoder.forward(self_decoder_out) };
    });
    return { tensors };
  },
};
