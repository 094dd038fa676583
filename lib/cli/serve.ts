import { basename, resolve } from 'node:path';
import type { FloatDType } from '../base/dtype.js';
import type { DeviceName } from '../devices/registry.js';
import { jinjaChatTemplate, plainChatTemplate } from '../inference/chat.js';
import { Engine } from '../inference/engine.js';
import { GptDecoder } from '../inference/gptDecoder.js';
import { modelOf, readModelFolder } from '../inference/modelFolder.js';
import { createServer } from '../inference/server/server.js';
import { modelTokenizer } from '../inference/tokenizer.js';
import { exitCode } from './exit.js';
import { readFlags, readInteger, UsageError } from './usage.js';

const text = { type: 'string' } as const;

/** When the process is asked to end. */
const asked = () =>
  new Promise<void>((end) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => end());
  });

/** `flashattn serve` */
export async function serveCommand(args: string[]): Promise<number> {
  const flags = readFlags(args, {
    ...{ model: text, name: text, host: text, port: text, device: text, dtype: text, 'cache-dtype': text },
    ...{ tokens: text, 'block-size': text, budget: text, quiet: { type: 'boolean' } },
  });
  if (flags.model === undefined) throw new UsageError('serve needs --model, the folder of a model');
  const number = (flag: 'port' | 'tokens' | 'block-size' | 'budget', usual: number, least: number) =>
    flags[flag] === undefined ? usual : readInteger(flags[flag], `--${flag}`, least);
  const folder = resolve(flags.model);
  const description = await readModelFolder(folder);
  const [port, blockSize, tokenBudget] = [
    number('port', 8000, 0),
    number('block-size', 16, 1),
    number('budget', 512, 1),
  ];
  const blocks = Math.ceil(number('tokens', 8 * description.context, 1) / blockSize);
  const load = async () => {
    const model = await modelOf(description, {
      ...(flags.device !== undefined && { device: flags.device as DeviceName }),
      ...(flags.dtype !== undefined && { dtype: flags.dtype as FloatDType }),
    });
    const dtype = flags['cache-dtype'] as FloatDType | undefined;
    return new Engine({ model: new GptDecoder(model, { blocks, blockSize, ...(dtype && { dtype }) }), tokenBudget });
  };
  const engine = load();
  engine.catch(() => {}); // `ready` tells of it
  const { chatTemplate, context, sampling, stopTokens, texts } = description;
  const token = process.env.FLASHATTN_TOKEN;
  const server = createServer({
    engine,
    tokenizer: modelTokenizer(folder),
    model: { name: flags.name ?? basename(folder), context, stopTokens, sampling },
    chatTemplate: chatTemplate === undefined ? plainChatTemplate : jinjaChatTemplate(chatTemplate, texts),
    port,
    ...(flags.host !== undefined && { host: flags.host }),
    ...(token && { token }),
    ...(!flags.quiet && { log: (entry) => console.log(JSON.stringify(entry)) }),
  });
  try {
    const { url } = await server.listen();
    console.log(`listening on ${url}`);
    await server.ready;
    console.log(`${flags.name ?? basename(folder)} is ready: ${url}/v1`);
    await asked();
  } finally {
    await server.close();
    await engine.then((loaded) => loaded.close()).catch(() => {});
  }
  return exitCode.fine;
}
