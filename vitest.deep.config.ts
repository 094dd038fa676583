// What takes too long for `npm test`: sanitizers, soaks, fuzzing.
import { defineConfig } from 'vitest/config';
import base from './vitest.config.js';

export default defineConfig({
  ...base,
  test: { ...base.test, include: ['test/**/*.deep.test.ts'], exclude: [] },
});
