import { checkInteger, checkString, mustBe } from '../base/check.js';
import { FlashAttnError, optionError, show } from '../base/errors.js';

/** Text to numbers and back. */
export interface Tokenizer {
  /** Tokens are integers from 0 to below this. */
  readonly vocabulary: number;
  encode(text: string): Int32Array<ArrayBuffer>;
  decode(tokens: ArrayLike<number>): string;
}

/** A token for each character (Unicode code point) that a text has. */
export interface CharacterTokenizer extends Tokenizer {
  /** In the order of their tokens, which is that of their code points; `characterTokenizer` makes the same of it again. */
  readonly characters: string;
}

function checkWellFormed(text: unknown): string {
  if (checkString(text, 'text').isWellFormed()) return text as string;
  throw mustBe('text', text, 'Unicode, without halves of characters');
}

/**
 * The tokenizer of the characters of `text`. As JSON it is its `characters`:
 * `characterTokenizer(JSON.parse(JSON.stringify(tokenizer)).characters)` gives the same tokens.
 *
 * `encode` throws ERR_OPTION that names the first character which is not known, and its position; `decode` the first token.
 *
 * @throws ERR_OPTION when the text is empty or not Unicode
 */
export function characterTokenizer(text: string): CharacterTokenizer {
  if (checkWellFormed(text) === '') throw optionError('text is empty; there must be characters');
  const points = Array.from(new Set(text), (character) => character.codePointAt(0) as number).sort((a, b) => a - b);
  const characters = points.map((point) => String.fromCodePoint(point));
  const tokenOf = new Map(characters.map((character, token) => [character, token]));
  return {
    characters: characters.join(''),
    vocabulary: characters.length,

    encode(text) {
      const tokens = new Int32Array(checkString(text, 'text').length); // of UTF-16, so never too few
      let count = 0;
      let position = 0;
      for (const character of text) {
        const token = tokenOf.get(character);
        if (token === undefined)
          throw optionError(
            `text has ${show(character)} at ${position}, which is none of the ${tokenOf.size} characters`,
          );
        tokens[count++] = token;
        position += character.length;
      }
      return tokens.slice(0, count);
    },

    decode(tokens) {
      let text = '';
      for (let at = 0; at < tokens.length; at++) {
        const character = characters[tokens[at]];
        if (character === undefined) throw unknownToken(tokens[at], at, characters.length);
        text += character;
      }
      return text;
    },
  };
}

const unknownToken = (token: unknown, at: number, vocabulary: number) =>
  optionError(`tokens has ${show(token)} at ${at}; the vocabulary has ${vocabulary} tokens`);

/** What is used of a module of gpt-tokenizer. */
interface GptModule {
  readonly vocabularySize: number;
  encode(text: string, options: { readonly disallowedSpecial: ReadonlySet<string> }): readonly number[];
  decode(tokens: Iterable<number>): string;
}

const encodings = ['r50k_base', 'p50k_base', 'cl100k_base', 'o200k_base'] as const;

/** Byte pair encodings of gpt-tokenizer; that of GPT-2 is 'r50k_base'. */
export type GptEncoding = (typeof encodings)[number];

/** @internal `gptTokenizer`, with what loads a module. */
export async function gptTokenizerFrom(
  load: (module: string) => Promise<unknown>,
  encoding: GptEncoding,
): Promise<Tokenizer> {
  if (!encodings.includes(encoding)) throw mustBe('encoding', encoding, `one of ${encodings.join(', ')}`);
  const module = (await load(`gpt-tokenizer/encoding/${encoding}`).catch((cause: unknown) => {
    throw new FlashAttnError(
      'ERR_OPTION',
      `the encoding ${encoding} needs the package gpt-tokenizer, which cannot be loaded: npm install gpt-tokenizer`,
      { cause },
    );
  })) as GptModule;
  const vocabulary = checkInteger(module.vocabularySize, 'vocabularySize of gpt-tokenizer', 1);
  return {
    vocabulary,
    // A text may speak of special tokens without meaning them.
    encode: (text) => Int32Array.from(module.encode(checkString(text, 'text'), { disallowedSpecial: new Set() })),
    decode(tokens) {
      for (let at = 0; at < tokens.length; at++)
        if (!(Number.isInteger(tokens[at]) && tokens[at] >= 0 && tokens[at] < vocabulary))
          throw unknownToken(tokens[at], at, vocabulary);
      return module.decode(Array.from(tokens));
    },
  };
}

/**
 * A byte pair encoding of the package gpt-tokenizer, which is loaded by this call and has to be installed beside this one.
 * `<|endoftext|>` in a text is text.
 *
 * @throws ERR_OPTION when the package is not installed
 */
export const gptTokenizer = (encoding: GptEncoding = 'r50k_base'): Promise<Tokenizer> =>
  gptTokenizerFrom((module) => import(module), encoding);
