/** The example that trains a model where there is none, serves it, and streams from it. */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { runNode } from '../support/child.js';
import { temporaryFolder } from '../support/folder.js';

const at = temporaryFolder();
const example = fileURLToPath(new URL('../../build/examples/serve.js', import.meta.url));

describe('the example of serving', () => {
  it('trains once, serves under its name, and ends when it is told to', async () => {
    const folder = at('model');
    const run = () => runNode([example, '--once', '--steps', '10', '--folder', folder, '--port', '0']);
    const first = await run();
    expect(first.stderr).toBe('');
    expect(first.code).toBe(0);
    expect(first.stdout).toContain('there is no model yet');
    expect(first.stdout).toMatch(/example is ready: http:\/\/127\.0\.0\.1:\d+\/v1\n/);
    expect(first.stdout).toMatch(/--- streamed: The [\s\S]{50,}\n--- http/);
    expect(existsSync(`${folder}/model/config.json`)).toBe(true);
    const second = await run();
    expect(second.stdout).not.toContain('there is no model yet');
    const said = ({ stdout }: typeof first) => /--- streamed: ([\s\S]*)\n--- http/.exec(stdout)?.[1];
    expect(said(second)).toBe(said(first)); // of one seed
  });
});
