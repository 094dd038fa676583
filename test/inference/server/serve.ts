import { request as httpRequest } from 'node:http';
import { connect, type Socket } from 'node:net';
import { onTestFinished } from 'vitest';
import type { LogEntry, ServerOptions } from '../../../lib/inference/server/options.js';
import { createServer } from '../../../lib/inference/server/server.js';
import { context, endToken, FakeEngine, type FakeOptions, tokenizer } from './fakeEngine.js';

/** A server for the time of a test. */
export async function serve(options: Partial<ServerOptions> = {}, engine: FakeOptions = {}) {
  const fake = new FakeEngine(engine);
  const logged: LogEntry[] = [];
  const server = createServer({
    engine: fake,
    tokenizer,
    model: { name: 'example', context, stopTokens: [endToken] },
    port: 0,
    log: (entry) => logged.push(entry),
    ...options,
  });
  const { url, port } = await server.listen();
  onTestFinished(() => server.close({ graceSeconds: 0 }));
  const post = (path: string, body: unknown, init: RequestInit = {}) =>
    fetch(url + path, {
      method: 'POST',
      body: typeof body === 'string' || body instanceof Uint8Array ? (body as string) : JSON.stringify(body),
      ...init,
      headers: { 'content-type': 'application/json', ...(init.headers as Record<string, string>) },
    });
  return { server, fake, url, port, post, logged };
}

/** The data of server-sent events. */
export function eventsOf(text: string): unknown[] {
  if (!text.endsWith('\n\n')) throw new Error('the last event is cut off');
  return text
    .slice(0, -2)
    .split('\n\n')
    .map((event) => {
      if (!event.startsWith('data: ')) throw new Error(`no data: ${event}`);
      const data = event.slice('data: '.length);
      return data === '[DONE]' ? data : JSON.parse(data);
    });
}

/** Waits until something is so. */
export async function until(isSo: () => boolean, what: string): Promise<void> {
  for (let tries = 0; tries < 3000; tries++) {
    if (isSo()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`never: ${what}`);
}

/** A connection, and all that comes over it until it is closed. */
export function raw(port: number, text = ''): { readonly socket: Socket; readonly closed: Promise<string> } {
  const socket = connect(port, '127.0.0.1');
  let received = '';
  socket.setEncoding('utf8').on('data', (chunk) => (received += chunk));
  const closed = new Promise<string>((resolve) => socket.on('error', () => {}).on('close', () => resolve(received)));
  if (text) socket.write(text);
  return { socket, closed };
}

/** With headers that fetch does not let one set. */
export function getWith(port: number, path: string, headers: Record<string, string>): Promise<number> {
  return new Promise((resolve, reject) => {
    httpRequest({ port, host: '127.0.0.1', path, headers, agent: false }, (response) => {
      response.resume();
      resolve(response.statusCode ?? 0);
    })
      .on('error', reject)
      .end();
  });
}
