import { defineConfig } from 'tsdown';

const common = {
  format: 'esm',
  target: 'node20',
  platform: 'node',
  fixedExtension: false,
  hash: false,
  logLevel: 'warn',
} as const;

/** Results of original implementations, small ones of many kinds: `flashattn verify` compares with them. */
const vectors = [
  'alibi__h6_bidir',
  'attention_sink__full',
  'bigbird__r1',
  'dense_bias__bcast_batch_head',
  'dense_mha__causal_br_nq_gt_nk_emptyrows',
  'longformer__local',
  'mqa__mqa',
  'ring_merge__tree_reduce',
  'softcap__softcap_window',
  'varlen__docs_cross',
];

/** What users import: `flashattn` and, each with its own name behind it, the others. */
const entries = {
  index: 'lib/index.ts',
  nn: 'lib/nn/index.ts',
  systems: 'lib/systems/index.ts',
  inference: 'lib/inference/index.ts',
};

/** What entries share may stand in a file of the name of one of them: an `index.ts`. */
const chunkFileNames = 'shared-[name].js';

/** One for each step of scripts/setup.mjs, which adds the WebAssembly and chooses the folder. */
export default defineConfig([
  {
    ...common,
    name: 'library',
    entry: { ...entries, cli: 'lib/cli/main.ts' },
    dts: false,
    sourcemap: true,
    outputOptions: { chunkFileNames },
  },
  {
    ...common,
    name: 'declarations',
    entry: entries,
    dts: { emitDtsOnly: true, sourcemap: true },
    outputOptions: { chunkFileNames },
  },
  {
    // The checks of a device, with all that they need but the package itself: `flashattn verify`.
    ...common,
    name: 'verify',
    entry: { verify: 'verify/device/verify.ts' },
    dts: false,
    minify: true,
    deps: { neverBundle: ['flashattn', 'flashattn/systems', 'flashattn/inference'] },
    copy: ({ outDir }) =>
      vectors.map((name) => ({ from: `verify/golden/vectors/${name}.safetensors`, to: `${outDir}/vectors` })),
  },
]);
