// What a function that is being captured has to do before each of its replays, and what it must not do.
import { FlashAttnError } from '../base/errors.js';

/** What belongs to a captured function besides its launches. */
export interface Captured {
  /** What may refuse a replay, before anything of it is done. */
  readonly checks: readonly (() => void)[];
  /** What the host does before every replay. */
  readonly hooks: readonly (() => void)[];
  /** What goes with it. */
  readonly kept: readonly Disposable[];
}

let current:
  | { readonly checks: (() => void)[]; readonly hooks: Map<object, () => void>; readonly kept: Disposable[] }
  | undefined;

/** Whether what runs now is being captured: its launches are kept, and nothing of it runs again but those. */
export const isCapturing = (): boolean => current !== undefined;

/**
 * Within a function that is being captured: what the host does before every replay, once for each `owner`.
 *
 * @throws ERR_OPTION where an owner comes again; `what` it does is done as by 'a step of an optimizer'
 */
export function beforeReplay(owner: object, what: string, f: () => void): void {
  if (current?.hooks.has(owner))
    throw new FlashAttnError('ERR_OPTION', `${what} can be captured once in a function, not twice`);
  current?.hooks.set(owner, f);
}

/** Within a function that is being captured: what throws when a replay must not be. */
export function checkReplay(f: () => void): void {
  current?.checks.push(f);
}

/** Within a function that is being captured: what is disposed with it. */
export function keepWithCapture<T extends Disposable>(value: T): T {
  current?.kept.push(value);
  return value;
}

/** @throws ERR_OPTION within a function that is being captured, for what would draw the same random numbers every time */
export function refuseCapture(what: string, instead = ''): void {
  if (isCapturing())
    throw new FlashAttnError(
      'ERR_OPTION',
      `${what} cannot be captured: its random numbers would be the same in every replay${instead}`,
    );
}

/** Runs `f` as a function that is being captured. */
export function capturing(f: () => void): Captured {
  const own = { checks: [], hooks: new Map<object, () => void>(), kept: [] };
  current = own;
  try {
    f();
    return { ...own, hooks: [...own.hooks.values()] };
  } finally {
    current = undefined;
  }
}
