/**
 * Keeps what was made last for each key: things that cost more to make than to use, and are wanted again with the same
 * few keys over and over.
 */
export class Remember<T> {
  readonly #made = new Map<string, T>();
  readonly #capacity: number;
  readonly #forget: ((value: T) => void) | undefined;

  /**
   * @param forget called with what is kept no longer
   * @param capacity how many are kept
   */
  constructor(forget?: (value: T) => void, capacity = 16) {
    this.#capacity = capacity;
    this.#forget = forget;
  }

  /** What belongs to `parts`, made now unless it is known. */
  get(parts: readonly unknown[], make: () => T): T {
    const key = JSON.stringify(parts);
    const known = this.#made.get(key) ?? make();
    // Reinserted, so that the map lists the least recently used first.
    this.#made.delete(key);
    this.#made.set(key, known);
    if (this.#made.size > this.#capacity) this.#dropFirst();
    return known;
  }

  /** Forgets everything. */
  clear(): void {
    while (this.#made.size > 0) this.#dropFirst();
  }

  #dropFirst(): void {
    for (const [key, value] of this.#made) {
      this.#made.delete(key);
      this.#forget?.(value);
      return;
    }
  }
}
