// HTTP over an engine, in the words of OpenAI's API.
import { randomUUID } from 'node:crypto';
import { createServer as createHttpServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { FlashAttnError } from '../../base/errors.js';
import { plainChatTemplate } from '../chat.js';
import { hostCheck, tokenCheck } from './access.js';
import { type AnswerFormat, chatFormat, completionFormat, embeddingOf, usageOf } from './answers.js';
import { ApiError, asApiError, busy, endings, ofSubmit } from './apiError.js';
import { discardBody, parseBody, readBody } from './body.js';
import { EventStream } from './eventStream.js';
import { type Piece, piecesOf, type Usage } from './generation.js';
import { ServerMetrics } from './metrics.js';
import { checkServerOptions, type ServerOptions } from './options.js';
import { pageFor, pagePolicy } from './page.js';
import { chatRequest, completionRequest, embeddingRequest, type GenerationRequest, type Reading } from './requests.js';
import type { ServedEngine, ServedRequest, ServedTokens } from './served.js';

/** What there is once the model is loaded. */
interface Loaded extends Reading {
  readonly engine: ServedEngine;
}

/** A request that is being answered. */
interface Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** Aborted with the reason why the answer ends early. */
  readonly controller: AbortController;
  readonly begin: number;
}

interface Route {
  readonly method: 'GET' | 'POST';
  /** Whether it needs the token. */
  readonly isOpen?: boolean;
  readonly answer: (exchange: Exchange) => Promise<void> | void;
}

const baseHeaders = { 'x-content-type-options': 'nosniff', 'cache-control': 'no-store' };

function send(response: ServerResponse, status: number, type: string, text: string, headers = {}): void {
  const bytes = Buffer.from(text);
  response.writeHead(status, { ...baseHeaders, 'content-type': type, 'content-length': bytes.length, ...headers });
  response.end(response.req.method === 'HEAD' ? undefined : bytes);
}

const sendJson = (response: ServerResponse, status: number, value: unknown, headers = {}) =>
  send(response, status, 'application/json; charset=utf-8', JSON.stringify(value), headers);

/** A server that may be listening. */
export interface InferenceServer extends AsyncDisposable {
  /** Listens, and says where. @throws ERR_OPTION when the place is taken or cannot be had */
  listen(): Promise<{ readonly host: string; readonly port: number; readonly url: string }>;
  /** When the model is loaded. @throws (rejects) why it could not be */
  readonly ready: Promise<void>;
  /** How many requests are being answered. */
  readonly active: number;
  /**
   * Takes no more requests, waits for those that are being answered, and ends those that still are after `graceSeconds`. The
   * engine stays the caller's. Twice is harmless.
   */
  close(options?: { readonly graceSeconds?: number }): Promise<void>;
}

class HttpServer implements InferenceServer {
  readonly ready: Promise<void>;
  readonly #options: ReturnType<typeof checkServerOptions>;
  readonly #server: Server;
  readonly #routes: ReadonlyMap<string, Route>;
  readonly #metrics = new ServerMetrics();
  readonly #active = new Set<Exchange>();
  /** Of these, those that have the engine work. */
  #generating = 0;
  readonly #checkToken: (request: IncomingMessage) => void;
  readonly #checkHost: (request: IncomingMessage) => void;
  readonly #created = Math.floor(Date.now() / 1000);
  #loaded: Loaded | undefined;
  #state: 'loading' | 'ok' | 'failed' | 'closing' = 'loading';
  #closed: Promise<void> | undefined;
  /** Told when the last request has been answered. */
  #whenIdle: (() => void) | undefined;

