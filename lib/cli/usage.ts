import { type ParseArgsConfig, parseArgs } from 'node:util';

/** The command line itself is wrong: the message is followed by the usage, and the exit code is 64. */
export class UsageError extends Error {}

/** `parseArgs`, with its complaints as usage errors. */
export function readFlags<const T extends NonNullable<ParseArgsConfig['options']>>(args: string[], options: T) {
  try {
    return parseArgs({ args, options, strict: true, allowPositionals: false }).values;
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

/** `readFlags` of commands that take words besides. */
export function readFlagsAndWords<const T extends NonNullable<ParseArgsConfig['options']>>(args: string[], options: T) {
  try {
    const { values, positionals } = parseArgs({ args, options, strict: true, allowPositionals: true });
    return { flags: values, words: positionals };
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

export function readInteger(text: string, flag: string, least: number): number {
  const number = Number(text);
  if (text.trim() !== '' && Number.isInteger(number) && number >= least) return number;
  throw new UsageError(`${flag} is '${text}'; it must be an integer >= ${least}`);
}

/** '1,4096,8,64' -> [1, 4096, 8, 64] */
export function readIntegers(text: string, flag: string, count: number): number[] {
  const numbers = text.split(',').map(Number);
  if (numbers.length !== count || !numbers.every(Number.isInteger))
    throw new UsageError(`${flag} is '${text}'; it must be ${count} integers separated by commas`);
  return numbers;
}

/** '1.5 GiB' */
export function formatBytes(bytes: number): string {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = bytes > 0 ? Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10)) : 0;
  return `${Number((bytes / 1024 ** power).toPrecision(3))} ${units[power]}`;
}

/** Aligned lines 'name  value'. */
export function formatTable(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n');
}
