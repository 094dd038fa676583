import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  openSafetensors,
  type SafetensorsDType,
  type SafetensorsEntry,
  writeSafetensors,
} from '../../lib/nn/safetensors.js';
import { parseSafetensors } from '../../verify/golden/safetensors.js';
import { expectFailure, failureOf } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';
import { arbitraryEntries, arbitraryMetadata, bytesPerElement, contentsOf, ramp, readContents } from './entries.js';

const at = temporaryFolder();
const f32 = (name: string, length: number): SafetensorsEntry => ({
  name,
  dtype: 'F32',
  shape: [length],
  data: ramp(length),
});

describe('writeSafetensors', () => {
  it('writes what it reads again, also to another reader', async () => {
    let number = 0;
    await fc.assert(
      fc.asyncProperty(arbitraryEntries, arbitraryMetadata, fc.boolean(), async (entries, metadata, checksums) => {
        const path = at(`random-${number++ % 4}.safetensors`);
        await writeSafetensors(path, entries, { metadata, checksums });
        expect(await readContents(path)).toEqual(contentsOf(entries, metadata));

        const other = parseSafetensors(readFileSync(path));
        const others = [...other.tensors].map(([name, { dtype, shape, values }]) => ({
          name,
          dtype,
          shape,
          data: new Uint8Array(values.buffer as ArrayBuffer),
        }));
        const { 'flashattn.crc32': sums, ...rest } = Object.fromEntries(other.metadata);
        expect(contentsOf(others, rest)).toEqual(contentsOf(entries, metadata));
        expect(sums !== undefined).toBe(checksums);
      }),
    );
  });

  it('gives the same bytes for the same content in any order, aligned', async () => {
    await fc.assert(
      fc.asyncProperty(arbitraryEntries, arbitraryMetadata, async (entries, metadata) => {
        const [one, other] = [at('one.safetensors'), at('other.safetensors')];
        const turned = Object.fromEntries(Object.entries(metadata).reverse());
        await writeSafetensors(one, entries, { metadata, checksums: true });
        await writeSafetensors(other, entries.toReversed(), { metadata: turned, checksums: true });
        const bytes = readFileSync(one);
        expect(readFileSync(other).equals(bytes)).toBe(true);
        expect(bytes.readBigUInt64LE() % 8n).toBe(0n);
        await using file = await openSafetensors(one);
        for (const { dtype, byteOffset } of file.tensors.values()) expect(byteOffset % bytesPerElement[dtype]).toBe(0);
      }),
    );
  });

  it('writes the very bytes of the format', async () => {
    const path = at('bytes.safetensors');
    const entries: SafetensorsEntry[] = [
      { name: 'b', dtype: 'BOOL', shape: [3], data: Uint8Array.of(1, 0, 1) },
      { name: 'a', dtype: 'I32', shape: [1, 2], data: Int32Array.of(-1, 2) },
    ];
    await writeSafetensors(path, entries, { metadata: { format: 'pt' } });
    const header =
      '{"__metadata__":{"format":"pt"},"a":{"dtype":"I32","shape":[1,2],"data_offsets":[0,8]},' +
      '"b":{"dtype":"BOOL","shape":[3],"data_offsets":[8,11]}}';
    const padded = header.padEnd(Math.ceil(header.length / 8) * 8);
    const data = [255, 255, 255, 255, 2, 0, 0, 0, 1, 0, 1];
    expect([...readFileSync(path)]).toEqual([padded.length, 0, 0, 0, 0, 0, 0, 0, ...Buffer.from(padded), ...data]);
  });

  it('takes entries and data when it is their turn', async () => {
    const path = at('lazy.safetensors');
    const log: string[] = [];
    async function* entries() {
      for (const name of ['b', 'a']) {
        log.push(`entry ${name}`);
        const data = async () => {
          log.push(`data ${name}`);
          return ramp(2);
        };
        yield { name, dtype: 'F32', shape: [2], data } as const;
      }
    }
    await writeSafetensors(path, entries());
    expect(log).toEqual(['entry b', 'entry a', 'data a', 'data b']);
  });

  it('reads each dtype as the array that its type names', async () => {
    const path = at('dtypes.safetensors');
    const stored: { [D in SafetensorsDType]: ArrayBufferView } = {
      BOOL: Uint8Array.of(1, 0),
      U8: Uint8Array.of(255, 1),
      I8: Int8Array.of(-1, 1),
      U16: Uint16Array.of(65535, 1),
      I16: Int16Array.of(-1, 1),
      F16: Uint16Array.of(0x3c00, 0xc000),
      BF16: Uint16Array.of(0x3f80, 0xc000),
      U32: Uint32Array.of(2 ** 32 - 1, 1),
      I32: Int32Array.of(-1, 1),
      F32: Float32Array.of(Number.NaN, -0),
      U64: BigUint64Array.of(2n ** 64n - 1n, 1n),
      I64: BigInt64Array.of(-1n, 1n),
      F64: Float64Array.of(0.1, Number.NEGATIVE_INFINITY),
    };
    const dtypes = Object.keys(stored) as SafetensorsDType[];
    await writeSafetensors(
      path,
      dtypes.map((dtype) => ({ name: dtype, dtype, shape: [2], data: stored[dtype] })),
    );
    await using file = await openSafetensors(pathToFileURL(path));
    for (const dtype of dtypes) expect(await file.read(dtype)).toEqual(stored[dtype]);
    const typed: Float32Array = await file.read('F32', 'F32');
    expect(typed[0]).toBeNaN();
    await expectFailure(file.read('F32', 'I32'), 'ERR_DTYPE', `${path}: tensor "F32" is F32; it must be "I32"`);
    await expectFailure(file.read('F33'), 'ERR_FILE', `${path}: there is no tensor "F33"`);
  });

  it('keeps the permissions of a file and the links to it', async () => {
    const [path, link] = [at('private.safetensors'), at('link.safetensors')];
    writeFileSync(path, 'old');
    chmodSync(path, 0o600);
    symlinkSync(path, link);
    await writeSafetensors(link, [f32('a', 1)]);
    expect(Object.keys((await readContents(path)).tensors)).toEqual(['a']);
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  const wrong: [string, unknown, string, string][] = [
    ['a name twice', [f32('a', 1), { ...f32('a', 1), dtype: 'I32' }], 'ERR_OPTION', 'two entries with the name "a"'],
    ['the name of metadata', [f32('__metadata__', 1)], 'ERR_OPTION', 'name is "__metadata__"'],
    ['half a character', [f32('\ud800', 1)], 'ERR_OPTION', 'Unicode'],
    ['an unknown dtype', [{ ...f32('a', 1), dtype: 'F8' }], 'ERR_DTYPE', 'the dtype of "a" is "F8"'],
    ['a negative shape', [{ ...f32('a', 1), shape: [-1] }], 'ERR_SHAPE', 'the shape of "a" is [-1]'],
    ['no data', [{ ...f32('a', 1), data: undefined }], 'ERR_OPTION', 'data of "a" is undefined'],
    ['data of another dtype', [{ ...f32('a', 1), data: Int32Array.of(1) }], 'ERR_DTYPE', 'data of "a" is Int32Array'],
    ['too little data', [{ ...f32('a', 1), shape: [2] }], 'ERR_SHAPE', '"a" has 4 bytes; F32 [2] needs 8 bytes'],
    ['no entries', 3, 'ERR_OPTION', 'entries is 3'],
    ['entries that fail', [{ ...f32('a', 1), data: () => Promise.reject(new Error('mine')) }], 'undefined', 'mine'],
  ];
  it.each(wrong)('refuses %s and leaves the old file', async (_, entries, code, message) => {
    const path = at('wrong/kept.safetensors');
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, 'old');
    const failure = await failureOf(writeSafetensors(path, entries as SafetensorsEntry[]));
    expect(String(failure.code)).toBe(code);
    expect(failure.message).toContain(message);
    expect(readdirSync(dirname(path))).toEqual(['kept.safetensors']);
    expect(readFileSync(path, 'utf8')).toBe('old');
  });

  it('says which file cannot be written', async () => {
    const nowhere = at('nowhere/a.safetensors');
    await expectFailure(writeSafetensors(nowhere, []), 'ERR_FILE', /nowhere.*ENOENT/);
    await expectFailure(writeSafetensors(at('.'), []), 'ERR_FILE', /not a file/);
    await expectFailure(writeSafetensors('', []), 'ERR_OPTION', 'path is ""');
  });
});

/** A file with this header and so many bytes behind it. */
function fileOf(header: string | Uint8Array, data = 0, length?: bigint): Uint8Array {
  const text = Buffer.from(header);
  const start = Buffer.alloc(8);
  start.writeBigUInt64LE(length ?? BigInt(text.length));
  return Buffer.concat([start, text, Buffer.alloc(data)]);
}

const tensor = (rest: string, name = 'a') => `"${name}":{${rest}}`;
const floats = (offsets: string, name = 'a', shape = '[1]') =>
  tensor(`"dtype":"F32","shape":${shape},"data_offsets":${offsets}`, name);

describe('openSafetensors', () => {
  const hostile: [string, Uint8Array, RegExp][] = [
    ['an empty file', new Uint8Array(), /has 0 bytes/],
    ['less than a length', new Uint8Array(7), /has 7 bytes/],
    ['a header longer than the file', fileOf('{}', 0, 3n), /header has 3 bytes, but only 2/],
    ['a header of 2^63 bytes', fileOf('{}', 0, 2n ** 63n), /9223372036854775808 bytes, more than the 100 MB/],
    ['a header of 100 MB and one byte', fileOf('{}', 0, 100_000_001n), /more than the 100 MB/],
    ['no header', fileOf(''), /not JSON/],
    ['broken JSON', fileOf('{"a":'), /not JSON/],
    ['broken text', fileOf('{"a'), /not JSON/],
    ['a broken escape', fileOf('{"\\u12":1}'), /not JSON/],
    ['JSON that ends in an escape', fileOf('{"\\'), /not JSON/],
    ['a list', fileOf('[]'), /not a JSON object/],
    ['nesting without end', fileOf('['.repeat(1 << 22)), /nested too deep/],
    ['a mark of UTF-8', fileOf('\ufeff{}'), /not JSON/],
    ['broken UTF-8', fileOf(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d)), /not UTF-8/],
    ['a name twice', fileOf(`{${floats('[0,4]')},${floats('[4,8]')}}`, 8), /names "a" twice/],
    ['a name twice, escaped', fileOf(`{${floats('[0,4]')},${floats('[4,8]', '\\u0061')}}`, 8), /names "a" twice/],
    ['a field twice', fileOf(`{${tensor('"dtype":"F32","dtype" : "I32"')}}`), /names "dtype" twice/],
    ['metadata that is none', fileOf('{"__metadata__":[]}'), /__metadata__ is \[\]/],
    ['metadata of numbers', fileOf('{"__metadata__":{"step":1}}'), /has 1 as "step"/],
    ['a tensor that is none', fileOf('{"a":null}'), /tensor "a" is null/],
    ['half a character', fileOf(`{${floats('[0,4]', '\\ud800')}}`, 4), /not Unicode/],
    ['no dtype', fileOf('{"a":{}}'), /tensor "a" has the unknown dtype undefined/],
    ['an unknown dtype', fileOf(`{${tensor('"dtype":"toString"')}}`), /unknown dtype "toString"/],
    ['no shape', fileOf(`{${tensor('"dtype":"F32"')}}`), /tensor "a" has the shape undefined/],
    ['a negative dim', fileOf(`{${floats('[0,4]', 'a', '[-1]')}}`, 4), /shape \[-1\]/],
    ['a dim of half', fileOf(`{${floats('[0,2]', 'a', '[0.5]')}}`, 2), /shape \[0.5\]/],
    ['a dim beyond 2^53', fileOf(`{${floats('[0,4]', 'a', '[9007199254740993]')}}`, 4), /shape/],
    ['a product beyond 2^53', fileOf(`{${floats('[0,4]', 'a', '[4294967296,4294967296]')}}`, 4), /2\^53/],
    ['the same behind a zero', fileOf(`{${floats('[0,0]', 'a', '[0,4294967296,4294967296]')}}`), /2\^53/],
    ['a product that wraps 2^64', fileOf(`{${floats('[0,0]', 'a', '[4294967296,4294967296,4294967296]')}}`), /2\^53/],
    ['no offsets', fileOf(`{${tensor('"dtype":"F32","shape":[]')}}`), /data_offsets undefined/],
    ['one offset', fileOf(`{${floats('[0]')}}`), /data_offsets \[0\]/],
    ['negative offsets', fileOf(`{${floats('[-4,0]')}}`, 4), /data_offsets \[-4, 0\]/],
    ['offsets in reverse', fileOf(`{${floats('[4,0]')}}`, 4), /needs 4 bytes/],
    ['too few bytes', fileOf(`{${floats('[0,3]')}}`, 3), /needs 4 bytes for F32 \[1\], its data_offsets are \[0, 3\]/],
    ['an overlap', fileOf(`{${floats('[0,4]')},${floats('[2,6]', 'b')}}`, 6), /tensor "b" overlaps/],
    ['the same bytes twice', fileOf(`{${floats('[0,4]')},${floats('[0,4]', 'b')}}`, 4), /overlaps/],
    ['a gap', fileOf(`{${floats('[0,4]')},${floats('[5,9]', 'b')}}`, 9), /tensor "b" leaves a gap/],
    ['a gap in front', fileOf(`{${floats('[4,8]')}}`, 8), /tensor "a" leaves a gap/],
    ['data cut off', fileOf(`{${floats('[0,4]')}}`, 3), /tensor "a" is cut off/],
    ['data left over', fileOf(`{${floats('[0,4]')}}`, 5), /1 bytes behind the last tensor/],
    ['checksums that are none', fileOf('{"__metadata__":{"flashattn.crc32":"no"}}'), /is not a checksum/],
    ['too many checksums', fileOf('{"__metadata__":{"flashattn.crc32":"00000000 00000000"}}'), /is not a checksum/],
    ['a wrong checksum', fileOf('{"__metadata__":{"flashattn.crc32":"00000000"}}'), /header has changed/],
  ];
  it.each(hostile)('refuses %s', async (_, bytes, message) => {
    const path = at('hostile.safetensors');
    writeFileSync(path, bytes);
    await expectFailure(openSafetensors(path), 'ERR_FILE', message);
    await expectFailure(openSafetensors(path), 'ERR_FILE', `${path}: `);
  });

  it('takes what the format allows', async () => {
    const path = at('allowed.safetensors');
    writeFileSync(path, fileOf('{}  '));
    expect((await readContents(path)).tensors).toEqual({});
    writeFileSync(
      path,
      fileOf(`{ ${floats('[0,0]', 'z', '[0,3]')} ,${floats('[0,4]', 'a', '[]')}, ${floats('[4,4]', '', '[0]')}}`, 4),
    );
    await using file = await openSafetensors(path);
    expect([...file.tensors.keys()].toSorted()).toEqual(['', 'a', 'z']);
    expect(await file.read('a', 'F32')).toEqual(new Float32Array(1));
    await file.verify(); // without checksums there is nothing to compare
  });

  it('agrees with another reader about the corpus of the fuzzer', async () => {
    const folder = fileURLToPath(new URL('../fuzz/corpus/safetensors/', import.meta.url));
    for (const name of readdirSync(folder)) {
      const path = `${folder}${name}`;
      let expected = '';
      try {
        parseSafetensors(readFileSync(path));
      } catch (error) {
        expected = String(error);
      }
      const found = await readContents(path).then(
        () => '',
        (error) => error.code,
      );
      if (expected !== '') expect([name, found]).toEqual([name, 'ERR_FILE']);
    }
  });

  it('refuses what is no file, and does not wait for it', async () => {
    await expectFailure(openSafetensors(at('none')), 'ERR_FILE', /ENOENT/);
    await expectFailure(openSafetensors(at('.')), 'ERR_FILE', /not a file/);
    await expectFailure(openSafetensors(7 as never), 'ERR_OPTION', 'path is 7');
    if (process.platform === 'win32') return;
    execFileSync('mkfifo', [at('pipe')]);
    await expectFailure(openSafetensors(at('pipe')), 'ERR_FILE', /not a file/);
  });

  it('says when the file is cut off later, or closed', async () => {
    const path = at('later.safetensors');
    await writeSafetensors(path, [f32('a', 4)]);
    const file = await openSafetensors(path);
    writeFileSync(path, readFileSync(path).subarray(0, -4));
    await expectFailure(file.read('a'), 'ERR_FILE', /tensor "a" is cut off/);
    await file.close();
    await expectFailure(file.read('a'), 'ERR_FILE', /tensor "a" cannot be read/);
    expect(existsSync(path)).toBe(true);
  });
});

