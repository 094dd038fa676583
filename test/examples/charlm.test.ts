import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { FlashAttention } from '../../examples/charlm/attention.js';
import { raceOnNoise } from '../../examples/charlm/compare.js';
import { generate } from '../../examples/charlm/generate.js';
import { matmul, matrix, transpose } from '../../examples/charlm/matmul.js';
import { type AttentionFactory, Transformer } from '../../examples/charlm/model.js';
import { parseOptions, UsageError } from '../../examples/charlm/options.js';
import { type ModelConfig, Weights } from '../../examples/charlm/parameters.js';
import { Random } from '../../examples/charlm/random.js';
import { makeCorpus, readRepository, readTextFile, TextError, Vocabulary } from '../../examples/charlm/text.js';
import { evaluate, train } from '../../examples/charlm/train.js';
import { UnfusedAttention } from '../../examples/charlm/unfused.js';
import { memory } from '../../lib/index.js';

const unfused: AttentionFactory = (shape) => new UnfusedAttention(shape);
const fused: AttentionFactory = (shape) => new FlashAttention(shape, 'wasm');

/** Odd sizes throughout, so that nothing fits a tile. */
const TINY: ModelConfig = { vocabulary: 11, layers: 2, heads: 3, headDim: 5, slopes: [1, 0.3, 0] };
const BATCH = 3;
const CONTEXT = 13;

function tinyModel(makeAttention: AttentionFactory): Transformer {
  return new Transformer(new Weights(TINY, new Random(7)), { batch: BATCH, context: CONTEXT }, makeAttention);
}

function tinyBatch(): { tokens: Int32Array; targets: Int32Array } {
  const random = new Random(8);
  const draw = () => Int32Array.from({ length: BATCH * CONTEXT }, () => random.below(TINY.vocabulary));
  return { tokens: draw(), targets: draw() };
}

function normal(length: number, random: Random): Float32Array {
  return Float32Array.from({ length }, () => random.normal());
}

describe('matmul', () => {
  const sizes = [
    [1, 1, 1],
    [4, 4, 4],
    [5, 7, 3],
    [3, 1, 9],
    [130, 6, 5],
    [7, 9, 300],
    [133, 30, 257],
  ] as const;

  test.each(sizes)('%i x %i, inner %i, for every combination of transposed operands', (rows, columns, inner) => {
    const random = new Random(rows * 31 + columns);
    const a = normal(rows * inner, random);
    const b = normal(inner * columns, random);
    const initial = normal(rows * columns, random);
    for (const transposeA of [false, true]) {
      for (const transposeB of [false, true]) {
        for (const accumulate of [false, true]) {
          const A = transposeA ? transpose(matrix(a, inner, rows)) : matrix(a, rows, inner);
          const B = transposeB ? transpose(matrix(b, columns, inner)) : matrix(b, inner, columns);
          const out = initial.slice();
          matmul(matrix(out, rows, columns), A, B, accumulate);
          for (let i = 0; i < rows; i++) {
            for (let j = 0; j < columns; j++) {
              let sum = accumulate ? initial[i * columns + j] : 0;
              for (let k = 0; k < inner; k++) {
                sum += a[transposeA ? k * rows + i : i * inner + k] * b[transposeB ? j * inner + k : k * columns + j];
              }
              expect(Math.abs(out[i * columns + j] - sum)).toBeLessThan(1e-5 * Math.sqrt(inner) + 1e-6);
            }
          }
        }
      }
    }
  });

  test('writes inside a wider matrix and nowhere else', () => {
    const random = new Random(1);
    const out = new Float32Array(6 * 20).fill(99);
    const a = normal(6 * 10, random);
    const b = normal(10 * 5, random);
    const alone = new Float32Array(6 * 5);
    matmul(matrix(alone, 6, 5), matrix(a, 6, 10), matrix(b, 10, 5));
    matmul(matrix(out, 6, 5, 20, 3), matrix(a, 6, 10), matrix(b, 10, 5));
    for (let i = 0; i < 6; i++) {
      for (let j = 0; j < 20; j++) {
        expect(out[i * 20 + j]).toBe(j >= 3 && j < 8 ? alone[i * 5 + j - 3] : 99);
      }
    }
  });

  test('refuses shapes that do not fit', () => {
    const data = new Float32Array(12);
    expect(() => matmul(matrix(data, 3, 4), matrix(data, 3, 2), matrix(data, 3, 4))).toThrow(RangeError);
  });
});

