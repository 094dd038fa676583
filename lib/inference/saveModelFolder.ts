import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { checkNumber, checkObject, checkOptions, checkString } from '../base/check.js';
import { replaceFile } from '../nn/atomicFile.js';
import type { GPT } from '../nn/gpt.js';
import { llamaSizes, llamaToSafetensors } from '../nn/llama.js';
import type { CharacterTokenizer } from '../nn/tokenizer.js';
import { characterFile } from './tokenizer.js';

export interface SaveModelFolderOptions {
  /** Of a model that reads characters. Other tokenizers have files of their own, which are to be put beside. */
  readonly tokenizer?: CharacterTokenizer;
  /** Of the wavelengths of rotary positions, where it was given to the model. Default 10,000. */
  readonly ropeBase?: number;
}

/**
 * Writes a model in the shape of Llama into a folder that `flashattn serve` and Hugging Face's transformers read: config.json,
 * model.safetensors and, of a model of characters, characters.json, which is this package's own. Each file is replaced whole.
 *
 * @param folder made where there is none
 * @throws ERR_OPTION for a model of another shape (see `GPT.llama`), ERR_FILE, ERR_DISPOSED
 */
export async function saveModelFolder(folder: string, model: GPT, options: SaveModelFolderOptions = {}): Promise<void> {
  checkString(folder, 'folder');
  checkOptions(options, ['tokenizer', 'ropeBase']);
  const { tokenizer, ropeBase = 10_000 } = options;
  checkNumber(ropeBase, 'ropeBase', 1);
  if (tokenizer !== undefined) {
    checkObject(tokenizer, 'tokenizer');
    checkString(tokenizer.characters, 'tokenizer.characters');
  }
  const { vocabulary, width, hidden, layers, heads, kvHeads, headDim, epsilon } = llamaSizes(model);
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: vocabulary,
    hidden_size: width,
    intermediate_size: hidden,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    max_position_embeddings: model.context,
    rms_norm_eps: epsilon,
    rope_theta: ropeBase,
    hidden_act: 'silu',
    attention_bias: false,
    mlp_bias: false,
    tie_word_embeddings: model.head === undefined,
  };
  await mkdir(folder, { recursive: true });
  const write = (name: string, value: object) =>
    replaceFile(join(folder, name), (put) => put(Buffer.from(`${JSON.stringify(value, undefined, 2)}\n`), 0));
  await llamaToSafetensors(join(folder, 'model.safetensors'), model);
  if (tokenizer) await write(characterFile, { characters: tokenizer.characters });
  await write('config.json', config);
}
