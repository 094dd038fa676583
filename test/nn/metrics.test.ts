import { execFileSync } from 'node:child_process';
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { describe, expect, it } from 'vitest';
import { MetricsWriter } from '../../lib/nn/metrics.js';
import { runNode } from '../support/child.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';

const at = temporaryFolder();
const linesOf = (path: string) => readFileSync(path, 'utf8').split('\n');

describe('MetricsWriter', () => {
  it('appends lines of JSON that are there at once', () => {
    const path = at('metrics.jsonl');
    using writer = new MetricsWriter(path);
    writer.write({ step: 1, train: 3.5, note: 'a\nb', done: false, nothing: null });
    expect(linesOf(path)).toEqual(['{"step":1,"train":3.5,"note":"a\\nb","done":false,"nothing":null}', '']);
    writer.write({ step: 2, train: Number.NaN, rate: Number.NEGATIVE_INFINITY });
    expect(JSON.parse(linesOf(path)[1])).toEqual({ step: 2, train: 'NaN', rate: '-Infinity' });
    using second = new MetricsWriter(path);
    second.write({ step: 3 });
    writer.write({ step: 4 });
    expect(linesOf(path).slice(2)).toEqual(['{"step":3}', '{"step":4}', '']);
  });

  it('leaves a line that was cut off alone', () => {
    const path = at('torn.jsonl');
    writeFileSync(path, '{"step":1}\n{"st');
    using writer = new MetricsWriter(path);
    writer.write({ step: 2 });
    writer.write({ step: 3 });
    expect(linesOf(path)).toEqual(['{"step":1}', '{"st', '{"step":2}', '{"step":3}', '']);
  });

  it('loses nothing when the program is killed', async () => {
    const [library, path] = [at('metrics.mjs'), at('killed.jsonl')];
    const entry = fileURLToPath(new URL('../../lib/nn/metrics.ts', import.meta.url));
    await build({ entryPoints: [entry], outfile: library, bundle: true, platform: 'node', format: 'esm' });
    const program = `
      import { MetricsWriter } from ${JSON.stringify(library)};
      const writer = new MetricsWriter(${JSON.stringify(path)});
      for (let step = 0; step < 1000; step++) writer.write({ step });
      process.kill(process.pid, 'SIGKILL');
    `;
    await runNode(['--input-type=module', '--eval', program]);
    expect(linesOf(path)).toEqual([...Array.from({ length: 1000 }, (_, step) => `{"step":${step}}`), '']);
  });

  it('refuses what is no line, and writes none of it', async () => {
    const path = at('refused.jsonl');
    const writer = new MetricsWriter(path);
    for (const value of [undefined, 1n, [1], { a: 1 }, () => 1, Symbol('a')])
      await expectFailure(() => writer.write({ ok: 1, loss: value as never }), 'ERR_OPTION', 'metrics["loss"] is');
    await expectFailure(() => writer.write(null as never), 'ERR_OPTION', 'metrics is null');
    expect(readFileSync(path, 'utf8')).toBe('');
    writer.close();
    writer.close();
    await expectFailure(() => writer.write({ step: 1 }), 'ERR_FILE', 'refused.jsonl: has been closed');
  });

  it('says which file cannot be written', async () => {
    await expectFailure(() => new MetricsWriter(at('nowhere/a')), 'ERR_FILE', /nowhere.*ENOENT/);
    await expectFailure(() => new MetricsWriter(at('.')), 'ERR_FILE', /EISDIR|not a file/);
    await expectFailure(() => new MetricsWriter(''), 'ERR_OPTION', 'path is ""');
  });

  it.skipIf(!existsSync('/dev/full'))('says so when the disk is full', async () => {
    await expectFailure(() => new MetricsWriter('/dev/full'), 'ERR_FILE', 'not a file');
    // A limit on the size of files: the line that goes beyond it is cut off, and the next begins a new one.
    const [library, path] = [at('metrics.mjs'), at('full.jsonl')];
    appendFileSync(path, `${'x'.repeat(1020)}\n`);
    const program = `
      import { MetricsWriter } from ${JSON.stringify(library)};
      process.on('SIGXFSZ', () => {});
      const writer = new MetricsWriter(${JSON.stringify(path)});
      try { writer.write({ step: 1 }); } catch (error) { console.log(error.code, error.message); }
    `;
    const quoted = `ulimit -f 1; exec "$0" --input-type=module --eval "$1"`;
    const output = execFileSync('bash', ['-c', quoted, process.execPath, program], { encoding: 'utf8' });
    expect(output).toMatch(/^ERR_FILE .*full\.jsonl: cannot be written \(EFBIG/);
    using writer = new MetricsWriter(path);
    writer.write({ step: 2 });
    expect(linesOf(path).slice(1)).toEqual(['{"s', '{"step":2}', '']);
  });
});
