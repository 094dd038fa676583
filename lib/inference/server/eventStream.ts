import type { ServerResponse } from 'node:http';
import { endings } from './apiError.js';

/** Waits until what has been written is on its way. @throws when the client goes, or reads nothing for too long */
function drained(response: ServerResponse, stallSeconds: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const finish = (settle: () => void) => {
      clearTimeout(timer);
      response.off('drain', onDrain).off('close', onClose);
      settle();
    };
    const onDrain = () => finish(resolve);
    const onClose = () => finish(() => reject(endings.disconnected()));
    const timer = setTimeout(() => finish(() => reject(endings.stalled())), stallSeconds * 1000);
    response.on('drain', onDrain).on('close', onClose);
  });
}

/** Server-sent events, as fast as the client reads them. https://html.spec.whatwg.org/multipage/server-sent-events.html */
export class EventStream {
  readonly #response: ServerResponse;
  readonly #stallSeconds: number;
  /** Writers that came before. */
  #turn: Promise<void> = Promise.resolve();

  constructor(response: ServerResponse, stallSeconds: number) {
    this.#response = response;
    this.#stallSeconds = stallSeconds;
    response.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache, no-transform',
      'x-accel-buffering': 'no',
    });
    response.flushHeaders();
  }

  /** @throws when the client is gone or does not read */
  send(data: unknown): Promise<void> {
    const sent = this.#turn.then(() =>
      this.#write(`data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`),
    );
    this.#turn = sent.catch(() => {});
    return sent;
  }

  async #write(text: string): Promise<void> {
    const response = this.#response;
    if (response.destroyed) throw endings.disconnected();
    if (!response.write(text)) await drained(response, this.#stallSeconds);
  }

  end(): void {
    this.#response.end();
  }
}
