import { describe, expect, it } from 'vitest';
import { uniform } from '../../../verify/oracle/random.js';
import { collectGarbage } from '../../support/collectGarbage.js';
import { backwards } from './fakeEngine.js';
import { eventsOf, raw, serve, until } from './serve.js';

type Failure = { error: { message: string; type: string; param: string | null; code: string | null } };

const post = (path: string, body: string, headers = '') =>
  `POST ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n${headers}\r\n${body}`;

describe('a body that is wrong', () => {
  const deep = `{"prompt":${'['.repeat(100_000)}${']'.repeat(100_000)}}`;
  const chat = (message: unknown) => ({ messages: [message] });

  it.each<[unknown, string | null, RegExp]>([
    ['', null, /not JSON/],
    ['{"prompt":', null, /not JSON/],
    ['[]', null, /not a JSON object/],
    ['null', null, /not a JSON object/],
    ['"x"', null, /not a JSON object/],
    ['\ufeff{}', null, /not JSON/],
    [deep, null, /nested more than 32 deep/],
    [`{"prompt":${'{"a":'.repeat(5000)}`, null, /nested/],
    [Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d), null, /not UTF-8/],
    ['{}', 'prompt', /prompt is missing/],
    ['{"prompt":null}', 'prompt', /prompt is missing/],
    ['{"prompt":"a","__proto__":{"max_tokens":3}}', '__proto__', /no field "__proto__"/],
    ['{"prompt":"a","constructor":1}', 'constructor', /no field/],
    ['{"prompt":"a","toString":1}', 'toString', /no field/],
    ['{"prompt":"\\ud800"}', 'prompt', /lone surrogate/],
    ['{"prompt":"a","stop":"\\udc00"}', 'stop', /lone surrogate/],
    ['{"prompt":"a","max_tokens":1e999}', 'max_tokens', /max_tokens is Infinity/],
    ['{"prompt":"a","max_tokens":-1}', 'max_tokens', /from 1 to 512/],
    ['{"prompt":"a","max_tokens":1.5}', 'max_tokens', /integer/],
    ['{"prompt":"a","max_tokens":"3"}', 'max_tokens', /is "3"/],
    ['{"prompt":"a","max_tokens":99999999999999999999}', 'max_tokens', /integer/],
    ['{"prompt":"a","temperature":-0.1}', 'temperature', /from 0 to 2/],
    ['{"prompt":"a","temperature":1e400}', 'temperature', /from 0 to 2/],
    ['{"prompt":"a","top_p":0}', 'top_p', /above/],
    ['{"prompt":"a","seed":1e300}', 'seed', /integer/],
    ['{"prompt":"a","n":2}', 'n', /only 1 is served/],
    ['{"prompt":"a","echo":true}', 'echo', /only false/],
    ['{"prompt":"a","stream":"yes"}', 'stream', /true or false/],
    ['{"prompt":"a","stream_options":{}}', 'stream_options', /needs stream/],
    [
      '{"prompt":"a","stream":true,"stream_options":{"include_usages":true}}',
      'stream_options.include_usages',
      /did you mean/,
    ],
    ['{"prompt":"a","stop":[""]}', 'stop[0]', /has 0 characters/],
    ['{"prompt":"a","stop":["a","b","c","d","e"]}', 'stop', /5 entries/],
    [`{"prompt":"a","stop":"${'x'.repeat(257)}"}`, 'stop', /257 characters/],
    ['{"prompt":"a","logprobs":21}', 'logprobs', /from 0 to 20/],
    ['{"prompt":"a","logit_bias":{"x":1}}', 'logit_bias.x', /no token/],
    ['{"prompt":"a","logit_bias":{"257":1}}', 'logit_bias.257', /from 0 to 256/],
    ['{"prompt":"a","logit_bias":{"1":1000}}', 'logit_bias.1', /-100 to 100/],
    ['{"prompt":"a","logit_bias":[1]}', 'logit_bias', /object/],
    ['{"prompt":"a","temprature":1}', 'temprature', /did you mean "temperature"/],
    ['{"prompt":""}', 'prompt', /no tokens/],
    ['{"prompt":[]}', 'prompt', /list/],
    ['{"prompt":[257]}', 'prompt[0]', /from 0 to 256/],
    ['{"prompt":[1,-1]}', 'prompt[1]', /from 0 to 256/],
    ['{"prompt":["a",1]}', 'prompt[1]', /string or a list/],
    ['{"prompt":{"a":1}}', 'prompt', /string or a list/],
    [{ prompt: new Array(17).fill('a') }, 'prompt', /17 entries/],
    [{ prompt: 'a'.repeat(512) }, 'prompt', /has 512 tokens; the model has room for 512/],
    [{ prompt: 'a'.repeat(500), max_tokens: 13 }, 'max_tokens', /500 tokens, and max_tokens is 13/],
    [{ messages: [] }, 'messages', /list/],
    [{ messages: 'hello' }, 'messages', /list/],
    [chat('hello'), 'messages[0]', /object/],
    [chat({ role: 'robot', content: '' }), 'messages[0].role', /one of system/],
    [chat({ role: '__proto__', content: '' }), 'messages[0].role', /one of system/],
    [chat({ role: 'user' }), 'messages[0].content', /missing/],
    [chat({ role: 'user', content: 3 }), 'messages[0].content', /string/],
    [
      chat({ role: 'user', content: [{ type: 'image_url', image_url: {} }] }),
      'messages[0].content[0].image_url',
      /no field/,
    ],
    [chat({ role: 'user', content: 'x', tool_calls: [{}] }), 'messages[0].tool_calls', /only none/],
    [{ ...chat({ role: 'user', content: 'x' }), tools: [{}] }, 'tools', /only no tools/],
    [{ ...chat({ role: 'user', content: 'x' }), top_logprobs: 3 }, 'top_logprobs', /needs logprobs/],
    [
      { ...chat({ role: 'user', content: 'x' }), response_format: { type: 'json_object' } },
      'response_format.type',
      /only 'text'/,
    ],
  ])('is refused with its field (%#)', async (body, param, message) => {
    const { post, fake } = await serve();
    const path =
      typeof body === 'object' && body !== null && 'messages' in body ? '/v1/chat/completions' : '/v1/completions';
    const response = await post(path, body);
    const { error } = (await response.json()) as Failure;
    expect(error.message).toMatch(message);
    expect([response.status, error.type, error.param]).toEqual([400, 'invalid_request_error', param]);
    expect(JSON.stringify(error)).not.toMatch(/ at .*\.[tj]s|node_modules/);
    expect(fake.submitted).toBe(0);
    expect(({} as Record<string, unknown>).max_tokens).toBeUndefined();
  });

  it('of another model, method, type or length is refused', async () => {
    const { post, url, fake } = await serve({ limits: { bodyBytes: 1000, maxTokens: 100 } });
    const codeOf = async (response: Response) => [response.status, ((await response.json()) as Failure).error.code];
    const body = { prompt: 'a' };
    expect(await codeOf(await post('/v1/completions', { ...body, model: 'other' }))).toEqual([404, 'model_not_found']);
    expect(await codeOf(await post('/v1/nothing', body))).toEqual([404, 'not_found']);
    expect(await codeOf(await post('/v1/completions', body, { headers: { 'content-type': 'text/plain' } }))).toEqual([
      415,
      'unsupported_media_type',
    ]);
    expect(await codeOf(await post('/v1/completions', body, { headers: { 'content-encoding': 'gzip' } }))).toEqual([
      415,
      'unsupported_media_type',
    ]);
    for (const size of [1000, 7000, 100_000]) {
      const large = await post('/v1/completions', { prompt: 'a'.repeat(size) }).catch(() => undefined);
      if (large)
        expect(await codeOf(large)).toEqual([413, 'body_too_large']); // or cut off, where it would be far too long
      else expect(size).toBe(100_000);
    }
    const get = await fetch(`${url}/v1/completions`);
    expect([get.headers.get('allow'), ...(await codeOf(get))]).toEqual(['POST', 405, 'method_not_allowed']);
    expect((await fetch(`${url}/health`, { method: 'DELETE' })).status).toBe(405);
    expect((await fetch(`${url}/v1/completions`, { method: 'OPTIONS' })).status).toBe(405);
    expect((await post('/v1/completions', { prompt: 'a', max_tokens: 101 })).status).toBe(400);
    expect(fake.submitted).toBe(0);
  });

  it('without end is cut off', async () => {
    const { port, server } = await serve({ limits: { bodyBytes: 1000 } });
    const { socket, closed } = raw(
      port,
      'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n',
    );
    const timer = setInterval(() => socket.writable && socket.write(`400\r\n${'x'.repeat(1024)}\r\n`), 1);
    expect(await closed).toMatch(/^HTTP\/1\.1 413 /);
    clearInterval(timer);
    await until(() => server.active === 0, 'the request ends');
  });
});

