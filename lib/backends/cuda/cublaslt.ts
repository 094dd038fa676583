// Where NVIDIA's cuBLASLt is looked for. It is never part of this package and never needed: where it is not found, products
// of matrices are multiplied by this library's own kernels.
import { existsSync, readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { FlashAttnError } from '../../base/errors.js';
import type { MatmulKernels } from '../../kernels/device.js';
import type { Attempt } from '../shared/addon/search.js';
import type { Addon, Context } from './addon.js';

type Environment = Readonly<Record<string, string | undefined>>;

/** Newest first. */
const majorVersions = [13, 12];

const fileNames = (platform: string) =>
  majorVersions.map((major) => (platform === 'win32' ? `cublasLt64_${major}.dll` : `libcublasLt.so.${major}`));

/** Newest first, by their numbers. */
function foldersIn(folder: string, pattern: RegExp): string[] {
  try {
    return readdirSync(folder)
      .filter((name) => pattern.test(name))
      .sort((a, b) => b.localeCompare(a, 'en', { numeric: true }))
      .map((name) => join(folder, name));
  } catch {
    return [];
  }
}

/** Of a Python environment: NVIDIA's wheels have a folder for CUDA 13, and one for each library before. */
function wheelFolders(environment: string, platform: string): string[] {
  const sites =
    platform === 'win32'
      ? [join(environment, 'Lib', 'site-packages')]
      : foldersIn(join(environment, 'lib'), /^python3\.\d+$/).flatMap((python) => [
          join(python, 'site-packages'),
          join(python, 'dist-packages'), // Debian's
        ]);
  const libraries = platform === 'win32' ? ['cu13/bin/x86_64', 'cu13/bin', 'cublas/bin'] : ['cu13/lib', 'cublas/lib'];
  return sites.flatMap((site) => libraries.map((library) => join(site, 'nvidia', ...library.split('/'))));
}

const toolkitFolders = (toolkit: string, platform: string) =>
  (platform === 'win32' ? ['bin/x64', 'bin'] : ['lib64', 'lib']).map((name) => join(toolkit, ...name.split('/')));

const usualEnvironments = ['/usr/local', '/usr'];
const usualToolkits = ['/usr/local/cuda', '/usr/local/cuda-13', '/usr/local/cuda-12', '/opt/cuda'];

/** What to try, in this order. */
export interface CublasLtSearch {
  /** Names of what another part of the process may have loaded. */
  readonly loaded: readonly string[];
  /** Files that are there, and names that the system's loader looks for. */
  readonly files: readonly string[];
}

/** @internal */
export function searchCublasLt(env: Environment = process.env, platform: string = process.platform): CublasLtSearch {
  const names = fileNames(platform);
  const present = (folders: readonly string[]) =>
    folders.flatMap((folder) => names.map((name) => join(folder, name))).filter((path) => existsSync(path));
  const given = (...variables: string[]) => variables.flatMap((name) => (env[name] ? [resolve(env[name])] : []));
  const usual = [
    ...usualToolkits.flatMap((folder) => toolkitFolders(folder, platform)),
    ...usualEnvironments.flatMap((folder) => wheelFolders(folder, platform)),
  ];
  return {
    loaded: names,
    files: [
      ...present(given('VIRTUAL_ENV', 'CONDA_PREFIX').flatMap((folder) => wheelFolders(folder, platform))),
      ...present(given('CUDA_PATH', 'CUDA_HOME').flatMap((folder) => toolkitFolders(folder, platform))),
      ...names,
      ...(platform === 'win32' ? [] : present(usual)),
    ],
  };
}

/** '13.1.1' of 130101 */
const formatVersion = (version: number) =>
  [Math.floor(version / 10000), Math.floor(version / 100) % 100, version % 100].join('.');

const variable = 'FLASHATTN_CUBLASLT';

/** A file that could be the library but is not, rather than a name that the loader did not find. */
const tellingOf = (tried: readonly Attempt[]) => tried.find(({ path }) => /[\\/]/.test(path)) ?? tried[0];

/** What a context multiplies matrices with, once it has looked for the library. */
export function openCublasLt(context: Context, kind: Addon['kind'], env: Environment = process.env): MatmulKernels {
  const { [variable]: wanted } = env;
  if (wanted === 'off') return { kernels: 'flashattn', because: `${variable} is off` };
  if (!wanted && kind === 'emulator') return { kernels: 'flashattn', because: 'cuBLASLt needs a GPU' };
  const search = wanted ? { loaded: [], files: [resolve(wanted)] } : searchCublasLt(env);
  const { path, version, tried } = context.openCublasLt(search.loaded, search.files);
  if (path !== undefined && version !== undefined)
    return { kernels: 'cublasLt', path, version: formatVersion(version) };
  const { path: failed = '', result = 'it was not found' } = tellingOf(tried) ?? {};
  if (!wanted) return { kernels: 'flashattn', because: `there is no cuBLASLt that can be used: ${failed}: ${result}` };
  return {
    kernels: 'none',
    because: `${variable} is ${wanted}, which cannot be used: ${result}; correct it, unset it or set it to off`,
  };
}

/** @throws ERR_DEVICE where nothing is to multiply matrices */
export function checkMatmulKernels(device: string, kernels: MatmulKernels): void {
  if (kernels.kernels === 'none') throw new FlashAttnError('ERR_DEVICE', `${device}: ${kernels.because}`);
}
