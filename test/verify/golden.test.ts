/** The golden vectors through the runner, and the runner itself. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { type Report, runFile } from '../../verify/golden/compute.js';
import { main } from '../../verify/golden/run.js';
import { parseSafetensors, SafetensorsError } from '../../verify/golden/safetensors.js';

const FOLDER = join(import.meta.dirname, '../../verify/golden/vectors');
const FILES = readdirSync(FOLDER).filter((name) => name.endsWith('.safetensors'));

describe('vectors', () => {
  it.each(FILES)('%s', async (name) => {
    const report = await runFile(join(FOLDER, name), { device: 'wasm' });
    expect(report).toMatchObject({ file: name, status: 'pass' });
  });
});

interface Entry {
  dtype: string;
  shape: unknown;
  data_offsets: unknown;
}

/** A file with the given header and `bytes` bytes of data. */
function fileOf(header: unknown, bytes: number): Uint8Array {
  const json = new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header));
  const file = new Uint8Array(8 + json.length + bytes);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.length), true);
  file.set(json, 8);
  return file;
}

describe('safetensors', () => {
  const a: Entry = { dtype: 'F32', shape: [2, 3], data_offsets: [0, 24] };
  const code = (bytes: Uint8Array): string => {
    try {
      parseSafetensors(bytes);
    } catch (error) {
      if (error instanceof SafetensorsError) return error.code;
      throw error;
    }
    return 'none';
  };

  it('reads tensors of every width at any alignment', () => {
    const file = fileOf(
      {
        flags: { dtype: 'BOOL', shape: [3], data_offsets: [0, 3] },
        x: { dtype: 'F64', shape: [], data_offsets: [3, 11] },
      },
      11,
    );
    new DataView(file.buffer).setFloat64(file.length - 8, 1.5, true);
    const { tensors } = parseSafetensors(file);
    expect(tensors.get('x')).toEqual({ dtype: 'F64', shape: [], values: Float64Array.of(1.5) });
    expect(tensors.get('flags')?.values).toEqual(new Uint8Array(3));
  });

  it.each<[string, string, Uint8Array]>([
    ['nothing at all', 'ERR_TRUNCATED', new Uint8Array(5)],
    ['a header cut short', 'ERR_TRUNCATED', fileOf({ a }, 24).slice(0, 20)],
    ['data cut short', 'ERR_TRUNCATED', fileOf({ a }, 20)],
    ['an absurd header length', 'ERR_HEADER', new Uint8Array(16).fill(255)],
    ['a header that is not JSON', 'ERR_HEADER', fileOf('{"a":', 0)],
    ['a header that is a list', 'ERR_HEADER', fileOf([1], 0)],
    ['metadata that is no text', 'ERR_HEADER', fileOf({ __metadata__: { seed: 3 } }, 0)],
    ['an unknown dtype', 'ERR_DTYPE', fileOf({ a: { ...a, dtype: 'F128' } }, 24)],
    ['a negative dim', 'ERR_SHAPE', fileOf({ a: { ...a, shape: [-2, -3] } }, 24)],
    ['a shape of another size', 'ERR_SHAPE', fileOf({ a: { ...a, shape: [2, 4] } }, 24)],
    ['offsets that are none', 'ERR_OFFSETS', fileOf({ a: { ...a, data_offsets: [0] } }, 24)],
    ['overlapping tensors', 'ERR_OFFSETS', fileOf({ a, b: { ...a, data_offsets: [12, 36] } }, 36)],
    ['a hole', 'ERR_OFFSETS', fileOf({ a, b: { ...a, data_offsets: [28, 52] } }, 52)],
    ['bytes that belong to no tensor', 'ERR_OFFSETS', fileOf({ a }, 25)],
  ])('rejects %s', (_, expected, bytes) => {
    expect(code(bytes)).toBe(expected);
  });
});