describe('a connection that is wrong', () => {
  it.each<[string, RegExp]>([
    ['\0\x01\x02 garbage\r\n\r\n', /^HTTP\/1\.1 400 Bad Request\r\n.*"error"/s],
    ['GET / HTTP/1.1\r\n\r\n', /^HTTP\/1\.1 400 /],
    ['GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n', /^HTTP\/1\.1 403 /],
    [`GET / HTTP/1.1\r\nHost: localhost\r\nX: ${'x'.repeat(100_000)}\r\n\r\n`, /^HTTP\/1\.1 431 /],
    [
      'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
      /^HTTP\/1\.1 400 /,
    ],
    [
      'GET //evil.example/%2e%2e/etc/passwd?x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n',
      /^HTTP\/1\.1 404 /,
    ],
  ])('is refused (%#)', async (text, wanted) => {
    const { port, server } = await serve();
    const { closed } = raw(port, text);
    const answer = await closed;
    expect(answer).toMatch(wanted);
    expect(answer).not.toMatch(/ at .*\.[tj]s/);
    expect(server.active).toBe(0);
  });

  it('that sends slowly is closed', async () => {
    const { port, server } = await serve({ limits: { receiveSeconds: 0.3 } });
    const headers = raw(port, 'GET / HTTP/1.1\r\nHost: loc');
    const body = raw(
      port,
      'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"pro',
    );
    const drip = setInterval(() => {
      for (const { socket } of [headers, body]) if (socket.writable) socket.write('a');
    }, 50);
    expect(await headers.closed).toMatch(/^HTTP\/1\.1 408 /);
    expect(await body.closed).toMatch(/^(HTTP\/1\.1 408 .*)?$/s);
    clearInterval(drip);
    await until(() => server.active === 0, 'the request ends');
  });

  it('that does not read is closed, and the others are answered', async () => {
    // Megabytes of text, so that no buffer of the system holds them.
    const long = 'x'.repeat(200_000);
    const {
      port,
      server,
      fake,
      post: ask,
    } = await serve(
      { limits: { stallSeconds: 0.5, maxTokens: 4_000_000 }, model: { name: 'example', context: 4_000_000 } },
      { answer: (prompt) => (prompt === 'slow' ? long : 'quick'), pace: async () => {} },
    );
    const body = JSON.stringify({ prompt: 'slow', max_tokens: 200_000, stream: true });
    const readers = Array.from({ length: 4 }, () => raw(port, post('/v1/completions', body)));
    for (const { socket } of readers) socket.pause();
    await until(() => fake.submitted === 4, 'all have begun');
    expect((await ask('/v1/completions', { prompt: 'a', max_tokens: 5 })).status).toBe(200);
    await until(() => server.active === 0, 'they are closed');
    expect(fake.running).toBe(0);
    expect(fake.aborted).toBe(4);
    for (const { socket } of readers) socket.destroy();
  });
});

