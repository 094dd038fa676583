import { FlashAttnError } from '../base/errors.js';
import { type AnyTensor, isTensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';
import { freeingRecords } from './tape.js';

/** The tensors in what a function returned: itself, or in arrays, plain objects, maps and sets of any depth. */
export function tensorsIn(value: unknown, found = new Set<AnyTensor>(), seen = new Set<object>()): Set<AnyTensor> {
  if (value === null || typeof value !== 'object' || seen.has(value)) return found;
  seen.add(value);
  if (isTensor(value)) found.add(value);
  else if (Array.isArray(value) || value instanceof Set) for (const each of value) tensorsIn(each, found, seen);
  else if (value instanceof Map) for (const each of value.values()) tensorsIn(each, found, seen);
  else if (!ArrayBuffer.isView(value)) for (const each of Object.values(value)) tensorsIn(each, found, seen);
  return found;
}

/** @throws ERR_OPTION for a promise: what comes after an await would not be seen */
export function checkSynchronous(result: unknown, what: string): void {
  if (result instanceof Promise)
    throw new FlashAttnError(
      'ERR_OPTION',
      `${what} must be synchronous, but returned a promise: operations return at once, so read results after it`,
    );
}

/**
 * What `f` returns. All other tensors that were made within it are disposed, and so is what was recorded for gradients that
 * the returned ones do not need; gradients of parameters stay. Also when `f` throws.
 *
 * @param f synchronous
 */
export function scope<T>(f: () => T): T {
  const run = () => {
    const result = f();
    checkSynchronous(result, 'the function of scope()');
    return result;
  };
  return tidying(
    () => freeingRecords(run, (result) => [...tensorsIn(result)]),
    (result) => [...tensorsIn(result)],
  );
}
