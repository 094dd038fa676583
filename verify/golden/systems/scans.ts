/** Element-wise recurrences, selective scans and diagonal state spaces, with the gradients of all inputs. */
import { exp, mul, type Tensor } from 'flashattn';
import { hgrnRecurrence, mambaSelectiveScan, rwkv4TimeMixing, s4d, s4dKernel, s4dOutput } from 'flashattn/systems';
import type { Adapter, ComputedTensor } from '../adapter.js';
import { type Inputs, tapedTensors } from './taped.js';

export const hgrn: Adapter = {
  systems: ['hgrn_recurrence'],
  async compute(file, workspace) {
    const tensors = await tapedTensors(file, workspace, (input) => {
      const { out, state } = hgrnRecurrence(input('x'), input('g'));
      return { out, final_state: state as Tensor };
    });
    return { tensors };
  },
};

export const mamba: Adapter = {
  systems: ['mamba_selective_scan'],
  async compute(file, workspace) {
    const tensors = await tapedTensors(file, workspace, (input) => {
      const { out, state } = mambaSelectiveScan(input('u'), input('delta'), input('A'), input('B'), input('C'), {
        deltaSoftplus: file.params.boolean('softplus') ?? false,
        ...(file.has('D') && { D: input('D') }),
        ...(file.has('z') && { z: input('z') }),
        ...(file.has('delta_bias') && { deltaBias: input('delta_bias') }),
      });
      return { out, final_state: state as Tensor };
    });
    return { tensors };
  },
};

export const rwkv4: Adapter = {
  systems: ['rwkv4_time_mixing'],
  async compute(file, workspace) {
    const tensors = await tapedTensors(file, workspace, (input) => {
      const { out, state } = rwkv4TimeMixing(input('x'), {
        timeMixK: input('time_mix_k'),
        timeMixV: input('time_mix_v'),
        timeMixR: input('time_mix_r'),
        timeFirst: input('time_first'),
        timeDecay: input('time_decay'),
        ...{ Wr: input('Wr'), Wk: input('Wk'), Wv: input('Wv'), Wo: input('Wo') },
      });
      workspace.keep(state.x);
      const sums = workspace.keep(state.wkv as Tensor);
      // The file has the sums themselves.
      const [num, den, peak] = [0, 1, 2].map((i) => workspace.keep(sums.select(1, i))) as [Tensor, Tensor, Tensor];
      const scale = workspace.keep(exp(peak));
      return { out, final_num: mul(num, scale) as Tensor, final_den: mul(den, scale) as Tensor };
    });
    return { tensors };
  },
};

export const diagonal: Adapter = {
  systems: ['s4d'],
  async compute(file, workspace) {
    const run = (form: 'recurrence' | 'convolution') => (input: Inputs) => {
      const parameters = {
        logDt: input('log_dt'),
        logAReal: input('log_A_real'),
        AImag: input('A_imag'),
        ...{ C: input('C'), D: input('D') },
      };
      const u = input('u');
      const { out, state } = s4d(u, parameters, { form } as { form: 'recurrence' });
      const results = { out, block_out: s4dOutput(out, { Wout: input('Wout'), bout: input('bout') }) };
      if (form === 'convolution') return results;
      const kept = workspace.keep(state as Tensor);
      const kernel = s4dKernel(parameters, u.shape[2] as number) as Tensor;
      const parts = { final_state_re: kept.select(3, 0) as Tensor, final_state_im: kept.select(3, 1) as Tensor };
      return { ...results, kernel, ...parts };
    };
    const tensors = await tapedTensors(file, workspace, run('recurrence'));
    const others = await tapedTensors(file, workspace, run('convolution'));
    // Both forms have to be right: of each result the one that is further away from the file.
    const distance = (name: string, { values }: ComputedTensor) =>
      file.tensor(name).values.reduce((most, x, i) => Math.max(most, Math.abs(x - (values[i] ?? Number.NaN))), 0);
    for (const [name, other] of Object.entries(others)) {
      const own = tensors[name];
      if (!own || !(distance(name, other) <= distance(name, own))) tensors[name] = other;
    }
    return { tensors };
  },
};
