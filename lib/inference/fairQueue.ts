/** Who waits, by keys that take turns: each key's first in, first out. */
export class FairQueue<Job extends { readonly key: string }> {
  /** Those that have been served before, the next one last. */
  readonly #returned: Job[] = [];
  /** The keys in the order of their turns, none without anybody. */
  readonly #waiting = new Map<string, Set<Job>>();
  #size = 0;

  get size(): number {
    return this.#size;
  }

  /** Whose turn it is. */
  get first(): Job | undefined {
    const returned = this.#returned.at(-1);
    if (returned) return returned;
    const [ofKey] = this.#waiting.values();
    return ofKey?.values().next().value;
  }

  push(job: Job): void {
    const ofKey = this.#waiting.get(job.key);
    if (ofKey) ofKey.add(job);
    else this.#waiting.set(job.key, new Set([job]));
    this.#size++;
  }

  /** Before all others. */
  unshift(job: Job): void {
    this.#returned.push(job);
    this.#size++;
  }

  /** Takes out the first: its key is the last to have a turn again. */
  shift(): Job | undefined {
    const job = this.first;
    if (!job) return undefined;
    const takesTurn = this.#returned.length === 0;
    this.delete(job);
    const others = this.#waiting.get(job.key);
    if (takesTurn && others) {
      this.#waiting.delete(job.key);
      this.#waiting.set(job.key, others);
    }
    return job;
  }

  /** Takes out one that waits, without a turn. */
  delete(job: Job): boolean {
    const returned = this.#returned.indexOf(job);
    const ofKey = this.#waiting.get(job.key);
    if (returned >= 0) this.#returned.splice(returned, 1);
    else if (!ofKey?.delete(job)) return false;
    else if (ofKey.size === 0) this.#waiting.delete(job.key);
    this.#size--;
    return true;
  }
}
