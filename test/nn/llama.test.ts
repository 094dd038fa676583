import { describe, expect, it } from 'vitest';
import { memory } from '../../lib/index.js';
import { llamaFromSafetensors, type SafetensorsEntry, writeSafetensors } from '../../lib/nn/index.js';
import { round } from '../../verify/oracle/float16.js';
import { normal } from '../../verify/oracle/random.js';
import { type GptShape, gpt, type Weights } from '../../verify/oracle/transformer.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';
import { logitsOf, relativeError, textOf } from './models.js';

const at = temporaryFolder();
const [vocabulary, context, width, hidden, layers, heads, kvHeads, headDim] = [13, 7, 12, 20, 2, 4, 2, 6] as const;
const text = textOf(vocabulary, 2, 6);

type Tensors = Record<string, { shape: readonly number[]; data: Float64Array }>;

/** Weights as Hugging Face names them. */
function tensorsOf({ bias = false, head = false } = {}): Tensors {
  const shapes: Record<string, number[]> = {
    'model.embed_tokens.weight': [vocabulary, width],
    'model.norm.weight': [width],
  };
  for (let i = 0; i < layers; i++) {
    const layer = `model.layers.${i}`;
    for (const [name, rows] of [
      ['q', heads * headDim],
      ['k', kvHeads * headDim],
      ['v', kvHeads * headDim],
    ] as const) {
      shapes[`${layer}.self_attn.${name}_proj.weight`] = [rows, width];
      if (bias) shapes[`${layer}.self_attn.${name}_proj.bias`] = [rows];
    }
    Object.assign(shapes, {
      [`${layer}.self_attn.o_proj.weight`]: [width, heads * headDim],
      [`${layer}.input_layernorm.weight`]: [width],
      [`${layer}.post_attention_layernorm.weight`]: [width],
      [`${layer}.mlp.gate_proj.weight`]: [hidden, width],
      [`${layer}.mlp.up_proj.weight`]: [hidden, width],
      [`${layer}.mlp.down_proj.weight`]: [width, hidden],
    });
  }
  if (head) shapes['lm_head.weight'] = [vocabulary, width];
  let seed = 1;
  const entries = Object.entries(shapes).map(([name, shape]) => {
    const size = shape.reduce((a, b) => a * b, 1);
    return [name, { shape, data: Float64Array.from(normal(size, seed++, 0.4), Math.fround) }] as const;
  });
  return Object.fromEntries(entries);
}

/** The same weights in the names of the oracle. */
function oracleOf(tensors: Tensors): Weights {
  const rows = (...names: string[]): Weights[''] => {
    const all = names.map((name) => tensors[name] as Tensors['']);
    const count = all.reduce((sum, each) => sum + (each?.shape[0] as number), 0);
    return { shape: [count, ...(all[0]?.shape.slice(1) ?? [])], data: all.flatMap((each) => [...(each?.data ?? [])]) };
  };
  const found: Record<string, Weights['']> = {
    'tokens.weight': rows('model.embed_tokens.weight'),
    'norm.weight': rows('model.norm.weight'),
  };
  if (tensors['lm_head.weight']) found['head.weight'] = rows('lm_head.weight');
  for (let i = 0; i < layers; i++) {
    const [from, to] = [`model.layers.${i}`, `blocks.${i}`];
    const projections = (part: string) => ['q', 'k', 'v'].map((name) => `${from}.self_attn.${name}_proj.${part}`);
    found[`${to}.attention.qkv.weight`] = rows(...projections('weight'));
    if (tensors[`${from}.self_attn.q_proj.bias`]) found[`${to}.attention.qkv.bias`] = rows(...projections('bias'));
    found[`${to}.attention.out.weight`] = rows(`${from}.self_attn.o_proj.weight`);
    found[`${to}.norm1.weight`] = rows(`${from}.input_layernorm.weight`);
    found[`${to}.norm2.weight`] = rows(`${from}.post_attention_layernorm.weight`);
    found[`${to}.mlp.up.weight`] = rows(`${from}.mlp.gate_proj.weight`, `${from}.mlp.up_proj.weight`);
    found[`${to}.mlp.down.weight`] = rows(`${from}.mlp.down_proj.weight`);
  }
  return found;
}

const shape: GptShape = {
  ...{ vocabulary, width, layers, heads, kvHeads, headDim, hidden, norm: 'rms', epsilon: 1e-5, activation: 'swiglu' },
  rope: { base: 500, dims: headDim, pairs: 'half' },
};
const options = { heads, kvHeads, context, epsilon: 1e-5, rope: { base: 500 } } as const;

const entriesOf = (tensors: Tensors): SafetensorsEntry[] =>
  Object.entries(tensors).map(([name, { shape: own, data }]) => {
    return { name, shape: own, dtype: 'F32', data: Float32Array.from(data) };
  });

