// What the addon for native threads is released for. Zig's names say how old a system may be; its default processors are
// the first of each kind.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** As process.platform and process.arch call them; `libc` where one platform has two. */
export const targets = [
  { zig: 'x86_64-linux-gnu.2.28', platform: 'linux', arch: 'x64', libc: 'glibc' },
  { zig: 'aarch64-linux-gnu.2.28', platform: 'linux', arch: 'arm64', libc: 'glibc' },
  { zig: 'x86_64-linux-musl', platform: 'linux', arch: 'x64', libc: 'musl' },
  { zig: 'aarch64-macos.11.0', platform: 'darwin', arch: 'arm64' },
  { zig: 'x86_64-macos.11.0', platform: 'darwin', arch: 'x64' },
  { zig: 'x86_64-windows-gnu', platform: 'win32', arch: 'x64' },
];

export const nameOf = ({ platform, arch, libc }) => [platform, arch, libc].filter(Boolean).join('-');

/** Where prebuildify puts a target's addon and node-gyp-build finds it. */
export function fileOf({ platform, arch, libc }, out = join(root, 'addons', 'cpu')) {
  const file = ['flashattn-cpu', libc, 'node'].filter(Boolean).join('.');
  return join(out, 'prebuilds', `${platform}-${arch}`, file);
}