describe('the model', () => {
  test('has the gradients that finite differences give', async () => {
    const model = tinyModel(unfused);
    const { tokens, targets } = tinyBatch();
    const { weights } = model;
    // Away from the initial values, where biases are zero and the head is nearly so.
    const random = new Random(9);
    for (const { value } of weights.all) for (let i = 0; i < value.length; i++) value[i] += 0.1 * random.normal();
    weights.zeroGradients();
    await model.loss(tokens, targets);
    await model.backward();

    for (const { name, value, gradient } of weights.all) {
      // Along its own gradient the loss changes fastest, which lifts the difference far above float32 noise; a random
      // direction then shows errors that the first one cannot see.
      for (const direction of [gradient.slice(), normal(value.length, random)]) {
        const length = Math.hypot(...direction);
        const saved = value.slice();
        const lossAt = async (distance: number) => {
          for (let i = 0; i < value.length; i++) value[i] = saved[i] + (distance * direction[i]) / length;
          return model.loss(tokens, targets);
        };
        const h = 1e-2;
        const numeric = ((await lossAt(h)) - (await lossAt(-h))) / (2 * h);
        value.set(saved);
        const analytic = gradient.reduce((sum, g, i) => sum + (g * direction[i]) / length, 0);
        expect(Math.abs(numeric - analytic), name).toBeLessThan(2e-3 * Math.hypot(...gradient) + 2e-5);
      }
    }
  });

  test('has the same loss and gradients on flashattn', async () => {
    const { tokens, targets } = tinyBatch();
    const results = [];
    for (const makeAttention of [unfused, fused]) {
      const model = tinyModel(makeAttention);
      const loss = await model.loss(tokens, targets);
      await model.backward();
      results.push({ loss, gradients: model.weights.all });
      model.dispose();
    }
    const [plain, flash] = results as [(typeof results)[0], (typeof results)[0]];
    expect(Math.abs(plain.loss - flash.loss)).toBeLessThan(1e-5);
    plain.gradients.forEach(({ name, gradient }, p) => {
      const other = flash.gradients[p].gradient;
      for (let i = 0; i < gradient.length; i++) expect(Math.abs(gradient[i] - other[i]), name).toBeLessThan(1e-5);
    });
  });

  test('predicts a character from those before it alone', async () => {
    const model = tinyModel(unfused);
    const { tokens } = tinyBatch();
    const { vocabulary } = TINY;
    const before = (await model.forward(tokens)).slice();
    tokens[CONTEXT - 1] = (tokens[CONTEXT - 1] + 1) % vocabulary;
    const after = await model.forward(tokens);
    const last = (CONTEXT - 1) * vocabulary;
    expect(after.slice(0, last)).toEqual(before.slice(0, last));
    expect(after.slice(last, last + vocabulary)).not.toEqual(before.slice(last, last + vocabulary));
  });
});

describe('training', () => {
  const text = 'the quick brown fox jumps over the lazy dog; '.repeat(60);

  async function trainOn(seed: number, steps: number): Promise<{ before: number; after: number; model: Transformer }> {
    const corpus = makeCorpus(text, 'text');
    const config = {
      vocabulary: corpus.vocabulary.size,
      layers: 1,
      heads: 2,
      headDim: 8,
      slopes: [1, 0.1],
    };
    const model = new Transformer(new Weights(config, new Random(seed)), { batch: 4, context: 16 }, fused);
    const before = await evaluate(model, corpus.validation, 2);
    await train(model, corpus.train, {
      steps,
      peakLearningRate: 1e-2,
      warmupSteps: 3,
      random: new Random(seed + 1),
      stop: () => false,
      onStep: () => {},
    });
    return { before, after: await evaluate(model, corpus.validation, 2), model };
  }

  test('lowers the loss on held-out text, and gives the same for the same seed', async () => {
    const first = await trainOn(1, 30);
    expect(first.before).toBeCloseTo(Math.log(first.model.weights.config.vocabulary), 0);
    expect(first.after).toBeLessThan(first.before - 0.7);
    const second = await trainOn(1, 30);
    expect(second.after).toBe(first.after);
    first.model.dispose();
    second.model.dispose();
  });

  test('stops when told to', async () => {
    const model = tinyModel(unfused);
    let steps = 0;
    const text = Int32Array.from({ length: 100 }, (_, i) => i % TINY.vocabulary);
    const done = await train(model, text, {
      steps: 50,
      peakLearningRate: 1e-3,
      warmupSteps: 1,
      random: new Random(1),
      stop: () => steps === 2,
      onStep: () => {
        steps++;
      },
    });
    expect(done).toBe(2);
  });

  test('generates as much as asked for, beyond the context', async () => {
    const model = new Transformer(new Weights(TINY, new Random(7)), { batch: 1, context: CONTEXT }, unfused);
    const options = { prompt: Int32Array.of(0), length: 2 * CONTEXT, temperature: 0.8, seed: 1 };
    const all = async () => {
      const tokens: number[] = [];
      for await (const token of generate(model, options)) tokens.push(token);
      return tokens;
    };
    const tokens = await all();
    expect(tokens).toHaveLength(options.length);
    expect(tokens.every((t) => t >= 0 && t < TINY.vocabulary)).toBe(true);
    expect(await all()).toEqual(tokens);
  });

  test('compares the two forms of attention, and leaves nothing behind', async () => {
    const race = async () => {
      const attention = new FlashAttention({ batch: 1, context: 70, heads: 2, headDim: 32, slopes: [1, 0.1] }, 'wasm');
      try {
        return await raceOnNoise(attention, new Random(1), 1);
      } finally {
        attention.dispose();
      }
    };
    await race(); // starts the threads, whose workspaces stay
    const { bytesInUse, tensors } = memory('wasm');
    const { fusedMs, unfusedMs, fusedMemory, unfusedMemory, difference } = await race();
    expect(memory('wasm')).toMatchObject({ bytesInUse, tensors });
    expect(fusedMs).toBeGreaterThan(0);
    expect(unfusedMs).toBeGreaterThan(0);
    expect(fusedMemory.perLayer).toBeGreaterThan(0);
    expect(unfusedMemory.perLayer).toBe(2 * 70 * 70 * Float32Array.BYTES_PER_ELEMENT);
    expect(difference).toBeLessThan(2e-5);
  });
});

