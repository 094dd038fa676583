// What OpenAI's API gives for pieces of text. https://platform.openai.com/docs/api-reference
import type { Piece, TextToken, Usage } from './generation.js';
import type { ServedTokenizer } from './served.js';

/** An answer of one kind, whole or in chunks. */
export interface AnswerFormat {
  /** Before the first chunk of a choice; undefined: nothing. */
  readonly opening: (index: number) => object | undefined;
  readonly chunks: (index: number, piece: Piece) => readonly object[];
  readonly whole: (index: number, pieces: readonly Piece[]) => object;
  readonly object: string;
  readonly chunkObject: string;
}

export interface AnswerOptions {
  readonly tokenizer: ServedTokenizer;
  /** Whether tokens come with the logarithms of their probabilities. */
  readonly logprobs: boolean;
}

const textsOf = (pieces: readonly Piece[]) => pieces.map(({ text }) => text).join('');
const tokensOf = (pieces: readonly Piece[]) => pieces.flatMap(({ tokens }) => tokens);
const finishOf = (pieces: readonly Piece[]) => pieces.at(-1)?.finish ?? null;

/** Of a token that is no character alone some character, and its bytes. */
const described = (tokenizer: ServedTokenizer, token: number) => {
  const text = tokenizer.decode([token]);
  return { token: text, bytes: text.includes('\uFFFD') ? null : [...new TextEncoder().encode(text)] };
};

/** What JSON has no word for is a very small number, as OpenAI's API has it. */
const finite = (logprob: number | undefined) => Math.max(logprob ?? 0, -9999);

export function completionFormat({ tokenizer, logprobs }: AnswerOptions): AnswerFormat {
  const logprobsOf = (tokens: readonly TextToken[]) =>
    logprobs
      ? {
          tokens: tokens.map(({ token }) => tokenizer.decode([token])),
          token_logprobs: tokens.map(({ logprob }) => finite(logprob)),
          top_logprobs: tokens.map(({ top }) =>
            Object.fromEntries(top.map((each) => [tokenizer.decode([each.token]), finite(each.logprob)])),
          ),
          text_offset: tokens.map(({ offset }) => offset),
        }
      : null;
  const choice = (index: number, pieces: readonly Piece[]) => ({
    index,
    text: textsOf(pieces),
    logprobs: logprobsOf(tokensOf(pieces)),
    finish_reason: finishOf(pieces),
  });
  return {
    object: 'text_completion',
    chunkObject: 'text_completion',
    opening: () => undefined,
    chunks: (index, piece) => [choice(index, [piece])],
    whole: choice,
  };
}

export function chatFormat({ tokenizer, logprobs }: AnswerOptions): AnswerFormat {
  const logprobsOf = (tokens: readonly TextToken[]) =>
    logprobs
      ? {
          content: tokens.map(({ token, logprob, top }) => ({
            ...described(tokenizer, token),
            logprob: finite(logprob),
            top_logprobs: top.map((each) => ({ ...described(tokenizer, each.token), logprob: finite(each.logprob) })),
          })),
          refusal: null,
        }
      : null;
  const chunk = (index: number, delta: object, piece?: Piece) => ({
    index,
    delta,
    logprobs: piece && piece.tokens.length > 0 ? logprobsOf(piece.tokens) : null,
    finish_reason: null as string | null,
  });
  return {
    object: 'chat.completion',
    chunkObject: 'chat.completion.chunk',
    opening: (index) => chunk(index, { role: 'assistant', content: '' }),
    chunks: (index, piece) => [
      ...(piece.text !== '' || piece.tokens.length > 0 ? [chunk(index, { content: piece.text }, piece)] : []),
      ...(piece.finish ? [{ ...chunk(index, {}), finish_reason: piece.finish }] : []),
    ],
    whole: (index, pieces) => ({
      index,
      message: { role: 'assistant', content: textsOf(pieces), refusal: null },
      logprobs: logprobsOf(tokensOf(pieces)),
      finish_reason: finishOf(pieces),
    }),
  };
}

export const usageOf = ({ prompt, cached, generated }: Usage) => ({
  prompt_tokens: prompt,
  completion_tokens: generated,
  total_tokens: prompt + generated,
  prompt_tokens_details: { cached_tokens: cached },
});

/** Vectors as numbers, or as the bytes of float32, little-endian. */
export const embeddingOf = (vector: Float32Array, index: number, format: 'float' | 'base64') => {
  if (format === 'float') return { object: 'embedding', index, embedding: Array.from(vector) };
  const bytes = Buffer.alloc(vector.length * 4);
  vector.forEach((value, at) => {
    bytes.writeFloatLE(value, at * 4);
  });
  return { object: 'embedding', index, embedding: bytes.toString('base64') };
};
