/** Linear attention with decays, gates and the delta rule: systems over one engine. */
import type { Recurrence, Tensor } from 'flashattn';
import {
  deltaRule,
  gatedDeltaRule,
  gatedRetention,
  gla,
  lightningAttention,
  mamba2Ssd,
  retention,
  retentionTorchscaleChunkwise,
  retentionTorchscaleParallel,
  retentionTorchscaleRecurrent,
  rwkv6Wkv,
  simpleGla,
} from 'flashattn/systems';
import type { Adapter, Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';
import { type Inputs, tapedTensors } from './taped.js';

type Shape4 = readonly [number, number, number, number];
type Tokens = Tensor<'float32', Shape4>;
type Outputs = Readonly<Record<string, Tensor>>;

/** [batch, heads, seq, ...] <-> [batch, seq, heads, ...] */
const swapped = (t: Tensor): Tensor => t.transpose(1, 2);

const tokensOf = (input: Inputs, swap: boolean) =>
  ['q', 'k', 'v'].map((name) => {
    const t = input(name);
    return (swap ? swapped(t) : t) as Tensor<'float32'> as Tokens;
  }) as [Tokens, Tokens, Tokens];

const initialOf = (file: GoldenFile, input: Inputs) =>
  file.has('initial_state') ? { initialState: input('initial_state') as Tensor<'float32'> } : {};

const named = ({ out, state }: Recurrence<'float32'>, swap: boolean): Outputs => ({
  out: swap ? swapped(out as Tensor) : (out as Tensor),
  final_state: state as Tensor,
});

/** An adapter of systems that are run on the tape. */
const taped = (
  systems: readonly string[],
  run: (file: GoldenFile, input: Inputs, workspace: Workspace) => Outputs,
): Adapter => ({
  systems,
  compute: async (file, workspace) => ({
    tensors: await tapedTensors(file, workspace, (input) => run(file, input, workspace)),
  }),
});

export const retentions = taped(
  ['retention_simple', 'lightning_attention', 'gated_retention'],
  (file, input, workspace) => {
    const tokens = tokensOf(input, true);
    if (file.system === 'retention_simple') return named(retention(...tokens), true);
    if (file.system === 'gated_retention')
      return named(gatedRetention(...tokens, { logGates: swapped(input('g')) }), true);
    const slopes = file.params.boolean('decay') ? { slopes: workspace.load(file, 'slopes') as Tensor } : {};
    return named(lightningAttention(...tokens, slopes), true);
  },
);

export const torchscale = taped(
  ['retention_torchscale_parallel', 'retention_torchscale_recurrent', 'retention_torchscale_chunkwise'],
  (file, input) => {
    const [q, k] = [swapped(input('qr')), swapped(input('kr'))] as unknown as [Tokens, Tokens];
    const [batch, seq, heads] = q.shape;
    const flat = input('v');
    const v = flat.reshape([batch, seq, heads, flat.size / (batch * seq * heads)]) as Tensor as Tokens;
    if (file.system === 'retention_torchscale_parallel')
      return { out: retentionTorchscaleParallel(q, k, v) as Tensor as Tensor };
    const chunk = file.params.number('chunk');
    if (chunk === undefined) throw new GoldenError('parameter chunk is missing');
    if (file.system === 'retention_torchscale_chunkwise')
      return { out: retentionTorchscaleChunkwise(q, k, v, { chunk }) as Tensor as Tensor };
    const { out, state } = retentionTorchscaleRecurrent(q, k, v);
    return {
      out: out as Tensor as Tensor,
      final_kv: state.kv.transpose(2, 3) as Tensor,
      final_scale: state.scale as Tensor,
    };
  },
);

export const gatedLinear = taped(['simple_gla', 'gla'], (file, input) => {
  const tokens = tokensOf(input, false);
  const initial = initialOf(file, input);
  return file.system === 'gla'
    ? named(gla(...tokens, { gk: input('gk'), ...initial }), false)
    : named(simpleGla(...tokens, { g: input('g'), ...initial }), false);
});

export const rwkv6 = taped(['rwkv6_wkv'], (_, input) => {
  const options = { w: swapped(input('w')), u: input('u') as Tensor<'float32'> };
  return named(rwkv6Wkv(...tokensOf(input, true), options), true);
});

export const ssd = taped(['mamba2_ssd'], (file, input) => {
  const [x, a, b, c] = ['X', 'A', 'B', 'C'].map(input) as [Tensor, Tensor, Tensor, Tensor];
  const initial = file.has('initial_state')
    ? { initialState: input('initial_state').transpose(2, 3) as Tensor<'float32'> }
    : {};
  const { out, state } = mamba2Ssd(x, a, b, c, initial);
  return { out, final_state: state.transpose(2, 3) as Tensor };
});

export const deltaRules = taped(['delta_rule', 'gated_delta_rule'], (file, input) => {
  const gated = file.system === 'gated_delta_rule';
  const tokens = tokensOf(input, !gated);
  if (!gated) return named(deltaRule(...tokens, { beta: swapped(input('beta')) }), true);
  return named(gatedDeltaRule(...tokens, { beta: input('beta'), g: input('g'), ...initialOf(file, input) }), false);
});
