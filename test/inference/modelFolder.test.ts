import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { memory } from '../../lib/index.js';
import { jinjaChatTemplate, jinjaChatTemplateFrom, plainChatTemplate } from '../../lib/inference/chat.js';
import { modelOf, readModelFolder } from '../../lib/inference/modelFolder.js';
import { folderTokenizer, folderTokenizerFrom } from '../../lib/inference/tokenizer.js';
import { GPT, writeSafetensors } from '../../lib/nn/index.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';

const at = temporaryFolder();
let folders = 0;

/** A folder with these files; objects as JSON. */
function folderOf(files: Readonly<Record<string, unknown>>): string {
  const folder = at(`model${folders++}`);
  mkdirSync(folder);
  const all: Readonly<Record<string, unknown>> = { 'model.safetensors': '', ...files };
  for (const [name, content] of Object.entries(all))
    if (content !== undefined)
      writeFileSync(
        join(folder, name),
        typeof content === 'string' || content instanceof Uint8Array ? content : JSON.stringify(content),
      );
  return folder;
}

const gpt2 = {
  model_type: 'gpt2',
  n_embd: 12,
  n_head: 3,
  n_layer: 2,
  n_positions: 32,
  vocab_size: 50,
  activation_function: 'gelu_new',
  eos_token_id: 49,
};
const llama = {
  ...{ model_type: 'llama', hidden_size: 16, intermediate_size: 20, num_attention_heads: 4, num_key_value_heads: 2 },
  ...{
    num_hidden_layers: 1,
    vocab_size: 20,
    max_position_embeddings: 64,
    rms_norm_eps: 1e-5,
    rope_theta: 500,
    hidden_act: 'silu',
  },
};

