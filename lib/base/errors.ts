/** Stable identifiers of what went wrong; messages may change, codes do not. */
export type ErrorCode =
  | 'ERR_SHAPE'
  | 'ERR_DTYPE'
  | 'ERR_OPTION'
  | 'ERR_DEVICE'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_DISPOSED'
  | 'ERR_AUTOGRAD'
  | 'ERR_WORKER'
  | 'ERR_FILE'
  | 'ERR_BUSY'
  | 'ERR_LEAK';

/**
 * The one error class of the library. The message names the argument, what it got and what it needs. Nothing has been
 * computed or allocated when it is thrown, except for what a lost worker leaves undone (ERR_WORKER); a file that could not
 * be written is as it was (ERR_FILE). A check of something that ran tells of it afterwards (ERR_LEAK).
 */
export class FlashAttnError extends Error {
  override readonly name = 'FlashAttnError';

  constructor(
    readonly code: ErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

export const shapeError = (message: string) => new FlashAttnError('ERR_SHAPE', message);
export const optionError = (message: string) => new FlashAttnError('ERR_OPTION', message);

const mostShown = 32;
const mostCharacters = 400;

function showArray(values: readonly unknown[], depth: number): string {
  const shown = Array.from({ length: Math.min(values.length, mostShown) }, (_, at) =>
    showWithin(values[at], depth - 1),
  );
  const rest = values.length > mostShown ? [`... ${values.length} entries`] : [];
  return `[${[...shown, ...rest].join(', ')}]`;
}

function showWithin(value: unknown, depth: number): string {
  if (typeof value === 'string') return JSON.stringify(value);
  if (typeof value === 'function') return `the function ${value.name || '(anonymous)'}`;
  if (typeof value === 'bigint') return `${value}n`;
  if (value === null || typeof value !== 'object') return Object.is(value, -0) ? '-0' : String(value);
  if (Array.isArray(value)) return depth > 0 ? showArray(value, depth) : '[...]';
  return String(value.constructor?.name ?? 'object');
}

/** How a value of unknown type is shown in a message: never throws, never long. */
export function show(value: unknown): string {
  try {
    const text = showWithin(value, 4);
    return text.length > mostCharacters ? `${text.slice(0, mostCharacters)}...` : text;
  } catch {
    return 'an object that cannot be read'; // getters and proxies may throw
  }
}
