import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { drawChart } from '../../lib/cli/chart.js';
import { compare, selfTest } from '../../lib/cli/selfTest.js';
import { explain, masks } from '../../lib/index.js';
import { cliPath, runNode } from '../support/child.js';
import { hasCpu, instructionSets, onCpu } from '../support/cpu.js';
import { emulatorPath, hasEmulator, onEmulator } from '../support/emulator.js';

/** Runs the command line as on a machine without CUDA. */
const flashattn = (args: string, env?: Record<string, string>) =>
  runNode([cliPath, ...args.split(' ').filter(Boolean)], { FLASHATTN_ADDON: '/nowhere.node', ...env });

describe('flashattn doctor', () => {
  it('says what works and is healthy', async () => {
    const { code, stdout, stderr } = await flashattn('doctor');
    expect(stderr).toBe('');
    expect(code).toBe(0);
    for (const part of ['flashattn', process.versions.node, 'NO_ADDON', 'NO_FILE', 'kernels', '\nhealthy'])
      expect(stdout).toContain(part);
    expect(stdout).toMatch(/^wasm +\d+ threads?, relaxed SIMD/m);
    expect(stdout).toMatch(/^self-test +wasm: 6 problems forward and backward, largest error \S+e-\d/m);
  });

  it('--json is complete', async () => {
    const { code, stdout } = await flashattn('doctor --json', { FLASHATTN_CPU_ADDON: 'nowhere.node' });
    const diagnosis = JSON.parse(stdout);
    expect(code).toBe(0);
    expect(diagnosis).toMatchObject({
      healthy: true,
      exitCode: 0,
      node: process.versions.node,
      system: { platform: `${process.platform}-${process.arch}` },
      requested: 'auto',
      device: 'wasm',
      addon: { problem: 'NO_FILE', tried: [{ path: expect.stringContaining('nowhere.node') }] },
      devices: [
        { device: 'cpu', usable: false, hint: expect.stringContaining('nowhere.node') },
        { device: 'wasm', usable: true, simd: 'relaxed', kernels: expect.any(Array) },
      ],
      reasons: [
        { device: 'cuda', code: 'NO_ADDON' },
        { device: 'cpu', code: 'LOAD_FAILED' },
      ],
      selfTests: [{ device: 'wasm', passed: true, failures: [] }],
      comparisons: [],
    });
    expect(diagnosis.devices[1].kernels).toHaveLength(18);
    expect(diagnosis.selfTests[0].worst).toBeLessThan(1e-5);
  });

  it.skipIf(!hasCpu)(onCpu('tests native threads and compares them with wasm'), async () => {
    const { code, stdout } = await flashattn('doctor --json');
    const [instructionSet] = instructionSets;
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      device: 'cpu',
      devices: [{ device: 'cpu', usable: true, instructionSet, kernels: expect.any(Array) }, { device: 'wasm' }],
      reasons: [{ device: 'cuda' }],
      selfTests: [
        { device: 'cpu', passed: true },
        { device: 'wasm', passed: true },
      ],
      comparisons: [{ devices: ['cpu', 'wasm'], passed: true, failures: [] }],
    });
  });

  it('ends with 2 when the device cannot be used', async () => {
    const { code, stdout } = await flashattn('doctor', { FLASHATTN_THREADS: '0' });
    expect(code).toBe(2);
    expect(stdout).toContain('FLASHATTN_THREADS is "0"');
    expect(stdout).toContain('NOT healthy');
    for (const device of ['cuda', 'cuda:1', 'gpu']) {
      const refused = JSON.parse((await flashattn(`doctor --json --device ${device}`)).stdout);
      expect(refused).toMatchObject({ healthy: false, exitCode: 2, error: { code: 'ERR_DEVICE' }, selfTests: [] });
    }
  });
});

describe.skipIf(!hasEmulator)(onEmulator('flashattn doctor with a GPU'), () => {
  const env = { FLASHATTN_ADDON: emulatorPath, FLASHATTN_CPU_ADDON: 'nowhere.node' };

  it('tests every device and compares them', async () => {
    const { code, stdout } = await flashattn('doctor --json', env);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      device: 'cuda:0',
      driverCuda: '13.0',
      addon: { path: emulatorPath, cuda: '13.0' },
      devices: [
        { device: 'cuda:0', usable: true, computeCapability: '8.0', architecture: 'Ampere', memoryBytes: 2 ** 30 },
        { device: 'cpu', usable: false },
        { device: 'wasm', usable: true },
      ],
      selfTests: [
        { device: 'cuda:0', passed: true },
        { device: 'wasm', passed: true },
      ],
      comparisons: [{ devices: ['cuda:0', 'wasm'], passed: true, failures: [] }],
    });
  });

  it('names what is there and cannot be used', async () => {
    const { code, stdout } = await flashattn('doctor', { ...env, FLASHATTN_EMULATOR_ARCH: '7.5' });
    expect(code).toBe(0);
    expect(stdout).toMatch(/^cuda:0 +Emulated device, Turing, compute capability 7.5, 1 GiB, cannot be used$/m);
    expect(stdout).toMatch(/^ +because +.* use a GPU with 8.0 .* \(UNSUPPORTED_ARCHITECTURE\)$/m);
  });
});

describe('self-tests', () => {
  it('see devices that disagree', async () => {
    const one = await selfTest('wasm');
    expect(compare(one, one)).toMatchObject({ passed: true, worst: 0, failures: [] });
    for (const wrong of [1, Number.NaN]) {
      const results = one.results.map((result) => result && { ...result, dk: result.dk.with(-1, wrong) });
      const other = { report: { ...one.report, device: 'other' }, results };
      const { passed, devices, failures } = compare(other, one);
      expect({ passed, devices }).toEqual({ passed: false, devices: ['other', 'wasm'] });
      expect(failures).toHaveLength(6);
    }
    const refused = { ...one, results: one.results.map(() => undefined) };
    expect(compare(refused, one)).toMatchObject({ passed: true });
  });
});

