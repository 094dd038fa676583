/**
 * Runs the steps of a visit to a GPU machine, the commands of a step side by side. A command that fails, hangs or loses the
 * device ends alone; what it printed and wrote until then is kept. Results reach the folder `out` as they come: summary.json
 * and log.txt after every command, results.tar.gz after every step.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, createWriteStream, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Command {
  readonly name: string;
  readonly run: readonly [program: string, ...args: string[]];
  readonly env?: Readonly<Record<string, string>>;
  /** Whether its output is worth showing also when all is well. */
  readonly shows?: boolean;
  /** Further arguments with which it goes on after this output, such as behind a check that lost the device. */
  readonly resume?: (output: string) => readonly string[] | undefined;
}

export interface Step {
  readonly name: string;
  /** The limit of each of its commands. */
  readonly seconds: number;
  /** What it needs, and a command of the shell that finds out whether it is there; without it the step is skipped. */
  readonly needs?: { readonly what: string; readonly test: string };
  readonly commands: (files: Files) => readonly Command[];
}

/** Where a command may read and write. */
export interface Files {
  readonly results: string;
}

export interface Outcome {
  readonly result: 'pass' | 'fail' | 'timeout' | 'skipped';
  readonly code: number | null;
  readonly seconds: number;
  readonly restarts?: number;
}

export interface Visit {
  readonly steps: readonly Step[];
  /** What comes back from the machine. */
  readonly out: string;
  /** What commands write, packed into `out`. */
  readonly results: string;
  /** How much of its limit a step gets; 1 but where it is tried. */
  readonly scale: number;
}

/** A full disk must not end a visit. */
function attempt(action: () => void): void {
  try {
    action();
  } catch (error) {
    console.log(`not kept: ${(error as Error).message}`);
  }
}

const lastLines = (text: string, count: number) => text.trimEnd().split('\n').slice(-count).join('\n');

/** Runs until it ends or its time is up; the whole group of its processes ends with it. */
async function runOnce(command: Command, args: readonly string[], log: string, seconds: number) {
  const [program, ...given] = command.run;
  const child = spawn(program, [...given, ...args], {
    detached: true,
    env: { ...process.env, ...command.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const file = createWriteStream(log, { flags: 'a' });
  file.on('error', () => {});
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      output = (output + text).slice(-200_000);
      file.write(text);
    });
  let timedOut = false;
  const kill = setTimeout(() => {
    timedOut = true;
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    } catch {
      // It has just ended.
    }
  }, seconds * 1000);
  const code = await new Promise<number | null>((settle) => {
    child.once('error', (error) => {
      output += `${error.message}\n`;
      settle(127);
    });
    child.once('close', settle);
  });
  clearTimeout(kill);
  file.end();
  await Promise.race([once(file, 'close'), once(file, 'error')]);
  return { code, output, timedOut };
}

/** Runs all steps; the outcome of each command by its name. */
export async function runVisit({ steps, out, results, scale }: Visit): Promise<Readonly<Record<string, Outcome>>> {
  const began = performance.now();
  const outcomes: Record<string, Outcome> = {};
  const clock = () => `${((performance.now() - began) / 1000).toFixed(0).padStart(4)} s`;

  const say = (text: string) => {
    console.log(text);
    attempt(() => appendFileSync(join(out, 'log.txt'), `${text}\n`));
  };
  const keepSummary = () => {
    const summary = { date: new Date().toISOString(), outcomes };
    attempt(() => writeFileSync(join(out, 'summary.json'), `${JSON.stringify(summary, null, 2)}\n`));
  };
  const keepResults = () => {
    const { status } = spawnSync('tar', ['-czf', join(out, 'results.tar.gz'), '-C', results, '.']);
    if (status !== 0) console.log('not kept: results.tar.gz');
  };

  const runCommand = async (command: Command, seconds: number) => {
    const start = performance.now();
    const spent = () => (performance.now() - start) / 1000;
    const log = join(results, `${command.name}.log`);
    attempt(() => rmSync(log, { force: true }));
    let restarts = 0;
    let failed = false;
    let last = await runOnce(command, [], log, seconds);
    for (;;) {
      failed ||= last.code !== 0;
      const more = last.timedOut ? undefined : command.resume?.(last.output);
      if (!more || spent() >= seconds) break;
      restarts++;
      last = await runOnce(command, more, log, seconds - spent());
    }
    const result = last.timedOut ? 'timeout' : failed ? 'fail' : 'pass';
    outcomes[command.name] = { result, code: last.code, seconds: Number(spent().toFixed(1)), restarts };
    const again = restarts > 0 ? `, ${restarts} restarts` : '';
    say(`${clock()}  ${result.padEnd(8)} ${command.name}, ${spent().toFixed(1)} s${again}`);
    if (result !== 'pass' || command.shows)
      say(lastLines(last.output, result === 'pass' ? 60 : 25).replace(/^/gm, '    '));
    keepSummary();
  };

  const runStep = async ({ name, seconds, needs, commands }: Step) => {
    say(`${clock()}  == ${name}`);
    if (needs !== undefined && spawnSync('sh', ['-c', needs.test]).status !== 0) {
      outcomes[name] = { result: 'skipped', code: null, seconds: 0 };
      say(`skipped: there is no ${needs.what}`);
      return keepSummary();
    }
    await Promise.all(commands({ results }).map((command) => runCommand(command, seconds * scale)));
    keepResults();
  };

  mkdirSync(out, { recursive: true });
  mkdirSync(results, { recursive: true });
  for (const step of steps) await runStep(step);
  const bad = Object.entries(outcomes).filter(([, { result }]) => result === 'fail' || result === 'timeout');
  say(
    `${clock()}  ${Object.keys(outcomes).length} commands, ${bad.length} bad: ${bad.map(([name]) => name).join(', ')}`,
  );
  return outcomes;
}
