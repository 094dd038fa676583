/** A model that is written into a folder comes out of it as it was, with its tokenizer. */
import { writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { noGrad, tensor } from '../../lib/index.js';
import { modelOf, modelTokenizer, readModelFolder, saveModelFolder } from '../../lib/inference/index.js';
import { characterTokenizer, GPT } from '../../lib/nn/index.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';

const at = temporaryFolder();
const device = 'wasm';
const tokenizer = characterTokenizer('the quick brown fox\n');
const shape = { vocabulary: tokenizer.vocabulary, context: 32, layers: 2, width: 24, heads: 4, device } as const;

const logitsOf = (model: GPT) => {
  const ids = tensor(tokenizer.encode('quick fox'), [1, 9], { device });
  return noGrad(() => model.forward(ids)).toFloat32Sync();
};

describe('a folder of a model', () => {
  it.each([
    ['a head of its own', {}],
    ['tied weights, shared heads', { tied: true, kvHeads: 2 }],
    ['a dim of heads', { headDim: 10, epsilon: 1e-3 }],
  ])('keeps every bit: %s', async (name, options) => {
    using model = GPT.llama({ ...shape, ...options, seed: 3 }).eval() as GPT;
    const folder = at(name);
    await saveModelFolder(folder, model, { tokenizer });
    using loaded = await modelOf(await readModelFolder(folder), { device });
    expect(logitsOf(loaded)).toEqual(logitsOf(model));
    const read = await modelTokenizer(folder);
    expect(read.decode(read.encode('fox'))).toBe('fox');
    expect(read.vocabulary).toBe(tokenizer.vocabulary);
  });

  it('is refused for a model of another shape', async () => {
    for (const [model, what] of [
      [new GPT(shape), /RMS norms, SwiGLU and rotary positions alone/],
      [GPT.llama({ ...shape, bias: true }), /without biases/],
    ] as const)
      await expectFailure(() => saveModelFolder(at('other'), model), 'ERR_OPTION', what);
    await expectFailure(
      () => saveModelFolder(at('other'), GPT.llama(shape), { tokenizer: { characters: 1 } as never }),
      'ERR_OPTION',
      /tokenizer\.characters is 1/,
    );
  });

  it('has characters that a tokenizer can have', async () => {
    const folder = at('damaged');
    await saveModelFolder(folder, GPT.llama(shape), { tokenizer });
    for (const characters of [1, '', 'aab', 'ba']) {
      writeFileSync(`${folder}/characters.json`, JSON.stringify({ characters }));
      await expectFailure(() => modelTokenizer(folder), 'ERR_FILE', /characters\.json.*characters must be/s);
    }
  });
});