describe('text', () => {
  let folder: string;
  const write = (name: string, content: string | Uint8Array) => {
    const path = join(folder, name);
    writeFileSync(path, content);
    return path;
  };
  const codeOf = (read: () => unknown) => {
    try {
      read();
    } catch (error) {
      if (error instanceof TextError) return error.code;
      throw error;
    }
    return undefined;
  };
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'charlm-'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  test('that is missing, empty, too short or binary is refused with a code', () => {
    expect(codeOf(() => readTextFile(join(folder, 'missing')))).toBe('ERR_TEXT_MISSING');
    expect(codeOf(() => readTextFile(folder))).toBe('ERR_TEXT_MISSING');
    expect(codeOf(() => readTextFile(write('zero', Uint8Array.of(65, 0, 66))))).toBe('ERR_TEXT_BINARY');
    expect(codeOf(() => readTextFile(write('latin1', Uint8Array.of(65, 0xe9, 66))))).toBe('ERR_TEXT_BINARY');
    expect(codeOf(() => makeCorpus(readTextFile(write('empty', '')), 'empty'))).toBe('ERR_TEXT_EMPTY');
    expect(codeOf(() => makeCorpus('short', 'short'))).toBe('ERR_TEXT_SHORT');
  });

  test('comes back from its numbers, rare characters excepted', () => {
    const frequent = 'ab\n\u{1f600}'.repeat(300);
    const rare = Array.from({ length: 200 }, (_, i) => String.fromCodePoint(0x4e00 + i)).join('');
    const { vocabulary, train: start, validation } = makeCorpus(`${rare}${frequent}`, 'text');
    expect(vocabulary.size).toBe(128);
    expect(vocabulary.decode(validation)).toBe(frequent.slice(-vocabulary.decode(validation).length));
    expect(Array.from(start.subarray(0, 200)).filter((t) => t === 0).length).toBe(200 - (127 - 4));
    expect(new Vocabulary(['a']).decode(new Vocabulary(['a']).encode('ab'))).toBe('a\ufffd');
  });

  test('of a repository is what people wrote, in an order that does not depend on the file system', () => {
    write('a.md', 'first');
    write('b.ts', 'second\r\nline');
    write('image.png', 'no text');
    write('package-lock.json', '{}');
    write('generated.json', 'x'.repeat(5000));
    const { text, files } = readRepository(folder);
    expect(files).toBe(2);
    expect(['first\nsecond\nline', 'second\nline\nfirst']).toContain(text);
  });
});

describe('options', () => {
  test('have defaults', () => {
    expect(parseOptions([])).toEqual({ steps: undefined, device: 'auto', seed: 1, text: undefined, help: false });
  });

  test('are read', () => {
    const args = ['--steps', '12', '--device=cuda:1', '--seed', '0', '--text', 'x.txt'];
    expect(parseOptions(args)).toEqual({ steps: 12, device: 'cuda:1', seed: 0, text: 'x.txt', help: false });
  });

  test.each([
    ['--bogus'],
    ['stray'],
    ['--steps'],
    ['--steps', '0'],
    ['--steps', '1.5'],
    ['--seed', 'x'],
    ['--device', 'gpu'],
  ])('that make no sense are refused: %s %s', (...args) => {
    expect(() => parseOptions(args)).toThrow(UsageError);
  });
});
