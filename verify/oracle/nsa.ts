/** Native sparse attention, query by query. The choice of blocks is made apart, so that differences leave it as it is. */
import { attend, dot, largest, meanOf, mixed, softmaxOf, Tokens, upTo } from './rows.js';

export interface NsaSizes {
  readonly batch: number;
  readonly seq: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  readonly valueDim: number;
}

export interface NsaCase extends NsaSizes {
  readonly size: number;
  readonly count: number;
  readonly window: number;
  readonly initial: number;
  readonly local: number;
}

export interface Heads {
  readonly q: ArrayLike<number>;
  readonly k: ArrayLike<number>;
  readonly v: ArrayLike<number>;
}

/** Selected blocks by batch entry, query and kv head. */
export type Selection = (b: number, i: number, kv: number) => readonly number[];

const tokensOf = (s: NsaSizes, { q, k, v }: Heads) => ({
  q: new Tokens(q, s.seq, s.heads, s.dim),
  k: new Tokens(k, s.seq, s.kvHeads, s.dim),
  v: new Tokens(v, s.seq, s.kvHeads, s.valueDim),
});

const compressed = (t: Tokens, b: number, kv: number, c: number, size: number) =>
  meanOf(upTo(size).map((u) => t.row(b, c * size + u, kv)));

/** The blocks that end at or before position i. */
const complete = (i: number, size: number) => upTo(Math.floor((i + 1) / size));

const remembered = (choose: Selection): Selection => {
  const known = new Map<string, readonly number[]>();
  return (b, i, kv) => {
    const key = `${b} ${i} ${kv}`;
    const found = known.get(key) ?? choose(b, i, kv);
    known.set(key, found);
    return found;
  };
};

export function nsaSelection(c: NsaCase, inputs: Heads): Selection {
  const { q, k } = tokensOf(c, inputs);
  const group = c.heads / c.kvHeads;
  const scale = 1 / Math.sqrt(c.dim);
  return remembered((b, i, kv) => {
    const own = Math.floor(i / c.size);
    const blocks = complete(i, c.size);
    const importance = blocks.map(() => 0);
    for (const r of upTo(group)) {
      const query = q.row(b, i, kv * group + r);
      const p = softmaxOf(blocks.map((block) => scale * dot(query, compressed(k, b, kv, block, c.size))));
      for (const block of blocks) (importance[block] as number) += p[block] as number;
    }
    const forced = (block: number) => block < c.initial || block > own - c.local;
    const ranks = upTo(own).map((block) => (forced(block) ? Number.MAX_VALUE : (importance[block] as number)));
    return [...largest(ranks, c.count - 1), own];
  });
}

type Gate = (branch: 'compressed' | 'selected' | 'sliding', b: number, i: number, h: number) => number;

export function nsa(c: NsaCase, inputs: Heads, gate: Gate, selection: Selection): Float64Array {
  const { q, k, v } = tokensOf(c, inputs);
  const group = c.heads / c.kvHeads;
  const scale = 1 / Math.sqrt(c.dim);
  const out: number[] = [];
  for (const b of upTo(c.batch))
    for (const i of upTo(c.seq))
      for (const h of upTo(c.heads)) {
        const kv = Math.floor(h / group);
        const query = q.row(b, i, h);
        const to = (keys: number[][], values: number[][]) => attend(query, keys, values, scale, c.valueDim);
        const toTokens = (tokens: number[]) =>
          to(
            tokens.map((j) => k.row(b, j, kv)),
            tokens.map((j) => v.row(b, j, kv)),
          );
        const blocks = complete(i, c.size);
        const means = (t: Tokens) => blocks.map((block) => compressed(t, b, kv, block, c.size));
        const chosen = selection(b, i, kv).flatMap((block) => upTo(c.size).map((u) => block * c.size + u));
        const rows = {
          compressed: to(means(k), means(v)),
          selected: toTokens(chosen.filter((j) => j <= i)),
          sliding: toTokens(upTo(c.seq).filter((j) => j <= i && i - j < c.window)),
        };
        const branches = ['compressed', 'selected', ...(c.window > 0 ? (['sliding'] as const) : [])] as const;
        const weights = branches.map((branch) => gate(branch, b, i, h));
        out.push(
          ...mixed(
            weights,
            branches.map((branch) => rows[branch]),
            c.valueDim,
          ),
        );
      }
  return Float64Array.from(out);
}

export interface LucidrainsCase extends NsaSizes {
  readonly windowSize: number;
  readonly stride: number;
  readonly size: number;
  readonly count: number;
  readonly window: number;
  readonly memories: number;
  readonly hidden: number;
  readonly differentiable: boolean;
}

/** memory, positions, W1, b1, W2, b2 of keys with `k` in front, and of values with `v`; gates [batch, seq, heads, 3]. */
export type LucidrainsInputs = Readonly<Record<string, Float64Array>>;

const sliceOf = (t: Float64Array, at: number, n: number) => [...t.subarray(at * n, (at + 1) * n)];

type Windows = (of: 'k' | 'v', b: number, kv: number, at: number) => number[];

/** Keys and values of windows, each made once. */
function windowsOf(c: LucidrainsCase, inputs: LucidrainsInputs): Windows {
  const known = new Map<string, number[]>();
  return (of, b, kv, at) => {
    const key = `${of} ${b} ${kv} ${at}`;
    const found = known.get(key) ?? windowOf(c, inputs, of, b, kv, at);
    known.set(key, found);
    return found;
  };
}

