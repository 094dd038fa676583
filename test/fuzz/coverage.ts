import { type Profiler, Session } from 'node:inspector';

/** The code of a function that has run, a byte for each character: 1 or 0. */
function coveredCode([whole, ...blocks]: readonly Profiler.CoverageRange[]): Uint8Array {
  const covered = new Uint8Array(whole.endOffset - whole.startOffset).fill(1);
  // Blocks follow the ones that they lie in; one that ran as often as those around it is left out.
  for (const { startOffset, endOffset, count } of blocks)
    covered.fill(count > 0 ? 1 : 0, startOffset - whole.startOffset, endOffset - whole.startOffset);
  return covered;
}

/** Adds `more` to `known` and returns how many are new. */
function union(known: Uint8Array, more: Uint8Array): number {
  let fresh = 0;
  for (let at = 0; at < more.length; at++) {
    if (more[at] <= known[at]) continue;
    known[at] = 1;
    fresh++;
  }
  return fresh;
}

/** Which code has run, as V8 tells it block by block: what the fuzzer is guided by. */
export class Coverage {
  readonly #session = new Session();
  readonly #watches: (url: string) => boolean;
  readonly #functions = new Map<string, Uint8Array>();
  #characters = 0;

  /** @param watches which scripts count */
  constructor(watches: (url: string) => boolean) {
    this.#watches = watches;
    this.#session.connect();
    this.#session.post('Profiler.enable');
    this.#session.post('Profiler.startPreciseCoverage', { callCount: true, detailed: true });
  }

  /** Characters of code that have run so far. */
  get characters(): number {
    return this.#characters;
  }

  /** Forgets what has run since the last call of this or the others. */
  skip(): void {
    this.#report();
  }

  /** Whether code has run since the last call that never ran before. */
  hasNew(): boolean {
    let found = false;
    this.#forEachFunction((known, covered) => {
      found ||= covered.some((ran, at) => ran > known[at]);
    });
    return found;
  }

  /** The same, and from now on it is known. */
  takeNew(): boolean {
    const before = this.#characters;
    this.#forEachFunction((known, covered) => {
      this.#characters += union(known, covered);
    });
    return this.#characters > before;
  }

  close(): void {
    this.#session.disconnect();
  }

  #forEachFunction(visit: (known: Uint8Array, covered: Uint8Array) => void): void {
    for (const { url, functions } of this.#report()) {
      if (!this.#watches(url)) continue;
      for (const { ranges } of functions) {
        const [{ startOffset, endOffset, count }] = ranges;
        if (count === 0) continue;
        const name = `${url}:${startOffset}:${endOffset}`;
        const known = this.#functions.get(name) ?? new Uint8Array(endOffset - startOffset);
        this.#functions.set(name, known);
        visit(known, coveredCode(ranges));
      }
    }
  }

  #report(): Profiler.ScriptCoverage[] {
    let report: Profiler.ScriptCoverage[] = [];
    // The answer comes before `post` returns.
    this.#session.post('Profiler.takePreciseCoverage', (error, answer) => {
      if (error) throw error;
      report = answer.result;
    });
    return report;
  }
}
