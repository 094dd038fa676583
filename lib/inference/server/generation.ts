import type { TokenLogprob } from '../sampling.js';
import { IncrementalText, StopStrings } from '../text.js';
import { endings } from './apiError.js';
import type { Prompt } from './requests.js';
import type { ServedToken, ServedTokenizer, ServedTokens } from './served.js';

/** A token whose text has begun to be given out. */
export interface TextToken {
  readonly token: number;
  /** Where its text begins in that of the answer. */
  readonly offset: number;
  readonly logprob: number | undefined;
  readonly top: readonly TokenLogprob[];
}

/** Text that is certain, with its tokens. */
export interface Piece {
  readonly text: string;
  readonly tokens: readonly TextToken[];
  /** With the last piece. */
  readonly finish?: 'stop' | 'length';
}

/** What has been computed for a request. */
export interface Usage {
  prompt: number;
  cached: number;
  generated: number;
}

export interface Generating {
  readonly tokenizer: ServedTokenizer;
  readonly stop: readonly string[];
  readonly signal: AbortSignal;
  readonly usage: Usage;
  /** Told of each token as it comes. */
  readonly onToken: () => void;
}

/** The next token, or the reason of the abort: an engine that is stuck keeps no request. */
function next(iterator: AsyncIterator<ServedToken, unknown>, signal: AbortSignal) {
  return new Promise<IteratorResult<ServedToken, unknown>>((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort, { once: true });
    iterator
      .next()
      .then(resolve, reject)
      .finally(() => signal.removeEventListener('abort', abort));
  });
}

/**
 * The answer to a prompt, piece by piece. Whoever stops reading early cancels it.
 *
 * @throws the reason of the signal, and what the engine throws
 */
export async function* piecesOf(
  stream: ServedTokens,
  { tokens: prompt }: Prompt,
  { tokenizer, stop, signal, usage, onToken }: Generating,
): AsyncGenerator<Piece, void> {
  const iterator = stream[Symbol.asyncIterator]();
  const text = new IncrementalText((tokens) => tokenizer.decode(tokens), prompt);
  const stops = new StopStrings(stop);
  let [decoded, given] = [0, 0];
  let waiting: TextToken[] = [];
  /** Tokens whose text begins before `end`. */
  const take = (end: number): readonly TextToken[] => {
    const taken = waiting.filter(({ offset }) => offset < end);
    waiting = waiting.filter(({ offset }) => offset >= end);
    return taken;
  };
  try {
    for (;;) {
      const { done, value } = await next(iterator, signal);
      if (done) throw signal.aborted ? signal.reason : endings.aborted();
      usage.generated++;
      onToken();
      const { token, logprob, top = [], finish } = value;
      if (finish === 'abort') throw signal.aborted ? signal.reason : endings.aborted();
      const isStop = finish === 'stop';
      if (!isStop) waiting.push({ token, offset: decoded, logprob, top });
      const added = (isStop ? '' : text.push(token)) + (finish ? text.end() : '');
      decoded += added.length;
      let certain = stops.push(added);
      const isOver = finish !== undefined || stops.stopped;
      if (finish && !stops.stopped) certain += stops.end();
      given += certain.length;
      const all = isOver && !stops.stopped ? Number.POSITIVE_INFINITY : given;
      if (isOver) {
        yield { text: certain, tokens: take(all), finish: isStop || stops.stopped ? 'stop' : 'length' };
        return;
      }
      if (certain !== '') yield { text: certain, tokens: take(given) };
    }
  } finally {
    usage.cached += stream.cached ?? 0;
    stream.cancel();
  }
}
