import { nearestWord } from '../../base/check.js';
import { show } from '../../base/errors.js';
import { badRequest } from './apiError.js';

const mustBe = (param: string, value: unknown, needed: string) =>
  badRequest(param, `${param} is ${show(value)}; it must be ${needed}`);

/** A string of Unicode: halves of characters can be no tokens. */
export function textOf(value: unknown, param: string): string {
  if (typeof value !== 'string') throw mustBe(param, value, 'a string');
  if (!value.isWellFormed()) throw badRequest(param, `${param} has half a character (a lone surrogate)`);
  return value;
}

export function integerOf(value: unknown, param: string, least: number, most: number): number {
  if (Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most)
    return (value as number) + 0;
  throw mustBe(param, value, `an integer from ${least} to ${most}`);
}

function listOf<T>(value: unknown, param: string, most: number, read: (entry: unknown, param: string) => T): T[] {
  if (!Array.isArray(value) || value.length === 0) throw mustBe(param, value, 'a list with an entry at least');
  if (value.length > most) throw badRequest(param, `${param} has ${value.length} entries; there may be ${most}`);
  return value.map((entry, at) => read(entry, `${param}[${at}]`));
}

/** The fields of a JSON object, its own ones alone; null is none. @throws 400 that names the field */
export class Fields {
  readonly #object: Readonly<Record<string, unknown>>;
  readonly #within: string;

  /**
   * @param known names of fields; all others are refused
   * @param within what the object is, as messages say it
   */
  constructor(value: unknown, known: readonly string[], within = '') {
    if (value === null || typeof value !== 'object' || Array.isArray(value)) throw mustBe(within, value, 'an object');
    this.#object = value as Record<string, unknown>;
    this.#within = within;
    const unknown = Object.keys(value).find((name) => !known.includes(name));
    if (unknown === undefined) return;
    const nearest = nearestWord(unknown, known);
    const hint = nearest === undefined ? '' : `; did you mean ${show(nearest)}?`;
    throw badRequest(this.path(unknown), `there is no field ${show(unknown)} here${hint}`, 'unknown_field');
  }

  path(name: string): string {
    return this.#within === '' ? name : `${this.#within}.${name}`;
  }

  get(name: string): unknown {
    return Object.hasOwn(this.#object, name) ? (this.#object[name] ?? undefined) : undefined;
  }

  #read<T>(name: string, read: (value: unknown, param: string) => T): T | undefined {
    const value = this.get(name);
    return value === undefined ? undefined : read(value, this.path(name));
  }

  text(name: string): string | undefined {
    return this.#read(name, textOf);
  }

  integer(name: string, least: number, most: number): number | undefined {
    return this.#read(name, (value, param) => integerOf(value, param, least, most));
  }

  number(name: string, least: number, most: number): number | undefined {
    return this.#read(name, (value, param) => {
      if (Number.isFinite(value) && (value as number) >= least && (value as number) <= most) return value as number;
      throw mustBe(param, value, `a number from ${least} to ${most}`);
    });
  }

  boolean(name: string): boolean | undefined {
    return this.#read(name, (value, param) => {
      if (typeof value === 'boolean') return value;
      throw mustBe(param, value, 'true or false');
    });
  }

  list<T>(name: string, most: number, read: (entry: unknown, param: string) => T): T[] | undefined {
    return this.#read(name, (value, param) => listOf(value, param, most, read));
  }

  /** A field of OpenAI's API with a meaning that there is only one choice of here. */
  only(name: string, isIt: (value: unknown) => boolean, needed: string): void {
    const value = this.get(name);
    if (value !== undefined && !isIt(value))
      throw badRequest(
        this.path(name),
        `${this.path(name)} is ${show(value)}; only ${needed} is served`,
        'unsupported',
      );
  }
}
