// Finds the file of the CUDA addon, and where there is none says what was tried, what was found and what to do.
import { existsSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { packageFolder } from '../../base/package.js';
import { describeSystem, nameSystem, platformName, type SystemDescription } from './system.js';

/** Stable identifiers of why there is no addon. */
export type AddonProblem =
  | 'NOT_BUILT' // a checkout in which the addon has not been built
  | 'NO_PACKAGE' // a bundle that runs where the package is not installed
  | 'NO_LOADER' // node-gyp-build is missing
  | 'NO_PREBUILD' // the package brings no addon for this platform
  | 'NO_FILE' // FLASHATTN_ADDON names a file that does not exist
  | 'GLIBC_TOO_OLD'
  | 'MUSL'
  | 'WRONG_BINARY' // a file for another platform, or a damaged one
  | 'OTHER_VERSION' // an addon of another version of this package
  | 'LOAD_FAILED'; // anything else that the system's loader says

/** A file or folder, and what came of it. */
export interface Attempt {
  readonly path: string;
  readonly result: string;
}

export interface AddonFailure {
  readonly problem: AddonProblem;
  /** Why there is no addon and the one step that would change it. */
  readonly missing: string;
  readonly tried: readonly Attempt[];
}

/** What was there to be found. */
export interface AddonSurroundings {
  readonly system: SystemDescription;
  /** The folder of the package. */
  readonly folder?: string;
  /** Addons in it, such as 'linux-x64/flashattn.glibc.node'. */
  readonly prebuilds: readonly string[];
}

/** Whether this is a checkout, where addons can be built, and not an installed package. */
export const isCheckout = (root: string) => existsSync(join(root, 'CMakeLists.txt'));

const list = (folder: string): string[] => (existsSync(folder) ? readdirSync(folder).sort() : []);

/** Addons in a package's folder prebuilds/. */
export function listPrebuilds(root: string | undefined): string[] {
  if (root === undefined) return [];
  const folder = join(root, 'prebuilds');
  return list(folder).flatMap((platform) =>
    list(join(folder, platform))
      .filter((file) => file.endsWith('.node'))
      .map((file) => `${platform}/${file}`),
  );
}

export function describeSurroundings(): AddonSurroundings {
  const folder = packageFolder();
  return { system: describeSystem(), ...(folder !== undefined && { folder }), prebuilds: listPrebuilds(folder) };
}

/** What was tried and found, a line each. */
export function describeSearch(tried: readonly Attempt[]): string[] {
  const { system, folder, prebuilds } = describeSurroundings();
  return [
    ...tried.map(({ path, result }) => `tried: ${path}: ${result}`),
    folder === undefined
      ? 'found: no package flashattn'
      : `found: ${prebuilds.join(', ') || 'no addons'} in ${join(folder, 'prebuilds')}`,
    `system: ${nameSystem(system)}, node ${system.node}`,
  ];
}

const useGlibc =
  'use a system with glibc, such as the container image node:22-slim instead of node:22-alpine (WebAssembly works here too)';

function explainNoPrebuild(root: string): readonly [AddonProblem, string] {
  const platform = platformName();
  const step = 'run npm run build:addon, which needs the CUDA toolkit';
  if (isCheckout(root)) return ['NOT_BUILT', `the CUDA addon has not been built for ${platform}: ${step}`];
  const platforms = new Set(listPrebuilds(root).map((file) => file.split('/')[0]));
  if (platforms.size === 0)
    return ['NO_PREBUILD', `this package, ${root}, brings no CUDA addons: install flashattn from the npm registry`];
  if (platforms.has(platform) && describeSystem().libc === 'musl')
    return ['MUSL', `the CUDA addon for ${platform} needs glibc and this system has musl: ${useGlibc}`];
  const brought = [...platforms].join(', ');
  return [
    'NO_PREBUILD',
    `this package brings CUDA addons for ${brought}, not for ${platform}: use one of those platforms`,
  ];
}

interface Loader {
  resolve(folder: string): string;
}

/** The addon that was built in this checkout, or the one that the package brings for this platform. */
export function findAddon(): { readonly path: string } | AddonFailure {
  const root = packageFolder();
  if (root === undefined) {
    const missing =
      'this code was bundled and the package flashattn, which brings the CUDA addon, is not installed for it: ' +
      'tell the bundler that flashattn is external and install it there';
    return { problem: 'NO_PACKAGE', missing, tried: [] };
  }
  const require = createRequire(join(root, 'package.json'));
  let loader: Loader;
  try {
    loader = require('node-gyp-build');
  } catch {
    const missing = 'the package node-gyp-build, which finds the CUDA addon, is not installed: run npm install';
    return { problem: 'NO_LOADER', missing, tried: [{ path: root, result: 'node-gyp-build is not found from here' }] };
  }
  try {
    return { path: loader.resolve(root) };
  } catch {
    const [problem, missing] = explainNoPrebuild(root);
    const tried = [join('build', 'Release'), join('prebuilds', platformName())].map((folder) => ({
      path: join(root, folder),
      result: existsSync(join(root, folder)) ? 'has no addon for this system' : 'is not there',
    }));
    return { problem, missing, tried };
  }
}

const firstLine = (error: unknown) => String((error as Error).message).split('\n')[0];

/** Why a file could not be loaded, and what to do about it. `given`: the user named the file. */
export function explainLoadError(path: string, given: boolean, error: unknown): AddonFailure {
  const again = given ? 'correct or unset FLASHATTN_ADDON' : 'install flashattn again';
  const fail = (problem: AddonProblem, result: string, step: string): AddonFailure => ({
    problem,
    missing: `the addon ${path} does not load: ${result}: ${step}`,
    tried: [{ path, result }],
  });
  if (!existsSync(path)) return fail('NO_FILE', 'there is no such file', again);
  const said = firstLine(error);
  const glibc = /version [`'"]GLIBC_([\d.]+)/.exec(said)?.[1];
  if (glibc !== undefined) {
    const step = `use a newer version of the operating system, one with glibc ${glibc} or later`;
    return fail('GLIBC_TOO_OLD', said, step);
  }
  if (/Error relocating|ld-linux-[\w-]+\.so/.test(said)) return fail('MUSL', said, useGlibc);
  if (/invalid ELF header|wrong ELF class|file too short|mach-o|not a valid Win32/i.test(said))
    return fail('WRONG_BINARY', said, `the file is damaged or for another platform: ${again}`);
  return fail('LOAD_FAILED', said, again);
}
