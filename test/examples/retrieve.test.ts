import { appendFileSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { chunksOf, readDocuments, tokensOf } from '../../examples/retrieve/documents.js';
import { parse, UsageError } from '../../examples/retrieve/options.js';
import { runNode } from '../support/child.js';
import { failureOf } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';

const at = temporaryFolder();
const program = fileURLToPath(new URL('../../build/examples/retrieve.js', import.meta.url));
const run = (...args: string[]) => runNode([program, ...args]);

const fox =
  'The quick brown fox jumps over the lazy dog, and then it sleeps under an old oak tree until the sun goes down.';
const shells =
  'She sells sea shells by the sea shore, but nobody on that beach has ever bought a single one of her shells.';
const pipers =
  'Peter Piper picked a peck of pickled peppers; how many pickled peppers did he pick on that cold morning?';

function folderOf(name: string, texts: Readonly<Record<string, string>>): string {
  const folder = at(name);
  for (const [file, text] of Object.entries(texts)) {
    mkdirSync(`${folder}/${file}`.replace(/\/[^/]*$/, ''), { recursive: true });
    writeFileSync(`${folder}/${file}`, text);
  }
  return folder;
}

const found = (stdout: string) => [...stdout.matchAll(/^ {2}(\S+) +(\S+), chunk (\d+)$/gm)].map(([, ...rest]) => rest);

describe('the example of retrieval', () => {
  it('finds the text that a prompt is from, and goes on as it does', async () => {
    const data = folderOf('texts', { 'fox.txt': fox, 'deep/shells.md': shells, 'pipers.txt': pipers, 'x.bin': fox });
    const args = ['--data', data, '--chunk', '6', '--tokens', '9', '--neighbours', '1'];
    const { code, stdout, stderr } = await run(...args, '--prompt', 'shells by the sea shore,');
    expect(stderr).toBe('');
    expect(code).toBe(0);
    expect(stdout).toMatch(/^documents {3}3, \d+ chunks of 6 tokens/);
    const [first] = found(stdout);
    expect(first?.[1]).toBe('deep/shells.md');
    expect(stdout).toContain('goes on     but nobody on\n');
    const other = await run(...args, '--prompt', 'Peter Piper picked a peck of');
    // The very chunk.
    expect(found(other.stdout)[0]).toEqual(['1.000', 'pipers.txt', '0']);
    expect(other.stdout).toContain('goes on     pickled peppers; how many pickled peppers');
  });

  it('keeps its index, adds what is new and begins anew where something has changed', async () => {
    const data = folderOf('growing', { 'fox.txt': fox, 'pipers.txt': pipers });
    const index = at('index');
    const args = ['--data', data, '--index', index, '--chunk', '6', '--prompt', 'sea shells by the sea shore'];
    const origin = async (...more: string[]) => {
      const { code, stdout, stderr } = await run(...args, ...more);
      expect(stderr).toBe('');
      expect(code).toBe(0);
      return { origin: stdout.match(/^index {7}(.*), /m)?.[1], nearest: found(stdout)[0]?.[1], stdout };
    };
    expect(await origin()).toMatchObject({ origin: 'built' });
    const written = statSync(`${index}/index.safetensors`).mtimeMs;
    expect(await origin()).toMatchObject({ origin: 'read' });
    expect(statSync(`${index}/index.safetensors`).mtimeMs).toBe(written);
    writeFileSync(`${data}/a-shells.txt`, shells);
    const added = await origin();
    expect(added).toMatchObject({ origin: 'read and added to' });
    expect(found(added.stdout).length).toBeGreaterThan(0);
    expect(added.stdout).toContain('a-shells.txt, chunk 0');
    // What was added comes behind what was there, whatever its name; it is found there again.
    expect(JSON.parse(readFileSync(`${index}/documents.json`, 'utf8')).documents).toMatchObject([
      { name: 'fox.txt' },
      { name: 'pipers.txt' },
      { name: 'a-shells.txt' },
    ]);
    const again = await origin();
    expect(again.stdout.replace('read,', 'read and added to,')).toBe(added.stdout);
    appendFileSync(`${data}/fox.txt`, ' It never wakes again.');
    expect(await origin()).toMatchObject({ origin: 'built' });
    expect(await origin('--seed', '2')).toMatchObject({ origin: 'built' });
  });

  it('says what is wrong', async () => {
    const empty = folderOf('none', { 'x.bin': 'x' });
    for (const [args, code, message] of [
      [['--data', at('missing')], 1, /^ERR_FOLDER: .* is no folder\n/],
      [['--data', empty], 1, /^ERR_FOLDER: .* has no .txt or .md file with a word in it\n/],
      [['--prompt', ' '], 1, /^ERR_FOLDER: --prompt has no word in it\n/],
      [['--chunk', '1'], 2, /^--chunk needs a whole number from 2 on, not '1'\n\n/],
      [['--nothing'], 2, /^Unknown option '--nothing'/],
    ] as const) {
      const result = await run(...args);
      expect(result.stderr).toMatch(message);
      expect(result.code).toBe(code);
    }
    const otherwise = { data: 'docs', prompt: 'x' };
    expect(await failureOf(() => parse(['--device', 'gpu'], otherwise))).toBeInstanceOf(UsageError);
    expect(parse(['--help'], otherwise)).toBeUndefined();
  });
});

it('cuts texts into tokens that are the text again', () => {
  const text = 'Ünder_score 3.5%\n\n  end';
  const tokens = tokensOf(text);
  expect(tokens).toEqual(['Ünder_score', ' 3', '.', '5', '%', '\n\n  end']);
  expect(chunksOf(tokens, 4).map((chunk) => chunk.length)).toEqual([4, 2]);
  const folder = folderOf('order', { 'b.txt': 'b', 'a/c.md': text, 'empty.txt': ' \n' });
  expect(readDocuments(folder, 4).map(({ name, chunks }) => [name, chunks.flat().join('')])).toEqual([
    ['a/c.md', text],
    ['b.txt', 'b'],
  ]);
});
