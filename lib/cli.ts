#!/usr/bin/env node
import { doctor } from './cli/doctor.js';
import { explainCommand } from './cli/explain.js';
import { maskCommand } from './cli/mask.js';
import { UsageError } from './cli/usage.js';
import { FlashAttnError } from './errors.js';
import { version } from './version.js';

const usage = `flashattn ${version}: exact attention for Node.js

  flashattn doctor [--device auto|wasm|cuda|cuda:<index>] [--json]
      What this machine can do and why not more, with a numeric self-test. Exit code 0 only when healthy.

  flashattn explain --shape 1,4096,8,64 [--kv-shape 1,4096,2,64] [--layout bshd|bhsd] [--dtype float32|float16|bfloat16]
                    [--causal] [--window left,right] [--backward] [--device auto|wasm|cuda] [--json]
      Which kernel a problem gets and what it costs, before anything runs.

  flashattn mask <name> [--seq 1024] [--block 64|128] [--head 0] [--svg out.svg]
      Draws a named attention pattern; without a name lists them.

  flashattn --version | --help
`;

const commands: Record<string, (args: string[]) => Promise<number>> = {
  doctor,
  explain: explainCommand,
  mask: maskCommand,
};

async function main([name, ...args]: string[]): Promise<number> {
  if (name === '--version' || name === '-v') {
    console.log(version);
    return 0;
  }
  if (name === undefined || name === '--help' || name === '-h' || args.includes('--help')) {
    console.log(usage);
    return name === undefined ? 2 : 0;
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
    process.exitCode = 2;
  } else if (error instanceof FlashAttnError) {
    console.error(`${error.code}: ${error.message}`);
    process.exitCode = 1;
  } else throw error;
}
