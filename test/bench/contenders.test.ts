import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  type Answer,
  agree,
  type Contender,
  isRefusal,
  peerVersions,
  startPeer,
  tooLarge,
} from '../../bench/contenders.js';
import { type Problem, sample } from '../../bench/peers/serve.mjs';

const repository = new URL('../../', import.meta.url);
const problem: Problem = [1, 32, 32, 8, 64, 0];

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'flashattn-peers-'));
  mkdirSync(join(folder, 'bench/peers'), { recursive: true });
});
afterEach(() => rmSync(folder, { recursive: true }));

/** A peer whose program serves what the two expressions say. */
function start(begin: string, prepare: string) {
  const serve = new URL('bench/peers/serve.mjs', repository).href;
  writeFileSync(
    join(folder, 'bench/peers/tfjs.mjs'),
    `import { serve, waves } from '${serve}';\nserve(${begin}, ${prepare});\n`,
  );
  return startPeer('tfjs', 1, pathToFileURL(`${folder}/`));
}

async function ask(prepare: string) {
  const contender = (await start('() => 1', prepare)) as Contender;
  try {
    return await contender.ask<Answer>({ problem, runs: 2 });
  } finally {
    contender.stop();
  }
}

describe('a peer', () => {
  it('answers with the time of a run and numbers of its result', async () => {
    const answer = await ask('([, queries]) => async () => waves(queries)');
    const expected = sample(Float32Array.from({ length: 32 }, (_, i) => Math.sin(i)));
    expect(answer).toMatchObject({ milliseconds: expect.any(Number) });
    expect(agree((answer as Answer).out, expected)).toBe(true);
  });

  it.each([
    ['() => { throw new Error("no\\nmore") }', 'fails: no'],
    ['() => async () => { throw new Error("not so") }', 'fails: not so'],
    ['() => process.exit()', 'ends without an answer'],
  ])('that cannot do a problem gives the reason: %s', async (prepare, reason) => {
    expect(await ask(prepare)).toEqual({ reason });
  });

  it.each([
    ['async () => import("not-there")', 'is not installed: npm run bench:peers installs it'],
    ['() => 2', 'has 2 threads in Node.js'],
    ['() => { throw new Error("no SIMD") }', 'fails: no SIMD'],
  ])('that cannot run gives the reason: %s', async (begin, reason) => {
    expect(await start(begin, '() => () => []')).toEqual({ reason });
  });

  it('is not asked for what needs gigabytes', () => {
    expect(tooLarge('tfjs', [1, 2048, 2048, 8, 128, 0])).toBeUndefined();
    expect(isRefusal(tooLarge('tfjs', [1, 4096, 4096, 8, 64, 0]) ?? {})).toBe(true);
    expect(tooLarge('ort-node', [1, 4096, 4096, 8, 64, 0])).toBeUndefined();
  });

  it('has an exact version', async () => {
    for (const version of Object.values(await peerVersions(repository))) expect(version).toMatch(/^\d+\.\d+\.\d+( |$)/);
  });
});

describe('the numbers that are compared', () => {
  it('come from all over the result', () => {
    const indices = sample(Array.from({ length: 32 * 8 * 64 }, (_, i) => i));
    expect(new Set(indices.map((i) => i % 64)).size).toBe(16); // columns
    expect(new Set(indices.map((i) => Math.floor(i / 512))).size).toBe(16); // rows
  });

  it('differ by roundings alone', () => {
    expect(agree([1, 2], [1.00001, 2])).toBe(true);
    expect(agree([1, 2], [1, 2.001])).toBe(false);
    expect(agree([Number.NaN], [1])).toBe(false);
  });
});
