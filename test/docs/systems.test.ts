/** docs/systems.md is what the catalogue says. */
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { SystemFamily } from '../../lib/cli/systems/entry.js';
import { families } from '../../lib/cli/systems/index.js';

const docs = new URL('../../docs/', import.meta.url);
const page = readFileSync(new URL('systems.md', docs), 'utf8').replaceAll('\r\n', '\n');

describe('docs/systems.md', () => {
  it('is up to date: `npm run gallery` writes it', async () => {
    const script = (await import(new URL('../../scripts/systems-table.mjs', import.meta.url).href)) as {
      systemsPage(families: readonly SystemFamily[]): string;
    };
    expect(page).toBe(script.systemsPage(families));
  });

  it('leads somewhere', () => {
    const titles = [...page.matchAll(/^## (.*)$/gm)].map(([, title]) => (title as string).toLowerCase());
    const anchors = titles.map((title) => title.replaceAll(' ', '-').replaceAll(/[^\w-]/g, ''));
    for (const [, to = ''] of page.matchAll(/\]\(([^)]+)\)/g)) {
      if (to.startsWith('#')) expect(anchors).toContain(to.slice(1));
      else if (!to.startsWith('https://arxiv.org/abs/')) expect(existsSync(new URL(to, docs)), to).toBe(true);
    }
  });

  it.each(['README.md', 'docs/linear.md', 'docs/masks.md'])('is linked from %s', (file) => {
    const text = readFileSync(new URL(`../../${file}`, import.meta.url), 'utf8');
    expect(text).toContain(file === 'README.md' ? '(docs/systems.md)' : '(systems.md)');
  });

  it('is counted in the README', () => {
    const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
    expect(readme).toContain(`[all ${families.flatMap(({ systems }) => systems).length} systems](docs/systems.md)`);
  });
});
