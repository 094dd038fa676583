import OpenAI from 'openai';
import { describe, expect, it } from 'vitest';
import { serve, until } from './serve.js';

describe('the client of OpenAI', () => {
  const start = async (answer: string, pace?: () => Promise<unknown>) => {
    const embed = async (prompts: readonly (readonly number[])[]) =>
      prompts.map(({ length }) => Float32Array.of(length, 0.25));
    const served = await serve({ token: 'key', embed }, { answer: () => answer, ...(pace && { pace }) });
    const client = new OpenAI({ baseURL: `${served.url}/v1`, apiKey: 'key', maxRetries: 0 });
    return { ...served, client };
  };
  const messages = [{ role: 'user' as const, content: 'Hello' }];

  it('chats, whole and in events', async () => {
    const { client } = await start('Grüße €');
    const whole = await client.chat.completions.create({ model: 'example', messages });
    expect(whole.choices[0]?.message.content).toBe('Grüße €');
    expect(whole.usage?.completion_tokens).toBe(12);
    const stream = await client.chat.completions.create({
      ...{ model: 'example', messages, stream: true, stream_options: { include_usage: true } },
    });
    let [text, tokens, reason] = ['', 0, ''];
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? '';
      reason = chunk.choices[0]?.finish_reason ?? reason;
      tokens = chunk.usage?.completion_tokens ?? tokens;
    }
    expect([text, tokens, reason]).toEqual(['Grüße €', 12, 'stop']);
  });

  it('completes, embeds and lists', async () => {
    const { client } = await start('some text');
    const completion = await client.completions.create({ model: 'example', prompt: 'x', max_tokens: 4, logprobs: 1 });
    expect(completion.choices[0]).toMatchObject({
      text: 'some',
      finish_reason: 'length',
      logprobs: { text_offset: [0, 1, 2, 3] },
    });
    const { data } = await client.embeddings.create({ model: 'example', input: ['abc', 'd'] });
    expect(data.map(({ embedding }) => embedding)).toEqual([
      [3, 0.25],
      [1, 0.25],
    ]);
    expect((await client.models.list()).data.map(({ id }) => id)).toEqual(['example']);
    expect((await client.models.retrieve('example')).id).toBe('example');
  });

  it('is told what is wrong, in its own errors', async () => {
    const { client, url } = await start('x');
    await expect(client.chat.completions.create({ model: 'other', messages })).rejects.toBeInstanceOf(
      OpenAI.NotFoundError,
    );
    await expect(client.chat.completions.create({ model: 'example', messages, temperature: 9 })).rejects.toMatchObject({
      ...{ status: 400, param: 'temperature', type: 'invalid_request_error' },
    });
    const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'other', maxRetries: 0 });
    await expect(stranger.models.list()).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
  });

  it('cancels what it no longer reads', async () => {
    const { client, fake, server } = await start(
      'x'.repeat(400),
      () => new Promise((resolve) => setTimeout(resolve, 5)),
    );
    const stream = await client.chat.completions.create({ model: 'example', messages, stream: true });
    let chunks = 0;
    for await (const _ of stream) if (++chunks === 5) break;
    await until(() => server.active === 0, 'the request ends');
    expect([fake.running, fake.aborted]).toEqual([0, 1]);
    expect(fake.generated).toBeLessThan(400);
  });
});
