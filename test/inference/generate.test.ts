/** A GPT that decodes through a cache says what it says without one, whatever is computed beside it. */
import { describe, expect, it } from 'vitest';
import { type DeviceName, memory, noGrad, tensor } from '../../lib/index.js';
import { Engine, GptDecoder, generate } from '../../lib/inference/index.js';
import { GPT, type GPTOptions } from '../../lib/nn/index.js';
import { devicesWith } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';

const base: GPTOptions = { vocabulary: 50, context: 256, layers: 2, width: 32, heads: 4, seed: 5 };
const variants: Readonly<Record<string, (device: DeviceName) => GPT>> = {
  'GPT-2': (device) => new GPT({ ...base, device }),
  'Llama, with shared heads': (device) => GPT.llama({ ...base, kvHeads: 2, device }),
  ALiBi: (device) => new GPT({ ...base, alibi: [0.5, 0.25, 0.125, 0.06], device }),
  'a window and softcap': (device) => GPT.llama({ ...base, window: [40, 0], softcap: 5, device }),
};

/** Larger weights than those of a model that has learned nothing, so that what it says depends on what it reads. */
function sharpened(model: GPT): GPT {
  noGrad(() => {
    for (const [name, weight] of model.namedParameters())
      if (name.includes('weight') && weight.shape.length === 2)
        weight.write(weight.toFloat32Sync().map((x) => 6 * x) as never);
  });
  return model.eval() as GPT;
}

const collect = async (tokens: AsyncIterable<number>) => {
  const all: number[] = [];
  for await (const token of tokens) all.push(token);
  return all;
};

/** Logits behind every token, without a cache. */
function logitsOf(model: GPT, tokens: readonly number[], device: DeviceName): Float32Array {
  const ids = tensor(Int32Array.from(tokens), [1, tokens.length], { device });
  const logits = noGrad(() => model.forward(ids));
  try {
    return logits.toFloat32Sync();
  } finally {
    ids.dispose();
    logits.dispose();
  }
}

const largest = (logits: Float32Array) => logits.reduce((best, x, at) => (x > (logits[best] as number) ? at : best), 0);

for (const { device, present, title, isSlow } of devicesWith('matmul', 'elementwise', 'gather'))
  describe.skipIf(!present)(title('a GPT that decodes'), () => {
    const length = isSlow ? 12 : 200;
    const all = Object.entries(variants).slice(0, isSlow ? 2 : undefined);

    it.each(all)('%s: token for token as without a cache', async (_, make) => {
      const before = memory(device).tensors;
      using model = sharpened(make(device));
      const prompt = [3, 1, 4, 1, 5];
      const said = await collect(generate(model, prompt, { maxTokens: length }));
      expect(said).toHaveLength(length);
      const tokens = [...prompt, ...said];
      const logits = logitsOf(model, tokens.slice(0, -1), device);
      for (let at = prompt.length; at < tokens.length; at++) {
        const row = logits.subarray((at - 1) * base.vocabulary, at * base.vocabulary);
        const best = row[largest(row)] as number;
        // Of equal ones up to rounding either may come.
        expect(best - (row[tokens[at] as number] as number), `token ${at}`).toBeLessThan(
          1e-4 * Math.max(1, Math.abs(best)),
        );
      }
      expect(new Set(said).size).toBeGreaterThan(isSlow ? 0 : 2);
      model.dispose();
      expect(memory(device).tensors).toBe(before);
    });
  });

