import { writeFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { characterTokenizer } from '../../lib/nn/tokenizer.js';
import { openTokens, textTokens, tokensOf } from '../../lib/nn/tokens.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';

const at = temporaryFolder();

type Elements = Uint16Array | Uint32Array;

/** As a program in Python writes it: numpy's tofile. */
function raw(name: string, tokens: Elements): string {
  writeFileSync(at(name), new Uint8Array(tokens.buffer));
  return at(name);
}

/** As llm.c's data_common.py writes it. */
function withHeader(
  name: string,
  tokens: Elements,
  header: { magic?: number; version?: number; count?: number } = {},
): string {
  const { magic = 20240520, version = 1, count = tokens.length } = header;
  const head = new Int32Array(256);
  head.set([magic, version, count]);
  writeFileSync(at(name), Buffer.concat([new Uint8Array(head.buffer), new Uint8Array(tokens.buffer)]));
  return at(name);
}

/** Faster than toEqual. */
const isSame = (a: Int32Array, b: Int32Array) => Buffer.from(a.buffer).equals(Buffer.from(b.buffer));

const ramp16 = (length: number) => Uint16Array.from({ length }, (_, i) => (i * 7919) % 50257);

describe('openTokens', () => {
  it('reads any stretch of a raw file', () => {
    const ids = ramp16(200_000);
    using tokens = openTokens(raw('raw.bin', ids));
    expect([tokens.length, tokens.dtype]).toEqual([ids.length, 'uint16']);
    fc.assert(
      fc.property(fc.nat({ max: ids.length }), fc.nat({ max: 100_000 }), (begin, most) => {
        const count = Math.min(most, ids.length - begin);
        expect(isSame(tokens.read(begin, count), Int32Array.from(ids.subarray(begin, begin + count)))).toBe(true);
      }),
    );
    // More than what is kept, and the first of it again.
    using many = openTokens(raw('many.bin', ramp16(1_000_000)));
    for (let begin = 0; begin < many.length; begin += 9973) expect(many.read(begin, 1)[0]).toBe((begin * 7919) % 50257);
    expect([...many.read(0, 2)]).toEqual([0, 7919]);
  });

  it('reads uint32', () => {
    const ids = Uint32Array.from({ length: 50_000 }, (_, i) => i * 40_000);
    using tokens = openTokens(raw('wide.bin', ids), { dtype: 'uint32' });
    expect(tokens.read(0, ids.length)).toEqual(Int32Array.from(ids));
  });

  it('knows the files of llm.c by their header', () => {
    const ids = ramp16(40_000);
    using two = openTokens(withHeader('gpt2.bin', ids));
    expect([two.length, two.dtype]).toEqual([40_000, 'uint16']);
    expect(two.read(32_000, 8000)).toEqual(Int32Array.from(ids.subarray(32_000)));
    const wide = Uint32Array.of(128_000, 1, 2);
    using three = openTokens(withHeader('llama3.bin', wide, { magic: 20240801, version: 7 }));
    expect([...three.read(0, 3)]).toEqual([128_000, 1, 2]);
  });

  const wrong: [string, () => string, object, string, RegExp][] = [
    ['an empty file', () => raw('w.bin', new Uint16Array()), {}, 'ERR_FILE', /w\.bin: is empty/],
    ['a header alone', () => withHeader('w.bin', new Uint16Array()), {}, 'ERR_FILE', /is empty/],
    [
      'an odd length',
      () => {
        writeFileSync(at('w.bin'), 'abc');
        return at('w.bin');
      },
      {},
      'ERR_FILE',
      /3 bytes of tokens are no multiple of the 2 of uint16/,
    ],
    ['half a uint32', () => raw('w.bin', ramp16(3)), { dtype: 'uint32' }, 'ERR_FILE', /6 bytes .* the 4 of uint32/],
    [
      'too few tokens',
      () => withHeader('w.bin', ramp16(3), { count: 4 }),
      {},
      'ERR_FILE',
      /has 3 tokens; its header says 4/,
    ],
    [
      'another version',
      () => withHeader('w.bin', ramp16(3), { version: 2 }),
      {},
      'ERR_FILE',
      /of version 2; only version 1/,
    ],
    [
      'another dtype',
      () => withHeader('w.bin', ramp16(3)),
      { dtype: 'uint32' },
      'ERR_FILE',
      /with uint16; dtype is 'uint32'/,
    ],
    ['no such file', () => at('none.bin'), {}, 'ERR_FILE', /ENOENT/],
    ['a folder', () => at('.'), {}, 'ERR_FILE', /not a file|EISDIR/],
    ['a dtype that is none', () => raw('w.bin', ramp16(3)), { dtype: 'int8' }, 'ERR_OPTION', /dtype is "int8"/],
    ['a vocabulary that is none', () => raw('w.bin', ramp16(3)), { vocabulary: 0 }, 'ERR_OPTION', /vocabulary is 0/],
    ['an unknown option', () => raw('w.bin', ramp16(3)), { type: 'int8' }, 'ERR_OPTION', /"type"/],
  ];
  it.each(wrong)('refuses %s', async (_, write, options, code, message) => {
    const path = write();
    await expectFailure(() => openTokens(path, options), code, message);
  });

  it('refuses tokens outside of the vocabulary, where they are', async () => {
    using tokens = openTokens(raw('out.bin', Uint16Array.of(1, 2, 50257, 3)), { vocabulary: 50257 });
    expect([...tokens.read(0, 2)]).toEqual([1, 2]);
    await expectFailure(() => tokens.read(1, 3), 'ERR_FILE', /out\.bin: token 2 is 50257; the vocabulary has 50257/);
    using wide = openTokens(raw('sign.bin', Uint32Array.of(0, 2 ** 31)), { dtype: 'uint32' });
    await expectFailure(() => wide.read(0, 2), 'ERR_FILE', /token 1 is 2147483648/);
  });

  it('refuses stretches that are not there, files cut off, and reading after close', async () => {
    const path = raw('short.bin', ramp16(100_000));
    const tokens = openTokens(path);
    for (const [begin, count] of [
      [0, 100_001],
      [100_000, 1],
      [-1, 1],
      [0, -1],
      [0.5, 1],
    ])
      await expectFailure(() => tokens.read(begin, count), 'ERR_SHAPE', /begin|count|within the 100000/);
    expect(tokens.read(100_000, 0)).toHaveLength(0);
    writeFileSync(path, 'ab');
    await expectFailure(() => tokens.read(0, 2), 'ERR_FILE', /is cut off: it ends at byte 2/);
    tokens.close();
    tokens.close();
    await expectFailure(() => tokens.read(0, 2), 'ERR_FILE', /has been closed/);
  });
});

describe('tokens in memory', () => {
  it('are those of a text, and a copy', async () => {
    const text = 'to be or not';
    const tokenizer = characterTokenizer(text);
    const tokens = textTokens(text, tokenizer);
    expect(tokenizer.decode(tokens.read(3, 2))).toBe('be');
    tokens.read(3, 2).fill(0);
    expect(tokenizer.decode(tokens.read(0, tokens.length))).toBe(text);
    const ids = Int32Array.of(1, 2);
    const own = tokensOf(ids);
    ids[0] = 9;
    expect([...own.read(0, 2)]).toEqual([1, 2]);
    await expectFailure(() => own.read(1, 2), 'ERR_SHAPE', '[1, 3) must lie within the 2');
    await expectFailure(() => tokensOf(new Int32Array()), 'ERR_OPTION', 'ids is empty');
    await expectFailure(() => tokensOf([1] as never), 'ERR_OPTION', 'ids is [1]');
    await expectFailure(() => textTokens('', tokenizer), 'ERR_OPTION', 'text is empty');
    await expectFailure(() => textTokens('tax', tokenizer), 'ERR_OPTION', 'text has "a" at 1');
  });
});
