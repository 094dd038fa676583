import { checkBoolean, checkInteger, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { show } from '../base/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { type FilePath, fileError } from './file.js';
import {
  checkWeights,
  type ForeignWeight,
  type ForeignWeights,
  fillWeight,
  layersOf,
  matrixOf,
} from './foreignWeights.js';
import { GPT, type GPTOptions } from './gpt.js';
import { RMSNorm } from './layers.js';
import { openSafetensors, type SafetensorsEntry, type SafetensorsFile, writeSafetensors } from './safetensors.js';
import { MultiHeadAttention } from './transformer.js';

/** What the weights do not tell. */
export interface LlamaOptions
  extends Pick<GPTOptions, 'device' | 'dtype' | 'compute' | 'dropout' | 'seed' | 'epsilon' | 'rope'> {
  readonly heads: number;
  /** Default that which the weights have. */
  readonly kvHeads?: number;
  /** The longest sequence. */
  readonly context: number;
  /** Whether the head is the token embedding, also where a file has one of its own. Default whether there is none. */
  readonly tied?: boolean;
}

const headName = 'lm_head.weight';

/** Of rotary positions, which older files have among the weights. */
const isBuffer = (name: string) => name.endsWith('.rotary_emb.inv_freq');

/** What a weight of the files fills: rows of one of the model, which are those from `begin` on. */
interface Place {
  readonly shape: readonly number[];
  /** By name of the model. */
  readonly target: string;
  readonly begin: number;
}

interface Sizes {
  readonly vocabulary: number;
  readonly width: number;
  readonly hidden: number;
  readonly layers: number;
  readonly headDim: number;
  readonly kvHeads: number;
  /** Whether projections to queries, keys and values have biases, as in Qwen2. */
  readonly bias: boolean;
}

/** All weights by the names that Hugging Face gives them. */
function placesOf(sizes: Sizes, heads: number): Map<string, Place> {
  const { vocabulary, width, hidden, layers, headDim, kvHeads, bias } = sizes;
  const places = new Map<string, Place>();
  const add = (name: string, target: string, shape: readonly number[], begin = 0) =>
    places.set(name, { shape, target, begin });
  const [ofQueries, ofKeys] = [heads * headDim, kvHeads * headDim];
  add('model.embed_tokens.weight', 'tokens.weight', [vocabulary, width]);
  for (let layer = 0; layer < layers; layer++) {
    const [from, to] = [`model.layers.${layer}`, `blocks.${layer}`];
    add(`${from}.input_layernorm.weight`, `${to}.norm1.weight`, [width]);
    let begin = 0;
    for (const [name, rows] of [
      ['q', ofQueries],
      ['k', ofKeys],
      ['v', ofKeys],
    ] as const) {
      add(`${from}.self_attn.${name}_proj.weight`, `${to}.attention.qkv.weight`, [rows, width], begin);
      if (bias) add(`${from}.self_attn.${name}_proj.bias`, `${to}.attention.qkv.bias`, [rows], begin);
      begin += rows;
    }
    add(`${from}.self_attn.o_proj.weight`, `${to}.attention.out.weight`, [width, ofQueries]);
    add(`${from}.post_attention_layernorm.weight`, `${to}.norm2.weight`, [width]);
    add(`${from}.mlp.gate_proj.weight`, `${to}.mlp.up.weight`, [hidden, width]);
    add(`${from}.mlp.up_proj.weight`, `${to}.mlp.up.weight`, [hidden, width], hidden);
    add(`${from}.mlp.down_proj.weight`, `${to}.mlp.down.weight`, [width, hidden]);
  }
  add('model.norm.weight', 'norm.weight', [width]);
  return places;
}

/** The sizes that the weights have. @throws ERR_FILE, ERR_SHAPE */
function sizesOf(path: string, stored: ForeignWeights, { heads, kvHeads }: LlamaOptions): Sizes {
  const matrix = (name: string) => matrixOf(path, stored, 'Llama', name);
  const [vocabulary, width] = matrix('model.embed_tokens.weight');
  const [ofQueries] = matrix('model.layers.0.self_attn.q_proj.weight');
  const [ofKeys] = matrix('model.layers.0.self_attn.k_proj.weight');
  const [hidden] = matrix('model.layers.0.mlp.gate_proj.weight');
  if (ofQueries % heads !== 0) throw mustBe('heads', heads, `a divisor of the ${ofQueries} rows of queries`);
  const headDim = ofQueries / heads;
  const found = ofKeys / headDim;
  if (kvHeads !== undefined && kvHeads !== found)
    throw mustBe('kvHeads', kvHeads, `${found}, of which ${path} has keys`);
  if (!Number.isInteger(found)) throw mustBe('heads', heads, `a number that ${ofKeys} rows of keys can have`);
  const layers = layersOf(stored, 'model.layers.');
  const bias = stored.has('model.layers.0.self_attn.q_proj.bias');
  return { vocabulary, width, hidden, layers, headDim, kvHeads: found, bias };
}

async function fill(model: GPT, stored: ForeignWeights, places: ReadonlyMap<string, Place>): Promise<void> {
  const own = model.namedParameters();
  for (const [name, { target, shape, begin }] of places) {
    const rows = (own.get(target) as Tensor).slice(0, begin, begin + shape[0]);
    try {
      await fillWeight(stored.get(name) as ForeignWeight, rows);
    } finally {
      rows.dispose();
    }
  }
}

/**
 * Llama (Touvron et al. 2023) and Qwen2 (Yang et al. 2024) with weights from safetensors files that have Hugging Face's
 * names (`model.layers.0.self_attn.q_proj.weight`, ...), in float32, float16 or bfloat16. Sizes are those of the weights. With
 * biases of queries, keys and values, as Qwen2 has them, the other projections have biases that are 0. The model comes in the
 * mode of evaluation.
 *
 * @param paths one file, or all parts of a model that has several
 * @throws ERR_FILE, ERR_SHAPE, ERR_DTYPE, which name the first difference; ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export async function llamaFromSafetensors(paths: FilePath | readonly FilePath[], options: LlamaOptions): Promise<GPT> {
  checkOptions(options, [
    ...(['heads', 'kvHeads', 'context', 'tied', 'rope', 'epsilon'] as const),
    ...(['device', 'dtype', 'compute', 'dropout', 'seed'] as const),
  ]);
  const { tied, ...rest } = options;
  checkInteger(options.heads, 'heads', 1);
  checkInteger(options.context, 'context', 1);
  if (tied !== undefined) checkBoolean(tied, 'tied');
  const files: SafetensorsFile[] = [];
  try {
    const stored = new Map<string, ForeignWeight>();
    for (const path of [paths].flat() as FilePath[]) {
      const file = await openSafetensors(path);
      files.push(file);
      for (const [name, each] of file.tensors) {
        if (stored.has(name)) throw fileError(file.path, `tensor ${show(name)} is in another file too`);
        if (!isBuffer(name)) stored.set(name, { ...each, file, fullName: name });
      }
    }
    if (files.length === 0) throw mustBe('paths', paths, 'a file at least');
    const [{ path }] = files;
    const sizes = sizesOf(path, stored, options);
    const places = placesOf(sizes, options.heads);
    const { vocabulary, width, hidden, layers, headDim, kvHeads, bias } = sizes;
    const isTied = tied ?? !stored.has(headName);
    if (isTied) stored.delete(headName);
    else places.set(headName, { shape: [vocabulary, width], target: 'head.weight', begin: 0 });
    checkWeights(path, stored, 'Llama', places);
    const shape = { vocabulary, width, hidden, layers, headDim, kvHeads, bias, tied: isTied };
    const model = GPT.llama({ ...rest, ...shape });
    try {
      await fill(model, stored, places);
      return model.eval() as GPT;
    } catch (error) {
      model.dispose();
      throw error;
    }
  } finally {
    for (const file of files) await file.close();
  }
}

/** @internal The sizes of a model that is one of Llama's, and how it differs otherwise. @throws ERR_OPTION */
export function llamaSizes(model: GPT): Sizes & { readonly heads: number; readonly epsilon: number } {
  const no = (what: string) => mustBe('model', model, `in the shape of Llama: ${what}`);
  const [block] = model.blocks;
  const { attention, mlp, norm1 } = block;
  if (!(attention instanceof MultiHeadAttention)) throw no('with softmax attention');
  if (mlp.activation !== 'swiglu' || !(norm1 instanceof RMSNorm) || model.positions)
    throw no('RMS norms, SwiGLU and rotary positions alone');
  if (mlp.down.bias || attention.out.bias || attention.qkv.bias) throw no('without biases');
  const { heads, kvHeads, headDim } = attention;
  const { vocabulary } = model;
  const sizes = { vocabulary, width: model.tokens.width, hidden: mlp.hidden, layers: model.blocks.length };
  return { ...sizes, heads, kvHeads, headDim, bias: false, epsilon: norm1.epsilon };
}

const storedDTypes: Readonly<Record<FloatDType, 'F32' | 'F16' | 'BF16'>> = {
  float32: 'F32',
  float16: 'F16',
  bfloat16: 'BF16',
};

/**
 * Writes the weights of a model in the shape of Llama (`GPT.llama` without biases) as one safetensors file with Hugging Face's
 * names, which `llamaFromSafetensors` and others read. The file is replaced whole.
 *
 * @throws ERR_OPTION for a model of another shape, ERR_FILE, ERR_DISPOSED
 */
export async function llamaToSafetensors(path: FilePath, model: GPT): Promise<void> {
  if (!(model instanceof GPT)) throw mustBe('model', model, 'a GPT');
  const sizes = llamaSizes(model);
  const places = placesOf(sizes, sizes.heads);
  if (model.head) places.set(headName, { shape: [sizes.vocabulary, sizes.width], target: 'head.weight', begin: 0 });
  const own = model.namedParameters();
  const entries = Array.from(places, ([name, { target, shape, begin }]): SafetensorsEntry => {
    const weight = own.get(target) as Tensor;
    const data = async () => {
      const rows = weight.slice(0, begin, begin + shape[0]);
      try {
        return await rows.data();
      } finally {
        rows.dispose();
      }
    };
    return { name, dtype: storedDTypes[weight.dtype], shape, data };
  });
  await writeSafetensors(path, entries, { metadata: { format: 'pt' } });
}
