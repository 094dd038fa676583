/** An engine without a model: what comes after a text is a function of it, and every request is counted. */
import { setImmediate as turn } from 'node:timers/promises';
import { FlashAttnError } from '../../../lib/index.js';
import { logprobs, type TokenLogprob } from '../../../lib/inference/sampling.js';
import type { ServedEngine, ServedRequest, ServedToken, ServedTokens } from '../../../lib/inference/server/served.js';

/** Tokens are bytes; 256 ends a text. */
const vocabulary = 257;
export const endToken = 256;
export const context = 512;

export const tokenizer = {
  vocabulary,
  encode: (text: string) => Int32Array.from(new TextEncoder().encode(text)),
  decode: (tokens: ArrayLike<number>) =>
    new TextDecoder('utf-8', { ignoreBOM: true }).decode(
      Uint8Array.from(Array.from(tokens).filter((token) => token < 256)),
    ),
};

export interface FakeOptions {
  /** The whole answer to a prompt. Default its text backwards, again and again. */
  readonly answer?: (prompt: string) => string;
  /** Awaited before each token. */
  readonly pace?: () => Promise<unknown>;
  readonly mostWaiting?: number;
  /** Thrown after so many tokens of a request. */
  readonly failure?: { readonly after: number; readonly error: unknown };
}

export const backwards = (text: string) => [...text].reverse().join('');

export class FakeEngine implements ServedEngine {
  running = 0;
  submitted = 0;
  aborted = 0;
  completed = 0;
  generated = 0;
  readonly requests: ServedRequest[] = [];
  readonly #options: FakeOptions;

  constructor(options: FakeOptions = {}) {
    this.#options = options;
  }

  get stats() {
    const { running, submitted, generated } = this;
    return { running, queued: 0, pool: { blocksUsed: 3, hits: submitted, name: 'none' }, generated };
  }

  submit(request: ServedRequest): ServedTokens {
    const { mostWaiting = Number.POSITIVE_INFINITY } = this.#options;
    if (this.running >= mostWaiting)
      throw new FlashAttnError('ERR_BUSY', `${this.running} requests are waiting, as many as may`);
    this.submitted++;
    this.running++;
    this.requests.push(request);
    if (this.requests.length > 8) this.requests.shift();
    let isOver = false;
    const finish = (how: 'aborted' | 'completed') => {
      if (isOver) return;
      isOver = true;
      this.running--;
      this[how]++;
    };
    const abort = () => finish('aborted');
    request.signal.addEventListener('abort', abort, { once: true });
    const tokens = this.#generate(
      request,
      () => isOver,
      () => finish('completed'),
    );
    return {
      cached: 1,
      cancel: () => {
        request.signal.removeEventListener('abort', abort);
        finish('aborted');
      },
      [Symbol.asyncIterator]: () => tokens,
    };
  }

  async *#generate(
    request: ServedRequest,
    isOver: () => boolean,
    complete: () => void,
  ): AsyncGenerator<ServedToken, undefined> {
    const { answer, pace = turn, failure } = this.#options;
    const prompt = tokenizer.decode(request.prompt);
    const bytes = tokenizer.encode(
      answer?.(prompt) ?? backwards(prompt).repeat(Math.ceil(request.maxTokens / prompt.length)),
    );
    for (let at = 0; at < request.maxTokens; at++) {
      await pace();
      if (isOver()) return undefined;
      if (failure && at === failure.after) {
        complete();
        throw failure.error;
      }
      const token = bytes[at] ?? endToken;
      const isStop = request.stopTokens.includes(token);
      const finish = isStop ? 'stop' : at === request.maxTokens - 1 ? 'length' : undefined;
      this.generated++;
      if (finish) complete();
      yield { token, ...this.#logprobs(token, request.logprobs), ...(finish && { finish }) };
      if (finish) return undefined;
    }
    return undefined;
  }

  #logprobs(token: number, top: number | undefined): { logprob?: number; top?: readonly TokenLogprob[] } {
    if (top === undefined) return {};
    return logprobs(
      Float32Array.from({ length: vocabulary }, (_, each) => (each === token ? 3 : -each / 100)),
      token,
      top,
    );
  }
}
