import { typedArrayName } from '../base/arrays.js';
import { optionError, show } from '../base/errors.js';
import type { AttentionOptions } from './options.js';

/** What options count as where they are not given. */
const defaults: AttentionOptions = {
  causal: false,
  align: 'bottomRight',
  window: [-1, -1],
  softcap: 0,
  layout: 'bshd',
};

const isList = (value: unknown): value is ArrayLike<unknown> =>
  Array.isArray(value) || typedArrayName(value) !== undefined;

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  value !== null && typeof value === 'object' && Object.getPrototypeOf(Object.getPrototypeOf(value) ?? {}) === null;

/** Whether two options mean the same: the same object, or numbers, lists and records of the same values. */
function same(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (typeof a === 'bigint' || typeof b === 'bigint') return String(a) === String(b);
  if (isList(a) && isList(b)) {
    if (a.length !== b.length) return false;
    for (let at = 0; at < a.length; at++) if (!same(a[at], b[at])) return false;
    return true;
  }
  if (!isRecord(a) || !isRecord(b)) return false;
  const names = new Set([...Object.keys(a), ...Object.keys(b)]);
  return [...names].every((name) => same(a[name], b[name]));
}

/**
 * Checks that the options given to a backward pass are those of its forward pass, as far as they are given.
 * `deterministic` is the backward pass's own.
 *
 * @throws ERR_OPTION
 */
export function checkAgreement(given: AttentionOptions, saved: AttentionOptions, defaultScale: number): void {
  if (given === saved) return;
  for (const name of Object.keys(given) as (keyof AttentionOptions)[]) {
    if (given[name] === undefined || name === 'deterministic') continue;
    const before = saved[name] ?? (name === 'scale' ? defaultScale : defaults[name]);
    if (!same(given[name], before))
      throw optionError(
        `${name} is ${show(given[name])} and was ${show(before)} in the forward pass; backward needs the same, or saved.options alone`,
      );
  }
}