describe('a damaged file with checksums', () => {
  const damage = fc.oneof(
    fc.record({ kind: fc.constant('cut' as const), at: fc.nat(), length: fc.nat({ max: 40 }) }),
    fc.record({
      kind: fc.constant('replace' as const),
      at: fc.nat(),
      bytes: fc.uint8Array({ minLength: 1, maxLength: 4 }),
    }),
    fc.record({
      kind: fc.constant('insert' as const),
      at: fc.nat(),
      bytes: fc.uint8Array({ minLength: 1, maxLength: 9 }),
    }),
    fc.record({ kind: fc.constant('bit' as const), at: fc.nat(), bit: fc.nat({ max: 7 }) }),
    fc.record({ kind: fc.constant('end' as const), at: fc.nat() }),
    fc.record({ kind: fc.constant('digit' as const), at: fc.nat(), digit: fc.nat({ max: 9 }) }),
  );
  type Damage = typeof damage extends fc.Arbitrary<infer D> ? D : never;

  function apply(bytes: Buffer, hit: Damage): Buffer {
    const place = hit.at % bytes.length;
    const [before, after] = [bytes.subarray(0, place), bytes.subarray(place)];
    if (hit.kind === 'cut') return Buffer.concat([before, after.subarray(hit.length)]);
    if (hit.kind === 'insert') return Buffer.concat([before, hit.bytes, after]);
    if (hit.kind === 'end') return before;
    const changed = Buffer.from(bytes);
    if (hit.kind === 'replace') changed.set(hit.bytes.subarray(0, bytes.length - place), place);
    if (hit.kind === 'bit') changed[place] ^= 1 << hit.bit;
    if (hit.kind === 'digit') {
      // Numbers of the header are where damage looks most like something right.
      const digits = [...bytes.keys()].filter((i) => i >= 8 && bytes[i] >= 0x30 && bytes[i] <= 0x39);
      changed[digits[hit.at % digits.length] ?? place] = 0x30 + hit.digit;
    }
    return changed;
  }

  it('is refused or read as it was', async () => {
    const path = at('damaged.safetensors');
    let refused = 0;
    await fc.assert(
      fc.asyncProperty(arbitraryEntries, arbitraryMetadata, damage, async (entries, metadata, hit) => {
        await writeSafetensors(path, entries, { metadata, checksums: true });
        writeFileSync(path, apply(readFileSync(path), hit));
        let found: Awaited<ReturnType<typeof readContents>>;
        try {
          found = await readContents(path);
        } catch (error) {
          refused++;
          expect(error).toMatchObject({ name: 'FlashAttnError', code: 'ERR_FILE' });
          return;
        }
        expect(found.tensors).toEqual(contentsOf(entries).tensors);
      }),
      { numRuns: 1000 * Number(process.env.FLASHATTN_RUNS ?? 1) },
    );
    expect(refused).toBeGreaterThan(500);
  });

  it('is found where it is longer than a piece that is read at once', async () => {
    const path = at('long.safetensors');
    const data = new Uint8Array(2 ** 24 + 5).fill(1);
    await writeSafetensors(path, [{ name: 'a', dtype: 'BOOL', shape: [data.length], data }], { checksums: true });
    await using whole = await openSafetensors(path);
    await whole.verify();
    expect(Buffer.from(await whole.read('a', 'BOOL')).equals(data)).toBe(true);
    const bytes = readFileSync(path);
    bytes[bytes.length - 1] = 0;
    writeFileSync(path, bytes);
    await using damaged = await openSafetensors(path);
    await expectFailure(damaged.verify(), 'ERR_FILE', 'the bytes of tensor "a" have changed');
  });

  it('is refused by verify too, whatever byte of the data has changed', async () => {
    const path = at('verified.safetensors');
    await writeSafetensors(path, [f32('a', 3), f32('b', 0), f32('c', 2)], { checksums: true });
    const bytes = readFileSync(path);
    for (let i = bytes.length - 20; i < bytes.length; i++) {
      const changed = Buffer.from(bytes);
      changed[i] ^= 0x10;
      writeFileSync(path, changed);
      await using file = await openSafetensors(path);
      const name = i < bytes.length - 8 ? 'a' : 'c';
      await expectFailure(file.verify(), 'ERR_FILE', `the bytes of tensor "${name}" have changed`);
    }
    writeFileSync(path, bytes);
    await using file = await openSafetensors(path);
    await file.verify();
  });
});
