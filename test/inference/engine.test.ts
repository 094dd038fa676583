import { getEventListeners, setMaxListeners } from 'node:events';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Engine, type EngineOptions } from '../../lib/inference/engine.js';
import type { EngineRequest, EngineStream, EngineToken } from '../../lib/inference/request.js';
import { uniform } from '../../verify/oracle/random.js';
import { codeOf, errorOf } from '../support/codeOf.js';
import { collectGarbage } from '../support/collectGarbage.js';
import { expectFailure, failureOf } from '../support/failure.js';
import { alone, FakeModel, type FakeModelOptions } from './fakeModel.js';

const greedy = { temperature: 0 };

const setUp = (model: FakeModelOptions = {}, options: Omit<EngineOptions, 'model'> = {}) => {
  const fake = new FakeModel(model);
  return { model: fake, engine: new Engine({ model: fake, ...options }) };
};

const request = (prompt: readonly number[], maxTokens: number, more: Partial<EngineRequest> = {}): EngineRequest => ({
  prompt,
  maxTokens,
  sampling: greedy,
  ...more,
});

async function all(stream: AsyncIterable<EngineToken>): Promise<EngineToken[]> {
  const items: EngineToken[] = [];
  for await (const item of stream) items.push(item);
  return items;
}

const tokensOf = async (stream: AsyncIterable<EngineToken>) => (await all(stream)).map(({ token }) => token);

/** Whatever else happened: nothing is held, and nothing runs or waits. */
function expectIdle(model: FakeModel, engine: Engine): void {
  expect(model.pool.available).toBe(model.pool.blocks);
  expect(engine.stats).toMatchObject({ running: 0, queued: 0 });
}

/** Waits until the engine has taken so many steps. */
async function untilStep(engine: Engine, steps: number): Promise<void> {
  for (let turn = 0; turn < 10_000 && engine.stats.steps < steps; turn++) await nextTurn();
  expect(engine.stats.steps).toBeGreaterThanOrEqual(steps);
}

const counting = (length: number, from = 0) => Array.from({ length }, (_, at) => (from + at) % 11);

afterEach(() => void vi.useRealTimers());

