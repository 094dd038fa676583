/**
 * Products by cuBLASLt on the emulated device: a stand-in for the library (test/cuda/cublaslt) computes them, and makes
 * launches fail that ask it for what the real one would not do.
 */
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { searchCublasLt } from '../../../lib/backends/cuda/cublaslt.js';
import { emulatorControls } from '../../../lib/devices/registry.js';
import {
  capture,
  type DeviceName,
  explain,
  type FloatDType,
  matmul,
  memory,
  setStream,
  status,
  type Tensor,
  tensor,
} from '../../../lib/index.js';
import { compileLibrary } from '../../cuda/emulator/compile.js';
import { type Case, casesOf, check, type Device, make } from '../../ops/matmulCases.js';
import { cliPath, runNode, runScript } from '../../support/child.js';
import { emulatorPath, hasEmulator, onEmulator } from '../../support/emulator.js';
import { temporaryFolder } from '../../support/folder.js';

const device = 'emulator' as Device;
const source = fileURLToPath(new URL('../../cuda/cublaslt/stand_in.cpp', import.meta.url));
const standIn = (version = 130101, ...flags: string[]) => compileLibrary(source, [`-DVERSION=${version}`, ...flags]);

let path = '';
const inFolder = temporaryFolder();

beforeAll(async () => {
  if (!hasEmulator) return;
  path = await standIn();
  process.env.FLASHATTN_CUBLASLT = path;
});
afterAll(() => {
  delete process.env.FLASHATTN_CUBLASLT;
});

const controls = () => {
  const emulator = emulatorControls();
  if (!emulator) throw new Error('no emulator');
  return emulator;
};
const count = (name: string) => controls().statistics()[name] ?? 0;

/** How many products the stand-in has been given by `run`. */
function callsOf(run: () => void): number {
  const before = count('cublasLtMatmul');
  run();
  return count('cublasLtMatmul') - before;
}

const plain: Case = {
  rows: 24,
  columns: 20,
  inner: 33,
  batch: [],
  aOnce: [],
  bOnce: [],
  a: { transposed: false, step: 1, seed: 1 },
  b: { transposed: false, step: 1, seed: 2 },
  dtype: 'float32',
  alpha: 1,
  bias: 'none',
  biasDtype: 'float32',
  activation: undefined,
  into: null,
};

const dtypes: readonly FloatDType[] = ['float32', 'float16', 'bfloat16'];

/** Whether the library has a product without gaps, by what product.h of the addon says of it. */
function isTaken(c: Case): boolean {
  const result = c.into?.dtype ?? c.dtype;
  if (result !== c.dtype && result !== 'float32') return false;
  if (c.activation && !c.into) return false;
  const alongRows = c.into?.transposed ?? false;
  if (c.bias === 'none') return true;
  if (c.biasDtype !== result) return false;
  return c.bias === 'whole' ? c.into === null : c.bias === (alongRows ? 'rows' : 'columns');
}

const failures = [
  'nothing found',
  'nothing supported',
  'no valid result',
  'too large a workspace',
  'descriptions fail',
  'layouts fail',
  'products are refused',
];

