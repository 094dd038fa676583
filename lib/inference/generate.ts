// Text after a prompt, token by token.
import { randomBytes } from 'node:crypto';
import { checkInteger, checkIntegers, checkOptions, mustBe } from '../base/check.js';
import { optionError } from '../base/errors.js';
import { GPT } from '../nn/gpt.js';
import { checkSeed } from '../ops/random.js';
import type { CachedSequence } from './blockPool.js';
import type { DecoderModel } from './decoder.js';
import { GptDecoder } from './gptDecoder.js';
import { uniformAt } from './philox.js';
import { type Distribution, type SamplingOptions, samplingDistribution, tokenAt } from './sampling.js';
import { acceptSampled, lookupTokens, type Proposal } from './speculation.js';

/** Tokens that are proposed without the model, which computes all of them in one step and keeps those that it would take. */
export type Speculation =
  | {
      /** What followed when the last tokens came before. */
      readonly kind: 'lookup';
      /** Proposed at a time. Default 8. */
      readonly tokens?: number;
      /** Of the last tokens, the most that are looked for. Default 3. */
      readonly longest?: number;
    }
  | {
      readonly kind: 'draft';
      /** A smaller model of the same vocabulary. */
      readonly model: DecoderModel | GPT;
      /** Proposed at a time. Default 4. */
      readonly tokens?: number;
    };

export interface GenerateOptions extends SamplingOptions {
  /** Default as many as the model's context has room for. */
  readonly maxTokens?: number;
  /** Tokens that end the text; they are not given out. */
  readonly stop?: readonly number[];
  /** Default none. What is generated is distributed as without. */
  readonly speculation?: Speculation;
  readonly signal?: AbortSignal;
}

/** A decoder, and what is to be freed with the text. */
function decoderOf(
  model: DecoderModel | GPT,
  name: string,
): { readonly decoder: DecoderModel; readonly free: () => void } {
  if (model instanceof GPT) {
    const decoder = new GptDecoder(model);
    return { decoder, free: () => decoder.dispose() };
  }
  if (model === null || typeof model !== 'object' || typeof model.step !== 'function')
    throw mustBe(name, model, 'a GPT or a DecoderModel');
  return { decoder: model, free: () => {} };
}

/** One sequence in one model's cache. */
class Stored {
  readonly #sequence: CachedSequence;

  constructor(
    readonly decoder: DecoderModel,
    prompt: readonly number[],
  ) {
    this.#sequence = decoder.pool.sequence(prompt);
  }

  /** Logits behind the last `count` tokens, once all of `tokens` are stored. */
  async behind(tokens: readonly number[], count: number): Promise<readonly Float32Array[]> {
    const sequence = this.#sequence;
    const fresh = tokens.slice(sequence.length);
    sequence.extend(fresh);
    try {
      const logits = await this.decoder.step([{ sequence, count: fresh.length, logits: count }]);
      sequence.commit();
      return logits;
    } catch (error) {
      sequence.truncate(sequence.length - fresh.length);
      throw error;
    }
  }

