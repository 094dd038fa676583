// Folders as Hugging Face's models have them: what config.json and its neighbours say, checked field by field. Nothing outside
// the folder is read, whatever they say.
import { open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { checkString } from '../base/check.js';
import { type FlashAttnError, optionError, show } from '../base/errors.js';
import { asFileError, checkRegular, fileError, readFlags } from '../nn/file.js';
import type { GPT } from '../nn/gpt.js';
import { gpt2FromSafetensors } from '../nn/gpt2.js';
import { type LlamaOptions, llamaFromSafetensors } from '../nn/llama.js';
import type { TemplateTexts } from './chat.js';
import { parseJsonObject } from './json.js';
import { type SamplingOptions, sampler } from './sampling.js';

/** How rotary positions are stretched for sequences longer than those that a model was trained for. */
export interface RopeScaling {
  readonly type: string;
  readonly factor: number;
}

/** What a model is, by the files beside its weights. */
export interface ModelDescription {
  readonly architecture: 'gpt2' | 'llama' | 'qwen2';
  readonly vocabulary: number;
  /** The longest sequence. */
  readonly context: number;
  readonly width: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly hidden: number;
  readonly activation: 'geluTanh' | 'swiglu';
  readonly epsilon: number;
  /** Undefined: positions are learned. */
  readonly rope: { readonly base: number; readonly scaling: RopeScaling | undefined } | undefined;
  /** Whether projections to queries, keys and values have biases. */
  readonly qkvBias: boolean;
  /** Whether the head is the token embedding. */
  readonly tied: boolean;
  /** Tokens that end a text. */
  readonly stopTokens: readonly number[];
  /** How its authors choose tokens. */
  readonly sampling: SamplingOptions;
  /** In Jinja. */
  readonly chatTemplate: string | undefined;
  readonly texts: TemplateTexts;
  /** The safetensors files, in order. */
  readonly weights: readonly string[];
}

/** Of a description; tokenizer.json may have more. */
const mostBytes = 2 ** 24;
const mostTokenizerBytes = 2 ** 28;

/** The bytes of a file in the folder; undefined where there is none. @throws ERR_FILE */
async function readFolderFile(folder: string, name: string, most = mostBytes): Promise<Buffer | undefined> {
  const path = join(folder, name);
  const file = await open(path, readFlags).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw asFileError(path, 'cannot be opened', error);
  });
  if (!file) return undefined;
  try {
    const size = checkRegular(path, await file.stat());
    if (size > most) throw fileError(path, `has ${size} bytes; there may be ${most}`);
    return await file.readFile();
  } catch (error) {
    throw asFileError(path, 'cannot be read', error);
  } finally {
    await file.close();
  }
}

/** @internal The JSON object in a file of the folder; undefined where there is none. @throws ERR_FILE */
export async function readFolderJson(folder: string, name: string, most?: number): Promise<object | undefined> {
  const bytes = await readFolderFile(folder, name, most);
  if (!bytes) return undefined;
  const value = parseJsonObject(bytes);
  if (typeof value === 'string') throw fileError(join(folder, name), value);
  return value;
}

/** @internal The two files of a tokenizer. @throws ERR_FILE */
export async function readTokenizerFiles(folder: string) {
  const tokenizer = await readFolderJson(folder, 'tokenizer.json', mostTokenizerBytes);
  if (!tokenizer) throw fileError(join(folder, 'tokenizer.json'), 'is missing');
  return { tokenizer, config: (await readFolderJson(folder, 'tokenizer_config.json')) ?? {} };
}

/** The fields of a file. @throws ERR_FILE that names file and field */
class FileFields {
  readonly #values: Readonly<Record<string, unknown>>;

  constructor(
    readonly path: string,
    values: object = {},
  ) {
    this.#values = values as Record<string, unknown>;
  }

