// Files are read and written by the system, which has errors of its own: here they become those of this package.
import { constants } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { checkString, mustBe } from '../base/check.js';
import { FlashAttnError } from '../base/errors.js';

/** A path, or a `file:` URL. */
export type FilePath = string | URL;

/** @throws ERR_OPTION */
export function checkPath(path: unknown): string {
  if (path instanceof URL) {
    if (path.protocol !== 'file:') throw mustBe('path', path.href, "a path or a 'file:' URL");
    return fileURLToPath(path);
  }
  if (checkString(path, 'path') !== '' && !(path as string).includes('\0')) return path as string;
  throw mustBe('path', path, 'the name of a file');
}

/** The error for a file that is not what it must be, or that the system refuses. */
export const fileError = (path: string, problem: string, cause?: unknown) =>
  new FlashAttnError('ERR_FILE', `${path}: ${problem}`, cause === undefined ? undefined : { cause });

const isSystemError = (error: unknown): error is NodeJS.ErrnoException =>
  error instanceof Error && typeof (error as NodeJS.ErrnoException).syscall === 'string';

/** What to throw on: errors of the system name the file, others stay as they are. */
export const asFileError = (path: string, problem: string, error: unknown): unknown =>
  isSystemError(error) ? fileError(path, `${problem} (${error.message})`, error) : error;

/** For reading. Opening a pipe must not wait for somebody who writes into it: only then can it be refused. */
export const readFlags = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0);

/** The length of what was opened, in bytes. @throws ERR_FILE unless it is a file */
export function checkRegular(path: string, stats: { isFile(): boolean; readonly size: number }): number {
  if (!stats.isFile()) throw fileError(path, 'this is not a file');
  return stats.size;
}
