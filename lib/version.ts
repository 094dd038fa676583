import { readFileSync } from 'node:fs';

// package.json is one folder up from the sources and from dist/ alike.
const manifest = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string };

/** The version of this package. */
export const version = manifest.version;