describe('the description of a model', () => {
  it('of GPT-2', async () => {
    expect(await readModelFolder(folderOf({ 'config.json': gpt2 }))).toMatchObject({
      ...{
        architecture: 'gpt2',
        vocabulary: 50,
        context: 32,
        width: 12,
        layers: 2,
        heads: 3,
        kvHeads: 3,
        headDim: 4,
        hidden: 48,
      },
      ...{ activation: 'geluTanh', epsilon: 1e-5, rope: undefined, tied: true, stopTokens: [49], sampling: {} },
    });
  });

  it('of Llama and Qwen2, with what generates and what chats', async () => {
    const folder = folderOf({
      'config.json': { ...llama, eos_token_id: 1, head_dim: 8 },
      'generation_config.json': {
        do_sample: true,
        temperature: 0.7,
        top_k: 20,
        top_p: 0.8,
        repetition_penalty: 1.1,
        eos_token_id: [1, 3, 99],
      },
      'tokenizer_config.json': {
        bos_token: { content: '<s>' },
        eos_token: '</s>',
        chat_template: [{ name: 'default', template: 'T' }],
      },
    });
    expect(await readModelFolder(folder)).toMatchObject({
      ...{
        architecture: 'llama',
        headDim: 8,
        kvHeads: 2,
        rope: { base: 500, scaling: undefined },
        qkvBias: false,
        tied: false,
      },
      ...{ stopTokens: [1, 3], sampling: { temperature: 0.7, topK: 20, topP: 0.8, repetitionPenalty: 1.1 } },
      ...{ chatTemplate: 'T', texts: { bos: '<s>', eos: '</s>' }, weights: [join(folder, 'model.safetensors')] },
    });
    const scaled = { type: 'linear', factor: 4 };
    const qwen = {
      ...llama,
      model_type: 'qwen2',
      tie_word_embeddings: true,
      rope_scaling: scaled,
      use_sliding_window: false,
    };
    const described = await readModelFolder(folderOf({ 'config.json': qwen, 'chat_template.jinja': 'own' }));
    expect(described).toMatchObject({ qkvBias: true, tied: true, rope: { scaling: scaled }, chatTemplate: 'own' });
    await expectFailure(modelOf(described), 'ERR_OPTION', /rope_scaling is of the type "linear"/);
    const newer = { ...llama, rope_theta: undefined, rope_parameters: { rope_theta: 7, rope_type: 'default' } };
    expect(await readModelFolder(folderOf({ 'config.json': newer }))).toMatchObject({
      rope: { base: 7, scaling: undefined },
    });
  });

  it('of weights in parts', async () => {
    const parts = (map: unknown) =>
      folderOf({
        'config.json': llama,
        'model.safetensors': undefined,
        'model.safetensors.index.json': { weight_map: map },
      });
    const folder = parts({ a: 'model-2.safetensors', b: 'model-1.safetensors', c: 'model-2.safetensors' });
    const { weights } = await readModelFolder(folder);
    expect(weights).toEqual([join(folder, 'model-1.safetensors'), join(folder, 'model-2.safetensors')]);
    for (const name of [
      '../x.safetensors',
      '/etc/passwd',
      'a/b.safetensors',
      '..\\x.safetensors',
      '.safetensors',
      3,
      null,
    ])
      await expectFailure(readModelFolder(parts({ a: name })), 'ERR_FILE', /weight_map names/);
    for (const map of [{}, [], 'x', undefined])
      await expectFailure(readModelFolder(parts(map)), 'ERR_FILE', /weight_map/);
    await expectFailure(
      readModelFolder(folderOf({ 'config.json': llama, 'model.safetensors': undefined })),
      'ERR_FILE',
      /is missing, and so is/,
    );
  });

  it.each<[Record<string, unknown>, RegExp]>([
    [{ 'config.json': undefined }, /config\.json: is missing/],
    [{ 'config.json': '{' }, /config\.json: is not JSON/],
    [{ 'config.json': '[]' }, /config\.json: is not a JSON object/],
    [{ 'config.json': Uint8Array.of(0x7b, 0xff) }, /config\.json: is not UTF-8/],
    [{ 'config.json': `{"a":${'['.repeat(100_000)}` }, /config\.json: is nested/],
    [{ 'config.json': {} }, /config\.json: model_type is missing; it must be "gpt2"/],
    [{ 'config.json': '{"__proto__":{"model_type":"gpt2"}}' }, /model_type is missing/],
    [{ 'config.json': { ...llama, model_type: 'mamba' } }, /model_type is "mamba"/],
    [{ 'config.json': { ...llama, hidden_size: 1e30 } }, /hidden_size is 1e\+30/],
    [{ 'config.json': { ...llama, hidden_size: -1 } }, /hidden_size is -1; it must be an integer from 1/],
    [{ 'config.json': { ...llama, num_hidden_layers: '2' } }, /num_hidden_layers is "2"/],
    [{ 'config.json': { ...llama, num_key_value_heads: 3 } }, /num_key_value_heads is 3; it must be a divisor/],
    [
      { 'config.json': { ...llama, hidden_size: 18 } },
      /num_attention_heads is 4; it must be a divisor of hidden_size, 18/,
    ],
    [{ 'config.json': { ...llama, hidden_act: 'gelu' } }, /hidden_act is "gelu"; it must be "silu"/],
    [{ 'config.json': { ...llama, attention_bias: true } }, /attention_bias is true/],
    [{ 'config.json': { ...llama, rope_scaling: 4 } }, /rope_scaling is 4/],
    [{ 'config.json': { ...llama, rope_scaling: { type: 'yarn' } } }, /rope_scaling: factor is missing/],
    [{ 'config.json': { ...llama, rms_norm_eps: 0 } }, /rms_norm_eps is 0/],
    [{ 'config.json': { ...llama, eos_token_id: 'x' } }, /eos_token_id is "x"/],
    [{ 'config.json': { ...llama, quantization_config: {} } }, /quantization_config/],
    [{ 'config.json': { ...gpt2, n_head: 5 } }, /n_head is 5; it must be a divisor of n_embd, 12/],
    [{ 'config.json': { ...gpt2, activation_function: 'relu' } }, /activation_function is "relu"/],
    [
      { 'config.json': gpt2, 'generation_config.json': { do_sample: true, top_p: 2 } },
      /generation_config\.json: top_p is 2/,
    ],
    [{ 'config.json': gpt2, 'tokenizer_config.json': { bos_token: 3 } }, /tokenizer_config\.json: bos_token is 3/],
    [{ 'config.json': gpt2, 'tokenizer_config.json': { chat_template: 3 } }, /chat_template is 3/],
  ])('that is wrong is refused with file and field (%#)', async (files, message) => {
    await expectFailure(readModelFolder(folderOf(files)), 'ERR_FILE', message);
  });

  it('of what is no folder, or no file, is refused', async () => {
    await expectFailure(readModelFolder(at('none')), 'ERR_FILE', /config\.json: is missing/);
    const folder = folderOf({ 'config.json': undefined });
    mkdirSync(join(folder, 'config.json'));
    await expectFailure(readModelFolder(folder), 'ERR_FILE', /config\.json: this is not a file/);
  });
});

