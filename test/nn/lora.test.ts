import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import { memory, type Tensor } from '../../lib/index.js';
import { AdamW, addLoRA, type GPTOptions, openSafetensors, writeSafetensors } from '../../lib/nn/index.js';
import { normal } from '../../verify/oracle/random.js';
import { gpt, type Weights } from '../../verify/oracle/transformer.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';
import { logitsOf, modelOf, onDevice, read, relativeError, shapeOf, textOf, weightsOf } from './models.js';

const at = temporaryFolder();
const options: GPTOptions = { vocabulary: 11, context: 6, layers: 2, heads: 2, width: 8, device: 'wasm' };
const text = textOf(11, 2, 5);

/** Random numbers for A and B: as B begins with zeros, nothing would be seen of A. */
function fill(parameters: readonly Tensor[]): void {
  for (const [i, t] of parameters.entries()) t.write(Float32Array.from(normal(t.size, i + 70, 0.3)));
}

const isAdapter = (name: string) => name.includes('.adapter.');

/** Weights with scale B A added, and the gradients that A and B then have: dA = scale B^T dW, dB = scale dW A^T. */
function merged(all: Weights, scale: number): Weights {
  const result: Record<string, Weights[string]> = {};
  for (const [name, weight] of Object.entries(all)) {
    if (isAdapter(name)) continue;
    const path = name.replace(/\.weight$/, '');
    const [a, b] = [all[`${path}.adapter.lora_A.weight`], all[`${path}.adapter.lora_B.weight`]];
    if (!a || !b) {
      result[name] = weight;
      continue;
    }
    const [rank, inputs] = a.shape as [number, number];
    const data = Float64Array.from(weight.data, (w, i) => {
      let sum = 0;
      for (let r = 0; r < rank; r++)
        sum += (b.data[Math.floor(i / inputs) * rank + r] as number) * (a.data[r * inputs + (i % inputs)] as number);
      return w + scale * sum;
    });
    result[name] = { shape: weight.shape, data };
  }
  return result;
}

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('LoRA'), () => {
    it('adds alpha / rank B A to weights, and trains A and B alone', async () => {
      const before = memory(device).tensors;
      const model = modelOf({ ...options, device });
      const plain = await logitsOf(text, model);
      const lora = addLoRA(model, { rank: 3, alpha: 6, targets: ['qkv', 'mlp.down'] });
      expect(await logitsOf(text, model)).toEqual(plain);
      fill(lora.parameters());
      const all = await weightsOf(model);
      const wanted = gpt(shapeOf(options), merged(all, 2), text.ids, text.targets, text.length);
      expect(relativeError(await logitsOf(text, model), wanted.logits)).toBeLessThan(3e-5);

      const { ids, targets } = onDevice(text, device);
      const loss = model.loss(ids, targets);
      loss.backward();
      expect(model.parameters()).toEqual(lora.parameters());
      for (const path of lora.paths) {
        const ofWeight = wanted.gradients[`${path}.weight`] as Float64Array;
        const parts = ['A', 'B'].map((part) => all[`${path}.adapter.lora_${part}.weight`]) as [
          Weights[''],
          Weights[''],
        ];
        const [a, b] = parts as [NonNullable<Weights['']>, NonNullable<Weights['']>];
        const [rank, inputs] = a.shape as [number, number];
        const [outputs] = b.shape as [number];
        const dA = new Float64Array(a.data.length);
        const dB = new Float64Array(b.data.length);
        for (let o = 0; o < outputs; o++)
          for (let i = 0; i < inputs; i++)
            for (let r = 0; r < rank; r++) {
              const g = 2 * (ofWeight[o * inputs + i] as number);
              dA[r * inputs + i] = (dA[r * inputs + i] as number) + g * (b.data[o * rank + r] as number);
              dB[o * rank + r] = (dB[o * rank + r] as number) + g * (a.data[r * inputs + i] as number);
            }
        const named = model.namedParameters();
        expect(relativeError(await read(named.get(`${path}.adapter.lora_A.weight`)?.grad), dA)).toBeLessThan(1e-4);
        expect(relativeError(await read(named.get(`${path}.adapter.lora_B.weight`)?.grad), dB)).toBeLessThan(1e-4);
      }
      const optimizer = new AdamW(lora.parameters(), { learningRate: 0.05 });
      optimizer.step();
      const after = await weightsOf(model);
      for (const [name, { data }] of Object.entries(all))
        if (isAdapter(name)) expect(after[name]?.data).not.toEqual(data);
        else expect(after[name]?.data).toEqual(data);
      for (const t of [ids, targets, loss, optimizer, model]) t.dispose();
      expect(memory(device).tensors).toBe(before);
    });
  });