describe('flashattn verify', () => {
  it('checks the device with golden vectors', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'flashattn-'));
    const json = join(folder, 'verify.json');
    const { code, stdout } = await flashattn(`verify --device wasm --quick --group golden --json ${json}`);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^pass +golden +\d+ passed, 0 failed/m);
    expect(JSON.parse(readFileSync(json, 'utf8'))).toMatchObject({ failed: 0, device: { device: 'wasm' } });
    rmSync(folder, { recursive: true });
  });

  it('ends with 2 when the device cannot be used, and with 64 when the command line is wrong', async () => {
    expect(await flashattn('verify --device cuda')).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('NO_ADDON'),
    });
    expect(await flashattn('verify --device wasm --group nothing-of-that-name')).toMatchObject({ code: 64 });
    expect(await flashattn('verify --golden /nowhere')).toMatchObject({ code: 64 });
    expect(await flashattn('verify --fast')).toMatchObject({ code: 64 });
  });
});

describe('flashattn bench', () => {
  const folder = mkdtempSync(join(tmpdir(), 'flashattn-'));
  afterAll(() => rmSync(folder, { recursive: true }));
  const json = join(folder, 'bench.json');
  const svg = join(folder, 'bench.svg');

  it('measures shapes and writes them down', async () => {
    const { code, stdout } = await flashattn(
      `bench --device wasm --rounds 1 --dtype float16 --causal --json ${json} --svg ${svg} --shapes 1,64,2,32 2,32,1,16`,
    );
    expect(code).toBe(0);
    expect(stdout).toMatch(/^ +1 +64 +2 +32 +float16 +causal +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+$/m);
    const results = JSON.parse(readFileSync(json, 'utf8'));
    expect(results).toMatchObject({ device: 'wasm', rounds: 1, peakGflops: expect.any(Number) });
    expect(results.rows).toMatchObject([
      { batch: 1, length: 64, heads: 2, dim: 32, dtype: 'float16', causal: true },
      { batch: 2, length: 32, heads: 1, dim: 16 },
    ]);
    for (const { forwardMs, forwardGflops } of results.rows) {
      expect(forwardMs).toBeGreaterThan(0);
      expect(forwardGflops).toBeGreaterThan(0);
    }
    expect(readFileSync(svg, 'utf8')).toContain('<title>1,64,2,32, forward:');
  });

  it('fails where it has become slower', async () => {
    const row = { batch: 1, length: 64, heads: 1, dim: 16, dtype: 'float32', causal: false };
    const run = (gflops: number) => {
      const rows = [{ ...row, forwardGflops: gflops, backwardGflops: 1e-6 }];
      writeFileSync(json, JSON.stringify({ rows }));
      return flashattn(`bench --device wasm --rounds 1 --baseline ${json} 1,64,1,16`);
    };
    expect(await run(1e9)).toMatchObject({ code: 1, stdout: expect.stringMatching(/SLOWER +1,64,1,16 forward:/) });
    expect(await run(1e-6)).toMatchObject({ code: 0, stdout: expect.stringContaining('1 of 1 shapes compared') });
    const other = await flashattn(`bench --device wasm --rounds 1 --baseline ${json} 1,32,1,16`);
    expect(other).toMatchObject({ code: 1, stdout: expect.stringContaining('0 of 1 shapes compared') });
  });

  it.each([
    ['--device cuda', 2, 'NO_ADDON'],
    ['--shapes 1,2,3', 64, '--shapes is'],
    ['--rounds 0', 64, '--rounds is'],
    ['--baseline /nowhere', 64, '--baseline /nowhere cannot be read'],
    ['--device wasm --dtype int8', 1, 'ERR_DTYPE'],
  ])('%s is refused', async (args, code, message) => {
    const result = await flashattn(`bench ${args}`);
    expect(result).toMatchObject({ code, stderr: expect.stringContaining(message) });
  });
});

describe('charts', () => {
  it('draw bars to scale', () => {
    const svg = drawChart({
      title: 'a < b',
      unit: 'TFLOP/s',
      series: ['one', 'two'],
      groups: [{ label: 'x', values: [50, 100] }],
    });
    expect(svg).toContain('a &lt; b');
    const heights = [...svg.matchAll(/height="([\d.]+)" fill="#[^"]+"><title>/g)].map(([, height]) => Number(height));
    expect(heights).toHaveLength(2);
    expect(heights[1]).toBeCloseTo(2 * (heights[0] as number), 6);
    expect(svg).toContain('>100</text>');
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
    ['', 64, 'flashattn doctor'],
    ['explain', 64, 'explain needs --shape'],
    ['explain --shape 1,2', 64, '--shape is'],
    ['explain --shapes 1', 64, '--shapes'],
    ['explain --shape 1,2,3,999', 1, 'ERR_SHAPE: the head dim'],
    ['explain --shape 1,2,3,4 --device cuda', 2, 'ERR_DEVICE'],
    ['train', 64, "there is no command 'train'"],
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
    expect(await flashattn('mask nothing')).toMatchObject({ code: 64 });
    expect((await flashattn('mask causal --block 32')).stderr).toContain('blockSize is 32');
    expect((await flashattn('mask causal --head 3')).stderr).toContain('ERR_SHAPE');
  });
});
