import type { Salt } from './blockPool.js';
import type { SamplingOptions, TokenLogprob } from './sampling.js';

/** Why a request ended: at a stop token, after `maxTokens`, or by `cancel`, its signal, its deadline or `close`. */
export type FinishReason = 'stop' | 'length' | 'abort';

export interface EngineRequest {
  /** Token ids, one at least. */
  readonly prompt: ArrayLike<number>;
  /** The most tokens that are generated. */
  readonly maxTokens: number;
  readonly sampling?: SamplingOptions;
  /** Tokens after which nothing is generated; the one that comes is given too. */
  readonly stopTokens?: readonly number[];
  readonly signal?: AbortSignal;
  /** Whose request it is: keys take turns. Default ''. */
  readonly priority?: string;
  /** When it is aborted: milliseconds since 1970, as of `Date.now()`. */
  readonly deadline?: number;
  /** With each token the logarithm of its probability as the model gave it, and so many of the most probable ones. */
  readonly logprobs?: number;
  /** Prefixes are shared with requests of the same salt (or of none) only. */
  readonly salt?: Salt;
}

export interface EngineToken {
  readonly token: number;
  readonly logprob?: number;
  /** The first is the most probable one. */
  readonly top?: readonly TokenLogprob[];
  /** With the last token, unless the request was aborted: no token tells of that. */
  readonly finish?: FinishReason;
}

/** The tokens of a request as they come, for one reader. One that stops reading early cancels it. */
export interface EngineStream extends AsyncIterable<EngineToken, undefined> {
  /** Ends the request; what has been generated can still be read. */
  cancel(): void;
  /** Why it ended; undefined until then, and where it ended by an error. */
  readonly finish: FinishReason | undefined;
  /** How many of the prompt's tokens were found stored; undefined until it is admitted. */
  readonly cached: number | undefined;
}
