/** The white-box transformer CRATE. */
import type { Tensor } from 'flashattn';
import { crateBlock, crateIsta, crateMssa, crateMssaPaper } from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { type GoldenFile, numberOf } from '../file.js';
import { optionsOf } from './linearAttention.js';
import { solveTaped } from './taped.js';

const istaOptions = (file: GoldenFile) => optionsOf(file.params, { stepSize: 'step_size', lambda: 'lambd' });

export const crate: Adapter = {
  systems: ['crate_mssa'],
  compute(file, workspace) {
    const heads = numberOf(file, 'heads');
    return solveTaped(file, workspace, (input) => ({
      out: crateMssa(
        input('x'),
        { subspaces: input('qkv__weight'), out: input('to_out__0__weight'), outBias: input('to_out__0__bias') },
        { heads },
      ),
    }));
  },
};

export const cratePaper: Adapter = {
  systems: ['crate_mssa_paper'],
  compute: (file, workspace) =>
    solveTaped(file, workspace, (input) => ({ out: crateMssaPaper(input('x'), input('U'), input('coef')) })),
};

export const ista: Adapter = {
  systems: ['crate_ista'],
  compute: (file, workspace) =>
    solveTaped(file, workspace, (input) => ({ out: crateIsta(input('x'), input('weight'), istaOptions(file)) })),
};

export const crateBlocks: Adapter = {
  systems: ['crate_block'],
  compute(file, workspace) {
    const options = { heads: numberOf(file, 'heads'), ...istaOptions(file) };
    return solveTaped(file, workspace, (input) => {
      let x: Tensor = input('x');
      for (let layer = 0; layer < numberOf(file, 'depth'); layer++) {
        const [attention, ista] = [`layers__${layer}__0__`, `layers__${layer}__1__`];
        const weights = {
          norm1Weight: input(`${attention}norm__weight`),
          norm1Bias: input(`${attention}norm__bias`),
          subspaces: input(`${attention}fn__qkv__weight`),
          out: input(`${attention}fn__to_out__0__weight`),
          outBias: input(`${attention}fn__to_out__0__bias`),
          norm2Weight: input(`${ista}norm__weight`),
          norm2Bias: input(`${ista}norm__bias`),
          dictionary: input(`${ista}fn__weight`),
        };
        x = crateBlock(x, weights, options);
      }
      return { out: x };
    });
  },
};