describe('Engine', () => {
  it('generates what the model does, a token at a time', async () => {
    const { model, engine } = setUp();
    const stream = engine.submit(request([1, 2, 3], 20));
    expect(stream.finish).toBeUndefined();
    const items = await all(stream);
    expect(items.map(({ token }) => token)).toEqual(alone([1, 2, 3], 20, { sampling: greedy }));
    expect(items.map(({ finish }) => finish)).toEqual([...new Array(19).fill(undefined), 'length']);
    expect([stream.finish, stream.cached]).toEqual(['length', 0]);
    expect(await all(stream)).toEqual([]); // for one reader
    expectIdle(model, engine);
    expect(engine.stats).toMatchObject({ steps: 20, computedTokens: 22, generatedTokens: 20 });
    expect(engine.stats.finished).toEqual({ stop: 0, length: 1, abort: 0, error: 0 });
  });

  it('takes prompts in arrays of any integers, and one token', async () => {
    const { engine } = setUp();
    const wanted = alone([5], 3, { sampling: greedy });
    for (const prompt of [[5], Int32Array.of(5), Uint8Array.of(5)])
      expect(await tokensOf(engine.submit({ prompt, maxTokens: 3, sampling: greedy }))).toEqual(wanted);
  });

  it('ends at a stop token, which it gives', async () => {
    const { engine } = setUp();
    const wanted = alone([1, 2], 50, { sampling: greedy });
    const stop = wanted[5];
    const first = wanted.indexOf(stop);
    const items = await all(engine.submit(request([1, 2], 50, { stopTokens: [99, stop] })));
    expect(items.map(({ token }) => token)).toEqual(wanted.slice(0, first + 1));
    expect(items.at(-1)?.finish).toBe('stop');
  });

  it('gives the same tokens for a seed, in whatever company', async () => {
    const { engine } = setUp({ blocks: 200 });
    const sampled = Array.from({ length: 12 }, (_, seed) =>
      request(counting(1 + seed), 30, { sampling: { temperature: 1, seed } }),
    );
    const together = await Promise.all(sampled.map((each) => tokensOf(engine.submit(each))));
    for (const [at, each] of sampled.entries())
      expect(together[at]).toEqual(alone(counting(1 + at), 30, { sampling: each.sampling! }));
  });

  it('gives logarithms of probabilities', async () => {
    const { engine } = setUp();
    const [item] = await all(engine.submit(request([1], 1, { logprobs: 3 })));
    expect(item.top).toHaveLength(3);
    expect(item.top?.[0]).toEqual({ token: item.token, logprob: item.logprob });
    const [plain] = await all(engine.submit(request([1], 1, { logprobs: 0 })));
    expect([plain.logprob, plain.top]).toEqual([item.logprob, []]);
    const [without] = await all(engine.submit(request([1], 1)));
    expect(without).toEqual({ token: item.token, finish: 'length' });
  });

  it('computes a prefix that is stored no more', async () => {
    const { model, engine } = setUp({ blockSize: 4 });
    const prompt = counting(30);
    const wanted = alone(prompt, 5, { sampling: greedy });
    expect(await tokensOf(engine.submit(request(prompt, 5)))).toEqual(wanted);
    const again = engine.submit(request(prompt, 5));
    expect(await tokensOf(again)).toEqual(wanted);
    expect(again.cached).toBe(28);
    expect(model.steps.map(([count]) => count)).toEqual([30, 1, 1, 1, 1, 2, 1, 1, 1, 1]);
    const salted = engine.submit(request(prompt, 5, { salt: 'another' }));
    expect(await tokensOf(salted)).toEqual(wanted);
    expect(salted.cached).toBe(0);
  });

  it('decodes on while the prompt of another is computed in pieces', async () => {
    const { model, engine } = setUp({ blocks: 200 }, { tokenBudget: 10 });
    const long = counting(95);
    const streams = [request([1], 30), request([2], 30), request(long, 5)].map((each) => engine.submit(each));
    const results = await Promise.all(streams.map(tokensOf));
    expect(results[2]).toEqual(alone(long, 5, { sampling: greedy }));
    expect(model.steps[0]).toEqual([1, 1, 8]);
    for (const counts of model.steps.slice(0, 11)) expect(counts).toEqual([1, 1, 8]);
    expect(model.steps[11]).toEqual([1, 1, 7]);
    expect(model.steps[12]).toEqual([1, 1, 1]);
  });

  it('lets keys take turns', async () => {
    const { engine } = setUp({}, { maxSequences: 1 });
    const order: string[] = [];
    const submit = (priority: string, name: string) =>
      tokensOf(engine.submit(request([1], 2, { priority }))).then(() => order.push(name));
    const ends = [
      ...counting(5).map((n) => submit('a', `a${n}`)),
      submit('b', 'b0'),
      submit('c', 'c0'),
      submit('b', 'b1'),
    ];
    await Promise.all(ends);
    expect(order).toEqual(['a0', 'b0', 'c0', 'a1', 'b1', 'a2', 'a3', 'a4']);
  });

  it('computes the youngest again when blocks do not suffice, with the same tokens', async () => {
    const { model, engine } = setUp({ blocks: 12, blockSize: 2 });
    const prompts = [counting(3), counting(3, 4), counting(3, 8), counting(5, 2)];
    const results = await Promise.all(prompts.map((prompt) => tokensOf(engine.submit(request(prompt, 16)))));
    for (const [at, prompt] of prompts.entries()) expect(results[at]).toEqual(alone(prompt, 16, { sampling: greedy }));
    expect(engine.stats.preemptions).toBeGreaterThan(0);
    expectIdle(model, engine);
  });

  it('lets the one before finish before the one whose blocks it needed', async () => {
    const { engine } = setUp({ blocks: 8, blockSize: 2 });
    const order: string[] = [];
    const submit = (name: string, prompt: readonly number[], maxTokens: number) =>
      tokensOf(engine.submit(request(prompt, maxTokens))).then(() => order.push(name));
    await Promise.all([submit('first', [1, 2], 14), submit('second', [3, 4], 14), submit('third', [5], 1)]);
    expect(order).toEqual(['third', 'first', 'second']);
  });

  it('refuses what can never fit, with the numbers', () => {
    const { engine } = setUp({ blocks: 4, blockSize: 4, context: 40 });
    expect(errorOf(() => engine.submit(request(counting(10), 31)))).toBe(
      "ERR_OPTION: a prompt of 10 and maxTokens 31 are 41 tokens; the model's context has 40",
    );
    expect(errorOf(() => engine.submit(request(counting(10), 8)))).toBe(
      'ERR_OUT_OF_MEMORY: a prompt of 10 and maxTokens 8 are 18 tokens, which take 5 blocks of 4; the cache has 4',
    );
  });

  it('takes what just fits', async () => {
    const { engine } = setUp({ blocks: 4, blockSize: 4, context: 40 });
    expect(await tokensOf(engine.submit(request(counting(10), 7)))).toEqual(
      alone(counting(10), 7, { sampling: greedy }),
    );
  });

  it('refuses bad requests', async () => {
    const { model, engine } = setUp({}, { maxQueue: 1, maxSequences: 1 });
    const bad: Record<string, unknown>[] = [
      { prompt: [] },
      { prompt: [11] },
      { prompt: [-1] },
      { prompt: [0.5] },
      { prompt: 'text' },
      { prompt: undefined },
      { maxTokens: 0 },
      { maxTokens: 1.5 },
      { stopTokens: [-1] },
      { logprobs: 12 },
      { priority: 3 },
      { deadline: Number.NaN },
      { salt: {} },
      { signal: {} },
      { sampling: { temperature: -1 } },
      { maxTokes: 3 },
    ];
    for (const wrong of bad)
      expect([wrong, codeOf(() => engine.submit({ ...request([1], 2), ...wrong } as never))]).toEqual([
        wrong,
        'ERR_OPTION',
      ]);
    expect(codeOf(() => new Engine({ model, tokenBudget: 4, maxSequences: 5 }))).toBe('ERR_OPTION');
    expect(codeOf(() => new Engine({ model, tokenBudget: 0 }))).toBe('ERR_OPTION');
    const streams = [engine.submit(request([1], 2)), engine.submit(request([2], 2))];
    expect(errorOf(() => engine.submit(request([3], 2)))).toBe(
      'ERR_BUSY: 2 requests are running or waiting, as many as may',
    );
    await Promise.all(streams.map(all));
    expect(await all(engine.submit(request([3], 2)))).toHaveLength(2);
    expectIdle(model, engine);
  });

  it('fails a request when others hold the blocks of the pool', async () => {
    const { model, engine } = setUp({ blocks: 4, blockSize: 2 });
    const other = model.pool.sequence();
    other.extend([1, 2, 3]);
    const [wide, narrow] = [request([1, 2, 3], 3), request([1, 2], 2)].map((each) => engine.submit(each));
    await expectFailure(all(wide), 'ERR_OUT_OF_MEMORY', /1 more blocks are wanted and 0 of 4/);
    expect(await all(narrow)).toHaveLength(2);
    other.free();
    expectIdle(model, engine);
  });
});

