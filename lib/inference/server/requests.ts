// Bodies of OpenAI's API as what is to be generated. What it has and is not served here is refused, not passed over.
import { FlashAttnError } from '../../base/errors.js';
import type { ChatMessage, ChatTemplate } from '../chat.js';
import type { SamplingOptions } from '../sampling.js';
import { ApiError, badRequest, ofSubmit } from './apiError.js';
import { Fields, integerOf, textOf } from './fields.js';
import type { ServerLimits } from './options.js';
import type { ServedModel, ServedTokenizer } from './served.js';

/** What requests are read with. */
export interface Reading {
  readonly model: ServedModel;
  readonly tokenizer: ServedTokenizer;
  readonly chatTemplate: ChatTemplate;
  readonly limits: ServerLimits;
}

export interface Prompt {
  readonly tokens: readonly number[];
  /** Its field. */
  readonly param: string;
  readonly maxTokens: number;
}

export interface GenerationRequest {
  readonly prompts: readonly Prompt[];
  readonly sampling: SamplingOptions;
  readonly stop: readonly string[];
  /** With each token the logarithm of its probability, and so many of the most probable ones. */
  readonly logprobs: number | undefined;
  readonly stream: boolean;
  readonly includeUsage: boolean;
}

/** Of clients' accounts and bookkeeping: they change no answer. */
const ignored = ['user', 'metadata', 'store', 'service_tier', 'safety_identifier', 'prompt_cache_key'];

const common = [
  ...['model', 'max_tokens', 'temperature', 'top_p', 'top_k', 'min_p', 'n', 'stream', 'stream_options', 'stop', 'seed'],
  ...['presence_penalty', 'frequency_penalty', 'repetition_penalty', 'logit_bias', 'logprobs'],
  ...ignored,
];
const completionFields = [...common, 'prompt', 'echo', 'suffix', 'best_of'];
const chatFields = [
  ...[...common, 'messages', 'max_completion_tokens', 'top_logprobs', 'response_format'],
  ...['tools', 'tool_choice', 'parallel_tool_calls'],
];

const mostLogprobs = 20;
const mostBiases = 1024;

function checkModel(fields: Fields, { name }: ServedModel): void {
  const wanted = fields.text('model');
  if (wanted === undefined || wanted === name) return;
  throw new ApiError(
    404,
    `there is no model ${JSON.stringify(wanted.slice(0, 100))}; this is ${JSON.stringify(name)}`,
    {
      param: 'model',
      code: 'model_not_found',
    },
  );
}

/** What `logit_bias` adds. */
function biasOf(fields: Fields, vocabulary: number): SamplingOptions['logitsProcessor'] | undefined {
  const value = fields.get('logit_bias');
  if (value === undefined) return undefined;
  if (value === null || typeof value !== 'object' || Array.isArray(value) || Object.keys(value).length > mostBiases)
    throw badRequest('logit_bias', `logit_bias must be an object with at most ${mostBiases} tokens`);
  const biases = Object.entries(value).map(([key, bias]: [string, unknown]) => {
    const param = `logit_bias.${key.slice(0, 20)}`;
    if (!/^\d{1,10}$/.test(key)) throw badRequest(param, `${param} is no token; it must be an integer`);
    const token = integerOf(Number(key), param, 0, vocabulary - 1);
    if (!Number.isFinite(bias) || Math.abs(bias as number) > 100)
      throw badRequest(param, `${param} must be a number from -100 to 100`);
    return [token, bias as number] as const;
  });
  if (biases.length === 0) return undefined;
  return (logits) => {
    for (const [token, bias] of biases) logits[token] += bias;
  };
}

function samplingOf(fields: Fields, { model, tokenizer }: Reading): SamplingOptions {
  const seed = fields.integer('seed', Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER);
  const topP = fields.number('top_p', 0, 1);
  if (topP === 0) throw badRequest('top_p', 'top_p is 0; it must be above');
  const repetitionPenalty = fields.number('repetition_penalty', 0, 100);
  if (repetitionPenalty === 0) throw badRequest('repetition_penalty', 'repetition_penalty is 0; it must be above');
  // 0 and -1 are how others say: all of them.
  const topK = fields.integer('top_k', -1, 2 ** 31);
  const given: { readonly [Name in keyof SamplingOptions]: SamplingOptions[Name] | undefined } = {
    temperature: fields.number('temperature', 0, 2),
    topP,
    topK: topK === undefined || topK > 0 ? topK : tokenizer.vocabulary,
    minP: fields.number('min_p', 0, 1),
    repetitionPenalty,
    presencePenalty: fields.number('presence_penalty', -2, 2),
    frequencyPenalty: fields.number('frequency_penalty', -2, 2),
    seed: seed === undefined ? undefined : BigInt.asUintN(64, BigInt(seed)),
    logitsProcessor: biasOf(fields, tokenizer.vocabulary),
  };
  return { ...model.sampling, ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)) };
}

