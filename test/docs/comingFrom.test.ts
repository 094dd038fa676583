/** Every line of code of docs/coming-from.md, run. */
import { readFileSync } from 'node:fs';
import * as flashattn from 'flashattn';
import { BlockMask, Mask, Tensor } from 'flashattn';
import { afterAll, describe, expect, it } from 'vitest';
import { normal } from '../../verify/oracle/random.js';

const page = readFileSync(new URL('../../docs/coming-from.md', import.meta.url), 'utf8');

interface Row {
  readonly theirs: string;
  readonly ours: string;
}

/** The rows of the tables of each section: all but their headings and rules. */
const sections = page
  .split(/^## /m)
  .slice(1)
  .map((text) => {
    const rows = [...text.matchAll(/^\| (.*?) \| (.*) \|$/gm)].map(([, theirs, ours]) => ({ theirs, ours }) as Row);
    return { title: text.split('\n', 1)[0] ?? '', rows: rows.slice(2) };
  });

const [B, N, Nq, Nk, D] = [2, 4, 5, 7, 8] as const;
const random = (shape: readonly number[]) =>
  flashattn.tensor(
    normal(
      shape.reduce((a, b) => a * b, 1),
      shape.length,
    ),
    shape,
  ) as Tensor;

const shared = {
  ...flashattn,
  ...{ B, N, Nq, Nk, D },
  visible: Array.from({ length: Nq * Nk }, (_, at) => at % 3 !== 0),
  shorter: Array.from({ length: Nq * Nk }, (_, at) => at % Nk < 4),
  additive: random([Nq, Nk]),
  table: random([Nq, Nk]),
  headSlopes: random([N]),
  docs: flashattn.tensor(
    Int32Array.from({ length: Nk }, (_, at) => at >> 1),
    [Nk],
  ),
  slopes: Array.from({ length: B * N }, (_, at) => at / 16),
  qkv: random([B, Nq, 3, N, D]),
  packedQ: random([10, N, D]),
  packedK: random([14, N, D]),
  packedV: random([14, N, D]),
  q3: random([B, Nq, N * D]),
  k3: random([B, Nk, N * D]),
  v3: random([B, Nk, N * D]),
};
const layouts = {
  bhsd: { q: random([B, N, Nq, D]), k: random([B, N, Nk, D]), v: random([B, N, Nk, D]), dOut: random([B, N, Nq, D]) },
  bshd: { q: random([B, Nq, N, D]), k: random([B, Nk, N, D]), v: random([B, Nk, N, D]), dOut: random([B, Nq, N, D]) },
};

afterAll(() => {
  for (const value of Object.values({ ...shared, ...layouts.bhsd, ...layouts.bshd }))
    if (value instanceof Tensor) value.dispose();
});

function run(code: string, title: string): unknown {
  const names = { ...shared, ...layouts[/PyTorch|ONNX/.test(title) ? 'bhsd' : 'bshd'] };
  return new Function(...Object.keys(names), `'use strict'; return (${code});`)(...Object.values(names));
}

const hasNoNaN = (t: Tensor) => t.toFloat32Sync().every((x) => !Number.isNaN(x));

describe.each(sections)('$title', ({ title, rows }) => {
  it('has rows', () => expect(rows.length).toBeGreaterThan(8));

  it.each(rows)('$theirs', async ({ theirs, ours }) => {
    const code = /^`([^`]+)`/.exec(ours)?.[1];
    if (code === undefined) {
      expect(ours).toMatch(/^not needed/);
      return;
    }
    const result = await run(code, title);
    if (/^`torch\.cuda\.(?!CUDAGraph)/.test(theirs)) return; // about the device, not about tensors
    if (result instanceof Mask || result instanceof BlockMask) return;
    const tensors = (result instanceof Tensor ? [result] : Object.values(result as object)).filter(
      (value) => value instanceof Tensor,
    );
    expect(tensors.length).toBeGreaterThan(0);
    for (const t of tensors) expect(hasNoNaN(t)).toBe(true);
  });
});
