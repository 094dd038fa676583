// Binaries of Node from the npm registry, by version, kept in build/nodes.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const windows = process.platform === 'win32';

/** The newest of each major that the package supports. */
export const nodeVersions = ['20.19.5', '22.23.3', '24.21.0', '26.10.0'];

/** The path of Node's binary for this platform, or for another kind of processor, installed if need be. */
export function nodeBinary(version, arch = process.arch) {
  // A folder for each: what nobody saved, npm removes when it installs something else there.
  const prefix = join(root, 'build', 'nodes', `${version}-${arch}`);
  const name = `node-${windows ? 'win' : process.platform}-${arch}`;
  const binary = join(prefix, 'node_modules', name, 'bin', windows ? 'node.exe' : 'node');
  if (existsSync(binary)) return binary;
  // npm refuses to install what cannot run here, unless it is forced.
  const flags = ['--no-save', '--no-audit', '--no-fund', ...(arch === process.arch ? [] : ['--force'])];
  const install = ['install', '--prefix', prefix, ...flags, `${name}@${version}`];
  const { status, stderr } = spawnSync('npm', install, { cwd: root, encoding: 'utf8', shell: windows });
  const reason = stderr.split('\n').find((line) => line.startsWith('npm error')) ?? stderr;
  if (status !== 0) throw new Error(`${name} cannot be installed: ${reason}`);
  return binary;
}
