/** What the process around the library may forbid or lack: each run is a process of its own. */
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { distUrl, runNode, runProgram } from '../../../support/child.js';
import { withoutCpu } from '../../../support/cpu.js';

Object.assign(process.env, withoutCpu); // here and in children

interface Outcome {
  /** `status()` before and after the work. */
  readonly before: Record<string, unknown>;
  readonly after: Record<string, unknown>;
  /** What a launch for the threads gave, read in both ways. */
  readonly values?: readonly number[];
  readonly error?: { readonly code: string; readonly message: string; readonly cause?: string };
  /** How many bytes the tenth of ten calls left behind. */
  readonly leaked?: number;
}

const program = (prepare: string) => `
  import fs from 'node:fs';
  const fa = await import(${JSON.stringify(distUrl)});
  const device = 'wasm';
  ${prepare};
  const attend = () => {
    const v = fa.tensor([5, 6, 7, 8], [1, 1, 1, 4], { device });
    const q = fa.zeros([1, 1 << 17, 1, 4], { device });
    try {
      const { out, lse } = fa.attention(q, v, v);
      lse.dispose();
      return out;
    } finally {
      v.dispose();
      q.dispose();
    }
  };
  const result = { before: fa.status() };
  try {
    const out = attend();
    const data = await out.data();
    result.values = [data[2], out.dataSync()[3]];
    out.dispose();
    for (let i = 0; i < 9; i++) attend().dispose();
    await fa.synchronize(device);
    const { bytesInUse } = fa.memory(device);
    attend().dispose();
    await fa.synchronize(device);
    result.leaked = fa.memory(device).bytesInUse - bytesInUse;
  } catch (error) {
    result.error = { code: error.code, message: error.message, cause: error.cause?.message };
  }
  result.after = fa.status();
  fs.writeSync(1, JSON.stringify(result));`;

const folder = mkdtempSync(join(tmpdir(), 'flashattn-'));

function scriptOf(prepare = ''): string {
  const path = join(mkdtempSync(join(folder, 'program-')), 'program.mjs');
  writeFileSync(path, program(prepare));
  return path;
}

const parse = ({ stdout, stderr }: { stdout: string; stderr: string }): Outcome => {
  if (stdout === '') throw new Error(stderr);
  return JSON.parse(stdout) as Outcome;
};

const run = async (flags: readonly string[] = [], env: Record<string, string> = {}, prepare = '') =>
  parse(await runNode([...flags, scriptOf(prepare)], env));

/** Under limits that a shell sets. */
const runLimited = async (limit: string, prepare = '', flags = '') =>
  parse(await runProgram('/bin/sh', ['-c', `${limit} && exec "${process.execPath}" ${flags} "${scriptOf(prepare)}"`]));

const works = { values: [7, 8], leaked: 0 };

const hook = (name: string, text: string) => {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
};
const inThread = (action: string, load: string) => `if (!(${load}).isMainThread) ${action};`;
const throws = "throw new Error('a hook for the main thread')";
const blocks = 'Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)';

describe('preloads of NODE_OPTIONS', () => {
  it.each([
    ['--require', 'throws', throws],
    ['--require', 'blocks', blocks],
    ['--import', 'throws', throws],
    ['--import', 'blocks', blocks],
  ])('%s of a hook that %s in threads: ours do not run it', async (flag, name, action) => {
    const path =
      flag === '--require'
        ? hook(`${name}.cjs`, inThread(action, "require('node:worker_threads')"))
        : hook(`${name}.mjs`, `import * as threads from 'node:worker_threads'; ${inThread(action, 'threads')}`);
    const outcome = await run([], { NODE_OPTIONS: `${flag} ${path}` });
    expect(outcome).toMatchObject(works);
    expect(outcome.after).not.toHaveProperty('threadless');
  });
});

describe('without WebAssembly', () => {
  it('says so', async () => {
    const { before, error } = await run(['--jitless']);
    const message = 'wasm cannot be used: this process runs without WebAssembly, as under --jitless';
    expect(error).toMatchObject({ code: 'ERR_DEVICE', message });
    expect(before).toMatchObject({ device: 'none', requested: 'auto' });
    expect((before.reasons as unknown[]).at(-1)).toEqual({ device: 'wasm', code: 'ERR_DEVICE', hint: message });
  });
});

describe('without threads', () => {
  const permission = process.allowedNodeEnvironmentFlags.has('--permission')
    ? '--permission'
    : '--experimental-permission';

  it('that the permission model forbids: the calling thread does the work', async () => {
    const outcome = await run([permission, '--allow-fs-read=*']);
    expect(outcome).toMatchObject(works);
    const expected = { threads: 1, threadless: expect.stringContaining('without --allow-worker') };
    expect(outcome.before).toMatchObject(expected);
    expect(outcome.after).toMatchObject(expected);
  });

  const openAll = 'try { for (;;) fs.openSync("/dev/null"); } catch {}';

  it.skipIf(process.platform === 'win32')(
    'for want of file descriptors: the calling thread does the work',
    async () => {
      const outcome = await runLimited('ulimit -n 40', `fa.zeros([1], { device }).dispose(); ${openAll}`);
      expect(outcome).toMatchObject(works);
      expect(outcome.after).toMatchObject({ threads: 1, threadless: expect.stringContaining('EMFILE') });
    },
  );

  it.skipIf(process.platform === 'win32')('and without the kernels, for the same reason: says which step', async () => {
    const { error, before } = await runLimited('ulimit -n 40', openAll);
    const message = expect.stringMatching(/^wasm cannot be used: reading .*flashattn\.relaxed\.wasm: EMFILE/);
    expect(error).toEqual({ code: 'ERR_DEVICE', message, cause: expect.stringContaining('EMFILE') });
    expect(before).toMatchObject({ device: 'none' });
  });

  it.skipIf(process.platform === 'win32')('in a folder that is gone', async () => {
    const leave = `
      const gone = fs.mkdtempSync(${JSON.stringify(join(folder, 'gone-'))});
      process.chdir(gone);
      fs.rmdirSync(gone)`;
    expect(await run([], {}, leave)).toMatchObject(works);
  });
});

describe.skipIf(process.platform !== 'linux')('within 8 GB of address space', () => {
  it('says what reserves more', async () => {
    const { error, before } = await runLimited('ulimit -v 8000000');
    expect(error).toMatchObject({
      code: 'ERR_DEVICE',
      message: expect.stringMatching(/^wasm cannot be used: reserving memory: .* may have 8192000000 bytes: raise /),
      cause: expect.stringContaining('could not allocate memory'),
    });
    expect(before).toMatchObject({ device: 'none' });
  });
});