  wrong(name: string, needed: string): FlashAttnError {
    const value = this.get(name);
    return fileError(this.path, `${name} is ${value === undefined ? 'missing' : show(value)}; it must be ${needed}`);
  }

  /** Own fields alone; null is none. */
  get(name: string): unknown {
    return Object.hasOwn(this.#values, name) ? (this.#values[name] ?? undefined) : undefined;
  }

  integer(name: string, most: number, usual?: number, least = 1): number {
    const value = this.get(name) ?? usual;
    if (Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most) return value as number;
    throw this.wrong(name, `an integer from ${least} to ${most}`);
  }

  number(name: string, most: number, usual?: number): number {
    const value = this.get(name) ?? usual;
    if (Number.isFinite(value) && (value as number) > 0 && (value as number) <= most) return value as number;
    throw this.wrong(name, `a number above 0, to ${most}`);
  }

  boolean(name: string, usual: boolean): boolean {
    const value = this.get(name) ?? usual;
    if (typeof value === 'boolean') return value;
    throw this.wrong(name, 'true or false');
  }

  text(name: string): string | undefined {
    const value = this.get(name);
    if (value === undefined || (typeof value === 'string' && value.isWellFormed())) return value as string | undefined;
    throw this.wrong(name, 'a text');
  }

  within(name: string): FileFields | undefined {
    const value = this.get(name);
    if (value === undefined) return undefined;
    if (value === null || typeof value !== 'object' || Array.isArray(value)) throw this.wrong(name, 'an object');
    return new FileFields(`${this.path}: ${name}`, value);
  }

  /** Where only one choice is computed here. */
  only(name: string, ...values: readonly unknown[]): void {
    const value = this.get(name);
    if (value === undefined || values.includes(value)) return;
    throw this.wrong(name, `${values.map(show).join(' or ')}; others are not computed here`);
  }
}

const mostSize = 2 ** 20;
const mostVocabulary = 2 ** 24;
const mostContext = 2 ** 24;
const mostLayers = 10_000;

type Shape = Omit<ModelDescription, 'stopTokens' | 'sampling' | 'chatTemplate' | 'texts' | 'weights'>;

function gpt2Shape(fields: FileFields): Shape {
  const width = fields.integer('n_embd', mostSize);
  const heads = fields.integer('n_head', width);
  if (width % heads !== 0) throw fields.wrong('n_head', `a divisor of n_embd, ${width}`);
  fields.only('activation_function', 'gelu_new', 'gelu_pytorch_tanh');
  fields.only('layer_norm_epsilon', 1e-5);
  for (const name of ['scale_attn_by_inverse_layer_idx', 'add_cross_attention']) fields.only(name, false);
  fields.only('scale_attn_weights', true);
  return {
    ...{ architecture: 'gpt2', width, heads, kvHeads: heads, headDim: width / heads },
    vocabulary: fields.integer('vocab_size', mostVocabulary),
    context: fields.integer('n_positions', mostContext),
    layers: fields.integer('n_layer', mostLayers),
    hidden: fields.integer('n_inner', mostSize, 4 * width),
    ...{ activation: 'geluTanh', epsilon: 1e-5, rope: undefined, qkvBias: true },
    tied: fields.boolean('tie_word_embeddings', true),
  };
}

function ropeOf(fields: FileFields): ModelDescription['rope'] {
  // Newer files have both in one object.
  const parameters = fields.within('rope_parameters');
  const scaling = parameters ?? fields.within('rope_scaling');
  const base = (parameters?.get('rope_theta') === undefined ? fields : parameters).number('rope_theta', 1e12, 10_000);
  const type = scaling?.text('rope_type') ?? scaling?.text('type') ?? 'default';
  if (!scaling || type === 'default') return { base, scaling: undefined };
  return { base, scaling: { type, factor: scaling.number('factor', 1e6) } };
}

function llamaShape(fields: FileFields, architecture: 'llama' | 'qwen2'): Shape {
  const width = fields.integer('hidden_size', mostSize);
  const heads = fields.integer('num_attention_heads', mostSize);
  const kvHeads = fields.integer('num_key_value_heads', heads, heads);
  if (heads % kvHeads !== 0) throw fields.wrong('num_key_value_heads', `a divisor of num_attention_heads, ${heads}`);
  const hasHeadDim = fields.get('head_dim') !== undefined;
  if (!hasHeadDim && width % heads !== 0)
    throw fields.wrong('num_attention_heads', `a divisor of hidden_size, ${width}`);
  const headDim = fields.integer('head_dim', 256, width / heads);
  if (headDim % 2 === 1) throw fields.wrong('head_dim', 'even');
  fields.only('hidden_act', 'silu', 'swish');
  for (const name of ['mlp_bias', 'use_sliding_window']) fields.only(name, false);
  fields.only('attention_bias', architecture === 'qwen2');
  fields.only('partial_rotary_factor', 1);
  return {
    ...{ architecture, width, heads, kvHeads, headDim },
    vocabulary: fields.integer('vocab_size', mostVocabulary),
    context: fields.integer('max_position_embeddings', mostContext, 2048),
    layers: fields.integer('num_hidden_layers', mostLayers),
    hidden: fields.integer('intermediate_size', mostSize),
    activation: 'swiglu',
    epsilon: fields.number('rms_norm_eps', 1, 1e-6),
    rope: ropeOf(fields),
    qkvBias: architecture === 'qwen2',
    tied: fields.boolean('tie_word_embeddings', false),
  };
}

function shapeOf(fields: FileFields): Shape {
  fields.only('quantization_config', undefined);
  const type = fields.text('model_type');
  if (type === 'gpt2') return gpt2Shape(fields);
  if (type === 'llama' || type === 'qwen2') return llamaShape(fields, type);
  throw fields.wrong('model_type', '"gpt2", "llama" or "qwen2"; others are not computed here');
}

/** One token or several. */
function tokensOf(fields: FileFields, name: string, vocabulary: number): readonly number[] {
  const value = fields.get(name);
  if (value === undefined) return [];
  const tokens: readonly unknown[] = Array.isArray(value) ? value : [value];
  if (tokens.length > 1024 || !tokens.every((each) => Number.isSafeInteger(each) && (each as number) >= 0))
    throw fields.wrong(name, `tokens from 0 to ${vocabulary - 1}`);
  // Some name tokens of a larger vocabulary, which never come.
  return (tokens as readonly number[]).filter((token) => token < vocabulary);
}

/** How tokens are chosen where the authors say that they are drawn. */
function samplingOf(fields: FileFields): SamplingOptions {
  if (!fields.boolean('do_sample', false)) return {};
  const topK = fields.integer('top_k', mostVocabulary, 0, 0);
  const number = (name: string, most: number) =>
    fields.get(name) === undefined || fields.get(name) === 0 ? undefined : fields.number(name, most);
  const given = {
    temperature: number('temperature', 100),
    topK: topK > 0 ? topK : undefined,
    topP: number('top_p', 1),
    minP: number('min_p', 1),
    repetitionPenalty: number('repetition_penalty', 100),
  };
  const sampling = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  sampler({ ...sampling, seed: 0 });
  return sampling;
}

/** A text, or an object that has it. */
const contentOf = (fields: FileFields, name: string): string | undefined =>
  typeof fields.get(name) === 'object' ? fields.within(name)?.text('content') : fields.text(name);

function templateOf(fields: FileFields): string | undefined {
  const value = fields.get('chat_template');
  if (!Array.isArray(value)) return fields.text('chat_template');
  const usual: unknown = value.find((each) => each?.name === 'default')?.template;
  if (usual === undefined || typeof usual === 'string') return usual;
  throw fields.wrong('chat_template', 'a text, or a list of names and templates');
}

/** The parts of the weights: one file, or those that an index names. */
async function weightsOf(folder: string): Promise<readonly string[]> {
  const single = join(folder, 'model.safetensors');
  if (await stat(single).catch(() => undefined)) return [single];
  const indexName = 'model.safetensors.index.json';
  const index = await readFolderJson(folder, indexName);
  if (!index) throw fileError(single, `is missing, and so is ${indexName}`);
  const fields = new FileFields(join(folder, indexName), index);
  const map = fields.get('weight_map');
  if (map === null || typeof map !== 'object' || Array.isArray(map)) throw fields.wrong('weight_map', 'an object');
  const names = [...new Set(Object.values(map as object))];
  const strange = names.find((name) => typeof name !== 'string' || !/^[\w-][\w.-]*\.safetensors$/.test(name));
  if (strange !== undefined || names.length === 0 || names.length > 10_000)
    throw fileError(fields.path, `weight_map names ${show(strange)}; it must name safetensors files of this folder`);
  return (names as string[]).sort().map((name) => join(folder, name));
}

/**
 * What a model in a folder is: config.json, generation_config.json, tokenizer_config.json and chat_template.jinja, and which
 * files have its weights. GPT-2, Llama and Qwen2.
 *
 * @throws ERR_FILE that names the file and the field, for what is damaged, hostile, or not computed here; ERR_OPTION
 */
export async function readModelFolder(folder: string): Promise<ModelDescription> {
  checkString(folder, 'folder');
  const fieldsOf = async (name: string) => new FileFields(join(folder, name), await readFolderJson(folder, name));
  const json = await readFolderJson(folder, 'config.json');
  if (!json) throw fileError(join(folder, 'config.json'), 'is missing');
  const config = new FileFields(join(folder, 'config.json'), json);
  const shape = shapeOf(config);
  const [generation, texts] = [await fieldsOf('generation_config.json'), await fieldsOf('tokenizer_config.json')];
  const ends = [config, generation].flatMap((fields) => tokensOf(fields, 'eos_token_id', shape.vocabulary));
  const [bos, eos] = [contentOf(texts, 'bos_token'), contentOf(texts, 'eos_token')];
  const template = await readFolderFile(folder, 'chat_template.jinja');
  return {
    ...shape,
    stopTokens: [...new Set(ends)],
    sampling: samplingOf(generation),
    chatTemplate: template?.toString('utf8') ?? templateOf(texts),
    texts: { ...(bos !== undefined && { bos }), ...(eos !== undefined && { eos }) },
    weights: await weightsOf(folder),
  };
}

export type ModelFolderOptions = Pick<LlamaOptions, 'device' | 'dtype' | 'compute'>;

/**
 * The model that a description is of, with its weights.
 *
 * @throws ERR_FILE, ERR_SHAPE, ERR_DTYPE, ERR_OPTION, also for rotary positions that are stretched, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export async function modelOf(description: ModelDescription, options: ModelFolderOptions = {}): Promise<GPT> {
  const { architecture, heads, kvHeads, context, epsilon, rope, tied, weights } = description;
  if (rope?.scaling)
    throw optionError(
      `rope_scaling is of the type ${show(rope.scaling.type)}; stretched positions are not computed here`,
    );
  if (architecture === 'gpt2' && weights.length > 1) throw optionError('the weights of GPT-2 must be in one file');
  const model =
    architecture === 'gpt2'
      ? await gpt2FromSafetensors(weights[0], { ...options, heads })
      : await llamaFromSafetensors(weights, {
          ...{ ...options, heads, kvHeads, context, epsilon, tied },
          rope: { base: rope?.base ?? 10_000 },
        });
  const [path] = weights;
  const found = { vocabulary: model.vocabulary, context: model.context, layers: model.blocks.length };
  for (const [name, value] of Object.entries(found)) {
    const said = description[name as keyof typeof found];
    if (said === value) continue;
    model.dispose();
    throw fileError(path, `the weights are of a model with ${name} ${value}; its config.json says ${said}`);
  }
  return model;
}
