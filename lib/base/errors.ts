/** Stable identifiers of what went wrong; messages may change, codes do not. */
export type ErrorCode =
  | 'ERR_SHAPE'
  | 'ERR_DTYPE'
  | 'ERR_OPTION'
  | 'ERR_DEVICE'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_DISPOSED'
  | 'ERR_WORKER';

/**
 * The one error class of the library. The message names the argument, what it got and what it needs; nothing has been
 * computed or allocated when it is thrown.
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

/** How a value of unknown type is shown in a message. */
export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(show).join(', ')}]`;
  if (value !== null && typeof value === 'object') return value.constructor?.name ?? 'object';
  return typeof value === 'bigint' ? `${value}n` : String(value);
}
