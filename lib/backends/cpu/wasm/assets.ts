import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { FlashAttnError } from '../../../base/errors.js';
import { packageFolder, urlOf } from '../../../base/package.js';

/** What is read at run time: bundlers that follow imports alone leave it behind. */
export type Asset = 'flashattn.relaxed.wasm' | 'flashattn.simd.wasm';

const isMissing = (error: unknown) => (error as NodeJS.ErrnoException).code === 'ENOENT';

function readFile(path: string | URL): Uint8Array<ArrayBuffer> | undefined {
  try {
    return readFileSync(path);
  } catch (error) {
    if (isMissing(error)) return undefined;
    const shown = typeof path === 'string' ? path : fileURLToPath(path);
    throw new FlashAttnError('ERR_DEVICE', `wasm cannot be used: reading ${shown}: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

/** @throws ERR_DEVICE where a bundle was moved away from the package, and where the file cannot be read */
export function readAsset(name: Asset): Uint8Array<ArrayBuffer> {
  const beside = new URL(name, urlOf(import.meta.url));
  const found = readFile(beside);
  if (found) return found;
  const folder = packageFolder();
  const packed = folder === undefined ? undefined : readFile(join(folder, 'dist', name));
  if (packed) return packed;
  throw new FlashAttnError(
    'ERR_DEVICE',
    `${name} is not beside the code that needs it, ${fileURLToPath(beside)}, and the package flashattn is not installed ` +
      'for that folder: tell the bundler that flashattn is external (such as esbuild --external:flashattn) and install ' +
      'it there, or copy the .wasm files of node_modules/flashattn/dist there',
  );
}
