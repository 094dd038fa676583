/**
 * Random mask expressions, compiled and attended with, against element-wise definitions and the references.
 *
 *   FLASHATTN_RUNS=10          ten times as many cases
 *   FLASHATTN_MASK_CASE=<n>    one case alone, as printed by a failure
 */
import { BlockMask, blockMask, blockMaskFromBytes, blockMaskToBytes } from 'flashattn';
import { describe, expect, it } from 'vitest';
import type { Case } from '../../verify/cases/case.js';
import { failuresOf } from '../../verify/cases/check.js';
import { drawMask, drawMaskedCase } from '../../verify/cases/maskCases.js';
import { type Expression, toElements, toMask } from '../../verify/cases/maskExpression.js';

const RUNS = Number(process.env.FLASHATTN_RUNS ?? 1);
const REPLAY = process.env.FLASHATTN_MASK_CASE;
const COMPILED = 200 * RUNS;
const ATTENDED = 300 * RUNS;

const repro = (number: number, what: Expression | Case) =>
  `FLASHATTN_MASK_CASE=${number} npx vitest run test/mask.property.test.ts  (${JSON.stringify(what)})`;

function compile(number: number): void {
  const { dims, expression, blockSize } = drawMask(number);
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
  const c = drawMaskedCase(number);
  const failures = failuresOf(c);
  if (failures.length > 0) expect.fail(`${failures.join('; ')}: ${repro(number, c)}`);
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
