/**
 * The checks of arguments. Each returns what it has checked: of lists a copy, so that no getter, proxy or later write of
 * the caller can change it afterwards.
 */
import { type IntegerList, isIntegerList, isTyped } from './arrays.js';
import { type ErrorCode, FlashAttnError, optionError, show } from './errors.js';

/** The error for an argument that is not what it must be: `throw mustBe('p', p, 'from 0 to below 1')`. */
export const mustBe = (argument: string, value: unknown, needed: string, code: ErrorCode = 'ERR_OPTION') =>
  new FlashAttnError(code, `${argument} is ${show(value)}; it must be ${needed}`);

function range(least: number, most: number): string {
  if (most !== Number.POSITIVE_INFINITY)
    return least === Number.NEGATIVE_INFINITY ? ` <= ${most}` : ` from ${least} to ${most}`;
  return least === Number.NEGATIVE_INFINITY ? '' : ` >= ${least}`;
}

const isInteger = (value: unknown, least: number, most: number): value is number =>
  Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most;

/** An integer from `least` to `most`; beyond 2^53 numbers are no longer exact and do not count as integers. */
export function checkInteger(
  value: unknown,
  argument: string,
  least = Number.NEGATIVE_INFINITY,
  most = Number.POSITIVE_INFINITY,
  code?: ErrorCode,
): number {
  if (isInteger(value, least, most)) return value + 0; // -0 + 0 is 0
  const exact = Number.isInteger(value) && !Number.isSafeInteger(value) ? ', below 2^53 in size' : '';
  throw mustBe(argument, value, `an integer${range(least, most)}${exact}`, code);
}

/** A finite number from `least` to `most`. */
export function checkNumber(
  value: unknown,
  argument: string,
  least = Number.NEGATIVE_INFINITY,
  most = Number.POSITIVE_INFINITY,
): number {
  if (Number.isFinite(value) && (value as number) >= least && (value as number) <= most) return value as number;
  throw mustBe(argument, value, `a finite number${range(least, most)}`);
}

/** A finite number that stays finite, and other than 0, in float32, which is what kernels compute with. */
export function checkFloat32(value: unknown, argument: string): number {
  const single = Math.fround(checkNumber(value, argument));
  if (Number.isFinite(single) && (single !== 0 || value === 0)) return value as number;
  throw mustBe(argument, value, 'a number that float32 can hold, from 1.4e-45 to 3.4e38 in size or 0');
}

export function checkString(value: unknown, argument: string): string {
  if (typeof value === 'string') return value;
  throw mustBe(argument, value, 'a string');
}

export function checkBoolean(value: unknown, argument: string): boolean {
  if (typeof value === 'boolean') return value;
  throw mustBe(argument, value, 'true or false');
}

/** One of a few words. */
export function checkWord<Word extends string>(value: unknown, argument: string, words: readonly Word[]): Word {
  const word = words.find((known) => known === value);
  if (word !== undefined) return word;
  const quoted = words.map((known) => `'${known}'`);
  throw mustBe(argument, value, [quoted.slice(0, -1).join(', '), ...quoted.slice(-1)].filter(Boolean).join(' or '));
}

// biome-ignore lint/complexity/noBannedTypes: any function at all
export function checkFunction<F extends Function>(value: F | undefined, argument: string): F {
  if (typeof value === 'function') return value;
  throw mustBe(argument, value, 'a function');
}

/** The entries of an array, each of which `read` checks: a copy. Holes are read as undefined. */
export function checkArray<T>(
  value: unknown,
  argument: string,
  needed: string,
  read: (entry: unknown, argument: string) => T,
): T[] {
  if (!Array.isArray(value)) throw mustBe(argument, value, needed);
  const entries: T[] = [];
  for (let at = 0; at < value.length; at++) entries.push(read(value[at], `${argument}[${at}]`));
  return entries;
}

/** The exact number that a bigint stands for, where there is one. */
const unbox = (entry: unknown): unknown =>
  typeof entry === 'bigint' && BigInt.asIntN(54, entry) === entry ? Number(entry) : entry;

