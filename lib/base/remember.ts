/**
 * Keeps what was made last for each key: things that cost more to make than to use, and are wanted again with the same
 * few keys over and over.
 */
export class Remember<T> {
  readonly #made = new Map<string, T>();
  readonly #capacity: number;
  readonly #forget: ((value: T) => void) | undefined;

  /**
   * @param capacity how many are kept
   * @param forget called with what is kept no longer
   */
  constructor(capacity = 16, forget?: (value: T) => void) {
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

  #dropFirst(): void {
    for (const [key, value] of this.#made) {
      this.#made.delete(key);
      this.#forget?.(value);
      return;
    }
  }
}
