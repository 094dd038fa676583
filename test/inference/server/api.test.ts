import { describe, expect, it } from 'vitest';
import { FlashAttnError } from '../../../lib/index.js';
import { backwards, FakeEngine, tokenizer } from './fakeEngine.js';
import { eventsOf, getWith, serve } from './serve.js';

type Json = Record<string, unknown> & {
  choices: { text: string; delta: { content?: string }; finish_reason: string | null }[];
};
const json = async (response: Response) => (await response.json()) as Json & { error: Record<string, unknown> };

describe('completions', () => {
  it('have text, reason and usage', async () => {
    const { post } = await serve();
    const response = await post('/v1/completions', { model: 'example', prompt: 'abc', max_tokens: 5 });
    expect(response.status).toBe(200);
    expect(response.headers.get('content-type')).toBe('application/json; charset=utf-8');
    expect(await json(response)).toMatchObject({
      id: expect.stringMatching(/^cmpl-/),
      object: 'text_completion',
      created: expect.any(Number),
      model: 'example',
      choices: [{ index: 0, text: 'cbacb', logprobs: null, finish_reason: 'length' }],
      usage: { prompt_tokens: 3, completion_tokens: 5, total_tokens: 8, prompt_tokens_details: { cached_tokens: 1 } },
    });
  });

  it('stop at stop tokens, and before stop strings that span tokens', async () => {
    const { post, fake } = await serve({}, { answer: () => 'Süße END and more' });
    const ask = async (body: object) =>
      (await json(await post('/v1/completions', { prompt: 'x', max_tokens: 50, ...body }))).choices[0];
    expect(await ask({})).toMatchObject({ text: 'Süße END and more', finish_reason: 'stop' });
    expect(await ask({ stop: 'END' })).toMatchObject({ text: 'Süße ', finish_reason: 'stop' });
    expect(await ask({ stop: ['more', 'ße'] })).toMatchObject({ text: 'Sü', finish_reason: 'stop' });
    expect(await ask({ stop: [] })).toMatchObject({ text: 'Süße END and more' });
    expect(await ask({ max_tokens: 2 })).toMatchObject({ text: 'S\uFFFD', finish_reason: 'length' });
    expect(await ask({ max_tokens: 7, stop: 'ENDE' })).toMatchObject({ text: 'Süße ', finish_reason: 'length' });
    expect(await ask({ max_tokens: 9, stop: 'ENDE' })).toMatchObject({ text: 'Süße EN', finish_reason: 'length' });
    expect(fake.running).toBe(0);
  });

  it('take tokens, and several prompts', async () => {
    const { post } = await serve();
    const one = await json(await post('/v1/completions', { prompt: [97, 98], max_tokens: 3 }));
    expect(one.choices.map(({ text }) => text)).toEqual(['bab']);
    const several = await json(await post('/v1/completions', { prompt: ['ab', 'cd', 'efg'], max_tokens: 3 }));
    expect(several.choices.map(({ text }) => text)).toEqual(['bab', 'dcd', 'gfe']);
    expect(several).toMatchObject({ usage: { prompt_tokens: 7, completion_tokens: 9 } });
    const lists = await json(await post('/v1/completions', { prompt: [[97], [98, 99]], max_tokens: 1 }));
    expect(lists.choices.map(({ text }) => text)).toEqual(['a', 'c']);
  });

  it('come in events', async () => {
    const { post } = await serve({}, { answer: () => 'aé€END' });
    const body = { prompt: 'x', max_tokens: 20, stop: 'END', stream: true, stream_options: { include_usage: true } };
    const response = await post('/v1/completions', body);
    expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    const events = eventsOf(await response.text());
    expect(events.pop()).toBe('[DONE]');
    expect(events.pop()).toMatchObject({ choices: [], usage: { prompt_tokens: 1, completion_tokens: 9 } });
    const chunks = events as Json[];
    expect(chunks.map(({ choices: [choice] }) => choice?.text)).toEqual(['a', 'é', '€', '']);
    expect(chunks.map(({ choices: [choice] }) => choice?.finish_reason)).toEqual([null, null, null, 'stop']);
    for (const chunk of chunks) expect(chunk).toMatchObject({ object: 'text_completion', usage: null });
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
  });

  it('of several prompts come in events by their index', async () => {
    const { post } = await serve();
    const response = await post('/v1/completions', { prompt: ['ab', 'cd'], max_tokens: 4, stream: true });
    const texts = ['', ''];
    for (const event of eventsOf(await response.text()).slice(0, -1) as Json[])
      for (const { index, text } of event.choices as unknown as { index: number; text: string }[]) texts[index] += text;
    expect(texts).toEqual(['baba', 'dcdc']);
  });

  it('have logarithms of probabilities, of the tokens whose text is given', async () => {
    const { post } = await serve({}, { answer: () => 'ab€STOP' });
    const { choices } = await json(
      await post('/v1/completions', { prompt: 'x', max_tokens: 20, stop: 'STOP', logprobs: 2 }),
    );
    const { logprobs } = choices[0] as unknown as { logprobs: Record<string, unknown[]> };
    expect(logprobs.text_offset).toEqual([0, 1, 2, 2, 2]);
    expect(logprobs.tokens?.slice(0, 2)).toEqual(['a', 'b']);
    expect(logprobs.token_logprobs).toHaveLength(5);
    for (const logprob of logprobs.token_logprobs as number[]) expect(logprob < 0 && logprob > -9999).toBe(true);
    expect(Object.keys(logprobs.top_logprobs?.[0] as object)).toHaveLength(2);
  });

  it('are sampled as the request says', async () => {
    const { post, fake } = await serve({ model: { name: 'm', context: 512, sampling: { topK: 7, temperature: 0.3 } } });
    const body = { temperature: 0, top_p: 0.5, min_p: 0.1, seed: -1, presence_penalty: 1, frequency_penalty: -1 };
    await (
      await post('/v1/completions', { prompt: 'a', repetition_penalty: 1.5, logit_bias: { 97: -100, 98: 3 }, ...body })
    ).text();
    const [{ sampling, maxTokens, priority }] = fake.requests as [FakeEngine['requests'][0]];
    expect(sampling).toEqual({
      ...{
        temperature: 0,
        topK: 7,
        topP: 0.5,
        minP: 0.1,
        repetitionPenalty: 1.5,
        presencePenalty: 1,
        frequencyPenalty: -1,
      },
      ...{ seed: 2n ** 64n - 1n, logitsProcessor: expect.any(Function) },
    });
    expect(maxTokens).toBe(16);
    expect(priority).toMatch(/127\.0\.0\.1/);
    const logits = new Float32Array(257);
    sampling.logitsProcessor?.(logits, []);
    expect([...logits.subarray(96, 99)]).toEqual([0, -100, 3]);
    await (await post('/v1/completions', { prompt: 'a', top_k: -1, user: 'me', metadata: {} })).text();
    expect(fake.requests[1]?.sampling).toEqual({ topK: 257, temperature: 0.3 });
  });
});

