import type { SamplingOptions, TokenLogprob } from '../sampling.js';

/** What the server asks an engine for. */
export interface ServedRequest {
  readonly prompt: readonly number[];
  readonly maxTokens: number;
  readonly sampling: SamplingOptions;
  readonly stopTokens: readonly number[];
  readonly signal: AbortSignal;
  /** Clients take turns. */
  readonly priority: string;
  readonly logprobs?: number;
}

export interface ServedToken {
  readonly token: number;
  readonly logprob?: number;
  /** The first is the most probable one. */
  readonly top?: readonly TokenLogprob[];
  /** With the last token of a request that was not aborted; one of 'stop' is a stop token. */
  readonly finish?: 'stop' | 'length' | 'abort';
}

/** The tokens of a request as they come; they end after `cancel` and after an abort. */
export type ServedTokens = AsyncIterable<ServedToken, unknown> & {
  cancel(): void;
  /** How many of the prompt's tokens were found stored. */
  readonly cached?: number | undefined;
};

/** What decodes: `Engine`, or anything else that does as it. */
export interface ServedEngine {
  /**
   * @throws ERR_OPTION, ERR_OUT_OF_MEMORY for a request that can never be answered, ERR_BUSY when too many wait,
   *   ERR_DISPOSED
   */
  submit(request: ServedRequest): ServedTokens;
  /** Numbers, also in objects, for /metrics. */
  readonly stats: object;
}

/** Text to numbers and back: any `Tokenizer`. */
export interface ServedTokenizer {
  readonly vocabulary: number;
  /** @param options `special`: whether a beginning of the text is marked, where the model wants it; not in chats. Default true */
  encode(text: string, options?: { readonly special?: boolean }): ArrayLike<number>;
  decode(tokens: ArrayLike<number>): string;
}

/** What is known of a model before it is loaded. */
export interface ServedModel {
  /** By which clients ask for it. */
  readonly name: string;
  /** The longest sequence. */
  readonly context: number;
  /** Tokens that end a text. */
  readonly stopTokens?: readonly number[];
  /** How tokens are chosen where a request does not say. */
  readonly sampling?: SamplingOptions;
}

/** Vectors of texts, one for each prompt. */
export type Embed = (prompts: readonly (readonly number[])[], signal: AbortSignal) => Promise<readonly Float32Array[]>;