  constructor(options: ServerOptions) {
    const checked = checkServerOptions(options);
    this.#options = checked;
    const { limits, host, hostNames, token } = checked;
    this.#checkToken = tokenCheck(token);
    this.#checkHost = hostCheck(host, hostNames);
    const ofModel: Route = { method: 'GET', answer: ({ response }) => sendJson(response, 200, this.#model) };
    this.#routes = new Map<string, Route>([
      ['/', { method: 'GET', isOpen: true, answer: (exchange) => this.#page(exchange) }],
      ['/health', { method: 'GET', isOpen: true, answer: (exchange) => this.#health(exchange) }],
      ['/metrics', { method: 'GET', answer: (exchange) => this.#metricsText(exchange) }],
      ['/v1/models', { method: 'GET', answer: (exchange) => this.#models(exchange) }],
      [`/v1/models/${checked.model.name}`, ofModel],
      [`/v1/models/${encodeURIComponent(checked.model.name)}`, ofModel],
      ['/v1/completions', { method: 'POST', answer: (exchange) => this.#complete(exchange) }],
      ['/v1/chat/completions', { method: 'POST', answer: (exchange) => this.#chat(exchange) }],
      ['/v1/embeddings', { method: 'POST', answer: (exchange) => this.#embed(exchange) }],
    ]);
    this.#server = createHttpServer(
      {
        headersTimeout: Math.min(10, limits.receiveSeconds) * 1000,
        requestTimeout: limits.receiveSeconds * 1000,
        keepAliveTimeout: limits.idleSeconds * 1000,
        connectionsCheckingInterval: Math.max(100, Math.min(1000, limits.receiveSeconds * 250)),
      },
      (request, response) => void this.#handle(request, response),
    );
    this.#server.maxConnections = limits.connections;
    this.#server.on('clientError', (error, socket) => refuseClient(error, socket as Socket));
    this.ready = this.#load();
    this.ready.catch(() => {}); // who waits for it is told; others see it in /health
  }

  get active(): number {
    return this.#active.size;
  }

  async #load(): Promise<void> {
    const { engine, tokenizer, chatTemplate = plainChatTemplate, model, limits } = this.#options;
    try {
      const [own, text, template] = await Promise.all([engine, tokenizer, chatTemplate]);
      this.#loaded = { engine: own, tokenizer: text, chatTemplate: template, model, limits };
      if (this.#state === 'loading') this.#state = 'ok';
    } catch (error) {
      if (this.#state === 'loading') this.#state = 'failed';
      throw error;
    }
  }

  async listen() {
    const { host, port } = this.#options;
    await new Promise<void>((resolve, reject) => {
      const onError = (cause: Error) =>
        reject(
          new FlashAttnError('ERR_OPTION', `port ${port} of ${host} cannot be listened on (${cause.message})`, {
            cause,
          }),
        );
      this.#server.once('error', onError);
      this.#server.listen({ host, port }, () => {
        this.#server.off('error', onError);
        resolve();
      });
    });
    const at = this.#server.address() as AddressInfo;
    return { host, port: at.port, url: `http://${host.includes(':') ? `[${host}]` : host}:${at.port}` };
  }

  close(options: { readonly graceSeconds?: number } = {}): Promise<void> {
    this.#closed ??= this.#shut(options.graceSeconds ?? 10);
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #shut(graceSeconds: number): Promise<void> {
    this.#state = 'closing';
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeIdleConnections();
    const abort = setTimeout(() => {
      for (const { controller } of this.#active) controller.abort(endings.closing());
    }, graceSeconds * 1000);
    // What has been written last may still be on its way; who does not read or finish it is not waited for.
    const cut = setTimeout(() => this.#server.closeAllConnections(), graceSeconds * 1000 + 1000);
    if (this.#active.size > 0) await new Promise<void>((resolve) => (this.#whenIdle = resolve));
    this.#server.closeIdleConnections();
    await closed;
    clearTimeout(abort);
    clearTimeout(cut);
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const exchange = { request, response, controller: new AbortController(), begin: performance.now() };
    this.#active.add(exchange);
    const gone = new Promise<void>((resolve) => response.once('close', resolve));
    void gone.then(() => {
      if (!response.writableFinished) exchange.controller.abort(endings.disconnected());
    });
    request.on('error', () => {}); // that the client is gone is heard by 'close'
    const [path] = (request.url ?? '').split('?', 1);
    let failure: unknown;
    try {
      await this.#answer(path, exchange);
    } catch (error) {
      failure = error;
      await this.#refuse(exchange, asApiError(error)).catch(() => response.destroy());
    }
    if (!response.writableEnded) response.destroy();
    const stalled = setTimeout(() => {
      exchange.controller.abort(endings.stalled());
      response.destroy();
    }, this.#options.limits.stallSeconds * 1000);
    await gone;
    clearTimeout(stalled);
    this.#active.delete(exchange);
    this.#count(path, exchange, failure);
    if (this.#active.size === 0) this.#whenIdle?.();
  }

  /** @throws what the client is to be told */
  async #answer(path: string, exchange: Exchange): Promise<void> {
    const { request, response } = exchange;
    response.setHeader('x-request-id', randomUUID());
    if (this.#state === 'closing') {
      response.setHeader('connection', 'close');
      throw endings.closing();
    }
    this.#checkHost(request);
    const route = this.#routes.get(path);
    if (!route?.isOpen) this.#checkToken(request);
    if (!route) throw new ApiError(404, `there is no ${path.slice(0, 100)}`, { code: 'not_found' });
    const { method = '' } = request;
    if (method !== route.method && !(method === 'HEAD' && route.method === 'GET'))
      throw new ApiError(405, `${path} takes ${route.method}`, {
        code: 'method_not_allowed',
        headers: { allow: route.method === 'GET' ? 'GET, HEAD' : 'POST' },
      });
    await route.answer(exchange);
  }

  async #refuse({ request, response }: Exchange, error: ApiError): Promise<void> {
    if (response.destroyed || response.headersSent) return void response.destroy();
    // A client that is still sending would not hear an answer before it has finished.
    if (!request.complete) {
      response.setHeader('connection', 'close');
      await discardBody(request, this.#options.limits.bodyBytes);
    }
    sendJson(response, error.status, error.body, error.details.headers);
  }

  #count(path: string, { request, response, controller, begin }: Exchange, failure: unknown): void {
    const route = this.#routes.has(path) ? path : 'other';
    const aborted = controller.signal.aborted ? asApiError(controller.signal.reason) : undefined;
    const status = aborted?.status ?? response.statusCode;
    this.#metrics.requests.add(1, { route, status: String(status) });
    const milliseconds = performance.now() - begin;
    if (route.startsWith('/v1/') && request.method === 'POST') this.#metrics.duration.observe(milliseconds / 1000);
    if (aborted) this.#metrics.cancelled.add(1, { status: String(aborted.status) });
    const isOurs = failure !== undefined && !(failure instanceof ApiError);
    const entry = { method: request.method ?? '', path: route === 'other' ? 'other' : path, status, milliseconds };
    this.#options.log?.(isOurs ? { ...entry, error: failure } : entry);
  }

  /** @throws 503 until the model is loaded */
  #ready(): Loaded {
    if (this.#loaded) return this.#loaded;
    if (this.#state === 'failed') throw new ApiError(503, 'the model could not be loaded', { code: 'model_failed' });
    throw new ApiError(503, 'the model is being loaded', { code: 'loading', headers: { 'retry-after': '1' } });
  }

  #page({ response }: Exchange): void {
    send(response, 200, 'text/html; charset=utf-8', pageFor(this.#options.model.name), {
      'content-security-policy': pagePolicy,
      'referrer-policy': 'no-referrer',
      'cross-origin-opener-policy': 'same-origin',
    });
  }

  #health({ response }: Exchange): void {
    sendJson(response, this.#state === 'ok' ? 200 : 503, { status: this.#state });
  }

  #metricsText({ response }: Exchange): void {
    const text = this.#metrics.text(this.#active.size, this.#loaded?.engine.stats);
    send(response, 200, 'text/plain; version=0.0.4; charset=utf-8', text);
  }

  get #model() {
    return { id: this.#options.model.name, object: 'model', created: this.#created, owned_by: 'flashattn' };
  }

  #models({ response }: Exchange): void {
    sendJson(response, 200, { object: 'list', data: [this.#model] });
  }

  /** Runs what the engine is needed for, as far as limits allow. @throws 429 */
  async #within(exchange: Exchange, run: () => Promise<void>): Promise<void> {
    const { requests, requestSeconds } = this.#options.limits;
    if (this.#generating >= requests) throw busy(`${requests} requests are being answered, as many as may`);
    this.#generating++;
    const timer = setTimeout(
      () => exchange.controller.abort(endings.timeout(requestSeconds)),
      Math.max(0, requestSeconds * 1000 - (performance.now() - exchange.begin)),
    );
    try {
      await run();
    } finally {
      clearTimeout(timer);
      this.#generating--;
    }
  }

  #complete(exchange: Exchange): Promise<void> {
    return this.#generate(exchange, 'cmpl', completionRequest, completionFormat);
  }

  #chat(exchange: Exchange): Promise<void> {
    return this.#generate(exchange, 'chatcmpl', chatRequest, chatFormat);
  }

  async #generate(
    exchange: Exchange,
    kind: string,
    read: (body: object, reading: Reading) => GenerationRequest,
    formatOf: typeof chatFormat,
  ): Promise<void> {
    const loaded = this.#ready();
    await this.#within(exchange, async () => {
      const wanted = read(parseBody(await readBody(exchange.request, this.#options.limits.bodyBytes)), loaded);
      const format = formatOf({ tokenizer: loaded.tokenizer, logprobs: wanted.logprobs !== undefined });
      const head = { id: `${kind}-${randomUUID()}`, created: Math.floor(Date.now() / 1000), model: loaded.model.name };
      const usage: Usage = { prompt: 0, cached: 0, generated: 0 };
      const choices = this.#submit(exchange, wanted, loaded, usage);
      try {
        if (wanted.stream) await this.#stream(exchange, wanted, choices, format, head, usage);
        else await this.#whole(exchange, choices, format, head, usage);
      } finally {
        this.#metrics.promptTokens.add(usage.prompt);
        this.#metrics.generatedTokens.add(usage.generated);
      }
    });
  }

  /** Begins with all prompts, or with none. @throws what the client is to be told */
  #submit(exchange: Exchange, wanted: GenerationRequest, loaded: Loaded, usage: Usage): AsyncGenerator<Piece, void>[] {
    const { signal } = exchange.controller;
    const { sampling, logprobs, stop } = wanted;
    const submitted: ServedTokens[] = [];
    for (const prompt of wanted.prompts) {
      const request: ServedRequest = {
        prompt: prompt.tokens,
        maxTokens: prompt.maxTokens,
        sampling,
        stopTokens: loaded.model.stopTokens ?? [],
        signal,
        priority: exchange.request.socket.remoteAddress ?? '',
        ...(logprobs !== undefined && { logprobs }),
      };
      try {
        submitted.push(loaded.engine.submit(request));
      } catch (error) {
        for (const stream of submitted) stream.cancel();
        throw ofSubmit(error, prompt.param);
      }
      usage.prompt += prompt.tokens.length;
    }
    return submitted.map((stream, index) => {
      const onToken = this.#timer(exchange.begin);
      return piecesOf(stream, wanted.prompts[index], { tokenizer: loaded.tokenizer, stop, signal, usage, onToken });
    });
  }

  /** Told of tokens, keeps the times between them. */
  #timer(begin: number): () => void {
    let last: number | undefined;
    return () => {
      const now = performance.now();
      if (last === undefined) this.#metrics.firstToken.observe((now - begin) / 1000);
      else this.#metrics.nextToken.observe((now - last) / 1000);
      last = now;
    };
  }

  async #whole(
    { response, controller }: Exchange,
    choices: readonly AsyncGenerator<Piece, void>[],
    format: AnswerFormat,
    head: object,
    usage: Usage,
  ): Promise<void> {
    const answers = await all(controller, choices, async (pieces, index) => {
      const own: Piece[] = [];
      for await (const piece of pieces) own.push(piece);
      return format.whole(index, own);
    });
    sendJson(response, 200, { ...head, object: format.object, choices: answers, usage: usageOf(usage) });
  }

  async #stream(
    { response, controller }: Exchange,
    { includeUsage }: GenerationRequest,
    choices: readonly AsyncGenerator<Piece, void>[],
    format: AnswerFormat,
    head: object,
    usage: Usage,
  ): Promise<void> {
    const events = new EventStream(response, this.#options.limits.stallSeconds);
    const chunkOf = (own: readonly object[]) => ({
      ...{ ...head, object: format.chunkObject, choices: own },
      ...(includeUsage && { usage: own.length > 0 ? null : usageOf(usage) }),
    });
    try {
      await all(controller, choices, async (pieces, index) => {
        const opening = format.opening(index);
        if (opening) await events.send(chunkOf([opening]));
        for await (const piece of pieces)
          for (const chunk of format.chunks(index, piece)) await events.send(chunkOf([chunk]));
      });
      if (includeUsage) await events.send(chunkOf([]));
      await events.send('[DONE]');
      events.end();
    } catch (error) {
      const told = asApiError(error);
      if (told.status === 499) throw error;
      await events.send(told.body);
      events.end();
      throw error;
    }
  }

  async #embed(exchange: Exchange): Promise<void> {
    const loaded = this.#ready();
    const { embed } = this.#options;
    if (!embed) throw new ApiError(501, `${loaded.model.name} gives no embeddings`, { code: 'not_implemented' });
    await this.#within(exchange, async () => {
      const body = parseBody(await readBody(exchange.request, this.#options.limits.bodyBytes));
      const { inputs, format } = embeddingRequest(body, loaded);
      const vectors = await embed(inputs, exchange.controller.signal);
      const prompt = inputs.reduce((sum, { length }) => sum + length, 0);
      this.#metrics.promptTokens.add(prompt);
      sendJson(exchange.response, 200, {
        object: 'list',
        model: loaded.model.name,
        data: vectors.map((vector, index) => embeddingOf(vector, index, format)),
        usage: { prompt_tokens: prompt, total_tokens: prompt },
      });
    });
  }
}

/** Runs all choices at once; where one fails the others are ended, and all have ended before this throws. */
async function all<T>(
  controller: AbortController,
  choices: readonly AsyncGenerator<Piece, void>[],
  run: (pieces: AsyncGenerator<Piece, void>, index: number) => Promise<T>,
): Promise<T[]> {
  const running = choices.map(async (pieces, index) => {
    try {
      return await run(pieces, index);
    } catch (error) {
      controller.abort(error);
      throw error;
    }
  });
  const settled = await Promise.allSettled(running);
  const failed = settled.find((each) => each.status === 'rejected');
  if (failed) throw controller.signal.reason;
  return settled.map((each) => (each as PromiseFulfilledResult<T>).value);
}

const clientErrors: Readonly<Record<string, readonly [status: string, message: string]>> = {
  HPE_HEADER_OVERFLOW: ['431 Request Header Fields Too Large', 'the headers are too large'],
  ERR_HTTP_REQUEST_TIMEOUT: ['408 Request Timeout', 'the request took too long to come'],
};

/** What is no HTTP, or too slow, is told so and cut off. */
function refuseClient(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable || socket.bytesWritten > 0) return void socket.destroy();
  const [status, message] = clientErrors[error.code ?? ''] ?? ['400 Bad Request', 'this is not HTTP'];
  const body = JSON.stringify({ error: { message, type: 'invalid_request_error', param: null, code: null } });
  socket.end(
    `HTTP/1.1 ${status}\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
  );
}

/**
 * A server of one model in the words of OpenAI's API: POST /v1/completions, /v1/chat/completions, /v1/embeddings, GET
 * /v1/models, /health, /metrics (Prometheus), and a page to try it at /. Nothing is read from disk or fetched. Clients that
 * go cancel what they have asked for; each gets its answer as fast as it reads.
 *
 * @throws ERR_OPTION
 */
export const createServer = (options: ServerOptions): InferenceServer => new HttpServer(options);