function stopOf(fields: Fields, { limits }: Reading): readonly string[] {
  const value = fields.get('stop');
  if (value === undefined) return [];
  const read = (entry: unknown, param: string) => {
    const text = textOf(entry, param);
    if (text === '' || text.length > limits.stopLength)
      throw badRequest(param, `${param} has ${text.length} characters; it must have 1 to ${limits.stopLength}`);
    return text;
  };
  if (typeof value === 'string') return [read(value, 'stop')];
  return Array.isArray(value) && value.length === 0 ? [] : (fields.list('stop', limits.stops, read) ?? []);
}

function streamOf(fields: Fields): { readonly stream: boolean; readonly includeUsage: boolean } {
  const stream = fields.boolean('stream') ?? false;
  const options = fields.get('stream_options');
  if (options === undefined) return { stream, includeUsage: false };
  if (!stream) throw badRequest('stream_options', 'stream_options needs stream: true');
  const own = new Fields(options, ['include_usage', 'include_obfuscation'], 'stream_options');
  return { stream, includeUsage: own.boolean('include_usage') ?? false };
}

/** Tokens of a text. @throws 400 for what the tokenizer does not know */
function encode(tokenizer: ServedTokenizer, text: string, param: string, special: boolean): readonly number[] {
  try {
    return Array.from(tokenizer.encode(text, { special }));
  } catch (error) {
    throw ofSubmit(error, param);
  }
}

/** A prompt, and how many tokens may follow. */
function promptOf(
  tokens: readonly number[],
  param: string,
  wanted: { readonly maxTokens: number | undefined; readonly param: string; readonly usual: number },
  { model: { context }, limits }: Reading,
): Prompt {
  const { length } = tokens;
  const code = 'context_length_exceeded';
  if (length === 0) throw badRequest(param, `${param} has no tokens; it must have one at least`);
  if (length >= context)
    throw badRequest(param, `${param} has ${length} tokens; the model has room for ${context} with the answer`, code);
  const { maxTokens = Math.min(wanted.usual, context - length, limits.maxTokens) } = wanted;
  if (length + maxTokens > context)
    throw badRequest(
      wanted.param,
      `${param} has ${length} tokens, and ${wanted.param} is ${maxTokens}; the model has room for ${context}`,
      code,
    );
  return { tokens, param, maxTokens };
}

/** One prompt, or several: texts, or tokens. */
function tokenListsOf(
  fields: Fields,
  name: string,
  { tokenizer, limits, model }: Reading,
): { readonly tokens: readonly number[]; readonly param: string }[] {
  const value = fields.get(name);
  if (value === undefined) throw badRequest(name, `${name} is missing`);
  const token = (entry: unknown, param: string) => integerOf(entry, param, 0, tokenizer.vocabulary - 1);
  const read = (entry: unknown, param: string) => {
    if (typeof entry === 'string') return { tokens: encode(tokenizer, textOf(entry, param), param, true), param };
    if (!Array.isArray(entry)) throw badRequest(param, `${param} must be a string or a list of tokens`);
    if (entry.length > model.context)
      throw badRequest(param, `${param} has ${entry.length} tokens; the model has room for ${model.context}`);
    return { tokens: entry.map((each, at) => token(each, `${param}[${at}]`)), param };
  };
  if (!Array.isArray(value) || typeof value[0] === 'number') return [read(value, name)];
  return fields.list(name, limits.prompts, read) ?? [];
}

/** The body of POST /v1/completions. @throws 400, 404 */
export function completionRequest(body: object, reading: Reading): GenerationRequest {
  const fields = new Fields(body, completionFields);
  checkModel(fields, reading.model);
  fields.only('n', (value) => value === 1, '1');
  fields.only('best_of', (value) => value === 1, '1');
  fields.only('echo', (value) => value === false, 'false');
  fields.only('suffix', (value) => value === '', 'no suffix');
  const maxTokens = fields.integer('max_tokens', 1, reading.limits.maxTokens);
  const rest = {
    ...streamOf(fields),
    sampling: samplingOf(fields, reading),
    stop: stopOf(fields, reading),
    logprobs: fields.integer('logprobs', 0, mostLogprobs),
  };
  const prompts = tokenListsOf(fields, 'prompt', reading).map(({ tokens, param }) =>
    promptOf(tokens, param, { maxTokens, param: 'max_tokens', usual: 16 }, reading),
  );
  return { ...rest, prompts };
}

