import { closeSync, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import { checkObject, mustBe } from '../base/check.js';
import { show } from '../base/errors.js';
import { asFileError, checkPath, checkRegular, type FilePath, fileError } from './file.js';

/** What is known of a step, such as { step: 10, train: 3.2, tokensPerSecond: 1500 }. */
export type Metrics = Readonly<Record<string, number | string | boolean | null>>;

const newline = 10;

/** A line as JSON; NaN and infinities, which JSON has no numbers for, as the strings 'NaN', 'Infinity' and '-Infinity'. */
function lineOf(metrics: Metrics): string {
  checkObject(metrics, 'metrics');
  const values = Object.entries(metrics).map(([name, value]) => {
    if (value !== null && !['number', 'string', 'boolean'].includes(typeof value))
      throw mustBe(`metrics[${show(name)}]`, value, 'a number, a string, true, false or null');
    return [name, typeof value === 'number' && !Number.isFinite(value) ? String(value) : value] as const;
  });
  return JSON.stringify(Object.fromEntries(values));
}

/**
 * Appends to a file of JSON lines. A line is handed to the system before `write` returns, so that no end of this program
 * takes it away again; only a loss of power may. What was there before stays, and a line that is cut off at its end stays
 * alone. Close it, or use `using`.
 */
export class MetricsWriter implements Disposable {
  readonly path: string;
  readonly #file: number;
  /** Whether the file ends within a line. */
  #torn: boolean;
  #closed = false;

  /** @throws ERR_FILE when the file cannot be opened or made; ERR_OPTION */
  constructor(path: FilePath) {
    this.path = checkPath(path);
    this.#file = this.#try('cannot be opened', () => openSync(this.path, 'a+'));
    try {
      const size = checkRegular(this.path, fstatSync(this.#file));
      const last = Uint8Array.of(newline);
      if (size > 0) this.#try('cannot be read', () => readSync(this.#file, last, 0, 1, size - 1));
      this.#torn = last[0] !== newline;
    } catch (error) {
      closeSync(this.#file);
      throw error;
    }
  }

  /** @throws ERR_FILE, ERR_OPTION */
  write(metrics: Metrics): void {
    if (this.#closed) throw fileError(this.path, 'has been closed');
    const bytes = new TextEncoder().encode(`${this.#torn ? '\n' : ''}${lineOf(metrics)}\n`);
    this.#torn = true;
    this.#try('cannot be written', () => {
      for (let done = 0; done < bytes.length; ) done += writeSync(this.#file, bytes, done);
    });
    this.#torn = false;
  }

  /** Closing twice is harmless. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeSync(this.#file);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #try<T>(problem: string, call: () => T): T {
    try {
      return call();
    } catch (error) {
      throw asFileError(this.path, problem, error);
    }
  }
}
