import { describe, expect, it } from 'vitest';
import { memory } from '../../lib/index.js';
import { gpt2FromSafetensors, type SafetensorsEntry, writeSafetensors } from '../../lib/nn/index.js';
import { round } from '../../verify/oracle/float16.js';
import { normal } from '../../verify/oracle/random.js';
import { type GptShape, gpt, type Weights } from '../../verify/oracle/transformer.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';
import { logitsOf, relativeError, textOf } from './models.js';

const at = temporaryFolder();
const [vocabulary, context, width, hidden, layers] = [13, 7, 6, 20, 2];
const text = textOf(vocabulary, 2, 6);

type Tensors = Record<string, { shape: readonly number[]; data: Float64Array }>;

/** Weights as Hugging Face names them: matrices of conv1d layers are [inputs, outputs]. */
function tensorsOf(): Tensors {
  const shapes: Record<string, number[]> = { 'wte.weight': [vocabulary, width], 'wpe.weight': [context, width] };
  for (let i = 0; i < layers; i++)
    Object.assign(shapes, {
      ...{ [`h.${i}.ln_1.weight`]: [width], [`h.${i}.ln_1.bias`]: [width] },
      ...{ [`h.${i}.attn.c_attn.weight`]: [width, 3 * width], [`h.${i}.attn.c_attn.bias`]: [3 * width] },
      ...{ [`h.${i}.attn.c_proj.weight`]: [width, width], [`h.${i}.attn.c_proj.bias`]: [width] },
      ...{ [`h.${i}.ln_2.weight`]: [width], [`h.${i}.ln_2.bias`]: [width] },
      ...{ [`h.${i}.mlp.c_fc.weight`]: [width, hidden], [`h.${i}.mlp.c_fc.bias`]: [hidden] },
      ...{ [`h.${i}.mlp.c_proj.weight`]: [hidden, width], [`h.${i}.mlp.c_proj.bias`]: [width] },
    });
  Object.assign(shapes, { 'ln_f.weight': [width], 'ln_f.bias': [width] });
  let seed = 1;
  const entries = Object.entries(shapes).map(([name, shape]) => {
    const size = shape.reduce((a, b) => a * b, 1);
    return [name, { shape, data: Float64Array.from(normal(size, seed++, 0.4), Math.fround) }] as const;
  });
  return Object.fromEntries(entries);
}

const renamed: Record<string, string> = {
  ...{ wte: 'tokens', wpe: 'positions', ln_f: 'norm', ln_1: 'norm1', ln_2: 'norm2' },
  ...{ 'attn.c_attn': 'attention.qkv', 'attn.c_proj': 'attention.out', 'mlp.c_fc': 'mlp.up', 'mlp.c_proj': 'mlp.down' },
};

/** The same weights in the names and the order of the oracle. */
function oracleOf(tensors: Tensors): Weights {
  const found: Record<string, Weights['']> = {};
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    const [, block, own, part] = name.match(/^(?:h\.(\d+)\.)?(.*)\.(weight|bias)$/) as unknown as string[];
    const target = `${block === undefined ? '' : `blocks.${block}.`}${renamed[own as string]}.${part}`;
    const [rows, columns] = shape as [number, number];
    found[target] =
      own?.includes('c_') && part === 'weight'
        ? {
            shape: [columns, rows],
            data: Float64Array.from(data, (_, i) => data[(i % rows) * columns + Math.floor(i / rows)] as number),
          }
        : { shape, data };
  }
  return found as Weights;
}

const shape: GptShape = {
  ...{ vocabulary, width, layers, heads: 3, kvHeads: 3, headDim: 2, hidden, norm: 'layer', epsilon: 1e-5 },
  activation: 'geluTanh',
};

const entriesOf = (tensors: Tensors, prefix = ''): SafetensorsEntry[] =>
  Object.entries(tensors).map(([name, { shape, data }]) => ({
    name: prefix + name,
    shape,
    dtype: 'F32',
    data: Float32Array.from(data),
  }));

const buffers = (prefix = ''): SafetensorsEntry[] =>
  Array.from({ length: layers }, (_, i) => [
    { name: `${prefix}h.${i}.attn.bias`, shape: [1, 1, 2, 2], dtype: 'U8' as const, data: new Uint8Array(4) },
    { name: `${prefix}h.${i}.attn.masked_bias`, shape: [], dtype: 'F32' as const, data: Float32Array.of(-1e4) },
  ]).flat();

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('GPT-2'), () => {
    it.each(['', 'transformer.'])('has the logits of float64, from names behind "%s"', async (prefix) => {
      const before = memory(device).tensors;
      const tensors = tensorsOf();
      const path = at(`${device}${prefix}.safetensors`);
      await writeSafetensors(path, [...entriesOf(tensors, prefix), ...buffers(prefix)]);
      const model = await gpt2FromSafetensors(path, { heads: 3, device });
      const wanted = gpt(shape, oracleOf(tensors), text.ids, text.targets, text.length);
      expect(relativeError(await logitsOf(text, model), wanted.logits)).toBeLessThan(2e-5);
      expect([model.vocabulary, model.context, model.training, model.head]).toEqual([
        vocabulary,
        context,
        false,
        undefined,
      ]);
      expect(memory(device).tensors).toBe(before + model.namedParameters().size);
      model.dispose();
    });
  });

