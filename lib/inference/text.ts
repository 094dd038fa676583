// Tokens to text while they come: a character may have several tokens, and a stop string may span them.
import { checkString, mustBe } from '../base/check.js';

type Decode = (tokens: ArrayLike<number>) => string;

/** The characters that stand for bytes which are no UTF-8, at the end: more bytes may make a character of them. */
const unfinished = /\uFFFD+$/;

/** So many tokens of what comes before are decoded with new ones: some decoders treat the first token of a text differently. */
const leastContext = 5;
/** And so many until there are some that do not begin within a character. */
const mostContext = 64;

/** A character lacks at most 3 bytes: where more are none, they stay so. */
const mostUnfinished = 16;
/** Tokens that are decoded anew for each one that comes. */
const longestWindow = 256;

/** The last tokens, which are whole characters but perhaps for the last one; none, where there are no such ones. */
function contextOf(decode: Decode, before: ArrayLike<number>): number[] {
  for (let count = Math.min(leastContext, before.length); count > 0 && count <= mostContext; count++) {
    const context = Array.prototype.slice.call(before, -count) as number[];
    if (
      !decode(context)
        .replace(/\uFFFD{1,3}$/, '')
        .includes('\uFFFD')
    )
      return context;
    if (count === before.length) break;
  }
  return [];
}

/**
 * Text of tokens that come one by one; what is given out is never taken back, and all of it together is the text of all
 * tokens.
 */
export class IncrementalText {
  readonly #decode: Decode;
  /** From the last tokens that were whole characters on. */
  #window: number[];
  /** How many of these were the last whole ones. */
  #whole: number;
  /** How many characters of their text have been given out. */
  #given: number;

  /** @param before tokens that the text goes on from */
  constructor(decode: Decode, before: ArrayLike<number> = []) {
    this.#decode = decode;
    this.#window = contextOf(decode, before);
    this.#whole = this.#window.length;
    this.#given = decode(this.#window).replace(unfinished, '').length;
  }

  /** The text that is certain now. */
  push(token: number): string {
    this.#window.push(token);
    const text = this.#decode(this.#window);
    const open = text.match(unfinished)?.[0].length ?? 0;
    if (open > mostUnfinished || this.#window.length > longestWindow) return this.end();
    const certain = this.#give(text.slice(0, text.length - open));
    if (open === 0 && text !== '') {
      this.#window = this.#window.slice(this.#whole);
      this.#whole = this.#window.length;
      this.#given = this.#decode(this.#window).length;
    }
    return certain;
  }

  /** What was held back, when no more tokens come. */
  end(): string {
    const rest = this.#give(this.#decode(this.#window));
    this.#window = [];
    this.#whole = 0;
    this.#given = 0;
    return rest;
  }

  #give(text: string): string {
    const added = text.slice(this.#given);
    this.#given = Math.max(this.#given, text.length);
    return added;
  }
}

/** For each length of what has matched, how long a match may still be when the next character is another one. */
function fallbacksOf(word: string): Uint32Array {
  const fallbacks = new Uint32Array(word.length + 1);
  let length = 0;
  for (let at = 1; at < word.length; at++) {
    while (length > 0 && word[at] !== word[length]) length = fallbacks[length];
    if (word[at] === word[length]) length++;
    fallbacks[at + 1] = length;
  }
  return fallbacks;
}

/**
 * Finds stop strings in text that comes in pieces, with the automata of Knuth, Morris and Pratt (1977). The text ends before
 * the one that is complete first, of several the longest: however it is cut into pieces.
 */
export class StopStrings {
  readonly #words: readonly { readonly word: string; readonly fallbacks: Uint32Array }[];
  readonly #matched: Uint32Array;
  #held = '';
  #stopped = false;

  /** @throws ERR_OPTION for one that is empty or not Unicode */
  constructor(words: readonly string[]) {
    this.#words = words.map((word, at) => {
      if (checkString(word, `stop[${at}]`) === '' || !word.isWellFormed())
        throw mustBe(`stop[${at}]`, word, 'Unicode of at least a character');
      return { word, fallbacks: fallbacksOf(word) };
    });
    this.#matched = new Uint32Array(words.length);
  }

  /** Whether one of them has come. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** The text that can no longer become part of a stop string. */
  push(text: string): string {
    if (this.#stopped) return '';
    const all = this.#held + text;
    for (let at = this.#held.length; at < all.length; at++) {
      const found = this.#step(all[at]);
      if (found === 0) continue;
      this.#stopped = true;
      this.#held = '';
      return all.slice(0, at + 1 - found);
    }
    const certain = all.length - Math.max(0, ...this.#matched);
    this.#held = all.slice(certain);
    return all.slice(0, certain);
  }

  /** What was held back, when no more text comes. */
  end(): string {
    const rest = this.#held;
    this.#held = '';
    return rest;
  }

  /** The length of the longest word that this character completes. */
  #step(character: string): number {
    let longest = 0;
    this.#words.forEach(({ word, fallbacks }, at) => {
      let length = this.#matched[at];
      while (length > 0 && word[length] !== character) length = fallbacks[length];
      if (word[length] === character) length++;
      if (length === word.length) longest = Math.max(longest, length);
      this.#matched[at] = length;
    });
    return longest;
  }
}
