import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { IncrementalText, StopStrings } from '../../lib/inference/text.js';
import { expectFailure } from '../support/failure.js';

/** Tokens are bytes, or pairs of them from 256 on, as byte pair encodings have them. */
const bytesOf = (tokens: ArrayLike<number>) =>
  Uint8Array.from(Array.from(tokens).flatMap((token) => (token < 256 ? [token] : [(token - 256) >> 8, token & 255])));
const byteLevel = (tokens: ArrayLike<number>) => new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytesOf(tokens));

/** As decoders with byte fallback do: one character that is wrong makes all bytes of a run wrong. And a space in front is lost. */
function byteFallback(tokens: ArrayLike<number>): string {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytesOf(tokens));
  } catch {
    text = '\uFFFD'.repeat(bytesOf(tokens).length);
  }
  return text.replace(/^ /, '');
}

/** Cut at random into tokens of a byte or two. */
function tokensOf(text: string, pairs: readonly boolean[]): number[] {
  const bytes = new TextEncoder().encode(text);
  const tokens: number[] = [];
  for (let at = 0; at < bytes.length; at++)
    if (pairs[at % pairs.length] && at + 1 < bytes.length)
      tokens.push(256 + ((bytes[at] as number) << 8) + (bytes[++at] as number));
    else tokens.push(bytes[at] as number);
  return tokens;
}

const words = fc.string({ unit: fc.constantFrom('a', ' ', 'é', '€', '😀', '👩‍👩‍👧', '\n'), maxLength: 20 });
const cuts = fc.array(fc.boolean(), { minLength: 1, maxLength: 7 });

describe('text that comes in tokens', () => {
  it.each([
    ['bytes', byteLevel, cuts],
    ['bytes of which one makes others wrong', byteFallback, fc.constant([false])], // these have a token each
  ])('is that of all tokens, and never has half a character: %s', (_, decode, pieces) => {
    fc.assert(
      fc.property(words, words, pieces, (before, text, pairs) => {
        const prompt = tokensOf(`x${before}`, pairs);
        const own = new IncrementalText(decode, prompt);
        const parts = [...tokensOf(text, pairs).map((token) => own.push(token)), own.end()];
        expect(parts.join('')).toBe(text);
        for (const piece of parts) expect(piece.includes('\uFFFD') || !piece.isWellFormed()).toBe(false);
        expect(own.end()).toBe('');
      }),
      { numRuns: 2000 },
    );
  });

  it('comes as soon as a character is complete', () => {
    const own = new IncrementalText(byteLevel);
    expect(tokensOf('a€b', [false]).map((token) => own.push(token))).toEqual(['a', '', '', '€', 'b']);
  });

  it('goes on in a character that the prompt has begun', () => {
    const euro = tokensOf('€', [false]);
    const own = new IncrementalText(byteLevel, [65, ...euro.slice(0, 2)]);
    expect(own.push(euro[2] as number)).toBe('€');
  });

  it('has what is no UTF-8 at the end, or when it does not end', () => {
    const own = new IncrementalText(byteLevel);
    expect(own.push(0xe2)).toBe('');
    expect(own.end()).toBe('\uFFFD');
    const endless = new IncrementalText(byteLevel);
    const pieces = Array.from({ length: 100 }, () => endless.push(0xff));
    expect(pieces.join('').length).toBeGreaterThan(80);
    expect(pieces.join('') + endless.end()).toBe('\uFFFD'.repeat(100));
  });

  it('may have tokens without text', () => {
    const own = new IncrementalText((tokens) => byteLevel(Array.from(tokens).filter((token) => token !== 0)));
    expect([65, 0, 0, 66, 0].map((token) => own.push(token))).toEqual(['A', '', '', 'B', '']);
    expect(own.end()).toBe('');
  });
});

/** Character by character, by looking at all that has come. */
function cutAt(text: string, stops: readonly string[]): string | undefined {
  for (let end = 1; end <= text.length; end++) {
    const found = stops.filter((stop) => text.slice(0, end).endsWith(stop));
    if (found.length > 0) return text.slice(0, end - Math.max(...found.map((stop) => stop.length)));
  }
  return undefined;
}

describe('stop strings', () => {
  const letters = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 24 });
  const some = fc.array(fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 5 }), {
    maxLength: 4,
  });

  it('end the text before the first one, however it comes in pieces', () => {
    fc.assert(
      fc.property(letters, some, fc.infiniteStream(fc.nat(4)), (text, stops, sizes) => {
        const own = new StopStrings(stops);
        let got = '';
        for (let at = 0; at < text.length; ) {
          const size = sizes.next().value as number;
          got += own.push(text.slice(at, at + size));
          at += size;
          // Nothing is held back that cannot be the beginning of a stop string.
          const seen = text.slice(0, at);
          if (own.stopped) break;
          const held = seen.slice(got.length);
          expect(held === '' || stops.some((stop) => stop.length > held.length && stop.startsWith(held))).toBe(true);
        }
        const cut = cutAt(text, stops);
        expect(own.stopped).toBe(cut !== undefined);
        expect(got + own.end()).toBe(cut ?? text);
        if (own.stopped) expect(own.push('abc')).toBe('');
      }),
      { numRuns: 5000 },
    );
  });

  it('are given back when they do not come', () => {
    const own = new StopStrings(['END', '\n\n']);
    expect([own.push('a\n'), own.push('bE'), own.push('N'), own.end()]).toEqual(['a', '\nb', '', 'EN']);
  });

  it('must have characters', async () => {
    await expectFailure(() => new StopStrings(['a', '']), 'ERR_OPTION', /stop\[1\] is ""/);
    await expectFailure(() => new StopStrings(['\ud800']), 'ERR_OPTION', /stop\[0\]/);
    await expectFailure(() => new StopStrings([1 as never]), 'ERR_OPTION', /stop\[0\] is 1; it must be a string/);
  });
});