describe('a request that ends early', () => {
  it('is cancelled while it waits, while its prompt is computed, and while it decodes', async () => {
    for (const steps of [0, 1, 5]) {
      const { model, engine } = setUp({ blocks: 200 }, { tokenBudget: 8 });
      const other = engine.submit(request([1, 2, 3], 40));
      const stream = engine.submit(request(counting(20), 100));
      await untilStep(engine, steps);
      stream.cancel();
      stream.cancel();
      const tokens = await tokensOf(stream);
      expect(stream.finish).toBe('abort');
      expect(tokens).toEqual(alone(counting(20), 100, { sampling: greedy }).slice(0, tokens.length));
      expect(await tokensOf(other)).toEqual(alone([1, 2, 3], 40, { sampling: greedy }));
      expectIdle(model, engine);
      expect(engine.stats.finished).toEqual({ stop: 0, length: 1, abort: 1, error: 0 });
    }
  });

  it('is cancelled by a reader that leaves', async () => {
    const { model, engine } = setUp();
    const stream = engine.submit(request([1], 100));
    let seen = 0;
    for await (const _ of stream) if (++seen === 3) break;
    expect(stream.finish).toBe('abort');
    await engine.close();
    expect(engine.stats.steps).toBeLessThan(20);
    expectIdle(model, engine);
  });

  it('ends at its signal, and lets go of it', async () => {
    const { model, engine } = setUp();
    const controller = new AbortController();
    const { signal } = controller;
    const finished = engine.submit(request([1], 2, { signal }));
    const aborted = engine.submit(request([2], 100, { signal }));
    await all(finished);
    expect(getEventListeners(signal, 'abort')).toHaveLength(1);
    controller.abort();
    await all(aborted);
    expect([finished.finish, aborted.finish]).toEqual(['length', 'abort']);
    const late = engine.submit(request([3], 100, { signal }));
    expect(await all(late)).toEqual([]);
    expect(late.finish).toBe('abort');
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
    await engine.close();
    expectIdle(model, engine);
  });

  it('ends at its deadline', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date'] });
    const { model, engine } = setUp({ blocks: 1000 });
    const late = engine.submit(request([1], 4, { deadline: Date.now() }));
    expect([await all(late), late.finish]).toEqual([[], 'abort']);
    const stream = engine.submit(request([1], 3000, { deadline: Date.now() + 1000 }));
    const longer = engine.submit(request([1], 4, { deadline: Date.now() + 2 ** 40 }));
    await all(longer);
    expect(longer.finish).toBe('length');
    vi.advanceTimersByTime(999);
    await untilStep(engine, engine.stats.steps + 2);
    expect(stream.finish).toBeUndefined();
    vi.advanceTimersByTime(1);
    expect(stream.finish).toBe('abort');
    expect((await all(stream)).length).toBeGreaterThan(0);
    expect(vi.getTimerCount()).toBe(0);
    await engine.close();
    expectIdle(model, engine);
  });

  it('ends at once, though the model hangs', async () => {
    let release = () => {};
    const hangs = new Promise<void>((resolve) => {
      release = resolve;
    });
    const { model, engine } = setUp({ during: () => hangs });
    const stream = engine.submit(request([1], 5));
    const waiting = engine.submit(request([2], 5));
    const reading = all(stream);
    while (!model.isBusy) await nextTurn();
    stream.cancel();
    expect(await reading).toEqual([]);
    let isClosed = false;
    const closing = engine.close().then(() => {
      isClosed = true;
    });
    expect(await all(waiting)).toEqual([]);
    await nextTurn();
    expect([isClosed, model.pool.available < model.pool.blocks]).toEqual([false, true]); // the step has its blocks
    release();
    await closing;
    expectIdle(model, engine);
  });

  it('is cancelled by its own function of logits, or by that of another', async () => {
    const { model, engine } = setUp();
    const streams: EngineStream[] = [];
    const logitsProcessor = (_: Float32Array, tokens: readonly number[]) => {
      if (tokens.length === 5) for (const stream of streams) stream.cancel();
    };
    for (const prompt of [[1], [1, 2], [3]])
      streams.push(engine.submit(request(prompt, 20, { sampling: { ...greedy, logitsProcessor } })));
    const other = engine.submit(request([4], 20));
    expect(await all(other)).toHaveLength(20);
    const given = await Promise.all(streams.map(all));
    expect(given.map(({ length }) => length)).toEqual([4, 3, 3]);
    expectIdle(model, engine);
  });
});