/** A list of integers from `least` to `most`, in an array or a typed array of integers (also 64-bit ones): a copy. */
export function checkIntegers(
  value: unknown,
  argument: string,
  least = Number.NEGATIVE_INFINITY,
  most = Number.POSITIVE_INFINITY,
): readonly number[] {
  if (!isIntegerList(value)) throw mustBe(argument, value, 'a list of integers');
  const entries: number[] = [];
  for (let at = 0; at < value.length; at++)
    entries.push(checkInteger(unbox(value[at]), `${argument}[${at}]`, least, most));
  return entries;
}

/** Integers of 32 bits in an array or in a typed array of integers (also 64-bit ones): always a copy. */
export function checkInt32s(value: unknown, argument: string): Int32Array {
  const needed = 'an Int32Array or an array of 32-bit integers';
  if (isTyped(value, 'Int32Array')) return new Int32Array(value);
  if (!isIntegerList(value)) throw mustBe(argument, value, needed);
  const entries: number[] = [];
  for (let at = 0; at < value.length; at++) {
    const entry = unbox((value as IntegerList)[at]);
    if (!isInteger(entry, -(2 ** 31), 2 ** 31 - 1))
      throw mustBe(argument, value, `${needed}, and entry ${at} is ${show(entry)}`);
    entries.push(entry);
  }
  return Int32Array.from(entries);
}

/** How many letters have to be inserted, dropped, replaced or swapped with their neighbour (optimal string alignment). */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let above = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = above[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1] ? before[j - 2] + 1 : replaced;
      row.push(Math.min(above[j] + 1, row[j - 1] + 1, replaced, swapped));
    }
    [before, above] = [above, row];
  }
  return above[b.length];
}

/** The word that was probably meant: one that differs in at most a third of its letters, whatever their case. */
export function nearestWord(word: string, words: readonly string[]): string | undefined {
  if (word.length > 40) return undefined;
  const plain = (text: string) => text.toLowerCase().replaceAll(/[-_ ]/g, '');
  const distances = words.map((known) => editDistance(plain(word), plain(known)));
  const least = Math.min(...distances);
  const nearest = words[distances.indexOf(least)];
  return nearest !== undefined && least <= Math.ceil(nearest.length / 3) && least < nearest.length
    ? nearest
    : undefined;
}

export function checkObject<O>(value: O, argument: string): asserts value is O & object {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) throw mustBe(argument, value, 'an object');
}

/**
 * An object with no other properties than `names`; a misspelt one is told which was probably meant.
 *
 * @param options typed, so that `names` are names of its properties
 */
export function checkOptions<O>(
  options: O,
  names: readonly Extract<keyof O, string>[],
  argument = 'options',
): asserts options is O & object {
  checkObject(options, argument);
  const known: readonly string[] = names;
  const unknown = Object.keys(options).find((name) => !known.includes(name));
  if (unknown === undefined) return;
  const nearest = nearestWord(unknown, known);
  const hint = nearest === undefined ? '' : `did you mean ${show(nearest)}? `;
  const of = argument === 'options' ? '' : ` in ${argument}`;
  throw optionError(`there is no option ${show(unknown)}${of}; ${hint}the options are ${known.join(', ')}`);
}

/** Where sequences that are packed behind one another begin, and where the last ends: from 0 on, never falling. A copy. */
export function checkOffsets(value: unknown, argument: string): Int32Array {
  const offsets = checkInt32s(value, argument);
  if (offsets.length < 1 || offsets[0] !== 0)
    throw optionError(`${argument} must start with 0, got ${show([...offsets.slice(0, 4)])}`);
  const fall = offsets.findIndex((n, i) => i > 0 && n < offsets[i - 1]);
  if (fall >= 0)
    throw optionError(
      `${argument} must never fall, but ${argument}[${fall}] = ${offsets[fall]} comes after ${offsets[fall - 1]}`,
    );
  return offsets;
}
