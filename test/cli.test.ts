import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { explain, masks } from '../lib/index.js';
import { cliPath, runNode } from './support/child.js';

/** Runs the command line as on a machine without CUDA. */
const flashattn = (args: string, env?: Record<string, string>) =>
  runNode([cliPath, ...args.split(' ').filter(Boolean)], { FLASHATTN_ADDON: '/nowhere.node', ...env });

describe('flashattn doctor', () => {
  it('says what works and is healthy', async () => {
    const { code, stdout, stderr } = await flashattn('doctor');
    expect(stderr).toBe('');
    expect(code).toBe(0);
    for (const part of ['flashattn', process.versions.node, 'wasm', 'threads', 'NO_ADDON', 'self-test', '\nhealthy'])
      expect(stdout).toContain(part);
  });

  it('--json is complete', async () => {
    const { code, stdout } = await flashattn('doctor --json');
    const diagnosis = JSON.parse(stdout);
    expect(code).toBe(0);
    expect(diagnosis).toMatchObject({
      healthy: true,
      node: process.versions.node,
      status: { device: 'wasm', simd: 'relaxed', reasons: [{ device: 'cuda', code: 'NO_ADDON' }] },
      selfTest: { passed: true, failures: [] },
    });
    expect(diagnosis.selfTest.worst).toBeLessThan(1e-5);
  });

  it('fails when the device cannot be set up', async () => {
    const { code, stdout } = await flashattn('doctor', { FLASHATTN_THREADS: '0' });
    expect(code).toBe(1);
    expect(stdout).toContain('FLASHATTN_THREADS is "0"');
    expect(stdout).toContain('NOT healthy');
    expect(await flashattn('doctor --device cuda')).toMatchObject({
      code: 1,
      stdout: expect.stringContaining('NO_ADDON'),
    });
  });
});

describe('flashattn explain', () => {
  it('prints the cost of a problem', async () => {
    const { code, stdout } = await flashattn('explain --shape 1,4096,8,64 --causal');
    expect(code).toBe(0);
    expect(stdout).toContain('17.18 GFLOP forward, 42.96 GFLOP backward');
    expect(stdout).toContain('50.0 %');
    expect(stdout).toContain('1 GiB of scores');
  });

  it('takes every flag', async () => {
    const { stdout } = await flashattn(
      'explain --shape 2,8,100,32 --kv-shape 2,2,300,32 --layout bhsd --dtype bfloat16 --window 3,-1 --backward --device wasm --json',
    );
    const cost = explain({
      q: [2, 8, 100, 32],
      k: [2, 2, 300, 32],
      layout: 'bhsd',
      dtype: 'bfloat16',
      window: [3, -1],
      backward: true,
      device: 'wasm',
    });
    expect(JSON.parse(stdout)).toEqual(cost);
    // Queries see keys from i + 200 - 3 on: 103 - i of them.
    const visible = 2 * Array.from({ length: 100 }, (_, i) => 103 - i).reduce((a, b) => a + b);
    expect(cost.flops.forward).toBe(4 * visible * 8 * 32);
    expect(cost.sparsity).toBeCloseTo(1 - visible / (2 * 100 * 300), 12);
  });

  it('counts the pairs that mask and band leave', () => {
    const mask = masks.perHead([masks.dilated(3), masks.slidingWindow(40, 100), masks.not(masks.causal())]);
    const sees = [
      (i: number, j: number) => (j - i - 50) % 3 === 0,
      (i: number, j: number) => j >= i + 50 - 40 && j <= i + 50 + 100,
      (i: number, j: number) => j > i + 50,
    ];
    let visible = 0;
    for (const visibleTo of sees)
      for (let i = 0; i < 150; i++) for (let j = 0; j < 200; j++) if (j <= i + 50 + 60 && visibleTo(i, j)) visible++;
    const cost = explain({ q: [2, 150, 3, 8], k: [2, 200, 3, 8], mask, window: [-1, 60] });
    expect(cost.flops.forward).toBe(4 * 2 * visible * 8);
    expect(cost.sparsity).toBeCloseTo(1 - visible / (3 * 150 * 200), 12);
  });

  it('counts sequences of their own lengths', () => {
    const cost = explain({ q: [10, 1, 4], cuSeqlensQ: [0, 4, 4, 10], cuSeqlensK: [0, 4, 4, 10], causal: true });
    expect(cost.flops.forward).toBe(4 * (10 + 21) * 4);
    expect(cost.sparsity).toBeCloseTo(1 - 31 / 52, 12);
  });

  it.each([
    ['', 2, 'flashattn doctor'],
    ['explain', 2, 'explain needs --shape'],
    ['explain --shape 1,2', 2, '--shape is'],
    ['explain --shapes 1', 2, '--shapes'],
    ['explain --shape 1,2,3,999', 1, 'ERR_SHAPE: the head dim'],
    ['explain --shape 1,2,3,4 --device cuda', 1, 'ERR_DEVICE'],
    ['train', 2, "there is no command 'train'"],
  ])('%j is refused', async (args, code, message) => {
    const result = await flashattn(args);
    expect(result.code).toBe(code);
    expect(result.stdout + result.stderr).toContain(message);
  });

  it('prints version and help', async () => {
    expect((await flashattn('--version')).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    expect(await flashattn('--help')).toMatchObject({ code: 0 });
  });
});

describe('flashattn mask', () => {
  it('draws a pattern', async () => {
    const { code, stdout } = await flashattn('mask bigbird --seq 1024 --block 64');
    expect(code).toBe(0);
    const lines = stdout.split('\n');
    expect(lines[0]).toBe('BigBird');
    expect(lines[1]).toBe('██'.repeat(16));
    expect(stdout).toContain('of the FLOPs saved');
  });

  it('writes a picture', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'flashattn-'));
    const path = join(folder, 'out.svg');
    expect(await flashattn(`mask longformer --seq 512 --svg ${path}`)).toMatchObject({ code: 0, stdout: `${path}\n` });
    expect(readFileSync(path, 'utf8')).toContain('<svg');
    rmSync(folder, { recursive: true });
  });

  it('lists the patterns and refuses others', async () => {
    expect((await flashattn('mask')).stdout).toContain('streamingllm');
    expect(await flashattn('mask nothing')).toMatchObject({ code: 2 });
    expect((await flashattn('mask causal --block 32')).stderr).toContain('blockSize is 32');
    expect((await flashattn('mask causal --head 3')).stderr).toContain('ERR_SHAPE');
  });
});
