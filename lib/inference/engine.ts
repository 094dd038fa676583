import { checkInteger, checkIntegers, checkNumber, checkOptions, checkString, mustBe } from '../base/check.js';
import { FlashAttnError, optionError } from '../base/errors.js';
import type { BlockPoolStats, Salt } from './blockPool.js';
import type { DecoderModel, StepEntry } from './decoder.js';
import type { EngineRequest, EngineStream, FinishReason } from './request.js';
import { logprobs, type Sampler, sampler } from './sampling.js';
import { type Job, Scheduler } from './scheduler.js';
import { TokenStream } from './tokenStream.js';

export interface EngineOptions {
  readonly model: DecoderModel;
  /** The most tokens of one step. Default 512. */
  readonly tokenBudget?: number;
  /** The most requests that run at once, up to `tokenBudget`. Default 256, or `tokenBudget` if that is less. */
  readonly maxSequences?: number;
  /** The most requests that wait besides as many as run at once. Default 1,024. */
  readonly maxQueue?: number;
}

/** What the engine does now, and counts of what it has done. */
export interface EngineStats {
  readonly running: number;
  readonly queued: number;
  readonly steps: number;
  /** Positions that steps have computed, of prompts and of tokens that were generated. */
  readonly computedTokens: number;
  readonly generatedTokens: number;
  /** How often a request had to give its blocks back and was computed again. */
  readonly preemptions: number;
  readonly finished: Readonly<Record<FinishReason | 'error', number>>;
  readonly pool: BlockPoolStats;
}

class Request implements Job {
  readonly key: string;
  readonly salt: Salt | undefined;
  readonly tokens: number[];
  sequence: Job['sequence'];
  readonly sample: Sampler;
  readonly stopTokens: ReadonlySet<number>;
  readonly logprobs: number | undefined;
  /** How many tokens there are at most, with the prompt. */
  readonly most: number;
  readonly stream: TokenStream;
  /** They let go of the signal and the deadline. */
  readonly watches: (() => void)[] = [];
  isOver = false;

  constructor(request: EngineRequest, prompt: readonly number[], cancel: (request: Request) => void) {
    this.key = request.priority ?? '';
    this.salt = request.salt;
    this.tokens = [...prompt];
    this.most = prompt.length + request.maxTokens;
    this.sample = sampler(request.sampling ?? {}, prompt.length);
    this.stopTokens = new Set(request.stopTokens);
    this.logprobs = request.logprobs;
    this.stream = new TokenStream(() => cancel(this));
  }
}

/** Timers count in 31 bits of milliseconds. */
const longestTimer = 2 ** 31 - 1;

/** Lets everything else that is due have its turn. */
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

/**
 * Decodes many requests at once with one model: in each step all that run, a token each, and pieces of the prompts of those
 * that were admitted last (see `Scheduler`). What a request gets does not depend on what else is running, as far as the
 * model's logits do not.
 */
export class Engine {
  readonly #model: DecoderModel;
  /** How many requests may run and wait together. */
  readonly #most: number;
  readonly #scheduler: Scheduler<Request>;
  readonly #living = new Set<Request>();
  /** What the step under way computes. */
  #stepping: ReadonlyMap<Request, StepEntry> = new Map();
  #loop: Promise<void> | undefined;
  #isClosed = false;
  #steps = 0;
  #computedTokens = 0;
  #generatedTokens = 0;
  readonly #finished = { stop: 0, length: 0, abort: 0, error: 0 };

  /** @throws ERR_OPTION */
  constructor(options: EngineOptions) {
    checkOptions(options, ['model', 'tokenBudget', 'maxSequences', 'maxQueue']);
    const { model } = options;
    const tokenBudget = checkInteger(options.tokenBudget ?? 512, 'tokenBudget', 1);
    const maxSequences = checkInteger(options.maxSequences ?? Math.min(256, tokenBudget), 'maxSequences', 1);
    if (maxSequences > tokenBudget)
      throw mustBe('maxSequences', maxSequences, `at most tokenBudget, ${tokenBudget}: each takes a token of a step`);
    this.#most = maxSequences + checkInteger(options.maxQueue ?? 1024, 'maxQueue', 0);
    this.#model = model;
    this.#scheduler = new Scheduler({ pool: model.pool, tokenBudget, maxSequences });
  }

