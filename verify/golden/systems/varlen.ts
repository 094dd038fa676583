/** Packed sequences. */
import { type Adapter, solveAttention } from '../adapter.js';

export const varlen: Adapter = {
  systems: ['varlen'],
  async compute(file, workspace) {
    const options = {
      causal: file.params.boolean('causal') ?? false,
      cuSeqlensQ: file.integers('cu_q'),
      cuSeqlensK: file.integers('cu_k'),
    };
    return { tensors: await solveAttention(file, workspace, options) };
  },
};