/** The key, or value, of a window. */
function windowOf(
  c: LucidrainsCase,
  inputs: LucidrainsInputs,
  of: 'k' | 'v',
  b: number,
  kv: number,
  at: number,
): number[] {
  const dim = of === 'k' ? c.dim : c.valueDim;
  const t = new Tokens(inputs[of] as Float64Array, c.seq, c.kvHeads, dim);
  const from = (name: string) => inputs[of + name] as Float64Array;
  const flat = upTo(c.windowSize).flatMap((u) => {
    const j = at * c.stride - (c.windowSize - c.stride) + u;
    const position = sliceOf(from('Positions'), kv * c.windowSize + u, dim);
    const token = j < 0 ? position.map(() => 0) : t.row(b, j, kv);
    return token.map((x, d) => x + (position[d] as number));
  });
  const layer = (x: number[], W: Float64Array, bias: Float64Array) =>
    [...bias].map((own, o) => own + dot(sliceOf(W, o, x.length), x));
  const hidden = layer(flat, from('W1'), from('b1')).map((x) => Math.max(0, x));
  return layer(hidden, from('W2'), from('b2'));
}

/** Probabilities of the blocks that lie before that of query i. */
function probabilities(
  c: LucidrainsCase,
  inputs: LucidrainsInputs,
  windows: Windows,
  b: number,
  i: number,
  kv: number,
): number[] {
  const group = c.heads / c.kvHeads;
  const q = new Tokens(inputs.q as Float64Array, c.seq, c.heads, c.dim);
  const perBlock = c.size / c.stride;
  const logits = upTo(Math.floor(i / c.size)).map((block) => {
    let total = 0;
    for (const w of upTo(perBlock))
      for (const r of upTo(group)) total += dot(q.row(b, i, kv * group + r), windows('k', b, kv, block * perBlock + w));
    return total / (perBlock * group * Math.sqrt(c.dim));
  });
  return softmaxOf([...logits, -1000]).slice(0, -1);
}

export interface Choice {
  readonly blocks: readonly number[];
  readonly p: readonly number[];
}

/** What is selected, with its probabilities, by batch entry, query and kv head. */
export function lucidrainsChoices(
  c: LucidrainsCase,
  inputs: LucidrainsInputs,
): (b: number, i: number, kv: number) => Choice {
  const windowAt = windowsOf(c, inputs);
  return (b, i, kv) => {
    const p = probabilities(c, inputs, windowAt, b, i, kv);
    const blocks = largest(p, c.count).filter((block) => (p[block] as number) > 1e-10);
    return { blocks, p: blocks.map((block) => p[block] as number) };
  };
}

/** @param turn rotary positions of a query or key at a position */
export function nsaLucidrains(
  c: LucidrainsCase,
  inputs: LucidrainsInputs,
  turn: (x: number[], position: number) => number[],
  choices: (b: number, i: number, kv: number) => Choice,
): Float64Array {
  const { q, k, v } = tokensOf(c, inputs as unknown as Heads);
  const windowAt = windowsOf(c, inputs);
  const group = c.heads / c.kvHeads;
  const scale = 1 / Math.sqrt(c.dim);
  const out: number[] = [];
  for (const b of upTo(c.batch))
    for (const i of upTo(c.seq))
      for (const h of upTo(c.heads)) {
        const kv = Math.floor(h / group);
        const windows = upTo(Math.floor(c.seq / c.stride)).filter((at) => (at + 1) * c.stride - 1 < i);
        const of = (name: 'k' | 'v', dim: number) => [
          ...upTo(c.memories).map((m) => sliceOf(inputs[`${name}Memory`] as Float64Array, kv * c.memories + m, dim)),
          ...windows.map((at) => windowAt(name, b, kv, at)),
        ];
        const compressed = attend(q.row(b, i, h), of('k', c.dim), of('v', c.valueDim), scale, c.valueDim);
        const query = turn(q.row(b, i, h), i);
        const choice = choices(b, i, kv);
        const p = c.differentiable ? probabilities(c, inputs, windowAt, b, i, kv) : [];
        const fine: { j: number; weight: number }[] = [];
        for (const [at, block] of choice.blocks.entries())
          for (const u of upTo(c.size))
            fine.push({
              j: block * c.size + u,
              weight: c.differentiable ? 1 + (p[block] as number) - (choice.p[at] as number) : 1,
            });
        for (let j = Math.floor(i / c.size) * c.size; j <= i; j++) fine.push({ j, weight: 1 });
        const selected = attend(
          query,
          fine.map(({ j, weight }) => turn(k.row(b, j, kv), j).map((x) => x * weight)),
          fine.map(({ j }) => v.row(b, j, kv)),
          scale,
          c.valueDim,
        );
        const near = upTo(c.seq).filter((j) => j <= i && i - j <= c.window);
        const sliding = attend(
          query,
          near.map((j) => turn(k.row(b, j, kv), j)),
          near.map((j) => v.row(b, j, kv)),
          scale,
          c.valueDim,
        );
        const gates = sliceOf(inputs.gates as Float64Array, (b * c.seq + i) * c.heads + h, 3);
        out.push(...mixed(gates, [compressed, selected, sliding], c.valueDim));
      }
  return Float64Array.from(out);
}
