// Programs of this repository that are not part of the package: they import the built 'flashattn'.
import { defineConfig, type UserConfig } from 'tsdown';

const common: UserConfig = {
  clean: false,
  format: 'esm',
  target: 'node20',
  platform: 'node',
  fixedExtension: false,
  hash: false,
  dts: false,
  logLevel: 'warn',
  deps: { neverBundle: ['flashattn', 'flashattn/nn', 'flashattn/systems', 'flashattn/inference'] },
};

/** One for each step of scripts/setup.mjs, which chooses the folder. */
export default defineConfig([
  {
    ...common,
    name: 'example',
    entry: {
      'examples/gpt': 'examples/gpt.ts',
      'examples/retrieve': 'examples/retrieve.ts',
      'examples/serve': 'examples/serve.ts',
    },
  },
  {
    ...common,
    name: 'programs',
    entry: {
      'bench/attention': 'bench/attention.ts',
      'bench/gpu': 'bench/gpu/attention.ts',
      'bench/knn': 'bench/knn.ts',
      'bench/linear': 'bench/linear.ts',
      'bench/matmul': 'bench/matmul/matmul.ts',
      'bench/merge': 'bench/gpu/merge.ts',
      'bench/others': 'bench/gpu/others.ts',
      'bench/peers': 'bench/peers.ts',
      'bench/small': 'bench/small.ts',
      'bench/sparse': 'bench/sparse.ts',
      'bench/systems': 'bench/systems/systems.ts',
      'bench/train': 'bench/train/train.ts',
      'bench/visit': 'bench/gpu/visit.ts',
      'device/verify': 'verify/device/verify.ts',
      'fuzz/run': 'test/fuzz/run.ts',
      'fuzz/targets/blockMask': 'test/fuzz/targets/blockMask.ts',
      'fuzz/targets/planted': 'test/fuzz/targets/planted.ts',
      'fuzz/targets/safetensors': 'test/fuzz/targets/safetensors.ts',
      'fuzz/worker': 'test/fuzz/worker.ts',
      'golden/run': 'verify/golden/run.ts',
      'soak/soak': 'test/soak/soak.ts',
    },
  },
]);
