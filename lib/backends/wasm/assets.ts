import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { FlashAttnError } from '../../base/errors.js';
import { packageFolder, urlOf } from '../../base/package.js';

/** What is read at run time: bundlers that follow imports alone leave it behind. */
export type Asset = 'flashattn.relaxed.wasm' | 'flashattn.simd.wasm' | 'worker.mjs';

/** @throws ERR_DEVICE where a bundle was moved away from the package */
export function assetUrl(name: Asset): URL {
  const beside = new URL(name, urlOf(import.meta.url));
  if (existsSync(beside)) return beside;
  const folder = packageFolder();
  const packed = folder === undefined ? undefined : join(folder, 'dist', name);
  if (packed !== undefined && existsSync(packed)) return pathToFileURL(packed);
  throw new FlashAttnError(
    'ERR_DEVICE',
    `${name} is not beside the code that needs it, ${fileURLToPath(beside)}, and the package flashattn is not installed ` +
      'for that folder: tell the bundler that flashattn is external (such as esbuild --external:flashattn) and install ' +
      'it there, or copy worker.mjs and the .wasm files of node_modules/flashattn/dist there',
  );
}
