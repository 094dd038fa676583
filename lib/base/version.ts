import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageFolder } from './package.js';

function readVersion(): string {
  const folder = packageFolder();
  if (folder === undefined) return 'unknown';
  return (JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { version: string }).version;
}

/** The version of this package. */
export const version = readVersion();