describe('errors', () => {
  it('of the model end the requests of that step', async () => {
    const error = new Error('the device is lost');
    const { model, engine } = setUp(
      {
        during: (_, step) => {
          if (step === 3) throw error;
        },
      },
      { maxSequences: 2 },
    );
    const streams = [request([1], 9), request([2], 9), request([3], 9)].map((each) => engine.submit(each));
    const items: EngineToken[] = [];
    const failure = await failureOf(async () => {
      for await (const item of streams[0]) items.push(item);
    });
    expect([failure, items.length, streams[0].finish]).toEqual([error, 3, undefined]);
    expect(await failureOf(all(streams[1]))).toBe(error);
    expect(await all(streams[1])).toEqual([]); // told once
    expect(await tokensOf(streams[2])).toEqual(alone([3], 9, { sampling: greedy }));
    expectIdle(model, engine);
    expect(engine.stats.finished).toMatchObject({ length: 1, error: 2 });
  });

  it('of a step leave nothing of it to be found', async () => {
    const { engine } = setUp({
      blockSize: 2,
      during: (_, step) => {
        if (step === 0) throw new Error('once');
      },
    });
    expect((await failureOf(all(engine.submit(request(counting(9), 3))))).message).toBe('once');
    const again = engine.submit(request(counting(9), 3));
    expect(await tokensOf(again)).toEqual(alone(counting(9), 3, { sampling: greedy }));
    expect(again.cached).toBe(0);
  });

  it('that nobody reads disturb nobody', async () => {
    const { model, engine } = setUp({
      during: () => {
        throw new Error('unheard');
      },
    });
    engine.submit(request([1], 3));
    await untilStep(engine, 1);
    await nextTurn();
    expectIdle(model, engine);
  });

  it('of a function of logits end that request alone', async () => {
    const { model, engine } = setUp();
    const logitsProcessor = () => {
      throw new Error('no such token');
    };
    const bad = engine.submit(request([1], 5, { sampling: { ...greedy, logitsProcessor } }));
    const good = engine.submit(request([2], 5));
    expect((await failureOf(all(bad))).message).toBe('no such token');
    expect(await all(good)).toHaveLength(5);
    expectIdle(model, engine);
  });

  it('are made of rows that do not fit', async () => {
    for (const rows of [[], [new Float32Array(3)], [new Float32Array(11), new Float32Array(11)]]) {
      const { model, engine } = setUp();
      model.step = async () => rows;
      await expectFailure(all(engine.submit(request([1], 5))), 'ERR_SHAPE', /1 of 11 were wanted/);
      expectIdle(model, engine);
    }
    const { model, engine } = setUp();
    model.step = (() => {
      throw new Error('at once');
    }) as never;
    expect((await failureOf(all(engine.submit(request([1], 5))))).message).toBe('at once');
    expectIdle(model, engine);
  });
});