  get stats(): EngineStats {
    return {
      running: this.#scheduler.running,
      queued: this.#scheduler.waiting,
      steps: this.#steps,
      computedTokens: this.#computedTokens,
      generatedTokens: this.#generatedTokens,
      preemptions: this.#scheduler.preemptions,
      finished: { ...this.#finished },
      pool: this.#model.pool.stats,
    };
  }

  /**
   * Queues a request. It begins whether it is read or not.
   *
   * @throws ERR_OPTION, also for more tokens than the model's context has; ERR_OUT_OF_MEMORY for more than the pool could
   *   ever hold; ERR_BUSY when as many run and wait as may; ERR_DISPOSED after `close`
   */
  submit(request: EngineRequest): EngineStream {
    if (this.#isClosed) throw new FlashAttnError('ERR_DISPOSED', 'the engine has been closed');
    const prompt = this.#check(request);
    if (this.#living.size >= this.#most)
      throw new FlashAttnError('ERR_BUSY', `${this.#living.size} requests are running or waiting, as many as may`);
    const job = new Request(request, prompt, (cancelled) => this.#finish(cancelled, 'abort'));
    this.#living.add(job);
    this.#watch(job, request);
    if (!job.isOver) {
      this.#scheduler.add(job);
      this.#loop ??= this.#run();
    }
    return job.stream;
  }

  #check(request: EngineRequest): readonly number[] {
    checkOptions(request, [
      'prompt',
      'maxTokens',
      'sampling',
      'stopTokens',
      'signal',
      'priority',
      'deadline',
      'logprobs',
      'salt',
    ]);
    const { vocabulary, context, pool } = this.#model;
    const prompt = checkIntegers(request.prompt, 'prompt', 0, vocabulary - 1);
    if (prompt.length === 0) throw optionError('prompt has no tokens; it must have one at least');
    const maxTokens = checkInteger(request.maxTokens, 'maxTokens', 1);
    if (request.stopTokens !== undefined) checkIntegers(request.stopTokens, 'stopTokens', 0);
    if (request.logprobs !== undefined) checkInteger(request.logprobs, 'logprobs', 0, vocabulary);
    if (request.priority !== undefined) checkString(request.priority, 'priority');
    if (request.deadline !== undefined) checkNumber(request.deadline, 'deadline');
    const { salt, signal } = request;
    if (salt !== undefined && typeof salt !== 'string') checkNumber(salt, 'salt');
    if (signal !== undefined && typeof signal?.addEventListener !== 'function')
      throw mustBe('signal', signal, 'an AbortSignal');
    const wanted = `a prompt of ${prompt.length} and maxTokens ${maxTokens} are ${prompt.length + maxTokens} tokens`;
    if (prompt.length + maxTokens > context) throw optionError(`${wanted}; the model's context has ${context}`);
    // The last token that is generated is not stored.
    const blocks = pool.blocksFor(prompt.length + maxTokens - 1);
    if (blocks > pool.blocks)
      throw new FlashAttnError(
        'ERR_OUT_OF_MEMORY',
        `${wanted}, which take ${blocks} blocks of ${pool.blockSize}; the cache has ${pool.blocks}`,
      );
    return prompt;
  }

  /** Aborts the request at its signal or deadline; at once where they have passed. */
  #watch(job: Request, { signal, deadline }: EngineRequest): void {
    const cancel = () => job.stream.cancel();
    if (signal) {
      signal.addEventListener('abort', cancel);
      job.watches.push(() => signal.removeEventListener('abort', cancel));
    }
    if (deadline !== undefined) {
      let timer: NodeJS.Timeout;
      const wait = () => {
        const rest = deadline - Date.now();
        if (rest <= 0) cancel();
        else timer = setTimeout(wait, Math.min(rest, longestTimer)).unref();
      };
      job.watches.push(() => clearTimeout(timer));
      wait();
    }
    if (signal?.aborted) cancel();
  }

  /** Ends a request: what it holds is given back at once, or after the step that it is in. */
  #finish(job: Request, how: FinishReason | { readonly error: unknown }): void {
    if (job.isOver) return;
    job.isOver = true;
    for (const stop of job.watches.splice(0)) stop();
    this.#living.delete(job);
    if (!this.#stepping.has(job)) this.#scheduler.remove(job);
    this.#finished[typeof how === 'string' ? how : 'error']++;
    job.stream.end(how);
  }

  async #run(): Promise<void> {
    // What is submitted in the same turn begins in the same step.
    await turn();
    try {
      while (this.#living.size > 0) {
        await this.#step();
        await turn();
      }
    } catch (error) {
      this.#stepping = new Map();
      for (const job of [...this.#living]) this.#finish(job, { error });
    } finally {
      this.#loop = undefined;
    }
  }

  async #step(): Promise<void> {
    const { entries, failed } = this.#scheduler.plan();
    for (const [job, error] of failed) this.#finish(job, { error });
    if (entries.size === 0) return;
    for (const [job, { sequence }] of entries) job.stream.cached ??= sequence.cached;
    this.#stepping = entries;
    let rows: readonly Float32Array[] = [];
    let failure: { readonly error: unknown } | undefined;
    try {
      rows = await this.#model.step([...entries.values()]);
      this.#checkRows(rows, entries);
    } catch (error) {
      failure = { error };
    }
    this.#steps++;
    for (const { sequence, count } of failure ? [] : entries.values()) {
      sequence.commit();
      this.#computedTokens += count;
    }
    this.#stepping = new Map();
    let row = 0;
    for (const [job, entry] of entries) {
      const logits = entry.logits ? rows[row++] : undefined;
      if (failure) this.#finish(job, failure);
      // Ended meanwhile, by this step or by who cancelled it.
      if (job.isOver) this.#scheduler.remove(job);
      else if (logits) this.#generate(job, logits);
    }
  }

  #checkRows(rows: readonly Float32Array[], entries: ReadonlyMap<Request, StepEntry>): void {
    let wanted = 0;
    for (const { logits } of entries.values()) if (logits) wanted++;
    const { vocabulary } = this.#model;
    const wrong = rows.find(({ length }) => length !== vocabulary);
    if (rows.length === wanted && !wrong) return;
    throw new FlashAttnError(
      'ERR_SHAPE',
      `the model's step gave ${rows.length} rows of ${(wrong ?? rows[0])?.length} logits; ${wanted} of ${vocabulary} were wanted`,
    );
  }

  /** The next token of a request. */
  #generate(job: Request, logits: Float32Array): void {
    try {
      const token = job.sample(logits, job.tokens, job.tokens.length);
      if (job.isOver) return; // a function of the caller's has cancelled it
      job.tokens.push(token);
      this.#generatedTokens++;
      const isStop = job.stopTokens.has(token);
      const finish = isStop ? 'stop' : job.tokens.length === job.most ? 'length' : undefined;
      const probabilities = job.logprobs === undefined ? {} : logprobs(logits, token, job.logprobs);
      job.stream.push({ token, ...probabilities, ...(finish && { finish }) });
      if (finish) this.#finish(job, finish);
    } catch (error) {
      this.#finish(job, { error });
    }
  }

  /** Aborts all requests, and waits for the step under way. The model and its pool stay as they are. */
  async close(): Promise<void> {
    this.#isClosed = true;
    for (const job of [...this.#living]) this.#finish(job, 'abort');
    await this.#loop;
  }
}
