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

/** Runs node to its end, within a minute: a process that hangs fails. */
export async function runNode(args: readonly string[], env: Record<string, string> = {}): Promise<ChildResult> {
  try {
    const options = { env: { ...process.env, ...env }, timeout: 60_000 };
    const { stdout, stderr } = await promisify(execFile)(process.execPath, args, options);
    return { code: 0, stdout, stderr };
  } catch (error) {
    const { code, stdout = '', stderr = '', killed } = error as ChildResult & { killed?: boolean };
    if (killed) throw new Error(`the process did not end by itself: ${stdout}${stderr}`);
    return { code, stdout, stderr };
  }
}

/** Runs a module that sees the built package as `fa`. */
export function runScript(
  body: string,
  env: Record<string, string> = {},
  flags: readonly string[] = [],
): Promise<ChildResult> {
  const script = `import * as fa from ${JSON.stringify(distUrl)};\n${body}`;
  return runNode([...flags, '--input-type=module', '--eval', script], env);
}