describe('a model from a folder', () => {
  it('has the sizes that its description says', async () => {
    const folder = folderOf({ 'config.json': llama });
    const tensors: [string, number[]][] = [
      ...([
        ['model.embed_tokens.weight', [20, 16]],
        ['model.norm.weight', [16]],
        ['lm_head.weight', [20, 16]],
      ] as [string, number[]][]),
      ...(Object.entries({
        ...{
          'self_attn.q_proj': [16, 16],
          'self_attn.k_proj': [8, 16],
          'self_attn.v_proj': [8, 16],
          'self_attn.o_proj': [16, 16],
        },
        ...{ 'mlp.gate_proj': [20, 16], 'mlp.up_proj': [20, 16], 'mlp.down_proj': [16, 20], input_layernorm: [16] },
        post_attention_layernorm: [16],
      }).map(([name, shape]) => [`model.layers.0.${name}.weight`, shape]) as [string, number[]][]),
    ];
    const path = join(folder, 'model.safetensors');
    await writeSafetensors(
      path,
      tensors.map(([name, shape]) => ({
        name,
        shape,
        dtype: 'F32',
        data: new Float32Array(shape.reduce((a, b) => a * b)),
      })),
    );
    const before = memory('wasm').tensors;
    const description = await readModelFolder(folder);
    using model = await modelOf(description, { device: 'wasm' });
    expect(model).toBeInstanceOf(GPT);
    expect([model.vocabulary, model.context, model.blocks.length]).toEqual([20, 64, 1]);
    model.dispose();
    await expectFailure(
      modelOf({ ...description, vocabulary: 21 }, { device: 'wasm' }),
      'ERR_FILE',
      /vocabulary 20; its config\.json says 21/,
    );
    expect(memory('wasm').tensors).toBe(before);
  });
});

describe('the tokenizer of a folder', () => {
  /** Byte-level, with merges of two letters. */
  const vocab = Object.fromEntries(['<s>', 'h', 'i', 'Ġ', 'Ã', '©', 'hi', 'Ġhi'].map((token, id) => [token, id]));
  const tokenizer = {
    version: '1.0',
    added_tokens: [
      { id: 0, content: '<s>', special: true, single_word: false, lstrip: false, rstrip: false, normalized: false },
    ],
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [],
      special_tokens: { '<s>': { id: '<s>', ids: [0], tokens: ['<s>'] } },
    },
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: { type: 'BPE', vocab, merges: ['h i', 'Ġ hi'], unk_token: null, byte_fallback: false },
  };

  it('encodes and decodes as its package does', async () => {
    const own = await folderTokenizer(
      folderOf({ 'tokenizer.json': tokenizer, 'tokenizer_config.json': { bos_token: '<s>' } }),
    );
    expect(own.vocabulary).toBe(8);
    expect([...own.encode('hi hié')]).toEqual([0, 6, 7, 4, 5]);
    expect([...own.encode('hi', { special: false })]).toEqual([6]);
    expect(own.decode([0, 6, 7, 4, 5])).toBe('hi hié');
    expect(own.decode([6, 4])).toBe('hi\uFFFD');
    expect(own.decode([])).toBe('');
  });

  it('is missed with what to install', async () => {
    const missing = () => Promise.reject(new Error('not found'));
    const folder = folderOf({ 'tokenizer.json': tokenizer });
    await expectFailure(folderTokenizerFrom(missing, folder), 'ERR_OPTION', /npm install @huggingface\/tokenizers/);
    await expectFailure(jinjaChatTemplateFrom(missing, '', {}), 'ERR_OPTION', /npm install @huggingface\/jinja/);
    await expectFailure(folderTokenizer(folderOf({})), 'ERR_FILE', /tokenizer\.json: is missing/);
    await expectFailure(folderTokenizer(folderOf({ 'tokenizer.json': {} })), 'ERR_FILE', /is no tokenizer/);
  });
});

describe('a chat template', () => {
  const chatml =
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

  it('in Jinja is rendered', async () => {
    const { render } = await jinjaChatTemplate(chatml, { bos: '<s>', eos: '</s>' });
    const hello = { role: 'user', content: 'hi {{ 1 }}' } as const;
    expect(render([{ role: 'system', content: 'S' }, hello])).toBe(
      '<s><|system|>S</s><|user|>hi {{ 1 }}</s><|assistant|>',
    );
    await expectFailure(
      () => render([hello, { role: 'system', content: '' }]),
      'ERR_OPTION',
      /refuses these messages: system first/,
    );
    await expectFailure(jinjaChatTemplate('{% if %}'), 'ERR_OPTION', /the chat template is wrong/);
  });

  it('of its own has a line for each message', () => {
    expect(
      plainChatTemplate.render([
        { role: 'user', content: 'a' },
        { role: 'assistant', content: 'b' },
      ]),
    ).toBe('User: a\nAssistant: b\nAssistant:');
  });
});