const processors = devicesWith('matmul', 'elementwise', 'gather').filter(({ isSlow }) => !isSlow);
for (const { device, present, title } of processors)
  describe.skipIf(!present)(title('bits of logits'), () => {
    it.each(Object.entries(variants))('%s: the same alone, beside others, and in pieces', async (_, make) => {
      using model = sharpened(make(device));
      using decoder = new GptDecoder(model, { blocks: 200, blockSize: 8 });
      const prompts = [70, 1, 33, 128, 16].map((n, s) =>
        Array.from({ length: n }, (_, i) => (i * 7 + s * 13 + 3) % 50),
      );
      const alone = async (tokens: readonly number[], piece: number) => {
        const sequence = decoder.pool.sequence([], {});
        const rows: Float32Array[] = [];
        for (let at = 0; at < tokens.length; at += piece) {
          const part = tokens.slice(at, at + piece);
          sequence.extend(part);
          rows.push(...(await decoder.step([{ sequence, count: part.length, logits: part.length }])));
        }
        sequence.free();
        return rows;
      };
      const wanted: Float32Array[][] = [];
      for (const prompt of prompts) wanted.push(await alone(prompt, 1000));
      for (const piece of [1, 3, 32]) {
        for (const [s, prompt] of prompts.entries())
          if (piece > 1 || prompt.length < 80)
            expect(await alone(prompt, piece), `sequence ${s} in pieces of ${piece}`).toEqual(wanted[s]);
      }
      const sequences = prompts.map((prompt) => {
        const sequence = decoder.pool.sequence([], {});
        sequence.extend(prompt);
        return sequence;
      });
      const together = await decoder.step(
        sequences.map((sequence) => ({ sequence, count: sequence.length, logits: true })),
      );
      expect(together).toEqual(wanted.map((rows) => rows.at(-1)));
      for (const sequence of sequences) sequence.free();
      expect(decoder.pool.available).toBe(200);
    });

    it('an engine gives every request what it gets alone', async () => {
      using model = sharpened(variants['Llama, with shared heads']?.(device) as GPT);
      using decoder = new GptDecoder(model, { blocks: 60, blockSize: 8 });
      const requests = Array.from({ length: 12 }, (_, i) => ({
        prompt: Array.from({ length: 1 + ((i * 17) % 60) }, (_, j) => (j * (i + 3)) % 50),
        maxTokens: 10 + i,
        sampling: { temperature: 0.8, seed: i },
      }));
      const alone: number[][] = [];
      for (const { prompt, maxTokens, sampling } of requests)
        alone.push(await collect(generate(model, prompt, { maxTokens, ...sampling })));
      const engine = new Engine({ model: decoder, tokenBudget: 48 });
      const streams = requests.map((request) => engine.submit(request));
      const found = await Promise.all(
        streams.map(async (stream) => {
          const tokens: number[] = [];
          for await (const { token } of stream) tokens.push(token);
          return tokens;
        }),
      );
      await engine.close();
      expect(found).toEqual(alone);
    });
  });

describe('generation', () => {
  const device = 'wasm';
  const model = sharpened(variants['GPT-2']?.(device) as GPT);
  const draft = sharpened(new GPT({ ...base, layers: 1, device }));
  const prompt = [7, 8, 9, 7, 8, 9, 7, 8];

  it.each([
    ['lookup', { kind: 'lookup', tokens: 5 }],
    ['a draft', { kind: 'draft', model: draft, tokens: 3 }],
    ['itself as a draft', { kind: 'draft', model, tokens: 4 }],
  ] as const)('is the same with %s, where it is greedy', async (_, speculation) => {
    const plain = await collect(generate(model, prompt, { maxTokens: 120 }));
    expect(await collect(generate(model, prompt, { maxTokens: 120, speculation }))).toEqual(plain);
  });

  it('ends with the context, a stop token, or the reader', async () => {
    const plain = await collect(generate(model, prompt));
    expect(plain).toHaveLength(base.context - prompt.length + 1);
    const stop = plain[20] as number;
    expect(await collect(generate(model, prompt, { stop: [stop] }))).toEqual(plain.slice(0, plain.indexOf(stop)));
    const before = memory(device).tensors;
    for await (const token of generate(model, prompt)) {
      expect(token).toBe(plain[0]);
      break;
    }
    expect(memory(device).tensors).toBe(before);
  });

  it('has the same text for a seed, and another for another', async () => {
    const say = (seed: number) => collect(generate(model, prompt, { maxTokens: 40, temperature: 1, seed }));
    expect(await say(1)).toEqual(await say(1));
    expect(await say(1)).not.toEqual(await say(2));
  });

  it('refuses what cannot be', async () => {
    const first = (given: unknown, tokens: unknown = prompt, of: unknown = model) =>
      generate(of as GPT, tokens as number[], given as object).next();
    const cases: readonly (readonly [unknown, unknown, unknown, RegExp])[] = [
      [{ maxTokens: -1 }, prompt, model, /maxTokens is -1/],
      [{ temprature: 1 }, prompt, model, /no option "temprature"/],
      [{ temperature: -1 }, prompt, model, /temperature is -1/],
      [{ speculation: { kind: 'magic' } }, prompt, model, /speculation\.kind is "magic"/],
      [{}, [], model, /prompt is empty/],
      [{}, [50], model, /prompt\[0\] is 50/],
      [{}, new Array(257).fill(1), model, /prompt has 257 tokens; the model's context is 256/],
      [{}, prompt, {}, /model is .*; it must be a GPT or a DecoderModel/],
    ];
    for (const [options, tokens, of, message] of cases)
      await expectFailure(() => first(options, tokens, of) as Promise<never>, 'ERR_OPTION', message);
    await expectFailure(
      () => new GptDecoder(new GPT({ ...base, device, scoreMod: (s) => s.mul(2) })),
      'ERR_OPTION',
      /scoreMod is .* with a cache it cannot be given/,
    );
  });
});