describe('GPT-2', () => {
  const device = 'wasm';

  it('takes half precision, and makes weights of any', async () => {
    const tensors = tensorsOf();
    const path = at('half.safetensors');
    const bits = (data: Float64Array) => {
      const words = new Uint32Array(Float32Array.from(data, (x) => round(x, 'bfloat16')).buffer);
      return Uint16Array.from(words, (word) => word >>> 16);
    };
    const entries = Object.entries(tensors).map(([name, { shape, data }]) => {
      return { name, shape, dtype: 'BF16', data: bits(data) } as const;
    });
    await writeSafetensors(path, entries);
    const rounded = Object.entries(tensors).map(([name, { shape, data }]) => {
      return [name, { shape, data: data.map((x) => round(x, 'bfloat16')) }] as const;
    });
    const wanted = gpt(shape, oracleOf(Object.fromEntries(rounded)), text.ids, text.targets, text.length);
    using model = await gpt2FromSafetensors(path, { heads: 3, device });
    expect(model.tokens.weight.dtype).toBe('float32');
    expect(relativeError(await logitsOf(text, model), wanted.logits)).toBeLessThan(2e-5);
    using narrow = await gpt2FromSafetensors(path, { heads: 3, device, dtype: 'bfloat16' });
    expect(narrow.tokens.weight.dtype).toBe('bfloat16');
    expect(relativeError(await logitsOf(text, narrow), wanted.logits)).toBeLessThan(0.1);
  });

  it('has a head of its own where the file has another one', async () => {
    const tensors = tensorsOf();
    const table = tensors['wte.weight'] as Tensors[''];
    const path = at('head.safetensors');
    const head = (data: Float64Array): SafetensorsEntry => {
      return { name: 'lm_head.weight', shape: [vocabulary, width], dtype: 'F32', data: Float32Array.from(data) };
    };
    await writeSafetensors(path, [...entriesOf(tensors, 'transformer.'), head(table?.data as Float64Array)]);
    using tied = await gpt2FromSafetensors(path, { heads: 3, device });
    expect(tied.head).toBeUndefined();
    const own = normal(vocabulary * width, 99);
    await writeSafetensors(path, [...entriesOf(tensors, 'transformer.'), head(own)]);
    using model = await gpt2FromSafetensors(path, { heads: 3, device });
    const weights = { ...oracleOf(tensors), 'head.weight': { shape: [vocabulary, width], data: own } };
    const wanted = gpt(shape, weights, text.ids, text.targets, text.length);
    expect(relativeError(await logitsOf(text, model), wanted.logits)).toBeLessThan(2e-5);
  });

  it('is refused with the first difference, and leaves nothing', async () => {
    const path = at('wrong.safetensors');
    const before = memory(device).tensors;
    const cases: [(tensors: Tensors) => SafetensorsEntry[], object, string, RegExp][] = [
      [({ 'h.1.ln_2.bias': _, ...rest }) => entriesOf(rest), {}, 'ERR_FILE', /"h\.1\.ln_2\.bias" is missing/],
      [({ 'wte.weight': _, ...rest }) => entriesOf(rest), {}, 'ERR_FILE', /"wte\.weight" is missing: these are no/],
      [
        (all) => entriesOf({ ...all, 'h.0.attn.q.weight': { shape: [1], data: new Float64Array(1) } }),
        ...([{}, 'ERR_FILE', /"h\.0\.attn\.q\.weight" is unexpected/] as const),
      ],
      [
        (all) => entriesOf({ ...all, 'h.1.attn.c_attn.weight': { shape: [18, 6], data: new Float64Array(108) } }),
        ...([{}, 'ERR_SHAPE', /"h\.1\.attn\.c_attn\.weight" has shape \[18, 6\]; it must be \[6, 18\]/] as const),
      ],
      [
        ({ 'ln_f.bias': _, ...rest }) => [
          ...entriesOf(rest),
          { name: 'ln_f.bias', shape: [6], dtype: 'I32', data: new Int32Array(6) },
        ],
        ...([{}, 'ERR_DTYPE', /"ln_f\.bias" is I32/] as const),
      ],
      [(all) => entriesOf(all), { heads: undefined }, 'ERR_OPTION', /is 6, no multiple of 64; give heads/],
      [(all) => entriesOf(all), { heads: 4 }, 'ERR_OPTION', /width 6 .*heads 4/],
      [(all) => entriesOf(all), { layers: 2 }, 'ERR_OPTION', /no option "layers"/],
    ];
    for (const [make, options, code, message] of cases) {
      await writeSafetensors(path, make(tensorsOf()));
      await expectFailure(gpt2FromSafetensors(path, { heads: 3, device, ...options } as never), code, message);
    }
    await expectFailure(gpt2FromSafetensors(at('none')), 'ERR_FILE', /cannot be opened/);
    expect(memory(device).tensors).toBe(before);
  });
});
