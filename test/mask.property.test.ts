/**
 * Random mask expressions, compiled and attended with, against element-wise definitions and the references.
 *
 *   FLASHATTN_RUNS=10          ten times as many cases
 *   FLASHATTN_MASK_CASE=<n>    one case alone, as printed by a failure
 */
import { BlockMask, blockMask, blockMaskFromBytes, blockMaskToBytes } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { uniform } from './oracle/random.js';
import { type Case, instantiate } from './support/case.js';
import { float32Failures } from './support/check.js';
import { runLibrary } from './support/library.js';
import { type Dims, type Expression, randomExpression, toElements, toMask } from './support/maskExpression.js';

const RUNS = Number(process.env.FLASHATTN_RUNS ?? 1);
const REPLAY = process.env.FLASHATTN_MASK_CASE;
const COMPILED = 200 * RUNS;
const ATTENDED = 300 * RUNS;

/** What a case is follows from its number alone. */
function draw(number: number): { random: () => number; dims: Dims; expression: Expression; blockSize: 64 | 128 } {
  const random = uniform(number * 7919 + 1);
  const length = () => 1 + Math.floor(random() ** 2 * 300);
  const queries = length();
  const dims = { heads: 1 + Math.floor(random() * 3), queries, keys: random() < 0.5 ? queries : length() };
  return { random, dims, expression: randomExpression(random, dims, 4), blockSize: random() < 0.5 ? 64 : 128 };
}

const repro = (number: number, expression: Expression) =>
  `FLASHATTN_MASK_CASE=${number} npx vitest run test/mask.property.test.ts  (${JSON.stringify(expression)})`;

function compile(number: number): void {
  const { dims, expression, blockSize } = draw(number);
  const { heads, queries, keys } = dims;
  const sees = toElements(expression, dims);
  const compiled = blockMask(toMask(expression, dims), { heads, nq: queries, nk: keys, blockSize });
  const { rows, columns, full, partial } = compiled;
  let visiblePairs = 0;
  for (let h = 0; h < compiled.heads; h++)
    for (let row = 0; row < rows; row++) {
      const list = h * rows + row;
      const fullBlocks = new Set(full.indices.subarray(full.offsets[list], full.offsets[list + 1]));
      const partialBlocks = new Set(partial.indices.subarray(partial.offsets[list], partial.offsets[list + 1]));
      for (let column = 0; column < columns; column++) {
        let seen = 0;
        let all = 0;
        for (let i = row * blockSize; i < Math.min(queries, (row + 1) * blockSize); i++)
          for (let j = column * blockSize; j < Math.min(keys, (column + 1) * blockSize); j++) {
            all++;
            const expected = sees(h, i, j);
            if (expected) seen++;
            if (partialBlocks.has(column) && compiled.visible(0, h, i, j) !== expected)
              expect.fail(
                `(${h}, ${i}, ${j}) must be ${expected ? 'visible' : 'hidden'}: ${repro(number, expression)}`,
              );
          }
        visiblePairs += seen;
        const expected = seen === 0 ? 'empty' : seen === all ? 'full' : 'partial';
        const got = fullBlocks.has(column) ? 'full' : partialBlocks.has(column) ? 'partial' : 'empty';
        if (got !== expected)
          expect.fail(`block (${h}, ${row}, ${column}) is ${got}, not ${expected}: ${repro(number, expression)}`);
      }
    }
  expect(compiled.statistics().visiblePairs, repro(number, expression)).toBe(visiblePairs);
  // What was compiled passes its own checks, survives bytes, and is transposed consistently.
  const copy = blockMaskFromBytes(blockMaskToBytes(BlockMask.from(compiled)));
  expect(copy).toEqual(compiled);
  const { transposed } = compiled;
  for (let h = 0; h < compiled.heads; h++)
    for (let column = 0; column < columns; column++) {
      const list = h * columns + column;
      for (let at = transposed.partial.offsets[list]; at < transposed.partial.offsets[list + 1]; at++) {
        const block = transposed.partialBlocks[at];
        const row = h * rows + transposed.partial.indices[at];
        expect(partial.indices[block]).toBe(column);
        expect(block >= partial.offsets[row] && block < partial.offsets[row + 1]).toBe(true);
      }
    }
}