describe('limits', () => {
  it('refuse more requests than may be answered at once', async () => {
    let go: () => void = () => {};
    const gate = new Promise<void>((resolve) => (go = resolve));
    const { post: ask, fake } = await serve({ limits: { requests: 2 } }, { pace: () => gate });
    const running = [1, 2].map(() => ask('/v1/completions', { prompt: 'a', max_tokens: 1 }));
    await until(() => fake.running === 2, 'two are running');
    const refused = await ask('/v1/completions', { prompt: 'a' });
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([429, '1']);
    expect(((await refused.json()) as Failure).error).toMatchObject({ type: 'rate_limit_error', code: 'queue_full' });
    go();
    expect((await Promise.all(running)).map(({ status }) => status)).toEqual([200, 200]);
    expect((await ask('/v1/completions', { prompt: 'a' })).status).toBe(200);
  });

  it('of the engine are told, and nothing of several prompts is left', async () => {
    const { post: ask, fake } = await serve(
      {},
      { mostWaiting: 2, pace: () => new Promise((resolve) => setTimeout(resolve, 5)) },
    );
    const refused = await ask('/v1/completions', { prompt: ['a', 'b', 'c'] });
    expect(refused.status).toBe(429);
    expect([fake.running, fake.aborted]).toEqual([0, 2]);
  });

  it('of time end requests, whole or in events', async () => {
    const never = () => new Promise<never>(() => {});
    const { post: ask, server, fake } = await serve({ limits: { requestSeconds: 0.2 } }, { pace: never });
    const whole = await ask('/v1/completions', { prompt: 'a' });
    expect([whole.status, ((await whole.json()) as Failure).error.code]).toEqual([504, 'timeout']);
    const events = await ask('/v1/completions', { prompt: 'a', stream: true });
    expect(eventsOf(await events.text())).toMatchObject([{ error: { code: 'timeout' } }]);
    await until(() => server.active === 0, 'all have ended');
    expect(fake.running).toBe(0);
  });

  it('do not hide what goes wrong within, and do not show it', async () => {
    const failure = { after: 2, error: new Error('secret of the device') };
    const { post: ask, logged, server } = await serve({}, { failure });
    const whole = await ask('/v1/completions', { prompt: 'abc' });
    expect([whole.status, await whole.text()]).toEqual([500, expect.not.stringContaining('secret')]);
    const events = eventsOf(await (await ask('/v1/completions', { prompt: 'abc', stream: true })).text());
    expect(events.at(-1)).toMatchObject({ error: { code: 'internal', type: 'server_error' } });
    expect(events).toHaveLength(3);
    await until(() => server.active === 0, 'all have ended');
    expect(logged.map(({ error }) => error)).toEqual([failure.error, failure.error]);
  });
});

