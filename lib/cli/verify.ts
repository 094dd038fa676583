import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { type DeviceName, usableStatus } from '../devices/registry.js';
import { exitCode } from './exit.js';
import { readFlags } from './usage.js';

/** dist/verify.js: the checks of verify/device with all that they need but this package. */
interface Program {
  /** 0 everything passed, 1 something failed, 2 nothing could be run. */
  main(args: readonly string[], command: string): Promise<number>;
}

/** `flashattn verify` */
export async function verifyCommand(args: string[]): Promise<number> {
  const text = { type: 'string' } as const;
  const flags = readFlags(args, {
    device: { ...text, default: 'auto' },
    quick: { type: 'boolean' },
    cases: text,
    repeats: text,
    group: text,
    golden: text,
    json: text,
    case: text,
  });
  // What 'auto' stands for here; a device that was asked for and cannot be used ends the command.
  const { device } = usableStatus(flags.device as DeviceName);
  const vectors = new URL('./vectors/', import.meta.url);
  const golden = flags.golden ?? (existsSync(vectors) ? fileURLToPath(vectors) : undefined);
  const rest = Object.entries({ ...flags, device, golden }).flatMap(([name, value]) => {
    if (typeof value === 'boolean') return value ? [`--${name}`] : [];
    return value === undefined ? [] : [`--${name}=${value}`];
  });
  const program = (await import(new URL('./verify.js', import.meta.url).href)) as Program;
  const code = await program.main(rest, 'npx flashattn verify');
  return code === 2 ? exitCode.usage : code;
}
