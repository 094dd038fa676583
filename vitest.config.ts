import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  resolve: {
    // Tests run the sources, under the name that users import.
    alias: {
      'flashattn/nn': fileURLToPath(new URL('lib/nn/index.ts', import.meta.url)),
      'flashattn/systems': fileURLToPath(new URL('lib/systems/index.ts', import.meta.url)),
      'flashattn/inference': fileURLToPath(new URL('lib/inference/index.ts', import.meta.url)),
      flashattn: fileURLToPath(new URL('lib/index.ts', import.meta.url)),
    },
  },
  test: {
    include: ['test/**/*.test.ts'],
    // `npm run test:deep`: vitest.deep.config.ts
    exclude: ['test/**/*.deep.test.ts'],
    reporters: ['default', './test/support/closingLine.ts'],
    // Every core: vitest keeps one for itself, which needs it little.
    maxWorkers: availableParallelism(),
    // No test depends on speed, also not beside other work: this only ends one that hangs.
    testTimeout: 900_000,
    hookTimeout: 900_000,
  },
});