describe('LoRA', () => {
  it('is merged into weights and taken off again', async () => {
    using model = modelOf(options);
    const plain = await weightsOf(model);
    const lora = addLoRA(model, { rank: 2, alpha: 5 });
    expect(lora.paths).toEqual(
      [0, 1].flatMap((i) => ['attention.qkv', 'attention.out', 'mlp.up', 'mlp.down'].map((p) => `blocks.${i}.${p}`)),
    );
    fill(lora.parameters());
    const all = await weightsOf(model);
    const beside = await logitsOf(text, model);
    const held = memory('wasm').tensors;
    lora.merge();
    expect(lora.merged).toBe(true);
    const wanted = merged(all, 2.5);
    const now = await weightsOf(model);
    expect(Object.keys(now)).toEqual(Object.keys(plain));
    for (const [name, { data }] of Object.entries(wanted))
      expect(relativeError(now[name]?.data ?? [], data), name).toBeLessThan(1e-6);
    expect(relativeError(await logitsOf(text, model), beside)).toBeLessThan(2e-5);
    await expectFailure(() => lora.merge(), 'ERR_OPTION', /merged already/);
    lora.unmerge();
    await expectFailure(() => lora.unmerge(), 'ERR_OPTION', /not been merged/);
    expect(memory('wasm').tensors).toBe(held);
    const again = await weightsOf(model);
    for (const [name, { data }] of Object.entries(all))
      expect(relativeError(again[name]?.data ?? [], data), name).toBeLessThan(1e-6);
    lora.remove();
    expect(Object.keys(await weightsOf(model))).toEqual(Object.keys(plain));
    expect(memory('wasm').tensors).toBe(held - lora.paths.length * 2);
  });

  it('goes through files with the names of PEFT', async () => {
    const path = at('adapters.safetensors');
    using model = modelOf(options);
    using other = modelOf(options);
    const wanted = { rank: 2, targets: ['attention.qkv'] };
    const [lora, loaded] = [addLoRA(model, wanted), addLoRA(other, wanted)];
    fill(lora.parameters());
    await lora.save(path);
    {
      await using file = await openSafetensors(path);
      expect(Object.fromEntries([...file.tensors].map(([name, { shape }]) => [name, shape]))).toEqual({
        'base_model.model.blocks.0.attention.qkv.lora_A.weight': [2, 8],
        'base_model.model.blocks.0.attention.qkv.lora_B.weight': [24, 2],
        'base_model.model.blocks.1.attention.qkv.lora_A.weight': [2, 8],
        'base_model.model.blocks.1.attention.qkv.lora_B.weight': [24, 2],
      });
    }
    await loaded.load(path);
    expect(await logitsOf(text, other)).toEqual(await logitsOf(text, model));

    using wider = modelOf(options);
    const held = memory('wasm').tensors;
    const narrow = addLoRA(wider, { rank: 3, targets: ['attention.qkv'] });
    const before = await weightsOf(wider);
    await expectFailure(narrow.load(path), 'ERR_SHAPE', /blocks\.0.*lora_A\.weight" has shape \[2, 8\].*\[3, 8\]/);
    narrow.remove();
    const more = addLoRA(wider, { rank: 2, targets: ['qkv', 'out'] });
    await expectFailure(more.load(path), 'ERR_FILE', /out\.lora_A\.weight" is missing/);
    more.remove();
    const less = addLoRA(wider, { rank: 2, targets: ['blocks.1.attention.qkv'] });
    await expectFailure(less.load(path), 'ERR_FILE', /blocks\.0.*is unexpected/);
    less.merge();
    await expectFailure(less.load(path), 'ERR_OPTION', /unmerge/);
    less.remove();
    expect(memory('wasm').tensors).toBe(held);
    expect(Object.keys(before).length).toBeGreaterThan(Object.keys(await weightsOf(wider)).length);

    // PEFT may have written half precision.
    const half = at('half.safetensors');
    const names = [0, 1].flatMap((i) =>
      [['lora_A', [2, 8]] as const, ['lora_B', [24, 2]] as const].map(([part, shape]) => ({
        name: `base_model.model.blocks.${i}.attention.qkv.${part}.weight`,
        shape,
      })),
    );
    await writeSafetensors(
      half,
      names.map(({ name, shape }) => {
        const bits = new Uint16Array(shape[0] * shape[1]).fill(0x3fc0);
        return { name, shape, dtype: 'BF16', data: bits };
      }),
    );
    await loaded.load(half);
    for (const t of loaded.parameters()) expect(new Set(await t.toFloat32())).toEqual(new Set([1.5]));
  });

  it('writes and reads the folders of PEFT', async () => {
    const folder = at('peft');
    mkdirSync(folder);
    using model = modelOf(options);
    using other = modelOf(options);
    const wanted = { rank: 2, alpha: 6, targets: ['mlp.up', 'qkv'] };
    const [lora, loaded] = [addLoRA(model, wanted), addLoRA(other, wanted)];
    fill(lora.parameters());
    await lora.save(folder, { baseModel: 'openai-community/gpt2', taskType: 'CAUSAL_LM' });
    expect(readdirSync(folder).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
    const configPath = join(folder, 'adapter_config.json');
    const config = JSON.parse(readFileSync(configPath, 'utf8'));
    expect(config).toEqual({
      base_model_name_or_path: 'openai-community/gpt2',
      bias: 'none',
      fan_in_fan_out: false,
      inference_mode: true,
      lora_alpha: 6,
      lora_dropout: 0,
      peft_type: 'LORA',
      r: 2,
      target_modules: ['mlp.up', 'qkv'],
      task_type: 'CAUSAL_LM',
    });
    await loaded.load(folder);
    expect(await logitsOf(text, other)).toEqual(await logitsOf(text, model));
    await loaded.load(pathToFileURL(join(folder, 'adapter_model.safetensors')));

    // What PEFT adds changes nothing; what would be computed otherwise is refused.
    const rewrite = (changes: object) => writeFileSync(configPath, JSON.stringify({ ...config, ...changes }));
    rewrite({ rank_pattern: {}, alpha_pattern: {}, modules_to_save: null, use_rslora: false, use_dora: false });
    await loaded.load(folder);
    const before = await weightsOf(other);
    for (const [changes, message] of [
      [{ r: 4 }, /adapter_config\.json: r is 4; these adapters have rank 2/],
      [{ lora_alpha: 2 }, /lora_alpha is 2; these adapters have alpha 6/],
      [{ lora_alpha: undefined }, /lora_alpha is undefined/],
      [{ peft_type: 'IA3' }, /peft_type is "IA3"/],
      [{ bias: 'all' }, /bias is "all"/],
      [{ use_rslora: true }, /use_rslora is true/],
      [{ rank_pattern: { up: 4 } }, /rank_pattern/],
    ] as const) {
      rewrite(changes);
      await expectFailure(loaded.load(folder), 'ERR_FILE', message);
    }
    writeFileSync(configPath, '{');
    await expectFailure(loaded.load(folder), 'ERR_FILE', /is no JSON/);
    writeFileSync(configPath, '[]');
    await expectFailure(loaded.load(folder), 'ERR_FILE', /is no object/);
    expect(await weightsOf(other)).toEqual(before);
    rmSync(configPath);
    await loaded.load(folder);
  });

  it('writes the configuration beside a file when asked to, and tells files of another alpha', async () => {
    const folder = at('beside');
    mkdirSync(folder);
    const path = join(folder, 'mine.safetensors');
    using model = modelOf(options);
    const lora = addLoRA(model, { rank: 2 });
    await lora.save(path);
    expect(readdirSync(folder)).toEqual(['mine.safetensors']);
    await lora.save(path, { config: true });
    const config = JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'));
    expect(config).toMatchObject({ r: 2, lora_alpha: 2, base_model_name_or_path: null, task_type: null });
    expect(config.target_modules).toEqual(lora.paths);
    await lora.load(path);
    using other = modelOf(options);
    const louder = addLoRA(other, { rank: 2, alpha: 8 });
    await expectFailure(
      louder.load(path),
      'ERR_FILE',
      /mine\.safetensors: lora_alpha is 2; these adapters have alpha 8/,
    );
    // A file says what it is itself; of one that does not, the configuration beside it does.
    await louder.save(join(folder, 'louder.safetensors'));
    await louder.load(join(folder, 'louder.safetensors'));
    const bare = join(folder, 'bare.safetensors');
    {
      await using file = await openSafetensors(path);
      const entries = [...file.tensors].map(([name, { shape }]) => {
        return { name, shape, dtype: 'F32', data: () => file.read(name) } as const;
      });
      await writeSafetensors(bare, entries as never);
    }
    await lora.load(bare);
    await expectFailure(louder.load(bare), 'ERR_FILE', /adapter_config\.json: lora_alpha is 2/);
    await lora.save(folder, { config: false });
    expect(readdirSync(folder)).toContain('adapter_model.safetensors');
    await expectFailure(lora.save(path, { config: 1 as never }), 'ERR_OPTION', /config is 1/);
    await expectFailure(lora.save(path, { base: 'x' } as never), 'ERR_OPTION', /no option "base"/);
    await expectFailure(lora.save(path, { baseModel: 1 as never }), 'ERR_OPTION', /baseModel is 1/);
  });

  it('refuses what it cannot do, and leaves the model as it was', async () => {
    using model = modelOf(options);
    const held = memory('wasm').tensors;
    const trained = model.parameters().length;
    const cases: [object, string, RegExp][] = [
      [{}, 'ERR_OPTION', /rank is undefined/],
      [{ rank: 0 }, 'ERR_OPTION', /rank is 0/],
      [{ rank: 2, targets: ['qkv', 'key'] }, 'ERR_OPTION', /"key"; no linear layer/],
      [{ rank: 2, targets: 'qkv' }, 'ERR_OPTION', /targets is "qkv"/],
      [{ rank: 2, alpha: Number.NaN }, 'ERR_OPTION', /alpha is NaN/],
      [{ rank: 2, dtype: 'int32' }, 'ERR_DTYPE', /dtype/],
      [{ rank: 2, dropout: 0.1 }, 'ERR_OPTION', /no option "dropout"/],
    ];
    for (const [wrong, code, message] of cases)
      await expectFailure(() => addLoRA(model, wrong as never), code, message);
    expect(memory('wasm').tensors).toBe(held);
    expect(model.parameters()).toHaveLength(trained);
    addLoRA(model, { rank: 1, targets: ['blocks.0.mlp.up'] });
    await expectFailure(() => addLoRA(model, { rank: 1 }), 'ERR_OPTION', /blocks\.0\.mlp\.up has an adapter already/);
  });
});
