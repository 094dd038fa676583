/**
 * Every public function with arguments that its types forbid: it works, or throws a FlashAttnError. Nothing else, and no
 * memory stays behind.
 */
import { afterAll, describe, expect, it } from 'vitest';
import * as library from '../../lib/index.js';

const { masks, patterns, zeros } = library;

const strange: readonly unknown[] = [
  undefined,
  null,
  0,
  -1,
  0.5,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  2 ** 53,
  1n,
  '',
  'word',
  true,
  Symbol('s'),
  [],
  [null],
  [[]],
  [0.5],
  ['1'],
  new Array(3),
  {},
  Object.create(null),
  { length: 2 },
  { length: 2 ** 40, [Symbol.toStringTag]: 'Float16Array' },
  { shape: [1, 2, 1, 4], dtype: 'float32' },
  () => 1,
  new Map(),
  new Date(0),
  new Int8Array(2),
  new Float32Array(2),
  new BigInt64Array(2),
  new DataView(new ArrayBuffer(2)),
  /x/,
];

const isPlain = (value: unknown): value is Record<string, unknown> =>
  value !== null && typeof value === 'object' && Object.getPrototypeOf(value) === Object.prototype;

/** The arguments with one of them, or one property of one of them, replaced by something strange, or one more property. */
function* spoilt(args: readonly unknown[]): Generator<[what: string, args: unknown[]]> {
  for (const [at, good] of args.entries())
    for (const value of strange) {
      const shown = () => `${at}: ${Object.prototype.toString.call(value)} ${String(value?.constructor?.name)}`;
      yield [`argument ${shown()}`, args.with(at, value)];
      if (!isPlain(good)) continue;
      for (const name of [...Object.keys(good), 'unknownOption'])
        yield [`${name} of argument ${shown()}`, args.with(at, { ...good, [name]: value })];
    }
}

/** Disposes of whatever tensors, plans and the like a result holds. */
function release(result: unknown, depth = 2): void {
  if (result === null || typeof result !== 'object' || depth < 0) return;
  if ('dispose' in result && typeof result.dispose === 'function') result.dispose();
  else for (const value of Object.values(result)) release(value, depth - 1);
}

const before = library.memory().tensors;
const held: library.Tensor[] = [];
const hold = <T extends library.Tensor>(t: T): T => {
  held.push(t);
  return t;
};

const t = hold(zeros([2, 4]));
const [q, k, v] = [0, 1, 2].map(() => hold(zeros([1, 4, 2, 8])));
const grid = hold(zeros([1, 2, 2, 2, 8]));
const five = hold(zeros([1, 5, 2, 8]));
const keys = hold(zeros([1, 6, 2, 8]));
const two = hold(q.slice(1, 0, 2));
const span = hold(zeros([2]));
const mask = library.blockMask(masks.causal(), { nq: 4 });

afterAll(() => {
  for (const one of held) one.dispose();
  expect(library.memory().tensors).toBe(before);
});

type Call = [name: string, f: (...args: never[]) => unknown, ...args: unknown[]];
const on = (object: object, name: string, ...args: unknown[]): Call => [
  `${object.constructor.name}.${name}`,
  (...given: unknown[]) => (object as Record<string, (...args: unknown[]) => unknown>)[name](...given),
  ...args,
];
const from = (group: object, name: string, ...args: unknown[]): Call => [
  name,
  (group as Record<string, (...args: unknown[]) => unknown>)[name],
  ...args,
];

