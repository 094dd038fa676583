import { FlashAttnError } from '../../base/errors.js';

interface Details {
  /** The field of the request that is wrong. */
  readonly param?: string | undefined;
  readonly code?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

const types: Readonly<Record<number, string>> = {
  401: 'authentication_error',
  403: 'permission_error',
  429: 'rate_limit_error',
  500: 'server_error',
  501: 'not_implemented_error',
  503: 'server_error',
  504: 'server_error',
};

/** What a client is told: a status, and the words of OpenAI's API. */
export class ApiError extends Error {
  override readonly name = 'ApiError';
  readonly details: Details;

  constructor(
    readonly status: number,
    message: string,
    details: Details = {},
  ) {
    super(message);
    this.details = details;
  }

  get body() {
    const { param = null, code = null } = this.details;
    return { error: { message: this.message, type: types[this.status] ?? 'invalid_request_error', param, code } };
  }
}

/** A request that is wrong, and in which field. */
export const badRequest = (param: string | undefined, message: string, code?: string) =>
  new ApiError(400, message, { param, ...(code !== undefined && { code }) });

export const busy = (message: string) =>
  new ApiError(429, message, { code: 'queue_full', headers: { 'retry-after': '1' } });

/** Why a request is ended before its answer is complete. */
export const endings = {
  disconnected: () => new ApiError(499, 'the client has gone'),
  stalled: () => new ApiError(499, 'the client does not read'),
  timeout: (seconds: number) => new ApiError(504, `the request took more than ${seconds} s`, { code: 'timeout' }),
  closing: () => new ApiError(503, 'the server is being closed', { code: 'closing' }),
  aborted: () => new ApiError(503, 'the request was aborted', { code: 'aborted' }),
} as const;

/** What a client is told of an error that `submit` throws: what is wrong with its request, and nothing of what is within. */
export function ofSubmit(error: unknown, param: string): unknown {
  if (!(error instanceof FlashAttnError)) return error;
  if (error.code === 'ERR_OPTION') return badRequest(param, error.message);
  if (error.code === 'ERR_OUT_OF_MEMORY') return badRequest(param, error.message, 'context_length_exceeded');
  if (error.code === 'ERR_BUSY') return busy(error.message);
  if (error.code === 'ERR_DISPOSED') return endings.closing();
  return error;
}

/** Of any error what a client is told. */
export const asApiError = (error: unknown): ApiError =>
  error instanceof ApiError ? error : new ApiError(500, 'something went wrong within the server', { code: 'internal' });
