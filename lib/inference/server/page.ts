// A page to try the model: one file, nothing from elsewhere, and what a model says is only ever text in it.
import { createHash } from 'node:crypto';
import { escapeXml } from '../../base/text.js';

const style = `
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff; }
textarea, input { font: inherit; box-sizing: border-box; padding: 0.4rem; border: 1px solid #999; border-radius: 4px; }
textarea { width: 100%; min-height: 6rem; }
label { display: inline-block; margin: 0.3rem 1rem 0.3rem 0; }
input[type=number] { width: 6rem; }
button { font: inherit; padding: 0.4rem 1rem; }
output { display: block; white-space: pre-wrap; overflow-wrap: anywhere; border-top: 1px solid #ccc; margin-top: 1rem; padding-top: 1rem; }
.error { color: #a00; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } textarea, input { color: inherit; background: #222; } .error { color: #f88; } }
`;

const script = `
const byId = (id) => document.getElementById(id);
const [form, output, state, send, stop] = ['form', 'output', 'state', 'send', 'stop'].map(byId);
let running;
const fail = (message) => { state.textContent = message; state.className = 'error'; };
async function read(body, use) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split('\\n\\n');
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, '');
      if (data !== '[DONE]') use(JSON.parse(data));
    }
  }
}
form.addEventListener('submit', async (event) => {
  event.preventDefault();
  running = new AbortController();
  output.textContent = '';
  state.textContent = 'waiting';
  state.className = '';
  send.disabled = true;
  stop.disabled = false;
  const chat = byId('chat').checked;
  const text = byId('prompt').value;
  const headers = { 'content-type': 'application/json' };
  if (byId('token').value) headers.authorization = 'Bearer ' + byId('token').value;
  const options = { max_tokens: byId('most').valueAsNumber, temperature: byId('temperature').valueAsNumber, stream: true, stream_options: { include_usage: true } };
  const body = chat ? { ...options, messages: [{ role: 'user', content: text }] } : { ...options, prompt: text };
  const begin = performance.now();
  try {
    const response = await fetch(chat ? '/v1/chat/completions' : '/v1/completions', { method: 'POST', headers, body: JSON.stringify(body), signal: running.signal });
    if (!response.ok) { fail((await response.json()).error.message); return; }
    await read(response.body, (chunk) => {
      if (chunk.error) { fail(chunk.error.message); return; }
      const choice = chunk.choices[0];
      if (choice) output.append((chat ? choice.delta.content : choice.text) || '');
      if (chunk.usage) state.textContent = chunk.usage.completion_tokens + ' tokens in ' + ((performance.now() - begin) / 1000).toFixed(1) + ' s';
    });
  } catch (error) {
    if (error.name === 'AbortError') state.textContent = 'stopped'; else fail(String(error.message || error));
  } finally {
    send.disabled = false;
    stop.disabled = true;
  }
});
stop.addEventListener('click', () => running && running.abort());
`;

const hashOf = (text: string) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

/** What the page may do: run its own script, and ask this server. */
export const pagePolicy = [
  "default-src 'none'",
  `script-src ${hashOf(script)}`,
  `style-src ${hashOf(style)}`,
  "connect-src 'self'",
  'img-src data:',
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

export const pageFor = (name: string) => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>${escapeXml(name)}</title>
<style>${style}</style>
</head>
<body>
<h1>${escapeXml(name)}</h1>
<form id="form">
<textarea id="prompt" aria-label="Prompt" required></textarea>
<label><input type="checkbox" id="chat"> as a chat</label>
<label>Tokens <input type="number" id="most" value="128" min="1"></label>
<label>Temperature <input type="number" id="temperature" value="0.8" min="0" max="2" step="0.1"></label>
<label>Key <input type="password" id="token" autocomplete="off"></label>
<button id="send">Send</button>
<button id="stop" type="button" disabled>Stop</button>
</form>
<output id="output"></output>
<p id="state" role="status"></p>
<script>${script}</script>
</body>
</html>
`;
