import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import type { DenseRow, Results } from '../../bench/gpu/attention.js';
import { runNode } from '../support/child.js';
import { hasEmulator, onEmulator } from '../support/emulator.js';

const program = (name: string) => fileURLToPath(new URL(`../../build/bench/${name}.js`, import.meta.url));

interface Others {
  readonly rows: readonly unknown[];
  readonly failures: readonly string[];
  readonly hostMicroseconds: Readonly<Record<string, number>>;
  readonly gigabytesPerSecond: Readonly<Record<string, number>>;
}

const readJson = (path: string) => JSON.parse(readFileSync(path, 'utf8')) as unknown;

describe.skipIf(!hasEmulator)(onEmulator('the benchmark for GPUs'), () => {
  const folder = mkdtempSync(join(tmpdir(), 'flashattn-bench-'));
  const [ours, torch, comparison] = ['bench', 'torch', 'comparison'].map((name) => join(folder, `${name}.json`));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it('measures every kind of row', async () => {
    const args = ['--device', 'emulator', '--tiny', '--dtypes', 'float16', '--json', ours];
    const { code, stdout } = await runNode([program('gpu'), ...args]);
    expect(code).toBe(0);
    const { rows, sparse } = readJson(ours) as Results;
    expect(rows).toHaveLength(8);
    expect(sparse.map(({ pattern }) => pattern)).toEqual(['random blocks', 'sliding window']);
    for (const { forwardMs, backwardMs, deterministicRatio, forwardTflops } of rows)
      for (const number of [forwardMs, backwardMs, deterministicRatio, forwardTflops])
        expect(number).toBeGreaterThan(0);
    expect(stdout.split('\n').filter((line) => line.startsWith('float16'))).toHaveLength(10);
  });

  it('runs what the dense shapes leave out', async () => {
    const path = join(folder, 'others.json');
    const { code, stdout } = await runNode([program('others'), '--device', 'emulator', '--tiny', '--json', path]);
    expect(stdout).toContain('packed sequences');
    expect(code).toBe(0);
    const { rows, failures, hostMicroseconds, gigabytesPerSecond } = readJson(path) as Others;
    expect(failures).toEqual([]);
    expect(rows).toHaveLength(18);
    for (const number of [...Object.values(hostMicroseconds), ...Object.values(gigabytesPerSecond)])
      expect(number).toBeGreaterThan(0);
  });

  it('is set beside torch', async () => {
    const { rows } = readJson(ours) as Results;
    const torchRow = (backend: string, { forwardMs, backwardMs, ...shape }: DenseRow, factor: number) => ({
      ...shape,
      backend,
      forwardMs: forwardMs * factor,
      backwardMs: backend === 'flex' ? null : backwardMs * factor,
    });
    const torchRows = rows.flatMap((row) => [torchRow('flash', row, 1.5), torchRow('flex', row, 0.5)]);
    writeFileSync(torch, JSON.stringify({ date: '', device: '', versions: { torch: '2.11' }, rows: torchRows }));
    const { code, stdout } = await runNode([program('merge'), ours, torch, comparison]);
    expect(code).toBe(0);
    expect(stdout).toContain('forward against flash: 1.50x, 1.50x at least, over 8 shapes');
    expect(stdout).toContain('forward against flex: 0.50x, 0.50x at least, over 8 shapes');
    expect(stdout).not.toContain('backward against flex');
    const merged = readJson(comparison) as Results & { rows: { torch: Record<string, Record<string, number>> }[] };
    expect(merged.versions).toMatchObject({ torch: '2.11', node: process.versions.node });
    expect(merged.rows[0].torch.flash.forwardRatio).toBeCloseTo(1.5);
    expect(merged.rows[0].torch.flex.backwardRatio).toBeNull();
  });

  it('says why it cannot run', async () => {
    const { code, stderr } = await runNode([program('gpu'), '--device', 'cuda:99']);
    expect(code).toBe(1);
    expect(stderr).toMatch(/^device "cuda:99" cannot be used/);
  });
});
