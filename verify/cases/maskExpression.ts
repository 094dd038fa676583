/**
 * Random mask expressions that survive JSON, with two meanings each: the library's mask, and an element-wise
 * definition that shares no code with it.
 */
import { type Mask, masks } from 'flashattn';
import { uniform } from '../oracle/random.js';

export interface Dims {
  readonly heads: number;
  readonly queries: number;
  readonly keys: number;
}

export type Align = 'bottomRight' | 'topLeft';

export type Expression =
  | { readonly kind: 'causal'; readonly align: Align }
  | { readonly kind: 'window'; readonly left: number; readonly right: number; readonly align: Align }
  | {
      readonly kind: 'dilated';
      readonly step: number;
      readonly left: number;
      readonly right: number;
      readonly align: Align;
    }
  | { readonly kind: 'strided'; readonly step: number }
  | { readonly kind: 'fixed'; readonly stride: number; readonly summary: number }
  | {
      readonly kind: 'global';
      readonly tokens: readonly number[];
      readonly asKeys: boolean;
      readonly asQueries: boolean;
    }
  | { readonly kind: 'prefixLM'; readonly count: number }
  | { readonly kind: 'circular'; readonly left: number; readonly right: number }
  | { readonly kind: 'documents'; readonly queries: readonly number[]; readonly keys: readonly number[] }
  | {
      readonly kind: 'blocks';
      readonly blockSize: number;
      readonly heads: number;
      readonly seed: number;
      readonly density: number;
      readonly bsr: boolean;
    }
  | { readonly kind: 'edges'; readonly pairs: readonly (readonly [number, number])[] }
  | { readonly kind: 'predicate'; readonly modulus: number; readonly perHead: boolean }
  | { readonly kind: 'perHead'; readonly parts: readonly Expression[] }
  | { readonly kind: 'and' | 'or'; readonly parts: readonly Expression[] }
  | { readonly kind: 'not'; readonly part: Expression };

type Sees = (head: number, i: number, j: number) => boolean;

const layoutOf = (e: Extract<Expression, { kind: 'blocks' }>, { queries, keys }: Dims) => {
  const rows = Math.ceil(queries / e.blockSize);
  const columns = Math.ceil(keys / e.blockSize);
  const next = uniform(e.seed);
  const layout = Array.from({ length: e.heads * rows * columns }, () => (next() < e.density ? 1 : 0));
  return { layout, rows, columns };
};

export function toMask(e: Expression, dims: Dims): Mask {
  const { queries, keys } = dims;
  const parts = (list: readonly Expression[]) => list.map((part) => toMask(part, dims));
  switch (e.kind) {
    case 'causal':
      return masks.causal({ align: e.align });
    case 'window':
      return masks.slidingWindow(e.left, e.right, { align: e.align });
    case 'dilated':
      return masks.dilated(e.step, { left: e.left, right: e.right, align: e.align });
    case 'strided':
      return masks.strided(e.step);
    case 'fixed':
      return masks.fixed(e.stride, e.summary);
    case 'global':
      return masks.globalTokens(e.tokens, { asKeys: e.asKeys, asQueries: e.asQueries });
    case 'prefixLM':
      return masks.prefixLM(e.count);
    case 'circular':
      return masks.circularWindow(e.left, e.right);
    case 'documents':
      return masks.documents(e.queries, e.keys);
    case 'blocks': {
      const { layout, rows, columns } = layoutOf(e, dims);
      const shape = [e.heads, rows, columns];
      if (!e.bsr) return masks.blocks(layout, { shape, blockSize: e.blockSize });
      const indptr = [0];
      const indices: number[] = [];
      for (let row = 0; row < e.heads * rows; row++) {
        for (let c = 0; c < columns; c++) if (layout[row * columns + c]) indices.push(c);
        indptr.push(indices.length);
      }
      return masks.blocksFromBsr(indptr, indices, { shape, blockSize: e.blockSize });
    }
    case 'edges':
      return masks.edges(e.pairs, { queries, keys });
    case 'predicate':
      return masks.predicate((_, h, i, j) => (i * 3 + j + (e.perHead ? h : 0)) % e.modulus === 0, {
        heads: e.perHead ? dims.heads : 1,
      });
    case 'perHead':
      return masks.perHead(parts(e.parts));
    case 'and':
      return masks.and(...parts(e.parts));
    case 'or':
      return masks.or(...parts(e.parts));
    case 'not':
      return masks.not(toMask(e.part, dims));
  }
}

const runs = (lengths: readonly number[]) =>
  lengths.flatMap((length, document) => new Array<number>(length).fill(document));

