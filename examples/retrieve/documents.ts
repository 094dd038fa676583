// Texts of a folder, cut into tokens and chunks.
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { extname, join, relative, sep } from 'node:path';

/** What is wrong with a folder of a user. */
export class FolderError extends Error {
  readonly code = 'ERR_FOLDER';
}

export interface Document {
  /** Below the folder, with / between names. */
  readonly name: string;
  /** Of its text. */
  readonly hash: string;
  readonly chunks: readonly Chunk[];
}

/** Words and marks, each with the space before it, so that joined they are the text again. */
export type Chunk = readonly string[];

/** Words, numbers and single marks. */
export const tokensOf = (text: string): string[] => text.match(/\s*(?:[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_])/gu) ?? [];

/** What a token is looked up by. */
export const wordOf = (token: string): string => token.trim().toLowerCase();

export function chunksOf(tokens: readonly string[], size: number): Chunk[] {
  return Array.from({ length: Math.ceil(tokens.length / size) }, (_, i) => tokens.slice(i * size, (i + 1) * size));
}

/** The .txt and .md files of a folder and of those in it, in the order of their names; other files are left out. @throws FolderError */
export function readDocuments(folder: string, chunk: number): Document[] {
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory()) throw new FolderError(`${folder} is no folder`);
  const names = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && ['.md', '.txt'].includes(extname(entry.name)))
    .map((entry) => relative(folder, join(entry.parentPath, entry.name)).split(sep).join('/'))
    .sort();
  const documents = names.flatMap((name) => {
    const text = readFileSync(join(folder, name), 'utf8');
    const chunks = chunksOf(tokensOf(text), chunk);
    const hash = createHash('sha256').update(text).digest('hex');
    return chunks.length > 0 ? [{ name, hash, chunks }] : [];
  });
  if (documents.length === 0) throw new FolderError(`${folder} has no .txt or .md file with a word in it`);
  return documents;
}
