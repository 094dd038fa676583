import { optionError, show } from './errors.js';

/** An integer from `least` to `most`. @throws ERR_OPTION */
export function checkInteger(value: unknown, argument: string, least: number, most = Number.POSITIVE_INFINITY): number {
  if (Number.isInteger(value) && (value as number) >= least && (value as number) <= most) return value as number;
  const range =
    most !== Number.POSITIVE_INFINITY ? ` from ${least} to ${most}` : Number.isFinite(least) ? ` >= ${least}` : '';
  throw optionError(`${argument} is ${show(value)}; it must be an integer${range}`);
}

/** @throws ERR_OPTION */
export function checkBoolean(value: unknown, argument: string): boolean {
  if (typeof value === 'boolean') return value;
  throw optionError(`${argument} is ${show(value)}; it must be true or false`);
}

/** One of a few words. @throws ERR_OPTION */
export function checkWord<Word extends string>(value: unknown, argument: string, words: readonly Word[]): Word {
  const word = words.find((known) => known === value);
  if (word !== undefined) return word;
  throw optionError(`${argument} is ${show(value)}; it must be ${words.map(show).join(' or ')}`);
}

/** A list of integers from `least` to `most`. @throws ERR_OPTION */
export function checkIntegers(value: unknown, argument: string, least: number, most?: number): readonly number[] {
  if (!Array.isArray(value)) throw optionError(`${argument} is ${show(value)}; it must be a list of integers`);
  for (const [at, element] of value.entries()) checkInteger(element, `${argument}[${at}]`, least, most);
  return value;
}
