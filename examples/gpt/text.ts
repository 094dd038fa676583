import { readFileSync, statSync } from 'node:fs';

/** What is wrong with the text of a user. */
export class TextError extends Error {
  constructor(
    readonly code: 'ERR_TEXT_MISSING' | 'ERR_TEXT_BINARY' | 'ERR_TEXT_EMPTY' | 'ERR_TEXT_SHORT',
    message: string,
  ) {
    super(message);
  }
}

/** A UTF-8 text. @throws TextError */
export function readText(path: string): string {
  let bytes: Uint8Array;
  try {
    if (!statSync(path).isFile()) throw new Error('it is no file');
    bytes = readFileSync(path);
  } catch (error) {
    throw new TextError('ERR_TEXT_MISSING', `${path} cannot be read: ${(error as Error).message}`);
  }
  if (bytes.length === 0) throw new TextError('ERR_TEXT_EMPTY', `${path} is empty`);
  if (bytes.includes(0)) throw new TextError('ERR_TEXT_BINARY', `${path} has bytes of 0: it is no text`);
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new TextError('ERR_TEXT_BINARY', `${path} is not UTF-8`);
  }
}

export interface Parts {
  readonly training: string;
  /** The last tenth. */
  readonly held: string;
}

/** @throws TextError for a text that is too short to learn from */
export function holdOut(text: string, path: string): Parts {
  // Not between the halves of a character.
  const characters = Math.floor(text.length * 0.9);
  const at = text.charCodeAt(characters) >> 10 === 0x37 ? characters - 1 : characters;
  const parts = { training: text.slice(0, at), held: text.slice(at) };
  if (parts.held.length < 16)
    throw new TextError('ERR_TEXT_SHORT', `${path} has ${text.length} characters; it must have 160 or more`);
  return parts;
}

/** What a model may see at once: held-out text must be longer, so that it shrinks with a small one. */
export const contextFor = (most: number, tokens: number): number =>
  Math.max(1, Math.min(most, 2 ** Math.floor(Math.log2(Math.max(1, tokens - 1)))));
