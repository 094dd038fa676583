import { readdirSync, readFileSync, utimesSync, writeFileSync } from 'node:fs';
import * as promises from 'node:fs/promises';
import { basename } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type FileSystem, type OpenFile, replaceFile } from '../../lib/nn/atomicFile.js';
import { writeSafetensorsOn } from '../../lib/nn/safetensors.js';
import { runNode } from '../support/child.js';
import { failureOf } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';
import { contentsOf, readContents } from './entries.js';

const at = temporaryFolder();

const broken = (call: string) =>
  Object.assign(new Error(`EIO: i/o error, ${call}`), { code: 'EIO', errno: -5, syscall: call });

/** The real file system, but for its call number `failing`, and for writes that take no more than `most` bytes at once. */
class FailingSystem implements FileSystem {
  calls: string[] = [];

  constructor(
    readonly failing: number,
    readonly most = Number.POSITIVE_INFINITY,
  ) {}

  async open(path: string, flags: string, mode?: number): Promise<OpenFile> {
    this.#count('open');
    const file = await promises.open(path, flags, mode);
    return {
      write: async (bytes, offset, length, position) => {
        const failing = this.calls.length === this.failing;
        // A full disk takes a part of it first.
        const some = failing ? Math.min(1, length) : Math.min(length, this.most);
        const written = await file.write(bytes, offset, some, position);
        this.#count('write');
        return written;
      },
      sync: async () => {
        this.#count('fsync');
        await file.sync();
      },
      close: async () => {
        await file.close();
        this.#count('close');
      },
    };
  }

  async rename(from: string, to: string): Promise<void> {
    this.#count('rename');
    await promises.rename(from, to);
  }

  async unlink(path: string): Promise<void> {
    await promises.unlink(path);
  }

  #count(call: string): void {
    if (this.calls.push(call) - 1 === this.failing) throw broken(call);
  }
}

const entries = (value: number) =>
  ['a', 'b', 'c'].map((name) => ({
    name,
    dtype: 'F32' as const,
    shape: [5],
    data: new Uint8Array(new Float32Array(5).fill(value).buffer),
  }));

describe('writing a file', () => {
  it('leaves the old or the new one whole, and nothing else, whichever call of the system fails', async () => {
    const path = at('failing.safetensors');
    const [old, made] = [contentsOf(entries(1)), contentsOf(entries(2))];
    const failed: string[] = [];
    for (let failing = 0; ; failing++) {
      await writeSafetensorsOn(undefined, path, entries(1), { checksums: true });
      const system = new FailingSystem(failing);
      const writing = writeSafetensorsOn(system, path, entries(2), { checksums: true });
      if (failing >= 12) {
        await writing;
        expect(system.calls).toHaveLength(12);
        expect(await readContents(path)).toEqual(made);
        break;
      }
      const failure = await failureOf(writing);
      const call = system.calls[failing];
      failed.push(call);
      expect(failure).toMatchObject({ code: 'ERR_FILE', cause: { syscall: call } });
      expect(failure.message).toBe(`${path}: cannot be written (EIO: i/o error, ${call})`);
      const renamed = system.calls.indexOf('rename') >= 0 && call !== 'rename';
      expect(await readContents(path)).toEqual(renamed ? made : old);
      expect(readdirSync(at('.'))).toEqual([basename(path)]);
    }
    // The file, then its folder.
    const writes = ['write', 'write', 'write', 'write', 'write'];
    expect(failed).toEqual(['open', ...writes, 'fsync', 'close', 'rename', 'open', 'fsync', 'close']);
  });

  it('goes on where a write took only a part', async () => {
    const path = at('parts.safetensors');
    await writeSafetensorsOn(new FailingSystem(-1, 7), path, entries(3), { checksums: true });
    expect(await readContents(path)).toEqual(contentsOf(entries(3)));
  });

  it('ends when nothing is taken at all', async () => {
    const path = at('nothing.safetensors');
    const failure = await failureOf(writeSafetensorsOn(new FailingSystem(-1, 0), path, entries(3), {}));
    expect(failure).toMatchObject({
      code: 'ERR_FILE',
      message: `${path}: cannot be written (nothing is taken at byte 0)`,
    });
    expect(readdirSync(at('.'))).not.toContain(basename(path));
  });

  it('lets two writers at once each replace the whole', async () => {
    const path = at('both.safetensors');
    await Promise.all([4, 5, 6, 7].map((value) => writeSafetensorsOn(undefined, path, entries(value), {})));
    expect([4, 5, 6, 7].map((value) => contentsOf(entries(value)))).toContainEqual(await readContents(path));
    expect(readdirSync(at('.')).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });

  it('removes what killed processes have left of this file alone', async () => {
    const path = at('left.bin');
    let temporary = '';
    await replaceFile(path, async () => {
      temporary = readdirSync(at('.')).find((name) => name.includes('left.bin.')) ?? '';
    });
    const [, host] = temporary.match(/^\.left\.bin\.([0-9a-f]{8})-\d+-\d+-\d+\.tmp$/) ?? [];
    const { stdout } = await runNode(['--eval', 'console.log(process.pid)']);
    const dead = stdout.trim();
    const leave = (name: string) => {
      writeFileSync(at(name), '');
      return name;
    };
    const gone = [leave(`.left.bin.${host}-${dead}-0-0.tmp`), leave(`.left.bin.${host}-${process.pid}-0-999.tmp`)];
    utimesSync(at(gone[1]), 1, 1); // of a process that had this number before
    const kept = [
      leave(`.left.bin.${host}-${process.pid}-0-998.tmp`),
      leave(`.left.bin.${host}-${process.ppid}-0-0.tmp`),
      leave(`.left.bin.00000000-${dead}-0-0.tmp`),
      leave(`.left.bin2.${host}-${dead}-0-0.tmp`),
      leave(`.left.bin.${host}-${dead}.tmp`),
    ];
    await replaceFile(path, (write) => write(Buffer.from('new'), 0));
    const names = readdirSync(at('.'));
    for (const name of gone) expect(names).not.toContain(name);
    for (const name of kept) expect(names).toContain(name);
    expect(readFileSync(path, 'utf8')).toBe('new');
  });
});
