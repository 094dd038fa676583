/** How many layouts of each pattern stay at hand. */
const capacity = 16;

/**
 * Keeps what was made last for each key. Index lists cost more to build than to use, and a network calls a pattern with
 * the same few shapes over and over.
 */
export class Remember<T> {
  readonly #made = new Map<string, T>();

  /** What belongs to `parts`, made now unless it is known. */
  get(parts: readonly unknown[], make: () => T): T {
    const key = JSON.stringify(parts);
    const known = this.#made.get(key) ?? make();
    // Reinserted, so that the map lists the least recently used first.
    this.#made.delete(key);
    this.#made.set(key, known);
    if (this.#made.size > capacity) this.#made.delete(this.#made.keys().next().value as string);
    return known;
  }
}