const calls: readonly Call[] = [
  from(library, 'tensor', [1, 2], [2], { dtype: 'float32', device: 'wasm' }),
  from(library, 'zeros', [2, 2], { dtype: 'float16', device: 'wasm' }),
  on(t, 'reshape', [4, 2]),
  on(t, 'transpose', 0, 1),
  on(t, 'slice', 1, 0, 2, 1),
  on(t, 'select', 1, 0),
  on(t, 'write', new Float32Array(8)),
  on(t, 'toString'),
  from(library, 'fromDevicePointer', 4096n, [2], { dtype: 'float32', device: 'wasm', strides: [1], release: () => {} }),
  from(library, 'setStream', 'wasm', 1n),
  from(masks, 'causal', { align: 'topLeft' }),
  from(masks, 'slidingWindow', 1, 2, { align: 'topLeft' }),
  from(masks, 'circularWindow', 1, 2),
  from(masks, 'dilated', 2, { left: 1, right: 2, align: 'topLeft' }),
  from(masks, 'strided', 2, { align: 'topLeft' }),
  from(masks, 'fixed', 4, 1),
  from(masks, 'globalTokens', [0, 2], { asKeys: true, asQueries: false }),
  from(masks, 'prefix', 2),
  from(masks, 'prefixLM', 2),
  from(masks, 'documents', [2, 2], [2, 2]),
  from(masks, 'tree', [-1, 0], { prefix: 2 }),
  from(masks, 'edges', [[0, 1]], { queries: 2, keys: 2 }),
  from(masks, 'blocks', [1, 0, 0, 1], { shape: [2, 2], blockSize: 4 }),
  from(masks, 'blocksFromBsr', [0, 1, 2], [0, 1], { shape: [2, 2], blockSize: 4 }),
  from(masks, 'randomBlocks', { queries: 8, keys: 8, blockSize: 4, count: 1, seed: 1, heads: 2 }),
  from(masks, 'predicate', () => true, { batch: 1, heads: 1 }),
  from(masks, 'and', masks.causal(), masks.causal()),
  from(masks, 'or', masks.causal(), masks.causal()),
  from(masks, 'not', masks.causal()),
  from(masks, 'perHead', [masks.causal()]),
  from(masks, 'perBatch', [masks.causal()]),
  from(patterns, 'bigBird', { length: 64, block: 8, numRandomBlocks: 1, heads: 2, seed: 1 }),
  from(patterns, 'longformer', { window: 2, dilation: 1, autoregressive: true, globals: [1], queries: 'all' }),
  from(patterns, 'streamingLLM', { start: 1, recent: 2 }),
  from(patterns, 'ringCache', { slots: 4, written: 5, queries: 2 }),
  from(patterns, 'sqrtN', { length: 16, block: 4, strided: true, causal: true }),
  from(patterns, 'sparseTransformerFixed', {
    length: 64,
    localAttnCtx: 32,
    block: 8,
    numVerts: 2,
    vertSize: 1,
    heads: 2,
  }),
  from(patterns, 'sparseTransformerLocal', 4),
  from(patterns, 'sparseTransformerStrided', 4),
  from(patterns, 'sparseTransformerPaperStrided', { stride: 4, heads: 2 }),
  from(patterns, 'sparseTransformerPaperFixed', { length: 16, stride: 4, summary: 1, heads: 2 }),
  from(patterns, 'atrous', 2, { causal: true, align: 'topLeft' }),
  from(patterns, 'local', 2, { causal: true, align: 'topLeft' }),
  from(patterns, 'sparse', 2, { causal: true, align: 'topLeft' }),
  from(patterns, 'localDilated', 2, 2, { causal: true, align: 'topLeft' }),
  from(patterns, 'treeEdges', [-1, 0], 'siblings'),
  from(patterns, 'medusaParents', [[0], [0, 1]]),
  from(patterns, 'deepspeedLayout', { mode: 'dense', length: 32, block: 16, heads: 2 }),
  from(patterns, 'deepspeedDense', { length: 32, block: 16, heads: 2, differentLayoutPerHead: true }),
  from(patterns, 'deepspeedFixed', { length: 32, numLocalBlocks: 2, numGlobalBlocks: 1, attention: 'bidirectional' }),
  from(patterns, 'deepspeedVariable', {
    length: 32,
    numRandomBlocks: 1,
    localWindowBlocks: [1],
    globalBlockIndices: [0],
  }),
  from(patterns, 'deepspeedBigBird', { length: 32, numRandomBlocks: 1, seed: 1, random: [[[0], [1]]] }),
  from(patterns, 'deepspeedBSLongformer', { length: 32, globalBlockIndices: [0], globalBlockEndIndices: [1] }),
  from(patterns, 'deepspeedLocalSlidingWindow', { length: 64, numSlidingWindowBlocks: 3, attention: 'unidirectional' }),
  from(library, 'blockMask', masks.causal(), { nq: 8, nk: 8, batch: 1, heads: 1, blockSize: 64 }),
  from(library, 'blockMaskToBytes', mask),
  from(library, 'blockMaskFromBytes', library.blockMaskToBytes(mask)),
  from(library.BlockMask, 'from', { ...mask }),
  on(mask, 'visible', 0, 0, 1, 1),
  on(mask, 'toString', { batch: 0, head: 0, title: 'a', columns: 80 }),
  on(mask, 'toSVG', { batch: 0, head: 0, title: 'a' }),
  from(library, 'axialAttention', grid, grid, grid, { axes: [0], causal: false, scale: 1 }),
  from(library, 'timesformerAttention', five, five, five, { frames: 2, patches: 2, pattern: 'space', scale: 1 }),
  from(library, 'swinAttention', grid, grid, grid, { window: [2, 2], shift: [1, 1], scale: 1, biasTable: undefined }),
  from(library, 'longnetAttention', q, k, v, { segmentLengths: [2], dilatedRatios: [1], causal: true, scale: 1 }),
  from(library, 'topKAttention', q, k, v, { keep: 2, causal: true, mask: masks.causal(), renormalize: true, scale: 1 }),
  from(library, 'adaptiveSpanAttention', two, keys, keys, { span, ramp: 2, keyPe: undefined, scale: 1 }),
  from(library, 'longT5LocalAttention', q, k, v, {
    radius: 1,
    biasTable: undefined,
    maxDistance: 4,
    lens: [4],
    scale: 1,
  }),
  from(library, 'longT5GlobalTokens', q, { blockSize: 2, lens: [4] }),
  from(library, 'axialAttentionBackward', grid, null),
  from(library, 'timesformerAttentionBackward', q, null),
  from(library, 'swinAttentionBackward', grid, null),
  from(library, 'longnetAttentionBackward', q, null),
  from(library, 'topKAttentionBackward', q, null),
  from(library, 'adaptiveSpanAttentionBackward', q, null),
  from(library, 'longT5LocalAttentionBackward', q, null),
  from(library, 'longT5GlobalAttentionBackward', q, null),
];

