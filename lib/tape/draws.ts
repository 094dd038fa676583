// What a function draws from the host's generators, so that a second run of it can have the same.
import { FlashAttnError } from '../base/errors.js';

type Source = <T>(draw: () => T) => T;

let source: Source | undefined;

/** What `draw` gives; in the second run of a function what it gave in the first. */
export const drawn = <T>(draw: () => T): T => (source ? source(() => from(undefined, draw)) : draw());

function from<T>(next: Source | undefined, f: () => T): T {
  const before = source;
  source = next;
  try {
    return f();
  } finally {
    source = before;
  }
}

/** What a function has drawn, in this order. */
export class Draws {
  readonly #values: unknown[] = [];

  first<T>(f: () => T): T {
    const outer = source;
    return from((draw) => {
      const value = outer ? outer(draw) : draw();
      this.#values.push(value);
      return value;
    }, f);
  }

  /** @throws ERR_AUTOGRAD when `f` draws more than in its first run */
  again<T>(f: () => T): T {
    let at = 0;
    const values = this.#values;
    return from(<V>() => {
      if (at === values.length)
        throw new FlashAttnError(
          'ERR_AUTOGRAD',
          'a function draws more random seeds in its second run than in its first',
        );
      return values[at++] as V;
    }, f);
  }
}