export function toElements(e: Expression, dims: Dims): Sees {
  const { queries, keys } = dims;
  const shift = (align: Align) => (align === 'topLeft' ? 0 : keys - queries);
  switch (e.kind) {
    case 'causal':
      return (_, i, j) => j <= i + shift(e.align);
    case 'window': {
      const at = shift(e.align);
      return (_, i, j) => (e.left < 0 || j >= i + at - e.left) && (e.right < 0 || j <= i + at + e.right);
    }
    case 'dilated': {
      const at = shift(e.align);
      return (_, i, j) => {
        const distance = j - i - at;
        if (distance % e.step !== 0) return false;
        const steps = distance / e.step;
        return (e.left < 0 || steps >= -e.left) && (e.right < 0 || steps <= e.right);
      };
    }
    case 'strided':
      return (_, i, j) => j <= i + keys - queries && (i + keys - queries - j) % e.step === 0;
    case 'fixed':
      return (_, _i, j) => j % e.stride >= e.stride - e.summary;
    case 'global':
      return (_, i, j) => (e.asQueries && e.tokens.includes(i)) || (e.asKeys && e.tokens.includes(j));
    case 'prefixLM':
      return (_, i, j) => j < e.count || j <= i + keys - queries;
    case 'circular':
      return (_, i, j) => {
        const after = (((j - i) % keys) + keys) % keys;
        return after <= e.right || keys - after <= e.left;
      };
    case 'documents': {
      const [q, k] = [runs(e.queries), runs(e.keys)];
      return (_, i, j) => q[i] === k[j];
    }
    case 'blocks': {
      const { layout, rows, columns } = layoutOf(e, dims);
      return (h, i, j) => {
        const grid = e.heads === 1 ? 0 : h;
        return layout[(grid * rows + Math.floor(i / e.blockSize)) * columns + Math.floor(j / e.blockSize)] === 1;
      };
    }
    case 'edges': {
      const set = new Set(e.pairs.map(([i, j]) => `${i} ${j}`));
      return (_, i, j) => set.has(`${i} ${j}`);
    }
    case 'predicate':
      return (h, i, j) => (i * 3 + j + (e.perHead ? h : 0)) % e.modulus === 0;
    case 'perHead': {
      const parts = e.parts.map((part) => toElements(part, dims));
      return (h, i, j) => parts[h](h, i, j);
    }
    case 'and': {
      const parts = e.parts.map((part) => toElements(part, dims));
      return (h, i, j) => parts.every((sees) => sees(h, i, j));
    }
    case 'or': {
      const parts = e.parts.map((part) => toElements(part, dims));
      return (h, i, j) => parts.some((sees) => sees(h, i, j));
    }
    case 'not': {
      const part = toElements(e.part, dims);
      return (h, i, j) => !part(h, i, j);
    }
  }
}

/** A random expression of at most `depth` levels, its head count 1 or that of the dims. */
export function randomExpression(random: () => number, dims: Dims, depth: number, mayDependOnHead = true): Expression {
  const integer = (least: number, most: number) => least + Math.floor(random() * (most - least + 1));
  const { queries, keys } = dims;
  const align = random() < 0.5 ? 'bottomRight' : 'topLeft';
  const side = () => (random() < 0.2 ? -1 : integer(0, 70));
  const inner = (perHead = mayDependOnHead) => randomExpression(random, dims, depth - 1, perHead);
  const split = (total: number, count: number) => {
    const cuts = Array.from({ length: count - 1 }, () => integer(0, total)).sort((a, b) => a - b);
    return [...cuts, total].map((end, n) => end - (n === 0 ? 0 : cuts[n - 1]));
  };
  const choices: (() => Expression)[] = [
    () => ({ kind: 'causal', align }),
    () => ({ kind: 'window', left: side(), right: side(), align }),
    () => ({ kind: 'dilated', step: integer(1, 9), left: side(), right: side(), align }),
    () => ({ kind: 'strided', step: integer(1, 9) }),
    () => {
      const stride = integer(1, 70);
      return { kind: 'fixed', stride, summary: integer(1, stride) };
    },
    () => ({
      kind: 'global',
      tokens: Array.from({ length: integer(0, 3) }, () => integer(0, Math.min(queries, keys) - 1)),
      asKeys: random() < 0.7,
      asQueries: random() < 0.7,
    }),
    () => ({ kind: 'prefixLM', count: integer(0, keys) }),
    () => {
      const count = integer(1, 4);
      return { kind: 'documents', queries: split(queries, count), keys: split(keys, count) };
    },
    () => ({
      kind: 'blocks',
      blockSize: [16, 32, 40, 64, 128][integer(0, 4)],
      heads: mayDependOnHead && random() < 0.5 ? dims.heads : 1,
      seed: integer(1, 1e6),
      density: random(),
      bsr: random() < 0.5,
    }),
    () => ({
      kind: 'edges',
      pairs: Array.from({ length: integer(0, 60) }, () => [integer(0, queries - 1), integer(0, keys - 1)] as const),
    }),
    () => ({ kind: 'predicate', modulus: integer(1, 5), perHead: mayDependOnHead && random() < 0.5 }),
  ];
  if (queries === keys) choices.push(() => ({ kind: 'circular', left: integer(0, 70), right: integer(0, 70) }));
  const combinations: (() => Expression)[] = [
    () => ({ kind: 'and', parts: [inner(), inner()] }),
    () => ({ kind: 'or', parts: [inner(), inner()] }),
    () => ({ kind: 'not', part: inner() }),
  ];
  if (mayDependOnHead)
    combinations.push(() => ({ kind: 'perHead', parts: Array.from({ length: dims.heads }, () => inner(false)) }));
  const list = depth > 1 && random() < 0.7 ? combinations : choices;
  return list[integer(0, list.length - 1)]();
}
