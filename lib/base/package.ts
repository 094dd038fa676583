// Where the files of this package lie: in the sources, in the package, and for code that a bundler has moved.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const packageName = 'flashattn';

/** Bundles in the format of CommonJS have no import.meta.url. */
export const urlOf = (importMetaUrl: string | undefined): string => importMetaUrl ?? pathToFileURL(__filename).href;

const here = urlOf(import.meta.url);

function isPackage(folder: string): boolean {
  try {
    const { name } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { name?: string };
    return name === packageName;
  } catch {
    return false;
  }
}

/** The nearest folder above that is this package: the sources and dist/ lie at different depths. */
function findAbove(): string | undefined {
  let folder = dirname(fileURLToPath(here));
  while (!isPackage(folder)) {
    const parent = dirname(folder);
    if (parent === folder) return undefined;
    folder = parent;
  }
  return folder;
}

/** The package as the code around a bundle would import it. */
function findInstalled(): string | undefined {
  try {
    return dirname(createRequire(here).resolve(`${packageName}/package.json`));
  } catch {
    return undefined;
  }
}

let folder: { readonly path: string | undefined } | undefined;

/** The folder with package.json, dist/ and addons/; undefined in a bundle that runs where the package is not installed. */
export function packageFolder(): string | undefined {
  folder ??= { path: findAbove() ?? findInstalled() };
  return folder.path;
}
