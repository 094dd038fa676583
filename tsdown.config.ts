import { defineConfig } from 'tsdown';

const common = {
  format: 'esm',
  target: 'node20',
  platform: 'node',
  fixedExtension: false,
  hash: false,
  logLevel: 'warn',
} as const;

export default defineConfig([
  {
    ...common,
    entry: { index: 'lib/index.ts', cli: 'lib/cli.ts' },
    outDir: 'dist',
    dts: true,
    sourcemap: true,
    copy: [
      'lib/backends/wasm/worker.mjs',
      'lib/backends/wasm/flashattn.relaxed.wasm',
      'lib/backends/wasm/flashattn.simd.wasm',
    ],
  },
]);
