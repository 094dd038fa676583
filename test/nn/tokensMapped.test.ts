/** Files of tokens as memory: the same tokens as in pieces, and pieces where there is no such memory. */
import { truncateSync, writeFileSync } from 'node:fs';
import fc from 'fast-check';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { cpuAddon } from '../../lib/backends/cpu/threads/addon.js';
import { openTokens } from '../../lib/nn/tokens.js';
import { collectGarbage } from '../support/collectGarbage.js';
import { hasCpu, onCpu } from '../support/cpu.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';

const at = temporaryFolder();

function written(name: string, tokens: Uint16Array | Uint32Array, before = new Uint8Array(0)): string {
  writeFileSync(at(name), Buffer.concat([before, new Uint8Array(tokens.buffer)]));
  return at(name);
}

function header(magic: number, version: number, count: number): Uint8Array<ArrayBuffer> {
  const head = new Int32Array(256);
  head.set([magic, version, count]);
  return new Uint8Array(head.buffer);
}

const ramp = (length: number) => Uint16Array.from({ length }, (_, i) => (i * 7919) % 50257);

afterEach(() => {
  vi.unstubAllEnvs();
  vi.doUnmock('../../lib/backends/cpu/threads/addon.js');
  vi.resetModules();
});

describe.skipIf(!hasCpu)(onCpu('mapped files of tokens'), () => {
  const files: [string, () => string, object][] = [
    // A page and an odd rest, less than one, and exactly two.
    ['uint16', () => written('a.bin', ramp(70_001)), {}],
    ['one token', () => written('b.bin', ramp(1)), {}],
    ['whole pages', () => written('c.bin', ramp(4096)), {}],
    [
      'uint32, also beyond 2^31',
      () =>
        written(
          'd.bin',
          Uint32Array.from({ length: 30_011 }, (_, i) => i * 71_000),
        ),
      { dtype: 'uint32' },
    ],
    ['with a header', () => written('e.bin', ramp(5003), header(20240520, 1, 5003)), {}],
    [
      'with a header, uint32',
      () =>
        written(
          'f.bin',
          Uint32Array.from({ length: 5003 }, (_, i) => i * 20),
          header(20240801, 7, 5003),
        ),
      {},
    ],
  ];

  it.each(files)('%s: the same as in pieces', (_, write, options) => {
    const path = write();
    using mapped = openTokens(path, options);
    using pieces = openTokens(path, { ...options, map: false });
    expect([mapped.mapped, pieces.mapped]).toEqual([true, false]);
    expect([mapped.length, mapped.dtype]).toEqual([pieces.length, pieces.dtype]);
    fc.assert(
      fc.property(fc.nat({ max: mapped.length }), fc.nat({ max: 70_000 }), (begin, most) => {
        const count = Math.min(most, mapped.length - begin);
        const [a, b] = [mapped, pieces].map((tokens) => Buffer.from(tokens.read(begin, count).buffer)) as [
          Buffer,
          Buffer,
        ];
        expect(a.equals(b)).toBe(true);
      }),
      { numRuns: 40 },
    );
  });

  it('reads far into a file that is larger than 4 GiB, or in pieces where buffers end before', () => {
    // Almost all of it is a hole, which takes no room.
    const path = at('large.bin');
    const last = 2 ** 32 + 6;
    writeFileSync(path, Uint8Array.of(1, 0));
    truncateSync(path, last);
    const end = Uint16Array.of(17, 18);
    writeFileSync(path, new Uint8Array(end.buffer), { flag: 'a' });
    using tokens = openTokens(path);
    expect(tokens.length).toBe((last + 4) / 2);
    expect([...tokens.read(tokens.length - 3, 3)]).toEqual([0, 17, 18]);
    expect([...tokens.read(0, 2)]).toEqual([1, 0]);
  });

  it('copies: what was read stays when the file is closed, and nothing is read afterwards', async () => {
    const path = written('closed.bin', ramp(5000));
    const tokens = openTokens(path);
    const read = tokens.read(1, 3);
    tokens.close();
    tokens.close();
    expect([...read]).toEqual([7919, 15838, 23757]);
    await expectFailure(() => tokens.read(0, 2), 'ERR_FILE', /has been closed/);
    // Not before the memory has been given back.
    await new Promise((done) => setImmediate(done));
  });

  it('sees a file that is cut off before it reads', async () => {
    const path = written('cut.bin', ramp(100_000));
    using tokens = openTokens(path);
    expect(tokens.mapped).toBe(true);
    truncateSync(path, 50_000);
    expect([...tokens.read(0, 2)]).toEqual([0, 7919]);
    await expectFailure(() => tokens.read(99_000, 2), 'ERR_FILE', /is cut off: it ends at byte 50000/);
  });

  it('refuses tokens outside of the vocabulary, where they are', async () => {
    using tokens = openTokens(written('out.bin', Uint16Array.of(1, 2, 50257, 3)), { vocabulary: 50257 });
    await expectFailure(() => tokens.read(1, 3), 'ERR_FILE', /token 2 is 50257/);
  });

  it('gives memory back when nobody holds a file any more', async () => {
    const loaded = cpuAddon();
    if (!('addon' in loaded)) throw new Error('no addon');
    const { openSync, closeSync } = await import('node:fs');
    const file = openSync(written('gc.bin', ramp(100)), 'r');
    const held = (() => {
      const buffer = loaded.addon.mapFile(file, 200) as ArrayBuffer;
      expect(new Uint16Array(buffer)[1]).toBe(7919);
      return new WeakRef(buffer);
    })();
    closeSync(file);
    await collectGarbage();
    await collectGarbage();
    expect(held.deref()).toBeUndefined();
  });

  it('refuses what it cannot map', async () => {
    const loaded = cpuAddon();
    if (!('addon' in loaded)) throw new Error('no addon');
    const { mapFile, unmapFile } = loaded.addon;
    const { openSync, closeSync } = await import('node:fs');
    const file = openSync(written('small.bin', ramp(4)), 'r');
    const folder = openSync(at('.'), 'r');
    expect(mapFile(file, 9)).toBeUndefined();
    expect(mapFile(file, 0)).toBeUndefined();
    expect(mapFile(file, -1)).toBeUndefined();
    expect(mapFile(folder, 1)).toBeUndefined();
    expect(mapFile(10_000, 8)).toBeUndefined();
    expect(() => mapFile('a' as never, 8)).toThrow(TypeError);
    expect(() => unmapFile(1 as never)).toThrow(TypeError);
    const buffer = mapFile(file, 8) as ArrayBuffer;
    unmapFile(buffer);
    expect(buffer.byteLength).toBe(0);
    unmapFile(buffer);
    closeSync(file);
    closeSync(folder);
  });
});

describe('files of tokens without memory of theirs', () => {
  const ids = ramp(9000);

  async function expectPieces(): Promise<void> {
    const { openTokens } = await import('../../lib/nn/tokens.js');
    using tokens = openTokens(written('pieces.bin', ids));
    expect(tokens.mapped).toBe(false);
    expect(tokens.read(0, ids.length)).toEqual(Int32Array.from(ids));
  }

  it('are read in pieces where the addon is missing', async () => {
    vi.stubEnv('FLASHATTN_CPU_ADDON', at('none.node'));
    vi.resetModules();
    await expectPieces();
  });

  it.each([
    ['is older', {}],
    ['or Node refuses', { mapFile: () => undefined }],
  ])('and where it %s', async (_, addon) => {
    vi.doMock('../../lib/backends/cpu/threads/addon.js', () => ({ cpuAddon: () => ({ addon, path: '' }) }));
    vi.resetModules();
    await expectPieces();
  });

  it('says that map is no boolean', async () => {
    const path = written('no.bin', ids);
    await expectFailure(() => openTokens(path, { map: 1 as never }), 'ERR_OPTION', /map is 1/);
  });
});
