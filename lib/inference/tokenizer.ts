import { checkInteger, checkString } from '../base/check.js';
import { FlashAttnError } from '../base/errors.js';
import { fileError } from '../nn/file.js';
import { characterTokenizer, type Tokenizer } from '../nn/tokenizer.js';
import { readFolderJson, readTokenizerFiles } from './modelFolder.js';

/** A tokenizer that may mark the beginning of a text. */
export interface TextTokenizer extends Tokenizer {
  /** @param options `special`: whether tokens are added that the model wants around a text. Default true; chats have them already */
  encode(text: string, options?: { readonly special?: boolean }): Int32Array<ArrayBuffer>;
}

/** What is used of @huggingface/tokenizers. */
interface TokenizersModule {
  readonly Tokenizer: new (
    tokenizer: object,
    config: object,
  ) => {
    encode(text: string, options: { readonly add_special_tokens: boolean }): { readonly ids: readonly number[] };
    decode(tokens: readonly number[], options: Readonly<Record<string, boolean>>): string;
    get_vocab(withAdded: boolean): ReadonlyMap<string, number>;
  };
}

/** @internal `folderTokenizer`, with what loads the package. */
export async function folderTokenizerFrom(
  load: (module: string) => Promise<unknown>,
  folder: string,
): Promise<TextTokenizer> {
  const files = await readTokenizerFiles(checkString(folder, 'folder'));
  const { Tokenizer: Own } = (await load('@huggingface/tokenizers').catch((cause: unknown) => {
    throw new FlashAttnError(
      'ERR_OPTION',
      'tokenizer.json needs the package @huggingface/tokenizers, which cannot be loaded: npm install @huggingface/tokenizers',
      { cause },
    );
  })) as TokenizersModule;
  const make = () => {
    try {
      return new Own(files.tokenizer, files.config);
    } catch (error) {
      throw fileError(`${folder}/tokenizer.json`, `is no tokenizer (${(error as Error).message})`, error);
    }
  };
  const own = make();
  let most = -1;
  for (const token of own.get_vocab(true).values()) most = Math.max(most, token);
  const vocabulary = checkInteger(most + 1, 'the vocabulary of tokenizer.json', 1, 2 ** 24);
  return {
    vocabulary,
    encode: (text, { special = true } = {}) =>
      Int32Array.from(own.encode(checkString(text, 'text'), { add_special_tokens: special }).ids),
    decode: (tokens) =>
      tokens.length === 0
        ? ''
        : own.decode(Array.from(tokens), { skip_special_tokens: true, clean_up_tokenization_spaces: false }),
  };
}

/**
 * The tokenizer of a model's folder (tokenizer.json, tokenizer_config.json) by the package @huggingface/tokenizers, which is
 * loaded by this call and has to be installed beside this one. Special tokens have no text.
 *
 * @throws ERR_FILE; ERR_OPTION when the package is not installed
 */
export const folderTokenizer = (folder: string): Promise<TextTokenizer> =>
  folderTokenizerFrom((module) => import(module), folder);

/** @internal What a model of characters has instead of tokenizer.json. */
export const characterFile = 'characters.json';

/**
 * The tokenizer of a model's folder, whichever it has: characters.json of `saveModelFolder`, or tokenizer.json.
 *
 * @throws ERR_FILE; ERR_OPTION when tokenizer.json needs a package that is not installed
 */
export async function modelTokenizer(folder: string): Promise<Tokenizer> {
  const own = (await readFolderJson(checkString(folder, 'folder'), characterFile)) as
    | { characters?: unknown }
    | undefined;
  if (!own) return folderTokenizer(folder);
  const { characters } = own;
  const points = typeof characters === 'string' ? [...characters] : [];
  if (points.length === 0 || new Set(points).size !== points.length || !(characters as string).isWellFormed())
    throw fileError(`${folder}/${characterFile}`, 'characters must be a text in which each stands once');
  const tokenizer = characterTokenizer(characters as string);
  if (tokenizer.characters !== characters)
    throw fileError(`${folder}/${characterFile}`, 'characters must be in the order of their code points');
  return tokenizer;
}
