/**
 * Files that are replaced whole or not at all: what is written goes to a temporary file beside the old one, reaches the
 * disk, and takes the old one's name. Whenever a program ends, also by SIGKILL or a loss of power, the name stands for
 * the old bytes or for the new ones.
 */
import { createHash } from 'node:crypto';
import * as promises from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { threadId } from 'node:worker_threads';
import { asFileError, fileError } from './file.js';

/** What is used of an open file. */
export interface OpenFile {
  write(bytes: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesWritten: number }>;
  sync(): Promise<void>;
  close(): Promise<void>;
}

/** What is used of the system: node:fs/promises, or in tests something that fails. */
export interface FileSystem {
  open(path: string, flags: string, mode?: number): Promise<OpenFile>;
  rename(from: string, to: string): Promise<void>;
  unlink(path: string): Promise<void>;
}

/** Writes bytes at a place of the new file. */
export type WriteAt = (bytes: Uint8Array, position: number) => Promise<void>;

/** Where a link leads, since it is the file that is replaced and not the link. A path that leads nowhere is itself. */
const resolve = (path: string) => promises.realpath(path).catch(() => path);

async function permissionsOf(path: string): Promise<number> {
  const old = await promises.stat(path).catch(() => undefined);
  if (old && !old.isFile()) throw fileError(path, 'this is not a file and cannot be replaced by one');
  return old ? old.mode & 0o777 : 0o666;
}

// Names say who writes, so that what a killed process left can be told from what another one is writing.
const host = createHash('sha256').update(hostname()).digest('hex').slice(0, 8);
let files = 0;

/** Of the name no more than leaves room within the 255 bytes that a name may have. */
const temporaryPrefix = (path: string) => `.${basename(path).slice(0, 64)}.${host}-`;
const temporaryName = (path: string) => `${temporaryPrefix(path)}${process.pid}-${threadId}-${files++}.tmp`;

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}

/** Whether the process that made a temporary file has ended. In containers the next one often has the same number. */
async function isAbandoned(temporary: string, pid: number): Promise<boolean> {
  if (pid !== process.pid) return !isAlive(pid);
  const { mtimeMs } = await promises.stat(temporary);
  return mtimeMs < Date.now() - process.uptime() * 1000 - 1000;
}

/** Removes what killed processes of this machine left of this file. It is nobody's loss if that does not work. */
async function removeAbandoned(path: string): Promise<void> {
  const [folder, prefix] = [dirname(path), temporaryPrefix(path)];
  for (const name of await promises.readdir(folder).catch(() => [])) {
    const pid = name.startsWith(prefix) ? name.slice(prefix.length).match(/^(\d+)-\d+-\d+\.tmp$/)?.[1] : undefined;
    if (pid === undefined) continue;
    const temporary = join(folder, name);
    if (await isAbandoned(temporary, Number(pid)).catch(() => false)) await promises.unlink(temporary).catch(() => {});
  }
}

/** A write may take less than it was given. */
async function writeAll(path: string, file: OpenFile, bytes: Uint8Array, position: number): Promise<void> {
  const most = 2 ** 30; // the system takes less than 2^31 bytes at once
  for (let done = 0; done < bytes.byteLength; ) {
    const length = Math.min(most, bytes.byteLength - done);
    const { bytesWritten } = await file.write(bytes, done, length, position + done);
    if (bytesWritten === 0) throw fileError(path, `cannot be written (nothing is taken at byte ${position + done})`);
    done += bytesWritten;
  }
}

/** A name is on disk when its folder is. Windows does that by itself and opens no folders. */
async function syncFolder(folder: string, system: FileSystem): Promise<void> {
  if (process.platform === 'win32') return;
  const opened = await system.open(folder, 'r');
  await closing(opened, () => opened.sync());
}

/** Closes a file after `use`, whose error counts for more than one of closing. */
async function closing(file: OpenFile, use: () => Promise<void>): Promise<void> {
  try {
    await use();
  } catch (error) {
    await file.close().catch(() => {});
    throw error;
  }
  await file.close();
}

/**
 * Replaces a file by what `produce` writes. When it throws, or the system fails, the file is as it was and nothing else is
 * left; only after an error of the last step, which brings the folder to the disk, is it the new one already. Permissions
 * of the old file are kept, and links lead to the new one.
 *
 * @throws ERR_FILE, and what `produce` throws
 */
export async function replaceFile(
  path: string,
  produce: (write: WriteAt) => Promise<void>,
  system: FileSystem = promises,
): Promise<void> {
  const target = await resolve(path);
  const mode = await permissionsOf(target);
  await removeAbandoned(target);
  const temporary = join(dirname(target), temporaryName(target));
  try {
    const file = await system.open(temporary, 'wx', mode);
    try {
      await closing(file, async () => {
        await produce((bytes, position) => writeAll(path, file, bytes, position));
        await file.sync();
      });
      await system.rename(temporary, target);
    } catch (error) {
      await system.unlink(temporary).catch(() => {});
      throw error;
    }
    await syncFolder(dirname(target), system);
  } catch (error) {
    throw asFileError(path, 'cannot be written', error);
  }
}