describe('command', () => {
  let folder: string;
  const printed: string[] = [];
  const run = async (...argv: string[]): Promise<{ status: number; lines: string[] }> => {
    printed.length = 0;
    return { status: await main(argv), lines: [...printed] };
  };
  const vector = readFileSync(join(FOLDER, 'dense_mha__scale_custom.safetensors'));

  /** The vector with `edit` applied to its header text, which keeps its length. */
  const edited = (edit: (header: string) => string): Uint8Array => {
    const length = Number(vector.readBigUInt64LE(0));
    const header = edit(vector.toString('utf8', 8, 8 + length));
    const copy = Uint8Array.from(vector);
    copy.set(new TextEncoder().encode(header.padEnd(length)), 8);
    return copy;
  };

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'golden-'));
    vi.spyOn(console, 'log').mockImplementation((text: string) => void printed.push(text));
    vi.spyOn(console, 'error').mockImplementation((text: string) => void printed.push(text));
  });
  afterEach(() => {
    for (const name of readdirSync(folder)) rmSync(join(folder, name));
  });
  afterAll(() => {
    vi.restoreAllMocks();
    rmSync(folder, { recursive: true });
  });

  it('prints a line a file and writes JSON', async () => {
    writeFileSync(join(folder, 'good.safetensors'), vector);
    writeFileSync(
      join(folder, 'other.safetensors'),
      edited((h) =>
        h
          .replace('"system":"dense_mha"', '"system":"dense_???"')
          .replace('"system": "dense_mha"', '"system": "dense_???"'),
      ),
    );
    const json = join(folder, 'report.json');
    const { status, lines } = await run('--dir', folder, '--json', json);
    expect(status).toBe(0);
    expect(lines[0]).toMatch(/^pass +good\.safetensors +out \S+e\S+\/\S+e\S+ +lse /);
    expect(lines[1]).toMatch(/^unsupported +other\.safetensors +\(no adapter for system dense_\?\?\?\)/);
    expect(lines.at(-1)).toBe('1 passed, 0 failed, 1 unsupported');
    const reports = JSON.parse(readFileSync(json, 'utf8')) as Report[];
    expect(reports).toMatchObject([
      { file: 'good.safetensors', system: 'dense_mha', device: 'wasm', status: 'pass' },
      { file: 'other.safetensors', system: 'dense_???', device: 'wasm', status: 'unsupported', errors: {} },
    ]);
    expect(Object.keys(reports[0]?.errors ?? {}).sort()).toEqual(['dk', 'dq', 'dv', 'lse', 'out']);
  });

  it('fails on a wrong value, a missing result and a broken file, whatever the files are called', async () => {
    const wrong = Uint8Array.from(vector);
    // The file begins with out in float64: the top byte of its first number.
    const data = 8 + Number(vector.readBigUInt64LE(0));
    wrong[data + 7] = (wrong[data + 7] ?? 0) ^ 0x80;
    writeFileSync(join(folder, 'dense_mha__a.safetensors'), wrong);
    writeFileSync(join(folder, 'dense_mha__b.safetensors'), vector.subarray(0, vector.length - 1));
    const { status, lines } = await run('--dir', folder);
    expect(status).toBe(1);
    expect(lines[0]).toMatch(/^fail .*beyond tolerance: out/);
    expect(lines[1]).toMatch(/^fail .*ends at byte/);
    expect(lines.at(-1)).toBe('0 passed, 2 failed, 0 unsupported');
  });

  it('takes parameters from the metadata', async () => {
    writeFileSync(
      join(folder, 'x.safetensors'),
      edited((h) => h.replace('\\"scale\\": 0.4', '\\"scale\\": 0.5')),
    );
    expect((await run('--dir', folder)).status).toBe(1);
  });

  it.each(['float16', 'bfloat16'])('runs in %s what is one attention, against the oracle', async (dtype) => {
    const { status, lines } = await run('--dir', FOLDER, '--dtype', dtype);
    expect(status).toBe(0);
    const [passed, unsupported] = ['pass ', 'unsupported '].map((word) => lines.filter((l) => l.startsWith(word)));
    expect(passed?.length).toBeGreaterThan(60);
    for (const name of ['dense_mha__full', 'varlen__docs_cross', 't5_bias__bidir', 'bigbird__r2_pad'])
      expect(passed?.some((l) => l.includes(`${name}.safetensors  `))).toBe(true);
    expect(unsupported?.every((l) => l.includes(`(no ${dtype} reference for `))).toBe(true);
  });

  it('fails in 16 bits where the oracle does not agree with the file', async () => {
    const wrong = edited((h) => h.replace('\\"scale\\": 0.4', '\\"scale\\": 0.5'));
    writeFileSync(join(folder, 'x.safetensors'), wrong);
    const { status, lines } = await run('--dir', folder, '--dtype', 'float16');
    expect(status).toBe(1);
    expect(lines[0]).toMatch(/^fail .*the oracle does not compute out of the file/);
  });

  it('restricts itself to one system', async () => {
    const { status, lines } = await run('--dir', FOLDER, '--system', 'mqa');
    expect(status).toBe(0);
    expect(lines.at(-1)).toBe('1 passed, 0 failed, 0 unsupported');
  });

  it.each([
    [['--dir', FOLDER, '--device', 'cuda:99'], /device cuda:99 cannot be used/],
    [['--dir', FOLDER, '--dtype', 'float8'], /unknown dtype float8/],
    [['--dir', FOLDER, '--device', 'abacus'], /unknown device abacus/],
    [['--dir', FOLDER, '--system', 'nothing'], /no file of system nothing/],
    [['--dir', join(FOLDER, 'nowhere')], /cannot read --dir/],
    [['--dirs', FOLDER], /usage:/],
    [[], /--dir is missing/],
  ])('refuses %j', async (argv, reason) => {
    const { status, lines } = await run(...argv);
    expect(status).toBe(2);
    expect(lines.at(-1)).toMatch(reason);
  });
});