describe('close', () => {
  it('aborts what runs and what waits; then nothing is taken any more', async () => {
    const { model, engine } = setUp({}, { maxSequences: 2 });
    const streams = counting(5).map((n) => engine.submit(request([n], 50)));
    await untilStep(engine, 3);
    await Promise.all([engine.close(), engine.close()]);
    for (const stream of streams) {
      await all(stream);
      expect(stream.finish).toBe('abort');
    }
    expectIdle(model, engine);
    expect(codeOf(() => engine.submit(request([1], 2)))).toBe('ERR_DISPOSED');
    await engine.close();
  });
});

/** Requests come and go at random in one engine; each must get what it would have got alone, or the beginning of it. */
async function crowd(seed: number, count: number): Promise<{ readonly preemptions: number; readonly ends: string[] }> {
  const next = uniform(seed);
  const below = (n: number) => Math.floor(next() * n);
  const blockSize = 1 + below(5);
  const blocks = Math.ceil(40 / blockSize) + below(20);
  const tokenBudget = 1 + below(24);
  const maxSequences = 1 + below(tokenBudget);
  const failing = next() < 0.3 ? 0.03 : 0;
  const fails = uniform(seed + 10_000);
  const { model, engine } = setUp(
    {
      blocks,
      blockSize,
      during: async (entries) => {
        expect(entries.reduce((sum, { count }) => sum + count, 0)).toBeLessThanOrEqual(tokenBudget);
        expect(entries.length).toBeLessThanOrEqual(maxSequences);
        if (fails() < failing) throw new Error('a bad step');
      },
    },
    { tokenBudget, maxSequences, maxQueue: count },
  );
  const beginning = counting(8);
  const client = async (): Promise<string> => {
    for (let turns = below(60); turns > 0; turns--) await nextTurn();
    const own = Array.from({ length: 1 + below(12) }, () => below(11));
    const prompt = [...beginning.slice(0, below(9)), ...own];
    const maxTokens = 1 + below(20);
    const stopTokens = below(3) === 0 ? [below(11)] : [];
    const seeded = { temperature: 1, seed: below(1000) };
    const sampling = below(2) ? greedy : seeded;
    const how = below(6);
    const controller = new AbortController();
    const stream = engine.submit({
      prompt,
      maxTokens,
      stopTokens,
      sampling,
      priority: `client ${below(3)}`,
      ...(how === 0 && { signal: controller.signal }),
    });
    const wanted = alone(prompt, maxTokens, { sampling, stopTokens });
    const patience = below(15);
    const items: EngineToken[] = [];
    let end = 'done';
    try {
      if (how === 1) setTimeout(() => stream.cancel(), below(10));
      if (how === 2 && patience === 0) stream.cancel();
      for await (const item of stream) {
        items.push(item);
        if (items.length > patience) {
          if (how === 0) controller.abort();
          else if (how === 2) break;
        }
        if (how === 3) for (let turns = below(4); turns > 0; turns--) await nextTurn();
      }
    } catch (error) {
      expect((error as Error).message).toBe('a bad step');
      end = 'error';
    }
    const tokens = items.map(({ token }) => token);
    if (end === 'error') expect(stream.finish).toBeUndefined();
    else if (stream.finish === 'abort') end = 'abort';
    else {
      expect(tokens).toEqual(how === 2 ? wanted.slice(0, tokens.length) : wanted);
      if (tokens.length === wanted.length) expect(items.at(-1)?.finish).toBe(stream.finish);
      end = stream.finish as string;
    }
    expect(tokens).toEqual(wanted.slice(0, tokens.length));
    return end;
  };
  const ends = await Promise.all(Array.from({ length: count }, client));
  expect(engine.stats.finished.length + engine.stats.finished.stop).toBe(
    ends.filter((end) => end === 'length' || end === 'stop').length,
  );
  const { preemptions } = engine.stats;
  await engine.close();
  expectIdle(model, engine);
  return { preemptions, ends };
}

