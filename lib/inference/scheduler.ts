import { FlashAttnError } from '../base/errors.js';
import type { BlockPool, CachedSequence, Salt } from './blockPool.js';
import type { StepEntry } from './decoder.js';
import { FairQueue } from './fairQueue.js';

/** What is to be decoded. */
export interface Job {
  /** Whose it is: keys take turns. */
  readonly key: string;
  readonly salt: Salt | undefined;
  /** The prompt, and behind it what was generated. */
  readonly tokens: readonly number[];
  /** The scheduler's: what is stored of the tokens, while the job runs. */
  sequence: CachedSequence | undefined;
}

export interface SchedulerOptions {
  readonly pool: BlockPool;
  /** The most tokens of a step. */
  readonly tokenBudget: number;
  /** The most jobs that run at once, up to `tokenBudget`. */
  readonly maxSequences: number;
}

export interface Plan<J extends Job> {
  /** What the next step computes, and for whom. Sequences have been extended. */
  readonly entries: ReadonlyMap<J, StepEntry>;
  /** Jobs that could not be extended though nothing else was running, or for which a copy failed. They are no longer known. */
  readonly failed: ReadonlyMap<J, unknown>;
}

const isExhaustion = (error: unknown) => error instanceof FlashAttnError && error.code === 'ERR_OUT_OF_MEMORY';

/** How many tokens of a running job are not yet computed: 1 when it decodes. */
const pendingOf = ({ tokens, sequence }: Job): number => tokens.length - (sequence as CachedSequence).length;

/**
 * Which tokens the next step computes: continuous batching (Yu et al. 2022, "Orca") with chunked prefill (Agrawal et al. 2024,
 * "Sarathi-Serve"). Jobs that decode come first, a token each; what is left of the budget goes to prompts, one after the
 * other. When the pool is exhausted, the youngest running job gives its blocks back, and is computed again later: the
 * oldest is never held up, so that all end.
 */
export class Scheduler<J extends Job> {
  readonly #pool: BlockPool;
  readonly #tokenBudget: number;
  readonly #maxSequences: number;
  readonly #waiting = new FairQueue<J>();
  /** From the oldest to the youngest, by when they were admitted. */
  readonly #running: J[] = [];
  /** Blocks that the first of those that wait was short of. */
  #short: { readonly job: J; readonly blocks: number } | undefined;
  #preemptions = 0;

  constructor({ pool, tokenBudget, maxSequences }: SchedulerOptions) {
    this.#pool = pool;
    this.#tokenBudget = tokenBudget;
    this.#maxSequences = maxSequences;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  get running(): number {
    return this.#running.length;
  }

  /** How often a job had to give its blocks back. */
  get preemptions(): number {
    return this.#preemptions;
  }

  add(job: J): void {
    this.#waiting.push(job);
  }

  /** Forgets a job that waits or runs, and frees its sequence. */
  remove(job: J): void {
    if (!job.sequence) {
      this.#waiting.delete(job);
      return;
    }
    this.#running.splice(this.#running.indexOf(job), 1);
    job.sequence.free();
    job.sequence = undefined;
  }

  /** The youngest running job waits again, before all others. */
  #preempt(): void {
    const job = this.#running.at(-1) as J;
    this.remove(job);
    this.#waiting.unshift(job);
    this.#preemptions++;
  }

  plan(): Plan<J> {
    const entries = new Map<J, StepEntry>();
    const failed = new Map<J, unknown>();
    let left = this.#tokenBudget;
    const fail = (job: J, error: unknown) => {
      this.remove(job);
      failed.set(job, error);
    };
    /** Extends a job by as many tokens as the budget allows, at the cost of younger ones if need be. */
    const advance = (job: J): void => {
      const sequence = job.sequence as CachedSequence;
      const { length } = sequence;
      const count = Math.min(pendingOf(job), left);
      const tokens = job.tokens.slice(length, length + count);
      while (job.sequence) {
        try {
          sequence.extend(tokens);
        } catch (error) {
          if (isExhaustion(error) && this.#running.length > 1) this.#preempt();
          else fail(job, error);
          continue;
        }
        entries.set(job, { sequence, count, logits: pendingOf(job) === 0 });
        left -= count;
        return;
      }
    };
    // One is admitted only when those before it have been computed to their ends: they decode, and so come first. Those that
    // give their blocks back have not yet had their turn.
    for (const job of [...this.#running]) if (job.sequence && left > 0) advance(job);
    while (left > 0) {
      const job = this.#admit();
      if (!job) break;
      advance(job);
    }
    return { entries, failed };
  }

  /** Whose turn it is, if there is room for all of its tokens and for one more of each job that runs. */
  #admit(): J | undefined {
    const job = this.#waiting.first;
    if (!job || this.#running.length >= this.#maxSequences) return undefined;
    const isAlone = this.#running.length === 0;
    if (!isAlone && this.#short?.job === job && this.#pool.available < this.#short.blocks) return undefined;
    this.#short = undefined;
    const sequence = this.#pool.sequence(job.tokens, job.salt === undefined ? {} : { salt: job.salt });
    const blocks = this.#pool.blocksFor(job.tokens.length) - sequence.table.length + this.#running.length;
    if (!isAlone && blocks > this.#pool.available) {
      this.#short = { job, blocks };
      sequence.free();
      return undefined;
    }
    this.#waiting.shift();
    this.#running.push(job);
    job.sequence = sequence;
    return job;
  }
}
