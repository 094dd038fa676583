// Packs what is published into build/package: flashattn with the addons for native threads, and a package for each CUDA
// addon that has been built. flashattn names the CUDA packages as optional dependencies of exactly its own version; it does
// so in the packed package.json alone, because `npm ci` of a checkout would ask the registry for a version that is not
// published yet.
//
//   npm run pack [-- --out <folder>] [--release]
//
// --out       another folder for the tarballs
// --release   fail where an addon is missing
import { spawnSync } from 'node:child_process';
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { fileOf, targets } from './release/targets.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const staging = join(root, 'build', 'packages');

/** Those that a CUDA package is published for. */
const cudaPlatforms = [{ platform: 'linux', arch: 'x64', libc: 'glibc' }];
const cudaName = ({ platform, arch }) => `flashattn-cuda-${platform}-${arch}`;
const cudaFolder = join(root, 'addons', 'cuda');

const writeJson = (path, value) => writeFileSync(path, `${JSON.stringify(value, null, 2)}\n`);

/** An empty folder to pack, with what every package has. */
function stage(name, manifest) {
  const folder = join(staging, name);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  writeJson(join(folder, 'package.json'), manifest);
  copyFileSync(join(root, 'LICENSE'), join(folder, 'LICENSE'));
  return folder;
}

function stageMain({ scripts: _, devDependencies: __, ...manifest }) {
  const optionalDependencies = Object.fromEntries(cudaPlatforms.map((x) => [cudaName(x), manifest.version]));
  const folder = stage(manifest.name, { ...manifest, optionalDependencies });
  copyFileSync(join(root, 'README.md'), join(folder, 'README.md'));
  const bundled = manifest.bundleDependencies.map((name) => join('node_modules', name));
  for (const path of [...manifest.files, ...bundled])
    if (existsSync(join(root, path))) cpSync(join(root, path), join(folder, path), { recursive: true });
  return folder;
}

function stageCuda({ version, license, engines, repository }, target) {
  const { platform, arch, libc } = target;
  const name = cudaName(target);
  const description = `The CUDA addon of flashattn for ${platform}-${arch}. npm installs it with flashattn, where it fits.`;
  const fits = { os: [platform], cpu: [arch], ...(libc && { libc: [libc] }) };
  const common = { name, version, description, license, engines, ...(repository && { repository }), ...fits };
  const folder = stage(name, { ...common, type: 'commonjs', files: ['prebuilds'], preferUnplugged: true });
  writeFileSync(join(folder, 'README.md'), `# ${name}\n\n${description}\nIt is of no use alone: install flashattn.\n`);
  cpSync(join(cudaFolder, 'prebuilds', `${platform}-${arch}`), join(folder, 'prebuilds', `${platform}-${arch}`), {
    recursive: true,
  });
  return folder;
}

/** @returns the tarball */
function pack(folder, out) {
  const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', out];
  const { status, stdout, stderr } = spawnSync('npm', args, {
    cwd: folder,
    encoding: 'utf8',
    shell: process.platform === 'win32',
  });
  if (status !== 0) throw new Error(`npm pack failed: ${stderr}`);
  return join(out, JSON.parse(stdout)[0].filename);
}

/** Packs what is there into the folder `out`. @returns the tarballs, flashattn's first, and what is missing */
export function packAll(out) {
  mkdirSync(out, { recursive: true });
  const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const built = cudaPlatforms.filter(({ platform, arch }) =>
    existsSync(join(cudaFolder, 'prebuilds', `${platform}-${arch}`)),
  );
  const folders = [stageMain(manifest), ...built.map((target) => stageCuda(manifest, target))];
  const missing = [
    ...targets
      .map((target) => fileOf(target))
      .filter((file) => !existsSync(file))
      .map((file) => relative(root, file)),
    ...cudaPlatforms.filter((target) => !built.includes(target)).map(cudaName),
  ];
  return { tarballs: folders.map((folder) => pack(folder, out)), missing };
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { values: flags } = parseArgs({
    options: { out: { type: 'string', default: join(root, 'build', 'package') }, release: { type: 'boolean' } },
  });
  const { tarballs, missing } = packAll(resolve(flags.out));
  for (const tarball of tarballs) console.log(relative(root, tarball));
  for (const name of missing) console[flags.release ? 'error' : 'log'](`not built: ${name}`);
  if (flags.release && missing.length > 0) process.exitCode = 1;
}
