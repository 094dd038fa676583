import type { EngineStream, EngineToken, FinishReason } from './request.js';

type Result = IteratorResult<EngineToken, undefined>;

interface Reader {
  readonly resolve: (result: Result) => void;
  readonly reject: (error: unknown) => void;
}

/** Tokens from a writer that never waits to a reader that does. */
export class TokenStream implements EngineStream, AsyncIterableIterator<EngineToken, undefined> {
  readonly #abort: () => void;
  #tokens: EngineToken[] = [];
  #read = 0;
  readonly #readers: Reader[] = [];
  #isOver = false;
  #finish: FinishReason | undefined;
  #failure: { readonly error: unknown } | undefined;
  cached: number | undefined;

  /** @param abort what ends the request; it calls `end` */
  constructor(abort: () => void) {
    this.#abort = abort;
  }

  get finish(): FinishReason | undefined {
    return this.#finish;
  }

  cancel(): void {
    this.#abort();
  }

  push(token: EngineToken): void {
    const reader = this.#readers.shift();
    if (reader) reader.resolve({ value: token, done: false });
    else this.#tokens.push(token);
  }

  /** What has been pushed can still be read; then the stream ends, or throws. */
  end(how: FinishReason | { readonly error: unknown }): void {
    this.#isOver = true;
    if (typeof how === 'string') this.#finish = how;
    else {
      const reader = this.#readers.shift();
      if (reader) reader.reject(how.error);
      else this.#failure = how;
    }
    for (const reader of this.#readers.splice(0)) reader.resolve({ value: undefined, done: true });
  }

  #forget(): void {
    this.#tokens = [];
    this.#read = 0;
  }

  async next(): Promise<Result> {
    if (this.#read < this.#tokens.length) {
      const value = this.#tokens[this.#read++];
      if (this.#read === this.#tokens.length) this.#forget();
      return { value, done: false };
    }
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure) throw failure.error;
    if (this.#isOver) return { value: undefined, done: true };
    return new Promise((resolve, reject) => this.#readers.push({ resolve, reject }));
  }

  async return(): Promise<Result> {
    this.#forget();
    this.#failure = undefined;
    this.cancel();
    return { value: undefined, done: true };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
