interface Waiter {
  readonly launch: number;
  readonly resolve: () => void;
}

/** Who is told when a launch is done, in the order of launches. */
export class Waiters {
  readonly #waiters: Waiter[] = [];

  /** The launch that is waited for first. */
  get first(): number | undefined {
    return this.#waiters[0]?.launch;
  }

  add(launch: number, resolve: () => void): void {
    const at = this.#waiters.findLastIndex((waiter) => waiter.launch <= launch) + 1;
    this.#waiters.splice(at, 0, { launch, resolve });
  }

  /** Tells who waits for `first`. */
  tellFirst(): void {
    this.#waiters.shift()?.resolve();
  }
}