describe('closing', () => {
  it('lets requests end, and takes no more', async () => {
    const {
      post: ask,
      server,
      fake,
      url,
    } = await serve({}, { pace: () => new Promise((resolve) => setTimeout(resolve, 10)) });
    const running = ask('/v1/completions', { prompt: 'abc', max_tokens: 10 });
    await until(() => fake.running === 1, 'it runs');
    const closed = server.close();
    await expect(fetch(url)).rejects.toThrow();
    expect(((await (await running).json()) as { choices: { text: string }[] }).choices[0]?.text).toBe('cbacbacbac');
    await closed;
    await server.close();
  });

  it('ends those that take too long', async () => {
    const {
      post: ask,
      server,
      fake,
    } = await serve({}, { pace: () => new Promise((resolve) => setTimeout(resolve, 50)) });
    const whole = ask('/v1/completions', { prompt: 'abc', max_tokens: 400 });
    const events = ask('/v1/completions', { prompt: 'abc', max_tokens: 400, stream: true }).then((response) =>
      response.text(),
    );
    await until(() => fake.running === 2, 'they run');
    await server.close({ graceSeconds: 0.1 });
    expect((await whole).status).toBe(503);
    expect(eventsOf(await events).at(-1)).toMatchObject({ error: { code: 'closing' } });
    expect(fake.running).toBe(0);
  });
});

describe('under load', () => {
  it('64 clients that come and go get their own answers, and nothing is left', async () => {
    const { url, server, fake } = await serve({ limits: { requests: 64 } });
    const random = uniform(5);
    let [answered, left] = [0, 0];
    const client = async (number: number) => {
      for (let request = 0; request < 12; request++) {
        const prompt = `client ${number} request ${request} ${'é'.repeat(Math.floor(random() * 5))}`;
        const most = 5 + Math.floor(random() * 60);
        const wanted = Buffer.from(backwards(prompt).repeat(20)).subarray(0, most).toString();
        const [stream, leaves] = [random() < 0.5, random() < 0.4];
        const controller = new AbortController();
        if (leaves) setTimeout(() => controller.abort(), random() * 60);
        try {
          const response = await fetch(`${url}/v1/completions`, {
            method: 'POST',
            headers: { 'content-type': 'application/json' },
            body: JSON.stringify({ prompt, max_tokens: most, stream }),
            signal: controller.signal,
          });
          expect(response.status).toBe(200);
          const text = await response.text();
          const got = stream
            ? eventsOf(text)
                .slice(0, -1)
                .map((event) => (event as { choices: { text: string }[] }).choices[0]?.text)
                .join('')
            : JSON.parse(text).choices[0].text;
          expect(got).toBe(wanted);
          answered++;
        } catch (error) {
          if ((error as Error).name !== 'AbortError') throw error;
          left++;
        }
      }
    };
    await Promise.all(Array.from({ length: 64 }, (_, number) => client(number)));
    await until(() => server.active === 0 && fake.running === 0, 'all have ended');
    expect(answered + left).toBe(64 * 12);
    expect(answered).toBeGreaterThan(100);
    expect(left).toBeGreaterThan(20);
    expect(fake.completed + fake.aborted).toBe(fake.submitted);
    expect((await fetch(`${url}/health`)).status).toBe(200);
  });

  it('memory stays as it is', async () => {
    const { post: ask, server } = await serve();
    const many = async (rounds: number) => {
      for (let round = 0; round < rounds; round++)
        await Promise.all(
          Array.from({ length: 20 }, async (_, at) => {
            const body =
              at % 5 === 0 ? { prompt: 3 } : { prompt: `${round} ${at}`, max_tokens: 8, stream: at % 2 === 0 };
            await (await ask('/v1/completions', body)).text();
          }),
        );
      await until(() => server.active === 0, 'all have ended');
      await collectGarbage();
      return process.memoryUsage().heapUsed;
    };
    const before = await many(30);
    const after = await many(60);
    expect(after - before).toBeLessThan(8e6);
  });
});
