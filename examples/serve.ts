/**
 * Serves a tiny model that has learned a text, and lets a client stream from it: `npm run serve:example`. The model is trained
 * for a minute where there is none yet.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = fileURLToPath(new URL('../..', import.meta.url));
const { values } = parseArgs({
  options: {
    /** Where the model is, or comes to be. */
    folder: { type: 'string', default: join(root, 'build', 'example-model') },
    port: { type: 'string', default: '8000' },
    /** Training steps. Default a minute's worth. */
    steps: { type: 'string' },
    /** Ends after the client has read its text. */
    once: { type: 'boolean', default: false },
  },
});

const model = join(values.folder, 'model');
if (!existsSync(join(model, 'config.json'))) {
  console.log('there is no model yet: training one');
  const steps = values.steps === undefined ? [] : ['--steps', values.steps];
  const args = [
    join(root, 'build', 'examples', 'gpt.js'),
    '--model',
    'tiny',
    '--characters',
    '0',
    '--out',
    values.folder,
  ];
  const [code] = await once(spawn(process.execPath, [...args, ...steps], { stdio: 'inherit' }), 'exit');
  if (code !== 0) process.exit(1);
}

const server = spawn(
  process.execPath,
  [join(root, 'dist', 'cli.js'), 'serve', '--model', model, '--name', 'example', '--port', values.port],
  { stdio: ['ignore', 'pipe', 'inherit'] },
);
process.once('exit', () => server.kill());
const ended = once(server, 'exit');
let url: string | undefined;
for await (const line of createInterface(server.stdout)) {
  console.log(line);
  url = /^example is ready: (.*)$/.exec(line)?.[1];
  if (url) break;
}
if (!url) process.exit(1);
// Who does not read what a program says makes it wait.
server.stdout.resume();

// Any client of OpenAI's API does; this is what goes over the wire.
const response = await fetch(`${url}/completions`, {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ model: 'example', prompt: 'The ', max_tokens: 100, temperature: 0.7, seed: 1, stream: true }),
});
if (!response.ok || !response.body) throw new Error(`the server answered ${response.status}: ${await response.text()}`);
process.stdout.write('\n--- streamed: The ');
let rest = '';
for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
  const events = (rest + bytes).split('\n\n');
  rest = events.pop() as string;
  for (const event of events) {
    const data = event.replace(/^data: /, '');
    if (data !== '[DONE]')
      process.stdout.write((JSON.parse(data) as { choices: { text: string }[] }).choices[0]?.text ?? '');
  }
}
console.log(`\n--- ${url.replace('/v1', '/')} is a page to try it; Ctrl-C ends`);
if (values.once) server.kill('SIGTERM');
await ended;