describe('chats', () => {
  const messages = [
    { role: 'system', content: 'Be brief.' },
    {
      role: 'user',
      content: [
        { type: 'text', text: 'Hel' },
        { type: 'text', text: 'lo' },
      ],
    },
  ];

  it('are answered by the assistant', async () => {
    const { post, fake } = await serve({}, { answer: () => 'Hi!\nUser: no' });
    const response = await json(await post('/v1/chat/completions', { model: 'example', messages }));
    expect(response).toMatchObject({
      object: 'chat.completion',
      choices: [{ index: 0, message: { role: 'assistant', content: 'Hi!' }, logprobs: null, finish_reason: 'stop' }],
    });
    const [{ prompt, maxTokens }] = fake.requests as [FakeEngine['requests'][0]];
    expect(tokenizer.decode(prompt)).toBe('System: Be brief.\nUser: Hello\nAssistant:');
    expect(maxTokens).toBe(512 - prompt.length);
  });

  it('come in events, with a role first and a reason last', async () => {
    const { post } = await serve({}, { answer: () => 'Hé' });
    const body = { messages, stream: true, logprobs: true, top_logprobs: 1, max_completion_tokens: 10 };
    const events = eventsOf(await (await post('/v1/chat/completions', body)).text());
    expect(events.pop()).toBe('[DONE]');
    const chunks = events as Json[];
    expect(chunks.map(({ choices: [choice] }) => choice?.delta)).toEqual([
      { role: 'assistant', content: '' },
      { content: 'H' },
      { content: 'é' },
      {},
    ]);
    expect(chunks.at(-1)?.choices[0]?.finish_reason).toBe('stop');
    expect(chunks[1]).toMatchObject({
      object: 'chat.completion.chunk',
      choices: [{ logprobs: { content: [{ token: 'H', bytes: [72], top_logprobs: [{ token: 'H' }] }] } }],
    });
    expect(chunks[2]).toMatchObject({ choices: [{ logprobs: { content: [{ bytes: null }, { bytes: null }] } }] });
    expect(chunks[1]).not.toHaveProperty('usage');
  });

  it('may have a template of their own', async () => {
    const render = (all: readonly { role: string; content: string }[]) => {
      if (all[0]?.role === 'assistant') throw new FlashAttnError('ERR_OPTION', 'the first must be of the user');
      return `<${all.map(({ content }) => content).join('|')}>`;
    };
    const { post, fake } = await serve({ chatTemplate: Promise.resolve({ render, stop: [] }) });
    await (await post('/v1/chat/completions', { messages, max_tokens: 1 })).text();
    expect(tokenizer.decode(fake.requests[0]?.prompt ?? [])).toBe('<Be brief.|Hello>');
    const refused = await post('/v1/chat/completions', { messages: [{ role: 'assistant', content: '' }] });
    expect([refused.status, (await json(refused)).error.message]).toEqual([400, 'the first must be of the user']);
  });
});

