// Where the addon for native threads is: this package brings it for every platform that it has been built for.
import { join } from 'node:path';
import { packageFolder } from '../../../base/package.js';
import {
  type AddonFailure,
  type AddonKind,
  describeFolders,
  isCheckout,
  listPrebuilds,
  startSearch,
} from '../../shared/addon/search.js';
import { describeSystem, nameSystem, platformName } from '../../shared/addon/system.js';

export const threadsAddon: AddonKind = {
  name: 'the addon for native threads',
  variable: 'FLASHATTN_CPU_ADDON',
  build: 'run npm run build:cpu, which needs g++ or clang, and cmake',
  onMusl: 'set LIBC=musl, which chooses the addon for musl where there is one',
};

const folderOf = (root: string) => join(root, 'addons', 'cpu');

/** Addons for native threads that are there, such as 'linux-x64/flashattn-cpu.glibc.node'. */
export function threadsPrebuilds(): string[] {
  const root = packageFolder();
  return listPrebuilds(root === undefined ? undefined : folderOf(root));
}

/** The addon that was built in this checkout, or the one that the package brings for this platform. */
export function findAddon(): { readonly path: string } | AddonFailure {
  const search = startSearch(threadsAddon);
  if ('problem' in search) return search;
  const { root, lookup } = search;
  const folders = [folderOf(root)];
  const path = lookup(folders);
  if (path !== undefined) return { path };
  const tried = describeFolders(folders);
  if (isCheckout(root)) {
    const missing = `the addon for native threads has not been built for ${platformName()}: ${threadsAddon.build}`;
    return { problem: 'NOT_BUILT', missing, tried };
  }
  const brought = threadsPrebuilds().join(', ') || 'no platform';
  const missing = `this package has the addon for native threads for ${brought}, not for ${nameSystem(describeSystem())}: use wasm`;
  return { problem: 'NO_PREBUILD', missing, tried };
}
