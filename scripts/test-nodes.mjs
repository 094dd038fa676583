// Runs the tests of what differs between versions of Node on every supported major, besides the one that runs this.
import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { nodeBinary, nodeVersions } from './node-binary.mjs';

const tests = ['tensor/tensor', 'attention/errors', 'backends/cpu/wasm/pool', 'cli/cli', 'verify/golden'].map(
  (name) => `test/${name}.test.ts`,
);

const root = join(dirname(fileURLToPath(import.meta.url)), '..');

let failed = false;
for (const version of nodeVersions) {
  let binary;
  try {
    binary = nodeBinary(version);
  } catch (error) {
    console.log(`node ${version}: skipped, ${error.message}`);
    continue;
  }
  const args = ['node_modules/vitest/vitest.mjs', 'run', ...tests];
  const { status, stdout, stderr } = spawnSync(binary, args, { cwd: root, encoding: 'utf8' });
  const closing = stdout.trim().split('\n').at(-1);
  console.log(`node ${version}: ${closing}`);
  if (status !== 0) {
    failed = true;
    console.log(stdout, stderr);
  }
}
process.exitCode = failed ? 1 : 0;
