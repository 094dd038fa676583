// Attention whose logits have to be there: queries are taken in blocks, and each block is computed again for its gradient.
import { checkpoint } from '../autograd/checkpoint.js';
import { cumsum } from '../ops/alongAxis.js';
import { concat } from '../ops/concat.js';
import { fused } from '../ops/elementwise.js';
import { pad } from '../ops/split.js';
import { filled } from '../tape/arithmetic.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Wide } from './inputs.js';

/**
 * Logits that a block may have over all heads, 4 MB, and how many queries it takes though theirs are more: products of fewer
 * spend their time on reading the keys. Tests make them smaller.
 */
export const blockLimit = { logits: 2 ** 20, queries: 64 };

type Range = readonly [from: number, to: number];

/** Some queries of some batch entries, and the keys that one of them sees. */
interface QueryBlock {
  readonly entries: Range;
  readonly queries: Range;
  readonly keys: Range;
}

/** Which keys a query sees, and how many heads its logits have. */
export interface Sight {
  readonly heads: number;
  /** Keys up to the query's own, aligned at the bottom right. */
  readonly causal: boolean;
  /** When causal, how many keys before its own. Default: all. */
  readonly window?: number | undefined;
}

/** What belongs to queries and keys, [batch, seq, ...], and what to all of them. Some may be left out. */
export interface BlockInputs {
  readonly queries: Readonly<Record<string, Wide | undefined>>;
  readonly keys: Readonly<Record<string, Wide | undefined>>;
  readonly shared: Readonly<Record<string, Wide | undefined>>;
}

/** What a block is computed of. */
export interface BlockOf<I extends BlockInputs> {
  readonly queries: I['queries'];
  readonly keys: I['keys'];
  readonly shared: I['shared'];
  /** Added to logits: 0, or -Infinity where the query does not see the key, [queries, keys]. Absent where all are seen. */
  readonly hiding: Wide | undefined;
}

const notBehind = fused((query, key) => key.lessEqual(query).where(0, Number.NEGATIVE_INFINITY));
const within = fused((query, key, window) =>
  key
    .lessEqual(query)
    .where(query.sub(window).lessEqual(key).where(0, Number.NEGATIVE_INFINITY), Number.NEGATIVE_INFINITY),
);

function* blocksOf(
  batch: number,
  queries: number,
  keys: number,
  { heads, causal, window = keys }: Sight,
  first: number,
): Generator<QueryBlock> {
  const offset = keys - queries;
  // A block of r queries meets r - 1 keys more than a query alone.
  const met = causal ? Math.min(keys, window + 1) : keys;
  const most = blockLimit.logits / Math.max(1, heads);
  const rows = Math.max(
    blockLimit.queries,
    Math.floor(met < keys ? (Math.sqrt(met ** 2 + 4 * most) - met) / 2 : most / met),
  );
  const left = queries - first;
  const entries = rows < left ? 1 : Math.floor(rows / left);
  for (let b = 0; b < batch; b += entries)
    for (let i = first; i < queries; i += rows) {
      const end = Math.min(queries, i + rows);
      yield {
        entries: [b, Math.min(batch, b + entries)],
        queries: [i, end],
        keys: causal ? [Math.max(0, i + offset - window), end + offset] : [0, keys],
      };
    }
}

const cut = <T extends Readonly<Record<string, Wide | undefined>>>(all: T, entries: Range, range: Range): T =>
  Object.fromEntries(Object.entries(all).map(([name, t]) => [name, t?.slice(0, ...entries).slice(1, ...range)])) as T;

/** `checkpoint` of a function of tensors in records. */
function checkpointed<I extends BlockInputs>(
  run: (block: BlockOf<I>) => Wide,
  inputs: I,
  positions: readonly [queries: Wide, keys: Wide] | undefined,
  window: number | undefined,
): Wide {
  const places = (['queries', 'keys', 'shared'] as const).flatMap((kind) =>
    Object.entries(inputs[kind]).flatMap(([name, t]) => (t ? [{ kind, name, t }] : [])),
  );
  return checkpoint(
    (...own: readonly Tensor[]) => {
      const given: Record<keyof BlockInputs, Record<string, Wide>> = { queries: {}, keys: {}, shared: {} };
      for (const [i, { kind, name }] of places.entries()) given[kind][name] = own[i] as Wide;
      const [query, key] = own.slice(places.length);
      const hiding = query && key && (window === undefined ? notBehind(query, key) : within(query, key, window));
      return run({ ...given, hiding: hiding as Wide | undefined });
    },
    ...places.map(({ t }) => t as Tensor),
    ...((positions ?? []) as readonly Tensor[]),
  ) as Wide;
}

/**
 * Runs attention on one block of queries after the other; of a causal one, with the keys that it sees alone. Queries that see
 * no key are zeros.
 *
 * @param inputs on one device; `queries` and `keys` have members q and v, from which shapes are taken
 * @param run gives [entries, queries, value heads, value dim]; within it, tensors are the same in both runs
 * @returns [batch, Nq, value heads, value dim]
 */
export function inQueryBlocks<I extends BlockInputs & { queries: { q: Wide }; keys: { v: Wide } }>(
  inputs: I,
  sight: Sight,
  run: (block: BlockOf<I>) => Wide,
): Wide {
  const { q } = inputs.queries;
  const { v } = inputs.keys;
  const [batch, queries] = q.shape;
  const keys = v.shape[1];
  const { causal, window } = sight;
  const blind = keys === 0 ? queries : causal ? Math.max(0, queries - keys) : 0;
  // Above 0, also those of queries before the first key. Made on the device, as a captured step must be.
  const positions = causal ? cumsum(filled(q.backend, [Math.max(queries, keys)], 'float32', 1)) : undefined;
  const placesOf = ([i, iEnd]: Range, [j, jEnd]: Range) =>
    positions &&
    ([
      positions.slice(0, i + keys - queries, iEnd + keys - queries).reshape([iEnd - i, 1]),
      positions.slice(0, j, jEnd).reshape([1, jEnd - j]),
    ] as const);
  const before = [
    [0, 0],
    [blind, 0],
    [0, 0],
    [0, 0],
  ] as const;
  const entries: Wide[] = [];
  let rows: Wide[] = [];
  for (const block of blocksOf(batch, queries, keys, sight, blind)) {
    const own = {
      queries: cut(inputs.queries, block.entries, block.queries),
      keys: cut(inputs.keys, block.entries, block.keys),
      shared: inputs.shared,
    } as I;
    rows.push(checkpointed(run, own, placesOf(block.queries, block.keys), window));
    if (block.queries[1] < queries) continue;
    entries.push(rows.length === 1 ? rows[0] : (concat(rows, 1) as Wide));
    rows = [];
  }
  if (entries.length === 0)
    return pad(v.slice(1, 0, 0), [
      [0, 0],
      [queries, 0],
      [0, 0],
      [0, 0],
    ]) as Wide;
  const seeing = entries.length === 1 ? entries[0] : (concat(entries, 0) as Wide);
  const all = blind > 0 ? (pad(seeing, before) as Wide) : seeing;
  return all.isContiguous ? all : all.contiguous();
}
