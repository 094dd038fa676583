#!/usr/bin/env node
// What prebuildify takes for node-gyp: builds an addon, FLASHATTN_RELEASE_OF ('cpu' or 'cuda'), for the platform that
// prebuildify names, into build/Release of the folder that it runs in.
import { join } from 'node:path';
import { targets } from './targets.mjs';
import { build } from './zig.mjs';

const { FLASHATTN_RELEASE_OF, PREBUILD_PLATFORM, PREBUILD_ARCH, PREBUILD_LIBC } = process.env;
const target = targets.find(
  ({ platform, arch, libc }) =>
    platform === PREBUILD_PLATFORM && arch === PREBUILD_ARCH && (libc ?? PREBUILD_LIBC) === PREBUILD_LIBC,
);
try {
  const [tree, into] = ['tree', 'Release'].map((name) => join(process.cwd(), 'build', name));
  build(target, { kind: FLASHATTN_RELEASE_OF, tree, into });
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