const wantedOf = (tensors: Tensors) => gpt(shape, oracleOf(tensors), text.ids, text.targets, text.length).logits;

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('Llama'), () => {
    it.each([
      ['of Llama', { head: true }],
      ['of Qwen2, with biases and without a head', { bias: true }],
    ])('has the logits of float64: %s', async (_, kind) => {
      const before = memory(device).tensors;
      const tensors = tensorsOf(kind);
      const path = at(`${device}.safetensors`);
      await writeSafetensors(path, entriesOf(tensors));
      const model = await llamaFromSafetensors(path, { ...options, device });
      expect(memory(device).tensors).toBe(before + model.namedParameters().size);
      expect(relativeError(await logitsOf(text, model), wantedOf(tensors))).toBeLessThan(2e-5);
      expect([model.vocabulary, model.context, model.training]).toEqual([vocabulary, context, false]);
      model.dispose();
      expect(memory(device).tensors).toBe(before);
    });
  });

describe('Llama', () => {
  const device = 'wasm';

  it('takes half precision, several files, and buffers of older ones', async () => {
    const tensors = tensorsOf({ head: true, bias: true });
    const bits = (data: Float64Array) =>
      Uint16Array.from(
        new Uint32Array(Float32Array.from(data, (x) => round(x, 'bfloat16')).buffer),
        (word) => word >>> 16,
      );
    const entries = Object.entries(tensors).map(([name, { shape: own, data }]): SafetensorsEntry => {
      return { name, shape: own, dtype: 'BF16', data: bits(data) };
    });
    const buffer: SafetensorsEntry = {
      ...{ name: 'model.layers.0.self_attn.rotary_emb.inv_freq', shape: [3], dtype: 'F32', data: new Float32Array(3) },
    };
    const [first, second] = [at('part1.safetensors'), at('part2.safetensors')];
    await writeSafetensors(first, [...entries.slice(0, 9), buffer]);
    await writeSafetensors(second, entries.slice(9));
    const rounded = Object.entries(tensors).map(([name, { shape: own, data }]) => {
      return [name, { shape: own, data: data.map((x) => round(x, 'bfloat16')) }] as const;
    });
    using model = await llamaFromSafetensors([first, second], { ...options, device });
    expect(relativeError(await logitsOf(text, model), wantedOf(Object.fromEntries(rounded)))).toBeLessThan(2e-5);
    await expectFailure(
      llamaFromSafetensors([first, first], { ...options, device }),
      'ERR_FILE',
      /"model\..*" is in another file too/,
    );
  });

  it('has the embedding as its head where that is wanted', async () => {
    const path = at('tied.safetensors');
    const { 'lm_head.weight': _, ...rest } = tensorsOf({ head: true });
    await writeSafetensors(path, entriesOf(tensorsOf({ head: true })));
    using model = await llamaFromSafetensors(path, { ...options, device, tied: true });
    expect(model.head).toBeUndefined();
    expect(relativeError(await logitsOf(text, model), wantedOf(rest))).toBeLessThan(2e-5);
  });

  it('is refused with the first difference, and leaves nothing', async () => {
    const path = at('wrong.safetensors');
    const before = memory(device).tensors;
    const tensor = (own: readonly number[]) => ({ shape: own, data: new Float64Array(own.reduce((a, b) => a * b, 1)) });
    const cases: [(tensors: Tensors) => Tensors, object, string, RegExp][] = [
      [({ 'model.norm.weight': _, ...rest }) => rest, {}, 'ERR_FILE', /"model\.norm\.weight" is missing/],
      [({ 'model.embed_tokens.weight': _, ...rest }) => rest, {}, 'ERR_FILE', /these are no weights of Llama/],
      [(all) => ({ ...all, 'model.layers.0.x': tensor([1]) }), {}, 'ERR_FILE', /"model\.layers\.0\.x" is unexpected/],
      [
        (all) => ({ ...all, 'model.layers.1.mlp.down_proj.weight': tensor([20, 12]) }),
        ...([{}, 'ERR_SHAPE', /down_proj\.weight" has shape \[20, 12\]; it must be \[12, 20\]/] as const),
      ],
      [
        (all) => ({ ...all, 'model.layers.3.input_layernorm.weight': tensor([12]) }),
        {},
        'ERR_FILE',
        /layers\.2\..*missing/,
      ],
      [(all) => all, { tied: false }, 'ERR_FILE', /"lm_head\.weight" is missing/],
      [(all) => all, { heads: 5 }, 'ERR_OPTION', /heads is 5; it must be a divisor of the 24 rows/],
      [(all) => all, { kvHeads: 1 }, 'ERR_OPTION', /kvHeads is 1; it must be 2/],
      [(all) => all, { layers: 2 }, 'ERR_OPTION', /no option "layers"/],
    ];
    for (const [make, own, code, message] of cases) {
      await writeSafetensors(path, entriesOf(make(tensorsOf())));
      await expectFailure(llamaFromSafetensors(path, { ...options, device, ...own }), code, message);
    }
    await expectFailure(llamaFromSafetensors([], { ...options, device }), 'ERR_OPTION', /paths is \[\]/);
    expect(memory(device).tensors).toBe(before);
  });
});