describe('the search for cuBLASLt', () => {
  const names = ['libcublasLt.so.13', 'libcublasLt.so.12'];
  /** Empty files of these names. */
  const place = (...files: string[]) => {
    for (const file of files) {
      mkdirSync(dirname(inFolder(file)), { recursive: true });
      writeFileSync(inFolder(file), '');
    }
  };

  it('begins with what is loaded, and goes from what the environment names to the usual folders', () => {
    place(
      'venv/lib/python3.12/site-packages/nvidia/cu13/lib/libcublasLt.so.13',
      'venv/lib/python3.9/site-packages/nvidia/cublas/lib/libcublasLt.so.12',
      'toolkit/lib64/libcublasLt.so.12',
      'toolkit/lib64/libcublasLt.so.13',
      'toolkit/lib64/libcublasLt.so.11',
      'home/lib/libcublasLt.so.12',
    );
    const env = { VIRTUAL_ENV: inFolder('venv'), CUDA_PATH: inFolder('toolkit'), CUDA_HOME: inFolder('home') };
    const { loaded, files } = searchCublasLt(env, 'linux');
    expect(loaded).toEqual(names);
    expect(files.slice(0, 7)).toEqual([
      inFolder('venv/lib/python3.12/site-packages/nvidia/cu13/lib/libcublasLt.so.13'),
      inFolder('venv/lib/python3.9/site-packages/nvidia/cublas/lib/libcublasLt.so.12'),
      inFolder('toolkit/lib64/libcublasLt.so.13'),
      inFolder('toolkit/lib64/libcublasLt.so.12'),
      inFolder('home/lib/libcublasLt.so.12'),
      ...names,
    ]);
    for (const file of files.slice(7)) expect(file).toMatch(/^\/(usr\/local|usr|opt)\//);
  });

  it('leaves out what is not there', () => {
    const { files } = searchCublasLt({ VIRTUAL_ENV: inFolder('nowhere'), CUDA_HOME: '' }, 'linux');
    expect(files.slice(0, 2)).toEqual(names);
  });

  it('looks for other names in other places on Windows', () => {
    place(
      'windows/Lib/site-packages/nvidia/cu13/bin/x86_64/cublasLt64_13.dll',
      'windows/Lib/site-packages/nvidia/cublas/bin/cublasLt64_12.dll',
      'CUDA/bin/x64/cublasLt64_13.dll',
      'CUDA/bin/cublasLt64_12.dll',
    );
    const env = { CONDA_PREFIX: inFolder('windows'), CUDA_PATH: inFolder('CUDA') };
    const windows = ['cublasLt64_13.dll', 'cublasLt64_12.dll'];
    expect(searchCublasLt(env, 'win32')).toEqual({
      loaded: windows,
      files: [
        inFolder('windows/Lib/site-packages/nvidia/cu13/bin/x86_64/cublasLt64_13.dll'),
        inFolder('windows/Lib/site-packages/nvidia/cublas/bin/cublasLt64_12.dll'),
        inFolder('CUDA/bin/x64/cublasLt64_13.dll'),
        inFolder('CUDA/bin/cublasLt64_12.dll'),
        ...windows,
      ],
    });
  });
});

describe.skipIf(!hasEmulator)(onEmulator('cuBLASLt'), () => {
  afterEach(() => controls().setStandIn(''));

  it('is told of by status and explain', () => {
    const expected = { kernels: 'cublasLt', path, version: '13.1.1' };
    expect(status(device as 'cuda').matmul).toEqual(expected);
    expect(explain({ q: [1, 8, 1, 8], device: device as DeviceName }).matmul).toEqual(expected);
    expect(explain({ q: [1, 8, 1, 8], device: 'wasm' }).matmul).toBeUndefined();
  });

  it('multiplies every transpose in every dtype, with all that may be added, or leaves it to our kernel', () => {
    let taken = 0;
    let left = 0;
    const factor = (transposed: boolean) => ({ transposed, step: 1 as const, seed: transposed ? 3 : 4 });
    for (const dtype of dtypes)
      for (const bias of ['none', 'columns', 'rows', 'whole'] as const)
        for (const biasDtype of bias === 'none' ? (['float32'] as const) : dtypes)
          for (const into of [
            null,
            ...dtypes.flatMap((d) => [false, true].map((t) => ({ dtype: d, transposed: t }))),
          ]) {
            // Every transpose with every other choice, one at a time.
            const turn = taken + left;
            const c = { ...plain, dtype, bias, biasDtype, into, alpha: turn % 2 ? 1 : -0.5 } as Case;
            const all = into === null ? [0, 1, 2, 3] : [turn % 4];
            for (const t of all) {
              const own = { ...c, a: factor(t % 2 === 1), b: factor(t > 1) };
              const calls = callsOf(() => check(device, own));
              expect(calls, JSON.stringify(own)).toBe(isTaken(own) ? 1 : 0);
              calls ? taken++ : left++;
            }
          }
    expect(taken).toBeGreaterThan(50);
    expect(left).toBeGreaterThan(50);
  });

  it.each([
    ['of equal entries', [3], [false], [false], 1],
    ['of which b has one', [3], [false], [true], 1],
    ['of which a has one', [3], [true], [false], 1],
    ['of two axes that are one', [2, 3], [false, false], [false, false], 1],
    ['of two axes along which b has one', [2, 3], [false, false], [true, true], 1],
    ['of two axes with two strides', [2, 3], [false, true], [false, false], 0],
    ['of none', [0], [false], [false], 0],
  ])('multiplies batches %s', (_, batch, aOnce, bOnce, calls) => {
    for (const dtype of ['float32', 'bfloat16'] as const)
      for (const transposed of [false, true])
        for (const bias of ['none', 'columns', 'whole'] as const) {
          const a = { ...plain.a, transposed };
          const c: Case = { ...plain, batch, aOnce, bOnce, dtype, bias, biasDtype: dtype, a };
          expect(callsOf(() => check(device, c))).toBe(calls);
        }
    const into = { dtype: 'float32', transposed: true } as const;
    expect(callsOf(() => check(device, { ...plain, batch, aOnce, bOnce, bias: 'rows', into }))).toBe(calls);
  });

  it('adds long float32 sums up in parts, as our kernel does', () => {
    const long: Case = { ...plain, rows: 9, columns: 17, inner: 4500 };
    for (const [a, b] of [
      [false, false],
      [true, true],
    ] as const) {
      const turned = { ...long, a: { ...plain.a, transposed: a }, b: { ...plain.b, transposed: b } };
      for (const bias of ['none', 'columns', 'whole'] as const)
        expect(callsOf(() => check(device, { ...turned, bias, batch: [2] }))).toBe(3);
      const into = { dtype: 'float32', transposed: false } as const;
      expect(callsOf(() => check(device, { ...turned, dtype: 'float16', into, bias: 'columns' }))).toBe(3);
      expect(callsOf(() => check(device, { ...turned, dtype: 'float16' }))).toBe(1);
    }
    expect(callsOf(() => check(device, { ...long, inner: 2048 }))).toBe(1);
    expect(callsOf(() => check(device, { ...long, inner: 2049 }))).toBe(2);
  });

  it('multiplies vectors, single elements and what is aligned to an element', () => {
    for (const [rows, columns, inner] of [
      [1, 40, 30],
      [40, 1, 30],
      [1, 1, 30],
      [40, 30, 1],
      [1, 1, 1],
    ] as const)
      for (const transposed of [false, true])
        for (const dtype of ['float32', 'float16'] as const) {
          const c: Case = { ...plain, rows, columns, inner, dtype, biasDtype: dtype, bias: 'columns' };
          const own = { ...c, a: { ...plain.a, transposed }, b: { ...plain.b, transposed } };
          expect(callsOf(() => check(device, own))).toBe(1);
        }
    const { whole } = make([41, 40], { dtype: 'float16', device });
    const { t: b } = make([32, 24], { dtype: 'float16', device });
    for (const [from, to] of [
      [0, 32],
      [1, 33],
      [2, 34],
      [8, 40],
    ] as const) {
      using a = whole.slice(1, from, to);
      let out: Tensor | undefined;
      expect(callsOf(() => (out = matmul(a, b)))).toBe(1);
      const [left, right, got] = [a, b, out as Tensor].map((t) => t.toFloat32Sync());
      for (const at of [0, 24, 983]) {
        let sum = 0;
        for (let k = 0; k < 32; k++) sum += left[Math.floor(at / 24) * 32 + k] * right[k * 24 + (at % 24)];
        expect(got[at]).toBeCloseTo(sum, 2);
      }
      out?.dispose();
    }
    whole.dispose();
    b.dispose();
  });

  it('is the product in float64 up to rounding, for all shapes, strides, dtypes and additions', () => {
    const sizes = fc.oneof(fc.integer({ min: 0, max: 20 }), fc.integer({ min: 1, max: 60 }));
    const inner = fc.oneof(sizes, fc.constantFrom(2049, 600));
    const all = casesOf(sizes, inner, 3);
    fc.assert(
      fc.property(all, (c) => check(device, c)),
      { numRuns: 60 },
    );
    // What the library takes, mostly.
    const tidied = all.map((c): Case => {
      const factors = { a: { ...c.a, step: 1 as const }, b: { ...c.b, step: 1 as const } };
      return { ...c, ...factors, activation: undefined, biasDtype: c.into?.dtype ?? c.dtype };
    });
    const calls = callsOf(() =>
      fc.assert(
        fc.property(tidied, (c) => check(device, c)),
        { numRuns: 100 },
      ),
    );
    expect(calls).toBeGreaterThan(0);
  });

  it('leaves to our kernel what it does not do in the same way', () => {
    for (const activation of ['gelu', 'geluTanh', 'silu', 'relu'] as const)
      expect(callsOf(() => check(device, { ...plain, activation }))).toBe(0);
    expect(callsOf(() => check(device, { ...plain, a: { ...plain.a, step: 2 } }))).toBe(0);
    using a = tensor([Number.NaN, 1, 1, 1], [2, 2], { device });
    const calls = callsOf(() => {
      using out = matmul(a, a, { alpha: 0 });
      expect([...out.toFloat32Sync()]).toEqual([Number.NaN, Number.NaN, Number.NaN, 0]);
    });
    expect(calls).toBe(0);
  });

  it.each(failures)('is left alone for a product where %s', (behaviour) => {
    const c: Case = { ...plain, rows: 40, columns: 40, inner: 41 + failures.indexOf(behaviour), bias: 'columns' };
    const before = count('cublasLtHandles');
    controls().setStandIn(behaviour);
    expect(callsOf(() => check(device, c))).toBe(0);
    expect(count('cublasLtHandles')).toBe(before + (behaviour === 'products are refused' ? 5 : 0));
    // The same product stays what it is in bits.
    controls().setStandIn('');
    const heuristics = count('cublasLtHeuristics');
    expect(callsOf(() => check(device, c))).toBe(0);
    expect(count('cublasLtHeuristics')).toBe(heuristics);
    expect(callsOf(() => check(device, { ...c, rows: 43 }))).toBe(1);
  });

  it('tells what failed, and never adds twice', () => {
    const a = make([30, 5000], { device });
    const b = make([5000, 30], { device });
    const small = make([30, 30], { device });
    const into = make([30, 30], { device });
    const failing = (behaviour: string, run: () => void) => {
      controls().setStandIn(behaviour);
      expect(run).toThrow(
        expect.objectContaining({
          code: 'ERR_DEVICE',
          message: expect.stringContaining('matmul failed: cublasLtMatmul gives '),
        }),
      );
      controls().setStandIn('');
    };
    const { bytesInUse } = memory(device as DeviceName);
    failing('products fail', () => matmul(small.t, small.t));
    failing('products fail', () => matmul(small.t, small.t, { accumulateInto: into.t }));
    // The first part is in the result when the second is refused.
    failing('what is added is refused', () => matmul(a.t, b.t));
    expect(memory(device as DeviceName).bytesInUse).toBe(bytesInUse);
    controls().setStandIn('what is added is refused');
    expect(callsOf(() => check(device, { ...plain, rows: 31, into: { dtype: 'float32', transposed: false } }))).toBe(0);
    for (const t of [a, b, small, into]) t.whole.dispose();
  });

  it('gives the same bits every time, on every stream and from a graph', () => {
    const a = make([40, 30], { device });
    const b = make([30, 50], { device });
    const bitsOf = () => {
      using out = matmul(a.t, b.t);
      return out.toFloat32Sync();
    };
    const expected = bitsOf();
    for (const stream of [0n, BigInt(controls().createStream()), undefined]) {
      setStream(device as DeviceName, stream);
      expect(bitsOf()).toEqual(expected);
      using step = capture(() => matmul(a.t, b.t), { device: device as DeviceName });
      const { launches } = controls().statistics();
      // Both were asked for when it was captured.
      expect(callsOf(() => void step.replay())).toBe(0);
      expect(callsOf(() => void step.replay())).toBe(0);
      expect(count('launches') - launches).toBe(2);
      expect(step.result.toFloat32Sync()).toEqual(expected);
    }
    for (const t of [a, b]) t.whole.dispose();
  });

  it('keeps a bounded number of handles, whatever the shapes', () => {
    const [a, b] = [make([20, 20], { device }), make([20, 320], { device })];
    const calls = callsOf(() => {
      for (let columns = 20; columns < 320; columns++) {
        using part = b.t.slice(1, 0, columns);
        matmul(a.t, part).dispose();
      }
    });
    expect(calls).toBe(300);
    expect(count('cublasLtHandles')).toBeLessThanOrEqual(1 + 5 * 256);
    expect(count('complaints')).toBe(0);
    for (const t of [a, b]) t.whole.dispose();
  });

  it('is not what the addon is linked with', async () => {
    const { readNeeds } = await import(new URL('../../../scripts/addon-needs.mjs', import.meta.url).href);
    const { libraries } = readNeeds(emulatorPath) as { libraries: string[] };
    expect(libraries).toContain('libc.so.6');
    expect(libraries.filter((name) => /cublas/i.test(name))).toEqual([]);
  });

  // In processes of their own: a device looks for the library once. ----------------------------------------------------

  /** What an expression gives where the CUDA addon is the emulated one. */
  async function ask(expression: string, cublasLt: string): Promise<unknown> {
    const script = `
      import { createRequire } from 'node:module';
      import { Worker } from 'node:worker_threads';
      const { emulator } = createRequire(import.meta.url)(${JSON.stringify(emulatorPath)});
      const count = (name) => emulator.statistics()[name] ?? 0;
      const product = () => {
        const a = fa.tensor([1, 2, 3, 4], [2, 2], { device: 'cuda' });
        return [...fa.matmul(a, a).toFloat32Sync()];
      };
      const attempt = (run) => { try { return run(); } catch (e) { return { code: e.code, message: e.message }; } };
      console.log(JSON.stringify(await (${expression})));`;
    const env = { FLASHATTN_ADDON: emulatorPath, FLASHATTN_CUBLASLT: cublasLt };
    const { code, stdout, stderr } = await runScript(script, env);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    return JSON.parse(stdout);
  }

  const square = [7, 10, 15, 22];

  it('is used by the first product, or where status is asked', async () => {
    const expression = `[count('cublasLtHandles'), fa.status('cuda').device, product(), count('cublasLtMatmul')]`;
    expect(await ask(`[fa.zeros([1], { device: 'cuda' }).device, count('cublasLtHandles')]`, path)).toEqual([
      'cuda:0',
      0,
    ]);
    expect(await ask(expression, path)).toEqual([0, 'cuda:0', square, 1]);
  });

  it.each([
    ['off', 'FLASHATTN_CUBLASLT is off'],
    ['', 'cuBLASLt needs a GPU'],
  ])('is left alone where FLASHATTN_CUBLASLT is "%s"', async (value, because) => {
    expect(await ask(`[product(), count('cublasLtMatmul'), fa.status('cuda').matmul]`, value)).toEqual([
      square,
      0,
      { kernels: 'flashattn', because },
    ]);
  });

  it('is missed where it is named and cannot be used: products throw, and nothing else', async () => {
    const other = inFolder('libother.so');
    copyFileSync(await standIn(110805), other);
    const cases = [
      [inFolder('nowhere.so'), 'it does not load: '],
      [fileURLToPath(import.meta.url), 'it does not load: '],
      [emulatorPath, 'it has no function cublasLtGetVersion'],
      [other, 'it is of version 11.8.5; 12 or later is needed'],
      [await standIn(130101, '-Dflashattn_use_device=other'), 'it needs a GPU, and the emulator is none'],
    ] as const;
    for (const [file, result] of cases) {
      const said = `FLASHATTN_CUBLASLT is ${file}, which cannot be used: ${result}`;
      const [thrown, again, found, kept] = (await ask(
        `[attempt(product), attempt(product), fa.status().matmul, [...fa.zeros([2], { device: 'cuda' }).toFloat32Sync()]]`,
        file,
      )) as [{ code: string; message: string }, unknown, { because: string }, number[]];
      expect(thrown.code).toBe('ERR_DEVICE');
      expect(thrown.message).toContain(`cuda:0: ${said}`);
      expect(thrown.message).toContain('; correct it, unset it or set it to off');
      expect(again).toEqual(thrown);
      expect(found).toEqual({ kernels: 'none', because: expect.stringContaining(said) });
      expect(kept).toEqual([0, 0]);
    }
  });

  it('is missed where it has no handle for the device', async () => {
    const { message } = (await ask(`(emulator.setStandIn('create fails'), attempt(product))`, path)) as Error;
    expect(message).toContain('cublasLtCreate gives CUBLAS_STATUS_NOT_INITIALIZED');
  });

  it('has a handle in each thread, and none once they have ended', async () => {
    const worker = `
      import(${JSON.stringify(new URL('../../../dist/index.js', import.meta.url).href)}).then((fa) => {
        const a = fa.tensor([1, 2, 3, 4], [2, 2], { device: 'cuda' });
        for (let i = 0; i < 20; i++) fa.matmul(a, a).dispose();
      });`;
    const expression = `(async () => {
      const run = () => new Promise((end) => new Worker(${JSON.stringify(worker)}, { eval: true }).on('exit', end));
      const codes = await Promise.all([run(), run(), run()]);
      return [codes, count('cublasLtMatmul'), count('cublasLtHandles'), count('complaints')];
    })()`;
    expect(await ask(expression, path)).toEqual([[0, 0, 0], 60, 0, 0]);
  });

  it('is told of by the command line', async () => {
    const env = { FLASHATTN_ADDON: emulatorPath, FLASHATTN_CUBLASLT: path };
    const { stdout } = await runNode([cliPath, 'explain', '--shape', '1,64,2,32', '--device', 'cuda'], env);
    expect(stdout).toContain(`cuBLASLt 13.1.1 (${path})`);
    const { stdout: without } = await runNode([cliPath, 'explain', '--shape', '1,64,2,32', '--device', 'cuda'], {
      ...env,
      FLASHATTN_CUBLASLT: 'off',
    });
    expect(without).toContain('kernels of this package: FLASHATTN_CUBLASLT is off');
  });
});
