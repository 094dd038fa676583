// Who may ask: those with the token, and no page of another site that a browser was talked into sending here.
import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { isIPv4, isIPv6 } from 'node:net';
import { ApiError } from './apiError.js';

const digest = (text: string) => createHash('sha256').update(text).digest();

/** Compares all of the token, whatever is sent. @throws 401 */
export function tokenCheck(token: string | undefined): (request: IncomingMessage) => void {
  if (token === undefined) return () => {};
  const wanted = digest(token);
  return ({ headers: { authorization = '' } }) => {
    const sent = /^Bearer +([\x21-\x7e]+) *$/i.exec(authorization)?.[1] ?? '';
    if (timingSafeEqual(digest(sent), wanted)) return;
    throw new ApiError(401, 'the bearer token in authorization is missing or wrong', {
      code: 'invalid_api_key',
      headers: { 'www-authenticate': 'Bearer' },
    });
  };
}

const isLoopback = (host: string) =>
  host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'));

/** The name in a `host` header, without a port and brackets. */
const nameOf = (header: string) => {
  const name = header.replace(/:\d*$/, '').toLowerCase();
  const inner = name.replace(/^\[(.*)\]$/, '$1');
  return isIPv6(inner) ? inner : name;
};

/**
 * Of a server on loopback, refuses requests that name another one: a page whose name has been made to lead here (DNS
 * rebinding) would otherwise be of the same origin. @throws 403
 */
export function hostCheck(host: string, names: readonly string[] | undefined): (request: IncomingMessage) => void {
  if (names === undefined && !isLoopback(host)) return () => {};
  const known = new Set(names?.map((name) => name.toLowerCase()));
  return ({ headers }) => {
    const name = nameOf(headers.host ?? '');
    if (isLoopback(name) || known.has(name)) return;
    throw new ApiError(403, 'the host that the request names is not this server', { code: 'wrong_host' });
  };
}
