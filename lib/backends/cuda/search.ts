// Where the CUDA addon is: in a package of its own for each platform, an optional dependency, or built in a checkout.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { packageFolder } from '../../base/package.js';
import { version } from '../../base/version.js';
import {
  type AddonFailure,
  type AddonKind,
  type AddonProblem,
  type Attempt,
  describeFolders,
  describeSearch,
  isCheckout,
  listPrebuilds,
  startSearch,
} from '../shared/addon/search.js';
import { describeSystem, platformName } from '../shared/addon/system.js';

export const cudaAddon: AddonKind = {
  name: 'the CUDA addon',
  variable: 'FLASHATTN_ADDON',
  build: 'run npm run build:addon, which needs the CUDA toolkit',
  onMusl:
    'use a system with glibc, such as the container image node:22-slim instead of node:22-alpine (cpu and wasm work here too)',
};

const prefix = 'flashattn-cuda-';

interface Manifest {
  readonly version?: string;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

const readManifest = (folder: string) => JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as Manifest;

/** Platforms that have a package with a CUDA addon; a checkout names none. */
const platforms = (root: string): string[] =>
  Object.keys(readManifest(root).optionalDependencies ?? {})
    .filter((name) => name.startsWith(prefix))
    .map((name) => name.slice(prefix.length));

/** The installed package for this platform. */
function packageOf(root: string): string | undefined {
  try {
    return dirname(createRequire(join(root, 'package.json')).resolve(`${prefix}${platformName()}/package.json`));
  } catch {
    return undefined;
  }
}

const builtIn = (root: string) => join(root, 'addons', 'cuda');

function explainNothing(root: string): readonly [AddonProblem, string] {
  const platform = platformName();
  if (isCheckout(root)) return ['NOT_BUILT', `the CUDA addon has not been built for ${platform}: ${cudaAddon.build}`];
  const packaged = platforms(root);
  if (!packaged.includes(platform)) {
    const named = packaged.join(', ') || 'no platform';
    return ['NO_PREBUILD', `there is a CUDA addon for ${named}, not for ${platform}: use cpu or wasm here`];
  }
  if (describeSystem().libc === 'musl')
    return ['MUSL', `the CUDA addon for ${platform} needs glibc and this system has musl: ${cudaAddon.onMusl}`];
  return ['NOT_INSTALLED', `the package ${prefix}${platform} is not installed: npm install --include=optional`];
}

/** The addon of the package for this platform, or the one that was built in this checkout. */
export function findAddon(): { readonly path: string } | AddonFailure {
  const search = startSearch(cudaAddon);
  if ('problem' in search) return search;
  const { root, lookup } = search;
  const installed = packageOf(root);
  const found = installed === undefined ? undefined : readManifest(installed).version;
  if (installed !== undefined && found !== version) {
    const name = `${prefix}${platformName()}`;
    const missing = `${name} is of version ${found} and flashattn of ${version}: npm install ${name}@${version}`;
    return { problem: 'OTHER_VERSION', missing, tried: [{ path: installed, result: `is of version ${found}` }] };
  }
  const folders = [...(installed === undefined ? [] : [installed]), builtIn(root)];
  const path = lookup(folders);
  if (path !== undefined) return { path };
  const [problem, missing] = explainNothing(root);
  return { problem, missing, tried: describeFolders(folders) };
}

/** Where addons lie: the package for this platform, or this one. */
function addonFolder(): string | undefined {
  const root = packageFolder();
  return root === undefined ? undefined : (packageOf(root) ?? builtIn(root));
}

/** Addons for CUDA that are there, such as 'linux-x64/flashattn.glibc.node'. */
export const cudaPrebuilds = () => listPrebuilds(addonFolder());

/** What was tried and found, a line each. */
export const describeCudaSearch = (tried: readonly Attempt[]) => describeSearch(tried, addonFolder());
