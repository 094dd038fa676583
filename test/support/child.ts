import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

export const distUrl = new URL('../../dist/index.js', import.meta.url).href;
export const cliPath = fileURLToPath(new URL('../../dist/cli.js', import.meta.url));

export interface ChildResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Longer than anything takes, also beside others: a program that hangs is ended and fails. */
const HANGS_MS = 800_000;

/** Runs a program to its end. */
export async function runProgram(
  path: string,
  args: readonly string[] = [],
  env: Record<string, string> = {},
): Promise<ChildResult> {
  try {
    const options = { env: { ...process.env, ...env }, timeout: HANGS_MS, maxBuffer: 1 << 26 };
    const { stdout, stderr } = await promisify(execFile)(path, args, options);
    return { code: 0, stdout, stderr };
  } catch (error) {
    const { code, stdout = '', stderr = '', killed } = error as ChildResult & { killed?: boolean };
    if (killed) throw new Error(`${path} did not end by itself: ${stdout}${stderr}`);
    return { code, stdout, stderr };
  }
}

export const runNode = (args: readonly string[], env: Record<string, string> = {}): Promise<ChildResult> =>
  runProgram(process.execPath, args, env);

/** Runs a module that sees the built package as `fa`. */
export function runScript(
  body: string,
  env: Record<string, string> = {},
  flags: readonly string[] = [],
): Promise<ChildResult> {
  const script = `import * as fa from ${JSON.stringify(distUrl)};\n${body}`;
  return runNode([...flags, '--input-type=module', '--eval', script], env);
}
