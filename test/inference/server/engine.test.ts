import { expect, it } from 'vitest';
import { Engine } from '../../../lib/inference/engine.js';
import { alone, FakeModel } from '../fakeModel.js';
import { eventsOf, serve, until } from './serve.js';

/** Tokens are the letters a to k. */
const letters = {
  vocabulary: 11,
  encode: (text: string) => Int32Array.from(text, (letter) => letter.charCodeAt(0) - 97),
  decode: (tokens: ArrayLike<number>) => String.fromCharCode(...Array.from(tokens, (token) => token + 97)),
};

it('the engine behind a server answers as a model alone, however many clients come and go', async () => {
  const model = new FakeModel({ blocks: 40, blockSize: 4, context: 200 });
  const engine = new Engine({ model, tokenBudget: 24, maxSequences: 12, maxQueue: 200 });
  const { post, server, url } = await serve({ engine, tokenizer: letters, model: { name: 'letters', context: 200 } });
  const ask = async (client: number) => {
    const prompt = letters.decode(Array.from({ length: 5 + (client % 20) }, (_, at) => (at * (client % 5) + at) % 11));
    const stream = client % 2 === 0;
    const controller = new AbortController();
    if (client % 7 === 3) setTimeout(() => controller.abort(), client);
    const body = { prompt, max_tokens: 30, temperature: 0.9, seed: client, stream, logprobs: 2 };
    try {
      const response = await post('/v1/completions', body, { signal: controller.signal });
      const text = await response.text();
      const chunks = stream ? eventsOf(text).slice(0, -1) : [JSON.parse(text)];
      const got = (chunks as { choices: { text: string }[] }[]).map(({ choices: [choice] }) => choice?.text).join('');
      const sampling = { temperature: 0.9, seed: client };
      expect(got).toBe(letters.decode(alone([...letters.encode(prompt)], 30, { sampling })));
    } catch (error) {
      if ((error as Error).name !== 'AbortError') throw error;
    }
  };
  await Promise.all(Array.from({ length: 96 }, (_, client) => ask(client)));
  await until(() => server.active === 0, 'all have ended');
  await engine.close();
  expect(await (await fetch(`${url}/metrics`)).text()).toMatch(/flashattn_engine_finished_length \d+\n/);
  expect([engine.stats.running, engine.stats.queued, engine.stats.pool.used]).toEqual([0, 0, 0]);
});
