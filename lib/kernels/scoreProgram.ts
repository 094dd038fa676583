// What the scores of attention are replaced by: native/structs/score_mod.h.
import type { DType } from '../base/dtype.js';
import { compile, mostConstants, mostInstructions } from './elementwise.js';
import { type Expression, gradientsOf, inOrder, input, inputsOf, term } from './expression.js';
import { addressOf, type Flat } from './operand.js';
import { struct, type ValuesOf } from './struct.js';

// Those of native/structs/score_mod.h.
export const mostTables = 4;
const mostTemporaries = 12;

/** The inputs of a program: the score, batch entry or sequence, query head, query and key. */
export const scoreInputs: readonly Expression[] = Array.from({ length: 5 }, (_, i) => input(i));

const programFields = {
  instructions: { of: 'uint32', count: mostInstructions },
  constants: { of: 'float32', count: mostConstants },
  valueCount: 'int32',
  count: 'int32',
  constantCount: 'int32',
  value: 'int32',
  slope: 'int32',
  reads: 'int32',
} as const;

export const scoreProgram = struct('ScoreProgram', programFields);

/** A compiled formula of scores and its slope; immutable. */
export type ScoreProgram = ValuesOf<typeof programFields>;

const stepsOf = (roots: readonly Expression[]) => inOrder(roots).order.filter(({ args }) => args.length > 0).length;

/**
 * Compiles what a score becomes, and its derivative by the score.
 *
 * @param formula as messages call it
 * @throws ERR_OPTION when it is more than a kernel holds
 */
export function compileScore(value: Expression, formula: string): ScoreProgram {
  const [slope = term(0)] = gradientsOf(value, term(1), 1);
  const roots = [value, slope];
  const { instructions, constants, results } = compile(roots, scoreInputs.length, {
    formula,
    lookups: true,
    temporaries: mostTemporaries,
  });
  const reads = inputsOf(roots, scoreInputs.length).reduce((bits, read, i) => bits | (read ? 1 << i : 0), 0);
  return Object.freeze({
    instructions,
    constants: constants.map(({ value: number }) => number as number),
    valueCount: stepsOf([value]),
    count: instructions.length,
    constantCount: constants.length,
    value: results[0],
    slope: results[1],
    reads,
  });
}

const tableFields = { data: 'address', count: 'int32', dtype: 'dtype' } as const;

export const scoreModFields = {
  program: 'address',
  tables: { of: struct('ScoreTable', tableFields), count: mostTables },
} as const;

const noTable = { data: 0, count: 0, dtype: 'float32' as DType };

export function scoreModValues(program: number, tables: readonly Flat[]): ValuesOf<typeof scoreModFields> {
  return {
    program,
    tables: Array.from({ length: mostTables }, (_, i) => {
      const table = tables[i];
      return table ? { data: addressOf(table), count: table.count, dtype: table.dtype } : noTable;
    }),
  };
}