describe('whatever it is given', () => {
  it.each(calls)('%s works or throws a FlashAttnError', (_, f, ...args) => {
    const call = f as (...given: unknown[]) => unknown;
    const alive = library.memory().tensors;
    for (const [what, given] of spoilt(args)) {
      try {
        release(call(...given));
      } catch (error) {
        if (!(error instanceof library.FlashAttnError)) throw new Error(`${what}: ${error}`, { cause: error });
      }
      expect(library.memory().tensors, what).toBe(alive);
    }
  });

  it('has right arguments to begin with', () => {
    for (const [name, f, ...args] of calls.filter(([, , ...args]) => !args.includes(null))) {
      try {
        release((f as (...given: unknown[]) => unknown)(...args));
      } catch (error) {
        expect([name, (error as library.FlashAttnError).code]).toEqual([name, 'ERR_DEVICE']);
      }
    }
  });
});

describe('what another copy of the package made', () => {
  // Two copies have classes of the same name, which are not the same.
  const { Tensor: Foreign } = { Tensor: class Tensor {} };
  const foreign = new Foreign() as never;
  const described = (argument: string, what: string) =>
    `${argument} is a ${what} of another copy of this package; it must be a ${what}`;

  it('is told from what is no tensor at all', () => {
    const message = described('q', 'tensor');
    expect(() => library.axialAttention(foreign, grid, grid, {})).toThrow(message);
    expect(() => library.topKAttention(foreign, k, v, { keep: 1 })).toThrow(message);
    const biasTable = foreign;
    expect(() => library.swinAttention(grid, grid, grid, { window: 2, biasTable })).toThrow(
      described('biasTable', 'tensor'),
    );
    expect(() => library.longT5LocalAttention(q, k, v, { radius: 1, biasTable })).toThrow(
      described('biasTable', 'tensor'),
    );
    expect(() => library.adaptiveSpanAttention(two, keys, keys, { span: foreign, ramp: 1 })).toThrow(
      described('span', 'tensor'),
    );
  });

  it('is told from what is no mask at all', () => {
    const mask = { batch: 1, heads: 1, classify: () => 'full', writeRow: () => {} } as never;
    expect(() => masks.not(mask)).toThrow(described('masks[0]', 'mask'));
    expect(() => library.blockMask(mask, { nq: 4 })).toThrow(described('mask', 'mask'));
    expect(() => library.topKAttention(q, k, v, { keep: 1, mask })).toThrow(described('mask', 'mask'));
  });
});

describe('a misspelt option', () => {
  it.each([
    ['scale', () => library.axialAttention(grid, grid, grid, { sclae: 1 } as never)],
    ['dtype', () => zeros([1], { dType: 'float16' } as never)],
    ['device', () => library.tensor([1], [1], { devcie: 'wasm' } as never)],
    ['blockSize', () => library.blockMask(masks.causal(), { nq: 4, blocksize: 64 } as never)],
    ['numRandomBlocks', () => patterns.bigBird({ length: 64, num_random_blocks: 3 } as never)],
    ['align', () => masks.causal({ aling: 'topLeft' } as never)],
  ])('suggests %s', (name, f) => {
    expect(f).toThrow(`did you mean "${name}"?`);
  });
});