const roles: Readonly<Record<string, ChatMessage['role']>> = {
  system: 'system',
  developer: 'system',
  user: 'user',
  assistant: 'assistant',
};

function messageOf(value: unknown, param: string): ChatMessage {
  const fields = new Fields(value, ['role', 'content', 'name', 'refusal', 'audio', 'tool_calls', 'annotations'], param);
  const name = fields.text('role');
  if (name === undefined || !Object.hasOwn(roles, name))
    throw badRequest(fields.path('role'), `${fields.path('role')} must be one of ${Object.keys(roles).join(', ')}`);
  const none = (each: unknown) => Array.isArray(each) && each.length === 0;
  for (const other of ['audio', 'tool_calls', 'refusal']) fields.only(other, none, 'none');
  const path = fields.path('content');
  const content = fields.get('content');
  if (content === undefined) throw badRequest(path, `${path} is missing`);
  const role = roles[name];
  if (!Array.isArray(content)) return { role, content: textOf(content, path) };
  const parts = (fields.list('content', 1024, (part, at) => {
    const own = new Fields(part, ['type', 'text'], at);
    own.only('type', (type) => type === 'text', "'text'");
    return textOf(own.get('text'), own.path('text'));
  }) ?? []) as string[];
  return { role, content: parts.join('') };
}

function chatTokens(messages: readonly ChatMessage[], { chatTemplate, tokenizer }: Reading): readonly number[] {
  let text: string;
  try {
    text = chatTemplate.render(messages);
  } catch (error) {
    throw error instanceof FlashAttnError ? badRequest('messages', error.message) : error;
  }
  return encode(tokenizer, text, 'messages', false);
}

/** The body of POST /v1/chat/completions. @throws 400, 404 */
export function chatRequest(body: object, reading: Reading): GenerationRequest {
  const { limits, chatTemplate } = reading;
  const fields = new Fields(body, chatFields);
  checkModel(fields, reading.model);
  fields.only('n', (value) => value === 1, '1');
  fields.only('tools', (value) => Array.isArray(value) && value.length === 0, 'no tools');
  fields.only('tool_choice', (value) => value === 'none' || value === 'auto', "'none'");
  const format = fields.get('response_format');
  if (format !== undefined)
    new Fields(format, ['type', 'json_schema'], 'response_format').only('type', (type) => type === 'text', "'text'");
  const param = fields.get('max_completion_tokens') === undefined ? 'max_tokens' : 'max_completion_tokens';
  const maxTokens = fields.integer(param, 1, limits.maxTokens);
  const logprobs = fields.boolean('logprobs') ?? false;
  const top = fields.integer('top_logprobs', 0, mostLogprobs);
  if (top !== undefined && !logprobs) throw badRequest('top_logprobs', 'top_logprobs needs logprobs: true');
  const rest = {
    ...streamOf(fields),
    sampling: samplingOf(fields, reading),
    stop: [...stopOf(fields, reading), ...chatTemplate.stop],
    logprobs: logprobs ? (top ?? 0) : undefined,
  };
  const messages = fields.list('messages', limits.messages, messageOf);
  if (messages === undefined) throw badRequest('messages', 'messages is missing');
  const wanted = { maxTokens, param, usual: Number.POSITIVE_INFINITY };
  return { ...rest, prompts: [promptOf(chatTokens(messages, reading), 'messages', wanted, reading)] };
}

export interface EmbeddingRequest {
  readonly inputs: readonly (readonly number[])[];
  readonly format: 'float' | 'base64';
}

/** The body of POST /v1/embeddings. @throws 400, 404 */
export function embeddingRequest(body: object, reading: Reading): EmbeddingRequest {
  const fields = new Fields(body, ['model', 'input', 'encoding_format', 'dimensions', ...ignored]);
  checkModel(fields, reading.model);
  fields.only('dimensions', () => false, 'the length that vectors have');
  fields.only('encoding_format', (value) => value === 'float' || value === 'base64', "'float' or 'base64'");
  const inputs = tokenListsOf(fields, 'input', reading).map(({ tokens, param }) => {
    if (tokens.length === 0 || tokens.length > reading.model.context)
      throw badRequest(param, `${param} has ${tokens.length} tokens; it must have 1 to ${reading.model.context}`);
    return tokens;
  });
  return { inputs, format: fields.get('encoding_format') === 'base64' ? 'base64' : 'float' };
}
