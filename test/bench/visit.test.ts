import { mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { type Command, runVisit, type Step } from '../../bench/gpu/runner.js';
import { suite } from '../../verify/device/suite.js';
import { runNode } from '../support/child.js';

const program = fileURLToPath(new URL('../../build/bench/visit.js', import.meta.url));

const shell = (name: string, script: string, more: Partial<Command> = {}): Command => ({
  name,
  run: ['sh', '-c', script, 'sh'],
  ...more,
});

const step = (name: string, ...commands: Command[]): Step => ({ name, seconds: 20, commands: () => commands });

describe('the visits', () => {
  const list = (...args: string[]) => runNode([program, ...args, '--list']);

  it('run all there is to run: every step, and every group of checks in both ways', async () => {
    const { code, stdout } = await list('1', '2', '3');
    expect(code).toBe(0);
    const { stderr } = await list('nothing');
    const [, known = ''] = /or steps \((.*)\)/.exec(stderr) ?? [];
    expect(new Set(stdout.match(/^\w+(?=:)/gm))).toEqual(new Set(known.split(', ')));
    const groups = suite({ cases: 1, repeats: 1, large: true }).map(({ name }) => name);
    // Products by cuBLASLt too.
    const timesOf = (group: string) => (group === 'products' ? 5 : 4);
    for (const group of [...groups, 'golden'])
      expect(stdout.split(` --group ${group} `)).toHaveLength(1 + timesOf(group));
  });

  it('say what is unknown', async () => {
    expect(await list('7')).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('7 to run: name visits (1, 2, 3)'),
    });
  });
});

describe.skipIf(process.platform === 'win32')('a visit to a GPU machine', () => {
  const folders: string[] = [];
  const folder = () => {
    folders.push(mkdtempSync(join(tmpdir(), 'flashattn-visit-')));
    return folders.at(-1) as string;
  };
  vi.spyOn(console, 'log').mockImplementation(() => {});
  afterEach(() => {
    for (const path of folders.splice(0)) rmSync(path, { recursive: true, force: true });
  });

  const visit = async (...steps: Step[]) => {
    const [out, results] = [folder(), folder()];
    const outcomes = await runVisit({ steps, out, results, scale: 1 });
    const read = (path: string) => readFileSync(path, 'utf8');
    return { outcomes, out, log: read(join(out, 'log.txt')), output: (name: string) => read(join(results, name)) };
  };

  it('runs the commands of a step side by side and keeps what they print', async () => {
    // Each waits for the other.
    const path = folder();
    const meet = (own: string, other: string) =>
      `echo ${own}; : > ${path}/${own}; while [ ! -e ${path}/${other} ]; do sleep 0.01; done`;
    const { outcomes, out, output } = await visit(step('both', shell('a', meet('a', 'b')), shell('b', meet('b', 'a'))));
    expect(outcomes).toMatchObject({ a: { result: 'pass', code: 0 }, b: { result: 'pass', code: 0 } });
    expect(output('a.log')).toBe('a\n');
    expect(JSON.parse(readFileSync(join(out, 'summary.json'), 'utf8'))).toMatchObject({ outcomes });
    expect(readFileSync(join(out, 'results.tar.gz')).subarray(0, 2)).toEqual(Buffer.of(0x1f, 0x8b));
  });

  it('ends a command that hangs, with all that it has started, keeps what it printed and goes on', async () => {
    const hang: Step = {
      name: 'hang',
      seconds: 1,
      commands: () => [shell('hang', 'echo begun; sleep 1000 & wait')],
    };
    const { outcomes, output, log } = await visit(hang, step('after', shell('after', 'exit 0')));
    expect(outcomes).toMatchObject({ hang: { result: 'timeout' }, after: { result: 'pass' } });
    expect(output('hang.log')).toBe('begun\n');
    expect(log).toContain('2 commands, 1 bad: hang');
  });

  it('goes on behind a check that lost the device', async () => {
    const script = 'if [ $# -eq 0 ]; then echo "lost: --from 3"; exit 3; fi; echo "from $2"';
    const resume = (output: string) => (/lost/.test(output) ? ['--from', '3'] : undefined);
    const { outcomes, output } = await visit(step('verify', shell('verify', script, { resume })));
    expect(outcomes.verify).toMatchObject({ result: 'fail', code: 0, restarts: 1 });
    expect(output('verify.log')).toBe('lost: --from 3\nfrom 3\n');
  });

  it('reports what crashes, what cannot be started and what is not there', async () => {
    const { outcomes, log } = await visit(
      step('crash', shell('crash', 'echo last words; kill -SEGV $$')),
      step('missing', { name: 'missing', run: ['no-such-program'] }),
      {
        ...step('skipped', shell('never', 'exit 0')),
        needs: { what: 'no-such-program', test: 'command -v no-such-program' },
      },
    );
    expect(outcomes).toMatchObject({
      crash: { result: 'fail', code: null },
      missing: { result: 'fail', code: 127 },
      skipped: { result: 'skipped' },
    });
    expect(log).toContain('last words');
    expect(log).toContain('skipped: there is no no-such-program');
  });

  it.skipIf(process.platform !== 'linux')('goes on when the disk is full', async () => {
    const [out, results] = [folder(), folder()];
    for (const name of ['log.txt', 'summary.json', 'results.tar.gz']) symlinkSync('/dev/full', join(out, name));
    const steps = [step('one', shell('one', 'echo 1')), step('two', shell('two', 'echo 2'))];
    const outcomes = await runVisit({ steps, out, results, scale: 1 });
    expect(outcomes).toMatchObject({ one: { result: 'pass' }, two: { result: 'pass' } });
    expect(readFileSync(join(results, 'two.log'), 'utf8')).toBe('2\n');
  });
});