function attend(number: number): void {
  const { random, dims, expression, blockSize } = draw(number);
  const maybe = <T>(chance: number, value: T): T | undefined => (random() < chance ? value : undefined);
  const batch = 1 + Math.floor(random() * 2);
  const group = dims.heads % 2 === 0 && random() < 0.5 ? 2 : 1;
  const lengths = (limit: number) => Array.from({ length: batch }, () => Math.floor(random() * (limit + 1)));
  const drawn = {
    causal: maybe(0.2, true),
    align: maybe(0.5, 'topLeft' as const),
    window: maybe(0.2, [Math.floor(random() * 60), Math.floor(random() * 60)] as const),
    softcap: maybe(0.2, 2),
    bias: maybe(0.3, [random() < 0.5, random() < 0.5, random() < 0.5, random() < 0.5] as const),
    alibi: maybe(0.2, 'heads' as const),
    relative: maybe(0.2, 'distance' as const),
    sink: maybe(0.3, true),
    dropout: maybe(0.2, { p: 0.3, seed: number }),
    dLse: maybe(0.3, true),
    qLens: maybe(0.15, lengths(dims.queries)),
    kLens: maybe(0.15, lengths(dims.keys)),
  };
  const options = Object.fromEntries(Object.entries(drawn).filter(([, value]) => value !== undefined));
  // Packed sequences see the mask at their own positions; the longest of them spans it.
  const packed = {
    layout: 'varlen' as const,
    qLens: [dims.queries, ...lengths(dims.queries)],
    kLens: [...lengths(dims.keys), dims.keys],
  };
  const dense = {
    layout: random() < 0.5 ? ('bshd' as const) : ('bhsd' as const),
    batch,
    queryLength: dims.queries,
    keyLength: dims.keys,
  };
  const c: Case = {
    seed: number,
    ...(random() < 0.75 ? { ...dense, ...options } : { ...options, ...packed }),
    kvHeads: dims.heads / group,
    group,
    headDim: 1 + Math.floor(random() * 24),
    valueDim: 1 + Math.floor(random() * 24),
  };
  const drawnCase = instantiate(c);
  const sees = toElements(expression, dims);
  const shape = [1, dims.heads, dims.queries, dims.keys] as const;
  const values = Uint8Array.from({ length: shape.reduce((a, b) => a * b) }, (_, n) => {
    const j = n % dims.keys;
    const i = Math.floor(n / dims.keys) % dims.queries;
    return sees(Math.floor(n / (dims.keys * dims.queries)), i, j) ? 1 : 0;
  });
  const instance = { ...drawnCase, problem: { ...drawnCase.problem, mask: { values, shape } } };
  const mask = toMask(expression, dims);
  const compiled = blockMask(mask, { heads: dims.heads, nq: dims.queries, nk: dims.keys, blockSize });
  const failures = float32Failures(instance, runLibrary(instance, { mask: random() < 0.3 ? mask : compiled }));
  if (failures.length > 0) expect.fail(`${failures.join('; ')}: ${JSON.stringify(c)} ${repro(number, expression)}`);
}

describe.skipIf(REPLAY !== undefined)('masks', () => {
  it('compile to what they say, block by block and bit by bit', () => {
    for (let number = 0; number < COMPILED; number++) compile(number);
  });

  it('give attention and gradients of dense attention with an element mask', () => {
    for (let number = 0; number < ATTENDED; number++) attend(number);
  });
});

it.runIf(REPLAY !== undefined)('replay', () => {
  compile(Number(REPLAY));
  attend(Number(REPLAY));
});
