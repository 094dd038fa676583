import { checkInteger, checkOptions } from '../base/check.js';
import { optionError } from '../base/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import type { FilePath } from './file.js';
import {
  checkWeights,
  type ForeignWeight,
  type ForeignWeights,
  fillWeight,
  layersOf,
  matrixOf,
} from './foreignWeights.js';
import { GPT, type GPTOptions } from './gpt.js';
import { openSafetensors, type SafetensorsFile } from './safetensors.js';

/** What the weights do not tell. */
export interface Gpt2Options extends Pick<GPTOptions, 'device' | 'dtype' | 'compute' | 'dropout' | 'seed'> {
  /** Default width / 64, as all sizes of GPT-2 have. */
  readonly heads?: number;
}

/** Masks, which older files have among the weights. */
const isBuffer = (name: string) => /^h\.\d+\.attn\.(bias|masked_bias)$/.test(name);
const prefix = 'transformer.';
const headName = 'lm_head.weight';

/** What a weight of the file fills. */
interface Place {
  readonly shape: readonly number[];
  /** By name of the model. */
  readonly target: string;
  /** Of a product x weight, where a model of this package has x weight^T. */
  readonly transposed: boolean;
}

interface Sizes {
  readonly vocabulary: number;
  readonly context: number;
  readonly width: number;
  readonly hidden: number;
  readonly layers: number;
}

/** All weights of GPT-2 by the names that Hugging Face gives them. */
function placesOf({ vocabulary, context, width, hidden, layers }: Sizes): Map<string, Place> {
  const places = new Map<string, Place>();
  const add = (name: string, target: string, shape: readonly number[], transposed = false) =>
    places.set(name, { shape, target, transposed });
  const both = (name: string, target: string, inputs: number, outputs: number) => {
    add(`${name}.weight`, `${target}.weight`, [inputs, outputs], true);
    add(`${name}.bias`, `${target}.bias`, [outputs]);
  };
  const norm = (name: string, target: string) => {
    for (const part of ['weight', 'bias']) add(`${name}.${part}`, `${target}.${part}`, [width]);
  };
  add('wte.weight', 'tokens.weight', [vocabulary, width]);
  add('wpe.weight', 'positions.weight', [context, width]);
  for (let layer = 0; layer < layers; layer++) {
    const [from, to] = [`h.${layer}`, `blocks.${layer}`];
    norm(`${from}.ln_1`, `${to}.norm1`);
    both(`${from}.attn.c_attn`, `${to}.attention.qkv`, width, 3 * width);
    both(`${from}.attn.c_proj`, `${to}.attention.out`, width, width);
    norm(`${from}.ln_2`, `${to}.norm2`);
    both(`${from}.mlp.c_fc`, `${to}.mlp.up`, width, hidden);
    both(`${from}.mlp.c_proj`, `${to}.mlp.down`, hidden, width);
  }
  norm('ln_f', 'norm');
  return places;
}

/** The tensors of a file without the prefix of their names and without buffers. */
function storedIn(file: SafetensorsFile): ForeignWeights {
  const found = new Map<string, ForeignWeight>();
  for (const [fullName, stored] of file.tensors) {
    const name = fullName.startsWith(prefix) ? fullName.slice(prefix.length) : fullName;
    if (!isBuffer(name)) found.set(name, { ...stored, file, fullName });
  }
  return found;
}

/** The sizes that the weights have, and where each goes. @throws ERR_FILE, ERR_SHAPE, ERR_DTYPE, naming the first difference */
function planOf(path: string, stored: ForeignWeights): { readonly sizes: Sizes; readonly places: Map<string, Place> } {
  const matrix = (name: string) => matrixOf(path, stored, 'GPT-2', name);
  const [vocabulary, width] = matrix('wte.weight');
  const [context] = matrix('wpe.weight');
  const [, hidden] = matrix('h.0.mlp.c_fc.weight');
  const sizes = { vocabulary, context, width, hidden, layers: layersOf(stored, 'h.') };
  const places = placesOf(sizes);
  if (stored.has(headName))
    places.set(headName, { shape: [vocabulary, width], target: 'head.weight', transposed: false });
  checkWeights(path, stored, 'GPT-2', places);
  return { sizes, places };
}

/** Whether the head of the file is the token embedding once more. */
async function isTied(file: SafetensorsFile, stored: ForeignWeights): Promise<boolean> {
  const [head, table] = [stored.get(headName), stored.get('wte.weight')];
  if (!head || !table) return true;
  if (head.dtype !== table.dtype) return false;
  const [a, b] = [await file.read(head.fullName), await file.read(table.fullName)];
  const bytes = (view: ArrayBufferView) => Buffer.from(view.buffer, view.byteOffset, view.byteLength);
  return bytes(a).equals(bytes(b));
}

/**
 * GPT-2 (Radford et al. 2019) with weights from a safetensors file that has Hugging Face's names (`wte.weight`,
 * `h.0.attn.c_attn.weight`, ..., all of them perhaps behind `transformer.`), in float32, float16 or bfloat16. Sizes are
 * those of the weights. A head of its own, `lm_head.weight`, is used where it differs from the embedding. The model comes in
 * the mode of evaluation.
 *
 * @throws ERR_FILE, ERR_SHAPE, ERR_DTYPE, which name the first difference; ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export async function gpt2FromSafetensors(path: FilePath, options: Gpt2Options = {}): Promise<GPT> {
  checkOptions(options, ['heads', 'device', 'dtype', 'compute', 'dropout', 'seed']);
  await using file = await openSafetensors(path);
  const stored = storedIn(file);
  const { sizes, places } = planOf(file.path, stored);
  const { width } = sizes;
  const { heads = width / 64, ...rest } = options;
  if (options.heads === undefined && width % 64 !== 0)
    throw optionError(`the width of ${file.path} is ${width}, no multiple of 64; give heads`);
  checkInteger(heads, 'heads', 1, width);
  const tied = await isTied(file, stored);
  const model = new GPT({ ...rest, ...sizes, heads, tied, activation: 'geluTanh', epsilon: 1e-5 });
  try {
    const own = model.namedParameters();
    for (const [name, { target, transposed }] of places) {
      if (target === 'head.weight' && tied) continue;
      const turn = transposed ? (loaded: Tensor) => loaded.transpose(0, 1) : undefined;
      await fillWeight(stored.get(name) as ForeignWeight, own.get(target) as Tensor, turn);
    }
    return model.eval() as GPT;
  } catch (error) {
    model.dispose();
    throw error;
  }
}
