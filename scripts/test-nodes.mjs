// Runs the tests of what differs between versions of Node on every supported major, besides the one that runs this.
// The Node binaries come from the npm registry.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const versions = ['20.19.5', '22.23.3', '24.21.0', '26.10.0'];
const tests = ['tensor', 'errors', 'pool', 'cli', 'golden'].map((name) => `test/${name}.test.ts`);

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const platform = `${process.platform === 'win32' ? 'win' : process.platform}-${process.arch}`;
const run = (command, args, options) => spawnSync(command, args, { cwd: root, encoding: 'utf8', ...options });

let failed = false;
for (const version of versions) {
  const prefix = join(root, 'build', 'nodes', version);
  const binary = join(
    prefix,
    'node_modules',
    `node-${platform}`,
    'bin',
    process.platform === 'win32' ? 'node.exe' : 'node',
  );
  if (!existsSync(binary)) {
    const install = [
      'install',
      '--prefix',
      prefix,
      '--no-save',
      '--no-audit',
      '--no-fund',
      `node-${platform}@${version}`,
    ];
    const { status, stderr } = run('npm', install, { shell: process.platform === 'win32' });
    if (status !== 0) {
      console.log(
        `node ${version}: skipped, its binary for ${platform} cannot be installed: ${stderr.trim().split('\n')[0]}`,
      );
      continue;
    }
  }
  const { status, stdout, stderr } = run(binary, ['node_modules/vitest/vitest.mjs', 'run', ...tests]);
  const closing = stdout.trim().split('\n').at(-1);
  console.log(`node ${version}: ${closing}`);
  if (status !== 0) {
    failed = true;
    console.log(stdout, stderr);
  }
}
process.exitCode = failed ? 1 : 0;
