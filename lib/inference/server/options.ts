import { checkInteger, checkNumber, checkObject, checkOptions, checkString, mustBe } from '../../base/check.js';
import type { ChatTemplate } from '../chat.js';
import type { Embed, ServedEngine, ServedModel, ServedTokenizer } from './served.js';

/** What one client may ask for, and all together. */
export interface ServerLimits {
  /** Of a request's body. Default 1 MiB. */
  readonly bodyBytes: number;
  /** That a request may generate. Default the model's context. */
  readonly maxTokens: number;
  /** Requests that are answered at once, running or waiting; further ones get 429. Default 256. */
  readonly requests: number;
  /** Prompts of a request. Default 16. */
  readonly prompts: number;
  /** Messages of a chat. Default 1,024. */
  readonly messages: number;
  /** Stop strings of a request. Default 4, as in OpenAI's API. */
  readonly stops: number;
  /** Characters of one. Default 256. */
  readonly stopLength: number;
  /** Until a request has been answered. Default 600. */
  readonly requestSeconds: number;
  /** Until headers and body have come. Default 30; of the headers alone at most 10. */
  readonly receiveSeconds: number;
  /** That a client may not read what has been written. Default 60. */
  readonly stallSeconds: number;
  /** That a connection may be idle. Default 60. */
  readonly idleSeconds: number;
  /** Open connections. Default 1,024. */
  readonly connections: number;
}

const defaults: Omit<ServerLimits, 'maxTokens'> = {
  bodyBytes: 2 ** 20,
  requests: 256,
  prompts: 16,
  messages: 1024,
  stops: 4,
  stopLength: 256,
  requestSeconds: 600,
  receiveSeconds: 30,
  stallSeconds: 60,
  idleSeconds: 60,
  connections: 1024,
};

/** What happened to a request: no texts of clients. */
export interface LogEntry {
  readonly method: string;
  readonly path: string;
  readonly status: number;
  readonly milliseconds: number;
  /** What went wrong within the server; clients are not told. */
  readonly error?: unknown;
}

export type Loading<T> = T | Promise<T>;

export interface ServerOptions {
  /** What decodes. Until it and the tokenizer are there, requests get 503. It stays the caller's, who closes it. */
  readonly engine: Loading<ServedEngine>;
  readonly tokenizer: Loading<ServedTokenizer>;
  readonly model: ServedModel;
  /** Default `plainChatTemplate`. */
  readonly chatTemplate?: Loading<ChatTemplate>;
  /** Default none: /v1/embeddings gives 501. */
  readonly embed?: Embed;
  readonly limits?: Partial<ServerLimits>;
  /** What clients have to send as bearer token. Default none. */
  readonly token?: string;
  /** Where to listen. Default '127.0.0.1': this machine alone. */
  readonly host?: string;
  /** Default 8000; 0 takes a free one. */
  readonly port?: number;
  /** Names of this server in requests, besides those of loopback. Default any where `host` is not loopback. */
  readonly hostNames?: readonly string[];
  readonly log?: (entry: LogEntry) => void;
}

function limitsOf(given: Partial<ServerLimits>, context: number): ServerLimits {
  const limits = { ...defaults, maxTokens: context, ...given };
  checkOptions(given, Object.keys(limits) as (keyof ServerLimits)[], 'limits');
  for (const [name, value] of Object.entries(limits))
    if (name.endsWith('Seconds')) {
      if (checkNumber(value, `limits.${name}`, 0, 86_400) === 0) throw mustBe(`limits.${name}`, value, 'above 0');
    } else checkInteger(value, `limits.${name}`, 1, 2 ** 31 - 1);
  return limits;
}

/** @throws ERR_OPTION */
export function checkServerOptions(options: ServerOptions) {
  checkOptions(options, [
    ...(['engine', 'tokenizer', 'model', 'chatTemplate', 'embed', 'limits', 'token', 'host', 'port'] as const),
    ...(['hostNames', 'log'] as const),
  ]);
  const { model, token, host = '127.0.0.1', port = 8000, hostNames } = options;
  checkObject(options.engine, 'engine');
  checkObject(options.tokenizer, 'tokenizer');
  checkOptions(model, ['name', 'context', 'stopTokens', 'sampling'], 'model');
  if (!/^[\w.:/@-]{1,200}$/.test(checkString(model.name, 'model.name')))
    throw mustBe('model.name', model.name, 'letters, digits and . : / @ _ -');
  checkInteger(model.context, 'model.context', 2);
  if (token !== undefined && !/^[\x21-\x7e]+$/.test(checkString(token, 'token')))
    throw mustBe('token', 'what it is', 'characters of ASCII without spaces'); // which messages do not tell
  checkString(host, 'host');
  checkInteger(port, 'port', 0, 65_535);
  hostNames?.forEach((name, at) => {
    checkString(name, `hostNames[${at}]`);
  });
  const limits = limitsOf(options.limits ?? {}, model.context);
  return { ...options, model, host, port, limits };
}