describe('a crowd', () => {
  it('gets what each would get alone: 300 random runs', async () => {
    const seen: Record<string, number> = {};
    let preemptions = 0;
    for (let seed = 0; seed < 300; seed++) {
      const run = await crowd(seed, 4 + (seed % 12));
      preemptions += run.preemptions;
      for (const end of run.ends) seen[end] = (seen[end] ?? 0) + 1;
    }
    // The runs went where it matters.
    expect(Object.keys(seen).sort()).toEqual(['abort', 'error', 'length', 'stop']);
    expect(Math.min(...Object.values(seen), preemptions)).toBeGreaterThan(50);
  });

  it('of 64 at once, of whom some leave', async () => {
    for (const seed of [1001, 1002, 1003]) expect((await crowd(seed, 64)).ends).toHaveLength(64);
  });

  it('of 10,000, one after the other, leaves nothing behind', async () => {
    const { model, engine } = setUp({ blocks: 200, blockSize: 2 });
    const next = uniform(4);
    const controller = new AbortController(); // one for all: what waits for it must go too
    setMaxListeners(0, controller.signal);
    const serve = async (requests: number) => {
      let left = requests;
      const client = async () => {
        while (left-- > 0) {
          const prompt = Array.from({ length: 1 + Math.floor(next() * 6) }, () => Math.floor(next() * 11));
          const stream = engine.submit(request(prompt, 3, { signal: controller.signal, deadline: Date.now() + 1e7 }));
          for await (const _ of stream) if (next() < 0.1) break;
        }
      };
      await Promise.all(Array.from({ length: 16 }, client));
      model.steps.length = 0;
      await collectGarbage();
      return process.memoryUsage().heapUsed;
    };
    const before = await serve(2000);
    const after = await serve(10_000);
    expect(after - before).toBeLessThan(1_000_000); // 100 bytes a request
    await engine.close();
    expectIdle(model, engine);
    expect(model.pool.stats.cached).toBeLessThanOrEqual(200);
    expect(getEventListeners(controller.signal, 'abort')).toHaveLength(0);
  });
});
