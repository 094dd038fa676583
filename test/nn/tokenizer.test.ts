import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { characterTokenizer, gptTokenizer, gptTokenizerFrom } from '../../lib/nn/tokenizer.js';
import { expectFailure } from '../support/failure.js';

describe('characterTokenizer', () => {
  it('gives any text back, also after JSON', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', minLength: 1 }), fc.string({ unit: 'grapheme' }), (a, b) => {
        const text = `${a}${b}`;
        const tokenizer = characterTokenizer(text);
        const again = characterTokenizer(JSON.parse(JSON.stringify(tokenizer)).characters);
        const tokens = tokenizer.encode(text);
        expect(tokenizer.decode(tokens)).toBe(text);
        expect(again.encode(text)).toEqual(tokens);
        expect(again.decode(tokens)).toBe(text);
        expect(tokens).toHaveLength([...text].length);
        expect(Math.max(...tokens)).toBe(tokenizer.vocabulary - 1);
      }),
    );
  });

  it('numbers characters by their code points', () => {
    const tokenizer = characterTokenizer('b\u{1f600}a\uffe6\n');
    expect(tokenizer.characters).toBe('\nab\uffe6\u{1f600}');
    expect([...tokenizer.encode('\u{1f600}b\n')]).toEqual([4, 2, 0]);
    expect(tokenizer.vocabulary).toBe(5);
  });

  it('names what it does not know, and where', async () => {
    const tokenizer = characterTokenizer('a\u{1f600}');
    await expectFailure(
      () => tokenizer.encode('\u{1f600}ab'),
      'ERR_OPTION',
      'text has "b" at 3, which is none of the 2',
    );
    await expectFailure(() => tokenizer.encode(3 as never), 'ERR_OPTION', 'text is 3');
    for (const token of [2, -1, 0.5, Number.NaN])
      await expectFailure(() => tokenizer.decode([0, token]), 'ERR_OPTION', `tokens has ${token} at 1`);
    await expectFailure(() => characterTokenizer(''), 'ERR_OPTION', 'text is empty');
    await expectFailure(() => characterTokenizer('\ud800'), 'ERR_OPTION', 'halves of characters');
  });
});

describe('gptTokenizer', () => {
  it('asks for the package that it needs', async () => {
    await expectFailure(
      gptTokenizer(),
      'ERR_OPTION',
      'needs the package gpt-tokenizer, which cannot be loaded: npm install gpt-tokenizer',
    );
    await expectFailure(gptTokenizer('gpt2' as never), 'ERR_OPTION', 'encoding is "gpt2"');
  });

  it('uses its modules', async () => {
    const asked: unknown[] = [];
    const module = {
      vocabularySize: 3,
      encode: (text: string, { disallowedSpecial }: { disallowedSpecial: Set<string> }) => {
        asked.push(text, disallowedSpecial.size);
        return [2, 0];
      },
      decode: (tokens: number[]) => `<${tokens}>`,
    };
    const load = async (name: string) => {
      asked.push(name);
      return module;
    };
    const tokenizer = await gptTokenizerFrom(load, 'r50k_base');
    expect(tokenizer.vocabulary).toBe(3);
    expect(tokenizer.encode('ab')).toEqual(Int32Array.of(2, 0));
    expect(tokenizer.decode(Int32Array.of(2, 0))).toBe('<2,0>');
    expect(asked).toEqual(['gpt-tokenizer/encoding/r50k_base', 'ab', 0]);
    await expectFailure(() => tokenizer.decode([0, 3]), 'ERR_OPTION', 'tokens has 3 at 1; the vocabulary has 3');
  });
});
