import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { expect } from 'vitest';
import { openSafetensors, writeSafetensors } from '../../lib/nn/safetensors.js';

const length = 50_000;

/** A program that saves over and over, each time other numbers, and says when it has begun. */
const program = (library: string, path: string) => `
  import { writeSafetensors } from ${JSON.stringify(library)};
  process.stdout.write('begun\\n');
  for (let value = 1; ; value++) {
    const data = () => new Float32Array(${length}).fill(value);
    const entries = ['a', 'b', 'c', 'd'].map((name) => ({ name, dtype: 'F32', shape: [${length}], data }));
    await writeSafetensors(${JSON.stringify(path)}, entries, { metadata: { value: String(value) }, checksums: true });
  }
`;

async function expectWhole(path: string): Promise<number> {
  await using file = await openSafetensors(path);
  const value = Number(file.metadata.value);
  for (const name of ['a', 'b', 'c', 'd']) {
    const elements = await file.read(name, 'F32');
    expect(elements).toHaveLength(length);
    expect(elements.every((x) => x === value)).toBe(true);
  }
  return value;
}

/** Kills a program that saves, so many times, at any point of it; whenever that is, a whole file is left. */
export async function killWhileSaving(times: number, at: (name: string) => string): Promise<void> {
  const library = at('library.mjs');
  await build({
    entryPoints: [fileURLToPath(new URL('../../lib/nn/safetensors.ts', import.meta.url))],
    outfile: library,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
  });
  const path = at('saved.safetensors');
  const zeros = ['a', 'b', 'c', 'd'].map((name) => ({
    name,
    dtype: 'F32' as const,
    shape: [length],
    data: new Float32Array(length),
  }));
  await writeSafetensors(path, zeros, { metadata: { value: '0' }, checksums: true });
  let saved = 0;
  let interrupted = 0;
  const temporary = () => readdirSync(dirname(path)).filter((name) => name.endsWith('.tmp'));
  for (let kill = 0; kill < times; kill++) {
    const child = spawn(process.execPath, ['--input-type=module', '--eval', program(library, path)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(child.stdout, 'data');
    await sleep(Math.random() * 60);
    child.kill('SIGKILL');
    await once(child, 'exit');
    if (temporary().length > 0) interrupted++;
    // Of each killed program at most one: the next one removes it.
    expect(temporary().length).toBeLessThanOrEqual(1);
    if ((await expectWhole(path)) > 0) saved++;
  }
  // It was killed in the middle of saving, and between it had saved.
  expect(interrupted).toBeGreaterThan(0);
  expect(saved).toBeGreaterThan(0);
  await writeSafetensors(path, zeros);
  expect(readdirSync(dirname(path)).filter((name) => name.includes(basename(path)))).toEqual([basename(path)]);
}