  /** Forgets what is behind so many tokens. */
  keep(length: number): void {
    if (this.#sequence.length > length) this.#sequence.truncate(length);
  }

  free(): void {
    this.#sequence.free();
  }
}

type Target = (logits: Float32Array, tokens: readonly number[]) => Distribution;

/** Tokens that may follow, at most `most`. */
type Propose = (tokens: readonly number[], most: number, draw: () => number) => Promise<Proposal>;

interface Proposer {
  readonly propose: Propose;
  readonly keep: (length: number) => void;
  readonly free: () => void;
}

function proposing(given: Speculation | undefined, prompt: readonly number[], target: Target): Proposer {
  const nothing: Proposer = { propose: async () => ({ tokens: [] }), keep: () => {}, free: () => {} };
  if (given === undefined) return nothing;
  if (given.kind === 'lookup') {
    checkOptions(given, ['kind', 'tokens', 'longest'], 'speculation');
    const { tokens: wanted = 8, longest = 3 } = given;
    checkInteger(wanted, 'speculation.tokens', 1);
    checkInteger(longest, 'speculation.longest', 1);
    const propose: Propose = async (tokens, most) => ({
      tokens: lookupTokens(tokens, { count: Math.min(wanted, most), longest }),
    });
    return { ...nothing, propose };
  }
  if (given.kind !== 'draft')
    throw mustBe('speculation.kind', (given as { kind: unknown }).kind, "'lookup' or 'draft'");
  checkOptions(given, ['kind', 'tokens', 'model'], 'speculation');
  const { tokens: wanted = 4 } = given;
  checkInteger(wanted, 'speculation.tokens', 1);
  const { decoder, free } = decoderOf(given.model, 'speculation.model');
  const stored = new Stored(decoder, prompt);
  const propose: Propose = async (tokens, most, draw) => {
    const all = [...tokens];
    const drawnFrom: Distribution[] = [];
    for (let i = 0; i < Math.min(wanted, most, decoder.context - tokens.length); i++) {
      const [logits] = await stored.behind(all, 1);
      const distribution = target(logits as Float32Array, all);
      drawnFrom.push(distribution);
      all.push(tokenAt(distribution, draw()));
    }
    return { tokens: all.slice(tokens.length), drawnFrom };
  };
  const freeAll = () => {
    stored.free();
    free();
  };
  return { propose, keep: (length: number) => stored.keep(length), free: freeAll };
}

/**
 * The tokens that a model says after a prompt, one after the other: greedy by default, or drawn as the options say (see
 * `sampler`). It ends with `maxTokens`, with a token of `stop`, with the model's context, or when the consumer breaks off.
 * With a `seed` the text is the same every time.
 *
 * With `speculation` several tokens are proposed and computed at once, and those that the model would have taken itself stay: a
 * greedy text is the same, token for token; a drawn one is distributed as without (Leviathan et al. 2023).
 *
 * @param model a GPT, with a cache of its own for this text; or a decoder, whose cache is shared with others
 * @param prompt token ids, at least one
 * @throws ERR_OPTION, ERR_OUT_OF_MEMORY where the cache has too few blocks; what the device throws
 */
export async function* generate(
  model: DecoderModel | GPT,
  prompt: ArrayLike<number>,
  options: GenerateOptions = {},
): AsyncGenerator<number, void, undefined> {
  const { maxTokens, stop = [], speculation, signal, ...sampling } = options;
  const greedy = { temperature: 0, ...sampling };
  const { decoder, free } = decoderOf(model, 'model');
  const frees: (() => void)[] = [free];
  try {
    const tokens = [...checkIntegers(prompt as never, 'prompt', 0, decoder.vocabulary - 1)];
    if (tokens.length === 0) throw optionError('prompt is empty; there must be a token to begin with');
    if (tokens.length > decoder.context)
      throw optionError(`prompt has ${tokens.length} tokens; the model's context is ${decoder.context}`);
    const room = decoder.context - tokens.length + 1;
    const most = Math.min(room, maxTokens === undefined ? room : checkInteger(maxTokens, 'maxTokens', 0));
    const ends = new Set(checkIntegers(stop as never, 'stop', 0));
    const target: Target = samplingDistribution(greedy, tokens.length);
    const seed = checkSeed(greedy.seed ?? randomBytes(8).readBigUInt64LE(), 'seed');
    const stored = new Stored(decoder, tokens);
    frees.push(() => stored.free());
    const proposer = proposing(speculation, tokens, target);
    frees.push(proposer.free);

    for (let given = 0; given < most; ) {
      signal?.throwIfAborted();
      // As many numbers as it takes, none of them twice: the first is that of `sampler`.
      const position = tokens.length;
      let drawn = 0;
      const draw = () => uniformAt(seed, position, drawn++);
      // The model's own token comes besides what is proposed, and the context has to hold all.
      const proposal = await proposer.propose(tokens, Math.min(most - given, decoder.context - position + 1) - 1, draw);
      const proposed = [...tokens, ...proposal.tokens];
      const logits = await stored.behind(proposed, proposal.tokens.length + 1);
      const { nodes, token } = acceptSampled(
        proposal,
        (node) => target(logits[node + 1] as Float32Array, proposed.slice(0, tokens.length + node + 1)),
        draw,
      );
      const accepted = [...nodes.map((node) => proposal.tokens[node] as number), token];
      // The last of them is computed with the next step.
      const known = tokens.length + nodes.length;
      stored.keep(known);
      proposer.keep(known);
      for (const next of accepted) {
        if (ends.has(next)) return;
        tokens.push(next);
        given++;
        yield next;
      }
    }
  } finally {
    for (const each of frees.reverse()) each();
  }
}
