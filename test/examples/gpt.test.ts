import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { compareAttention } from '../../examples/gpt/attention.js';
import { attentionNames } from '../../examples/gpt/layers.js';
import { parse, presets, UsageError } from '../../examples/gpt/options.js';
import { contextFor, holdOut, readText, TextError } from '../../examples/gpt/text.js';
import { memory } from '../../lib/index.js';
import { openSafetensors } from '../../lib/nn/index.js';
import { runNode } from '../support/child.js';
import { processor } from '../support/cpu.js';
import { testDevices } from '../support/devices.js';
import { failureOf } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';

const at = temporaryFolder();
const program = fileURLToPath(new URL('../../build/examples/gpt.js', import.meta.url));
const run = (...args: string[]) => runNode([program, ...args]);

function dataOf(name: string, text: string | Uint8Array): string {
  const path = at(name);
  writeFileSync(path, text);
  return path;
}

const sentences = 'the quick brown fox jumps over the lazy dog;\nshe sells sea shells by the sea shore.\n'.repeat(60);
const quick = ['--model', 'tiny', '--characters', '40'];
const metricsOf = (folder: string) =>
  readFileSync(`${folder}/metrics.jsonl`, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));

describe('the example', () => {
  it('trains, writes, measures and keeps what it found; goes on from there', async () => {
    const [folder, json] = [at('run'), at('results/run.json')];
    const data = dataOf('sentences.txt', sentences);
    const args = [...quick, '--data', data, '--out', folder, '--json', json];
    const first = await run(...args, '--steps', '20');
    expect(first.stderr).toBe('');
    expect(first.code).toBe(0);
    expect(readdirSync(folder).toSorted()).toEqual(['checkpoint.safetensors', 'loss.svg', 'metrics.jsonl', 'model']);

    const found = JSON.parse(readFileSync(json, 'utf8'));
    const measured = ['tokensPerSecond', 'flopsShareOfPeak', 'attentionShare', 'unfusedTimesSlower'];
    for (const name of measured) expect(found[name], name).toBeGreaterThan(0);
    expect(found).toMatchObject({ device: processor, steps: 20 });
    expect(found.parameters).toBeGreaterThan(200_000);
    expect(found.validationBefore).toBeCloseTo(Math.log(new Set(sentences).size), 0);
    expect(found.validationAfter).toBeLessThan(found.validationBefore - 0.5);
    expect(found.attentionShare).toBeLessThan(1);

    expect(first.stdout).toContain(`${found.parameters.toLocaleString('en')} parameters, context 128, batch 8`);
    expect(first.stdout).toMatch(/training {4}20 steps, [\d,]+ tokens\/s/);
    expect(first.stdout).toMatch(/validation {2}\d\.\d+ -> \d\.\d+ nats per token, on text it never trained on/);
    expect(first.stdout).toMatch(
      /flashattn [\d.]+ ms, unfused on the same device [\d.]+ ms .* agree within \d\.\de-\d/,
    );
    const [, written] = first.stdout.match(/--- the model writes ---\n([\s\S]*)\n---\n/) as unknown as [string, string];
    expect(written).toHaveLength(40);
    expect([...written].every((character) => sentences.includes(character))).toBe(true);

    const metrics = metricsOf(folder);
    expect(metrics.map(({ step }) => step)).toEqual(Array.from({ length: 20 }, (_, step) => step));
    expect(Object.keys(metrics[0])).toEqual(['step', 'loss', 'gradientNorm', 'milliseconds']);
    expect(readFileSync(`${folder}/loss.svg`, 'utf8')).toMatch(/^<svg[\s\S]*<\/svg>\s*$/);
    {
      await using file = await openSafetensors(`${folder}/checkpoint.safetensors`);
      expect(file.metadata.step).toBe('20');
    }

    const second = await run(...args, '--steps', '24', '--resume');
    expect(second.code).toBe(0);
    expect(second.stdout).toMatch(/resumed {5}after step 20\n/);
    expect(second.stdout).toMatch(/training {4}4 steps/);
    expect(metricsOf(folder).map(({ step }) => step)).toEqual(Array.from({ length: 24 }, (_, step) => step));
    const again = JSON.parse(readFileSync(json, 'utf8'));
    expect(again.validationBefore).toBe(found.validationAfter);
    expect(again.steps).toBe(4);

    // Nothing is left to do.
    const third = await run(...args, '--steps', '24', '--resume');
    expect(third.code).toBe(0);
    expect(JSON.parse(readFileSync(json, 'utf8'))).toMatchObject({ tokensPerSecond: 0, steps: 0 });
  });

  it.each(attentionNames.slice(1))('trains with %s in the place of softmax attention', async (attention) => {
    const json = at(`${attention}.json`);
    const data = dataOf(`${attention}.txt`, sentences);
    const args = ['--attention', attention, '--data', data, '--steps', '12', '--json', json];
    const { code, stderr, stdout } = await run(...quick, ...args);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    expect(stdout).toContain(`attention   ${attention} in the place of softmax attention\n`);
    expect(stdout).not.toContain('unfused');
    const found = JSON.parse(readFileSync(json, 'utf8'));
    expect(found).toMatchObject({ attention, steps: 12 });
    expect(found.validationAfter).toBeLessThan(found.validationBefore - 0.3);
    expect(found).not.toHaveProperty('attentionShare');
  });

  it('gives the same for the same seed', async () => {
    const data = dataOf('seeds.txt', sentences);
    const [first, second, other] = await Promise.all(
      [1, 1, 2].map(async (seed, i) => {
        const json = at(`seed${i}.json`);
        const { stdout } = await run(...quick, '--data', data, '--steps', '3', '--json', json, '--seed', `${seed}`);
        const { validationBefore, validationAfter } = JSON.parse(readFileSync(json, 'utf8'));
        return { validationBefore, validationAfter, text: stdout.split('---')[2] };
      }),
    );
    expect(second).toEqual(first);
    expect(other).not.toEqual(first);
  });

  it('saves as often as it is told to', async () => {
    const folder = at('often');
    const data = dataOf('often.txt', sentences);
    const args = [...quick, '--data', data, '--out', folder, '--steps', '100000', '--save', '0'];
    const child = spawn(process.execPath, [program, ...args], { stdio: 'ignore' });
    const ended = new Promise((resolve) => child.on('exit', resolve));
    while (!existsSync(`${folder}/checkpoint.safetensors`)) {
      expect(child.exitCode).toBeNull();
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    child.kill('SIGKILL');
    await ended;
    let step = 0;
    {
      await using file = await openSafetensors(`${folder}/checkpoint.safetensors`);
      step = Number(file.metadata.step);
    }
    expect(step).toBeGreaterThan(0);
    const resumed = await run(...quick, '--data', data, '--out', folder, '--steps', `${step + 1}`, '--resume');
    expect(resumed.code).toBe(0);
    expect(resumed.stdout).toContain(`after step ${step}`);
  });

  it('learns from a text that is shorter than its context and has one line', async () => {
    const { code, stderr, stdout } = await run(
      ...quick,
      '--data',
      dataOf('short.txt', 'abcd '.repeat(60)),
      '--steps',
      '2',
    );
    expect(stderr).toBe('');
    expect(code).toBe(0);
    expect(stdout).toContain('context 16,');
  });

  it.each<[string, () => string[], RegExp]>([
    ['a file that is missing', () => ['--data', at('missing')], /^ERR_TEXT_MISSING: .*missing cannot be read: ENOENT/],
    ['a folder', () => ['--data', at('.')], /^ERR_TEXT_MISSING: .*it is no file/],
    ['an empty text', () => ['--data', dataOf('empty', '')], /^ERR_TEXT_EMPTY: .*empty is empty/],
    [
      'a short text',
      () => ['--data', dataOf('few', 'some words')],
      /^ERR_TEXT_SHORT: .*10 characters; it must have 160/,
    ],
    ['bytes of 0', () => ['--data', dataOf('zero', Uint8Array.of(65, 0, 66))], /^ERR_TEXT_BINARY: /],
    ['Latin-1', () => ['--data', dataOf('latin', Uint8Array.of(65, 0xe9, 66))], /^ERR_TEXT_BINARY: .*not UTF-8/],
    ['no checkpoint to go on from', () => ['--out', at('fresh'), '--resume'], /^ERR_FILE: .*checkpoint.safetensors/],
    ['a folder that is a file', () => ['--out', dataOf('file', 'x')], /^E[A-Z]+: .*file/],
    ['a device that is not here', () => ['--device', 'cuda:31'], /^ERR_DEVICE: /],
  ])('says what is wrong with %s, without a stack', async (_, args, message) => {
    const { code, stderr } = await run(...quick, '--steps', '1', ...args());
    expect(stderr).toMatch(message);
    expect(stderr).not.toMatch(/\n\s+at /);
    expect(code).toBe(1);
  });

  it('refuses a checkpoint of another model', async () => {
    const folder = at('other');
    const data = dataOf('other.txt', sentences);
    await run(...quick, '--data', data, '--out', folder, '--steps', '1');
    const args = ['--data', dataOf('more.txt', `${sentences}#`), '--out', folder, '--steps', '2', '--resume'];
    const { code, stderr } = await run(...quick, ...args);
    expect(stderr).toMatch(/^ERR_SHAPE: .*tokens\.weight/);
    expect(code).toBe(1);
  });

  it('shows its usage', async () => {
    const help = await run('--help');
    expect(help.code).toBe(0);
    for (const name of ['--model', '--attention', '--data', '--steps', '--resume', '--json', '--save', 'Ctrl-C'])
      expect(help.stdout).toContain(name);
    const wrong = await run('--model', 'large');
    expect(wrong.code).toBe(2);
    expect(wrong.stderr).toMatch(/^--model is tiny, small or gpt2, not 'large'\n\nTrains a GPT/);
    expect(wrong.stdout).toBe('');
    const other = await run('--attention', 'rnn');
    expect(other.code).toBe(2);
    expect(other.stderr).toMatch(/^--attention is softmax, linear, retnet, .* or dynamic-conv, not 'rnn'\n/);
    const unknown = await run('--bogus');
    expect(unknown.code).toBe(2);
    expect(unknown.stderr).toContain("'--bogus'");
  });
});

/** A run that gets two signals at once when training has begun; with `again` others after them, until it ends. */
function interrupted(args: readonly string[], again: boolean) {
  const child = spawn(process.execPath, [program, ...args]);
  let stdout = '';
  let stderr = '';
  let timer: NodeJS.Timeout | undefined;
  const interrupt = () => child.kill('SIGINT');
  child.stderr.on('data', (piece) => {
    stderr += piece;
    if (again) timer ??= setInterval(interrupt, 500);
  });
  let begun = false;
  child.stdout.on('data', (piece) => {
    stdout += piece;
    if (begun || !stdout.includes('before ')) return;
    begun = true;
    setTimeout(() => {
      // npm passes on what the terminal sends besides: two signals at once are one key press.
      interrupt();
      interrupt();
    }, 300);
  });
  return new Promise<{ code: number | null; stdout: string; stderr: string }>((resolve) =>
    child.on('close', (code) => {
      clearInterval(timer);
      resolve({ code, stdout, stderr });
    }),
  );
}

describe('Ctrl-C', () => {
  it('ends training, and the summary follows', async () => {
    const folder = at('stopped');
    const data = dataOf('stopped.txt', sentences);
    const args = [...quick, '--data', data, '--steps', '100000', '--out', folder];
    const { code, stdout, stderr } = await interrupted(args, false);
    expect(stderr).toBe('\nstopping; Ctrl-C again quits at once\n');
    expect(stdout).toMatch(/training {4}stopped after \d+ of 100000 steps/);
    expect(stdout).toContain('--- the model writes ---');
    expect(code).toBe(0);
    expect(metricsOf(folder).length).toBeGreaterThan(0);
    await using file = await openSafetensors(`${folder}/checkpoint.safetensors`);
    expect(Number(file.metadata.step)).toBe(metricsOf(folder).length);
  });

  it('quits when it comes again', async () => {
    const data = dataOf('quit.txt', sentences);
    const args = ['--model', 'tiny', '--characters', '1000000', '--data', data, '--steps', '100000'];
    const { code, stdout } = await interrupted(args, true);
    expect(code).toBe(130);
    expect(stdout).not.toContain('validation');
  });
});

describe('its options', () => {
  it('have defaults, and are read', () => {
    expect(parse([])).toEqual({
      ...{
        model: 'small',
        attention: 'softmax',
        device: 'auto',
        seed: 1,
        characters: 400,
        steps: undefined,
        data: undefined,
      },
      ...{ out: undefined, resume: false, json: undefined, save: 300 },
    });
    const args = [
      '--steps',
      '12',
      '--device=cuda:1',
      '--seed',
      '0',
      '--data',
      'x.txt',
      '--model',
      'tiny',
      '--out',
      'o',
    ];
    expect(parse([...args, '--resume'])).toMatchObject({
      ...{ steps: 12, device: 'cuda:1', seed: 0, data: 'x.txt', model: 'tiny', out: 'o', resume: true },
    });
    expect(parse(['-h'])).toBeUndefined();
    expect(Object.keys(presets)).toEqual(['tiny', 'small', 'gpt2']);
  });

  it.each([
    ['--steps', '0'],
    ['--steps', '1.5'],
    ['--steps', ''],
    ['--seed', 'x'],
    ['--seed=-1'],
    ['--characters', '1e99'],
    ['--device', 'gpu'],
    ['--attention', 'sofmax'],
    ['--attention', 'toString'],
    ['--device', 'cuda:x'],
    ['--resume'],
  ])('that make no sense are refused: %s %s', (...args) => {
    expect(() => parse(args)).toThrow(UsageError);
  });

  it.each([['--bogus'], ['stray'], ['--steps']])('that are none are refused: %s', (...args) => {
    expect(() => parse(args)).toThrow(/bogus|stray|steps/);
  });
});

describe('its text', () => {
  it('is split between characters', async () => {
    for (let n = 160; n < 200; n++) {
      const text = '\u{1f600}'.repeat(n);
      const { training, held } = holdOut(text, 'text');
      expect(training + held).toBe(text);
      expect(training.isWellFormed() && held.isWellFormed()).toBe(true);
      expect(held.length / text.length).toBeCloseTo(0.1, 1);
    }
    expect(await failureOf(() => holdOut('short', 'text'))).toBeInstanceOf(TextError);
    expect(readText(dataOf('good', 'gr\u00fc\u00dfe'))).toBe('gr\u00fc\u00dfe');
  });

  it('is as long as a window with the token behind it', () => {
    expect([1000, 129, 128, 17, 16, 2, 1].map((tokens) => contextFor(128, tokens))).toEqual([
      128, 128, 64, 16, 8, 1, 1,
    ]);
    expect(contextFor(1024, 5000)).toBe(1024);
  });
});

for (const { device, present, title } of testDevices)
  describe.skipIf(!present || (device as string) === 'emulator')(title('its comparison'), () => {
    it('finds one result in two ways, and leaves nothing', async () => {
      const race = () => compareAttention(2, 32, 1, 70, device);
      await race(); // starts the threads, whose workspaces stay
      const { bytesInUse, tensors } = memory(device);
      const { fused, unfused, difference } = await race();
      expect(memory(device)).toMatchObject({ bytesInUse, tensors });
      expect(fused).toBeGreaterThan(0);
      expect(unfused).toBeGreaterThan(0);
      expect(difference).toBeLessThan(2e-5);
      expect(difference).toBeGreaterThan(0);
    });
  });