describe('the other routes', () => {
  it('say which model there is', async () => {
    const { url } = await serve();
    expect(await json(await fetch(`${url}/v1/models`))).toMatchObject({
      object: 'list',
      data: [{ id: 'example', object: 'model' }],
    });
    expect(await json(await fetch(`${url}/v1/models/example`))).toMatchObject({ id: 'example' });
    expect((await fetch(`${url}/v1/models/other`)).status).toBe(404);
    const named = await serve({ model: { name: 'a/b', context: 10 } });
    for (const path of ['a/b', 'a%2Fb']) expect((await fetch(`${named.url}/v1/models/${path}`)).status).toBe(200);
    const head = await fetch(`${url}/health`, { method: 'HEAD' });
    expect([head.status, await head.text()]).toEqual([200, '']);
    expect(await json(await fetch(`${url}/health?x=1`))).toEqual({ status: 'ok' });
  });

  it('count what happens, for Prometheus', async () => {
    const { url, post } = await serve();
    await (await post('/v1/completions', { prompt: 'abc', max_tokens: 5 })).text();
    await (await fetch(`${url}/nowhere${'x'.repeat(50)}`)).text();
    const response = await fetch(`${url}/metrics`);
    expect(response.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8');
    const text = await response.text();
    const lines = text.trimEnd().split('\n');
    for (const line of lines)
      expect(line).toMatch(
        /^(# (HELP|TYPE) flashattn_\w+ .+|flashattn_\w+({[\w]+="[^"]*"(,\w+="[^"]*")*})? -?[\d.e+-]+)$/,
      );
    expect(lines).toContain('flashattn_requests_total{route="/v1/completions",status="200"} 1');
    expect(lines).toContain('flashattn_requests_total{route="other",status="404"} 1');
    expect(lines).toContain('flashattn_prompt_tokens_total 3');
    expect(lines).toContain('flashattn_generated_tokens_total 5');
    expect(lines).toContain('flashattn_first_token_seconds_count 1');
    expect(lines).toContain('flashattn_token_seconds_count 4');
    expect(lines).toContain('flashattn_request_seconds_bucket{le="+Inf"} 1');
    expect(lines).toContain('flashattn_engine_pool_blocks_used 3');
    expect(lines).toContain('flashattn_engine_running 0');
  });

  it('show a page that may do nothing but ask this server', async () => {
    const { url } = await serve();
    const response = await fetch(url);
    const policy = response.headers.get('content-security-policy') ?? '';
    expect(policy).toMatch(/^default-src 'none'; script-src 'sha256-[\w+/]+='; style-src 'sha256-[\w+/]+=';/);
    const page = await response.text();
    expect(page).not.toMatch(/https?:|\bon\w+=|style="|innerHTML/);
    const { createHash } = await import('node:crypto');
    for (const [, tag, inner] of page.matchAll(/<(script|style)>(.*?)<\/\1>/gs))
      expect(policy).toContain(
        `${tag}-src 'sha256-${createHash('sha256')
          .update(inner as string)
          .digest('base64')}'`,
      );
    expect([...page.matchAll(/<script/g)]).toHaveLength(1);
  });

  it('give embeddings where the model has them', async () => {
    const without = await serve();
    const refused = await without.post('/v1/embeddings', { input: 'abc' });
    expect([refused.status, (await json(refused)).error.type]).toEqual([501, 'not_implemented_error']);
    const embed = async (prompts: readonly (readonly number[])[]) =>
      prompts.map((tokens) => Float32Array.of(tokens.length, 0.5));
    const { post } = await serve({ embed });
    expect(await json(await post('/v1/embeddings', { input: ['abc', 'd'] }))).toMatchObject({
      object: 'list',
      data: [
        { object: 'embedding', index: 0, embedding: [3, 0.5] },
        { index: 1, embedding: [1, 0.5] },
      ],
      usage: { prompt_tokens: 4, total_tokens: 4 },
    });
    const bytes = await json(await post('/v1/embeddings', { input: 'abc', encoding_format: 'base64' }));
    const [{ embedding }] = bytes.data as [{ embedding: string }];
    expect([Buffer.from(embedding, 'base64').readFloatLE(0), Buffer.from(embedding, 'base64').readFloatLE(4)]).toEqual([
      3, 0.5,
    ]);
    expect((await post('/v1/embeddings', { input: 'a', dimensions: 2 })).status).toBe(400);
  });
});

describe('access', () => {
  it('needs the token, where there is one', async () => {
    const { url, post } = await serve({ token: 'secret' });
    const ask = (authorization?: string) =>
      post('/v1/completions', { prompt: 'a', max_tokens: 1 }, { headers: authorization ? { authorization } : {} });
    for (const wrong of [undefined, 'Bearer', 'Bearer secre', 'Bearer secrets', 'Basic secret', 'secret']) {
      const response = await ask(wrong);
      expect(response.status).toBe(401);
      expect(response.headers.get('www-authenticate')).toBe('Bearer');
      expect((await json(response)).error.code).toBe('invalid_api_key');
    }
    expect((await ask('Bearer secret')).status).toBe(200);
    expect((await ask('bearer  secret')).status).toBe(200);
    const status = async (path: string) => (await fetch(url + path)).status;
    expect(await Promise.all(['/', '/health', '/metrics', '/v1/models', '/other'].map(status))).toEqual([
      200, 200, 401, 401, 401,
    ]);
  });

  it('is of this machine by its own names alone', async () => {
    const { port } = await serve();
    const as = (host: string) => getWith(port, '/health', { host });
    expect(await Promise.all([`127.0.0.1:${port}`, 'localhost', '[::1]:80', 'LOCALHOST:1'].map(as))).toEqual([
      200, 200, 200, 200,
    ]);
    expect(await Promise.all(['evil.example', '127.0.0.1.evil.example', '10.0.0.1'].map(as))).toEqual([403, 403, 403]);
    const named = await serve({ hostNames: ['model.example'] });
    expect(await getWith(named.port, '/health', { host: 'Model.example:80' })).toBe(200);
  });
});

describe('a model that is being loaded', () => {
  it('is waited for', async () => {
    let give: (engine: FakeEngine) => void = () => {};
    const engine = new Promise<FakeEngine>((resolve) => (give = resolve));
    const { post, url, server } = await serve({ engine });
    const early = await post('/v1/completions', { prompt: 'a' });
    expect([early.status, early.headers.get('retry-after'), (await json(early)).error.code]).toEqual([
      503,
      '1',
      'loading',
    ]);
    const health = await fetch(`${url}/health`);
    expect([health.status, await json(health)]).toEqual([503, { status: 'loading' }]);
    expect((await fetch(`${url}/metrics`)).status).toBe(200);
    give(new FakeEngine());
    await server.ready;
    expect((await post('/v1/completions', { prompt: 'a' })).status).toBe(200);
  });

  it('may fail, and clients are not told why', async () => {
    const { post, url, server } = await serve({ engine: Promise.reject(new Error('secret path')) });
    await expect(server.ready).rejects.toThrow('secret path');
    const response = await post('/v1/completions', { prompt: 'a' });
    expect(response.status).toBe(503);
    expect(await response.text()).not.toContain('secret');
    expect(await json(await fetch(`${url}/health`))).toEqual({ status: 'failed' });
  });
});

it('answers to different prompts are not mixed', async () => {
  const { post } = await serve();
  const ask = async (prompt: string) =>
    (await json(await post('/v1/completions', { prompt, max_tokens: 20 }))).choices[0]?.text;
  const prompts = Array.from({ length: 50 }, (_, at) => `prompt ${at} ${at * 7}`);
  const wanted = prompts.map((prompt) => backwards(prompt).repeat(9).slice(0, 20));
  expect(await Promise.all(prompts.map(ask))).toEqual(wanted);
});
