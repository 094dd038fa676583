#!/usr/bin/env node
import { FlashAttnError } from '../base/errors.js';
import { version } from '../base/version.js';
import { benchCommand } from './bench.js';
import { doctor } from './doctor.js';
import { exitCode } from './exit.js';
import { explainCommand } from './explain.js';
import { maskCommand } from './mask.js';
import { systemsCommand } from './systems.js';
import { UsageError } from './usage.js';
import { verifyCommand } from './verify.js';

const usage = `flashattn ${version}: exact attention for Node.js

  flashattn doctor [--device auto|cpu|wasm|cuda|cuda:<index>] [--json]
      What this machine can do and why not more, with a numeric self-test of every device.

  flashattn verify [--device auto|cpu|wasm|cuda|cuda:<index>] [--quick] [--group <name>] [--cases <n>] [--repeats <n>]
                   [--golden <folder>] [--json <file>] [--case <json>]
      Golden vectors and property tests of the installed package on the installed device: all groups or one, with so
      many random cases of a kind and repeats. --case runs one case again, as a failure prints it.

  flashattn bench [--device auto|cpu|wasm|cuda|cuda:<index>] [--shapes B,N,H,D ...] [--dtype float32|float16|bfloat16]
                  [--causal] [--rounds 5] [--json <file>] [--svg <file>] [--baseline <file> [--slack 10]]
      Speed of forward and backward. With --baseline, an earlier --json, fails where it is slower by more than 10 %.

  flashattn explain --shape 1,4096,8,64 [--kv-shape 1,4096,2,64] [--layout bshd|bhsd] [--dtype float32|float16|bfloat16]
                    [--causal] [--window left,right] [--backward] [--device auto|cpu|wasm|cuda] [--json]
      Which kernel a problem gets and what it costs, before anything runs.

  flashattn mask <name> [--seq 1024] [--block 64|128] [--head 0] [--svg out.svg]
      Draws a named attention pattern; without a name lists them.

  flashattn systems [<name>] [--json]
      Every attention system of the package: paper, what runs and cost. With a name its formula, options and an example.

  flashattn serve --model <folder> [--name <name>] [--host 127.0.0.1] [--port 8000] [--device auto|cpu|wasm|cuda]
                  [--dtype float32|float16|bfloat16] [--cache-dtype ...] [--tokens <n>] [--block-size 16] [--budget 512]
                  [--quiet]
      A model for many clients at once, in the words of OpenAI's API, with a page to try it. --tokens: what the cache holds
      (default: 8 texts as long as can be); --budget: tokens of a step. FLASHATTN_TOKEN: what clients have to send.

  flashattn --version | --help

Exit codes: 0 fine, 1 failed, 2 the requested device cannot be used, 64 the command line is wrong.
`;

const commands: Record<string, (args: string[]) => Promise<number>> = {
  doctor,
  verify: verifyCommand,
  bench: benchCommand,
  explain: explainCommand,
  mask: maskCommand,
  // Loaded where it is asked for: it is more than all the others.
  serve: async (args) => (await import('./serve.js')).serveCommand(args),
  systems: systemsCommand,
};

async function main([name, ...args]: string[]): Promise<number> {
  if (name === '--version' || name === '-v') {
    console.log(version);
    return 0;
  }
  if (name === undefined || name === '--help' || name === '-h' || args.includes('--help')) {
    console.log(usage);
    return name === undefined ? exitCode.usage : exitCode.fine;
  }
  const command = commands[name];
  if (!command) throw new UsageError(`there is no command '${name}'`);
  return command(args);
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (error instanceof UsageError) {
    console.error(`flashattn: ${error.message}\n\n${usage}`);
    process.exitCode = exitCode.usage;
  } else if (error instanceof FlashAttnError) {
    console.error(`${error.code}: ${error.message}`);
    process.exitCode = error.code === 'ERR_DEVICE' ? exitCode.unusable : exitCode.failed;
  } else throw error;
}
