// Bodies come from anyone: they are bounded before they are kept, and checked before they are read.
import type { IncomingMessage } from 'node:http';
import { parseJsonObject } from '../json.js';
import { ApiError, badRequest, endings } from './apiError.js';

/** So many times the limit is read and thrown away, so that a client can finish and hear why it is refused. */
const patience = 8;

const tooLarge = (limit: number) =>
  new ApiError(413, `the body has more than ${limit} bytes`, { code: 'body_too_large' });

/** Calls `take` for each chunk until it returns false or the body ends. @throws when the client goes */
function readChunks(request: IncomingMessage, take: (chunk: Buffer) => boolean): Promise<void> {
  if (request.complete && request.readableLength === 0) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const onData = (chunk: Buffer) => {
      if (!take(chunk)) finish(resolve);
    };
    const onEnd = () => finish(resolve);
    const onClose = () => finish(() => reject(endings.disconnected()));
    const finish = (settle: () => void) => {
      request.off('data', onData).off('end', onEnd).off('error', onClose).off('close', onClose).pause();
      settle();
    };
    if (request.destroyed) onClose();
    else request.on('data', onData).on('end', onEnd).on('error', onClose).on('close', onClose).resume();
  });
}

/** The whole body. @throws 413, 415 */
export async function readBody(request: IncomingMessage, limit: number): Promise<Buffer> {
  const { 'content-type': type = '', 'content-encoding': encoding = 'identity' } = request.headers;
  if (!/^application\/json\s*(;|$)/i.test(type))
    throw new ApiError(415, 'content-type must be application/json', { code: 'unsupported_media_type' });
  if (encoding !== 'identity')
    throw new ApiError(415, 'content-encoding must be identity', { code: 'unsupported_media_type' });
  if (Number(request.headers['content-length'] ?? 0) > limit) throw tooLarge(limit);
  const chunks: Buffer[] = [];
  let length = 0;
  await readChunks(request, (chunk) => {
    length += chunk.length;
    chunks.push(chunk);
    return length <= limit;
  });
  if (length > limit) throw tooLarge(limit);
  return Buffer.concat(chunks);
}

/** Reads what is left of a body that is not wanted. @returns whether all of it has come */
export async function discardBody(request: IncomingMessage, limit: number): Promise<boolean> {
  if (Number(request.headers['content-length'] ?? 0) > patience * limit) return false;
  let length = 0;
  await readChunks(request, (chunk) => (length += chunk.length) <= patience * limit);
  return length <= patience * limit;
}

/** The JSON object that a body is. @throws 400 */
export function parseBody(bytes: Uint8Array): object {
  const value = parseJsonObject(bytes);
  if (typeof value === 'string') throw badRequest(undefined, `the body ${value}`, 'invalid_json');
  return value;
}
