import { checkInt32s, checkOffsets } from '../base/check.js';
import { optionError } from '../base/errors.js';
import type { AttentionOptions, Integers } from './options.js';

/** How rows are divided into sequences. */
export interface Sequences {
  /** Batch entries, or packed sequences. */
  readonly batch: number;
  /** For each of them: query begin, query length, key begin, key length. Undefined: every sequence is whole. */
  readonly sequences: Int32Array | undefined;
  /** Of the longest sequence, real or not. */
  readonly queryLength: number;
  readonly keyLength: number;
}

/** Where the sequences of one tensor begin, and how long they are. */
interface Spans {
  readonly begins: Int32Array;
  readonly lengths: Int32Array;
}

function readOffsets(values: Integers, argument: string, rows: number): Spans {
  const offsets = checkOffsets(values, argument);
  const last = offsets[offsets.length - 1];
  if (last > rows) throw optionError(`${argument} ends at ${last}, past the ${rows} rows of the tensor`);
  const begins = offsets.subarray(0, -1);
  return { begins, lengths: begins.map((begin, s) => offsets[s + 1] - begin) };
}

const whole = (batch: number, rows: number): Spans => ({
  begins: new Int32Array(batch),
  lengths: new Int32Array(batch).fill(rows),
});

/** The spans with their real lengths. */
function shorten(spans: Spans, values: Integers | undefined, argument: string, each: string): Spans {
  if (values === undefined) return spans;
  const lengths = checkInt32s(values, argument);
  const { length } = spans.begins;
  if (lengths.length !== length)
    throw optionError(`${argument} has ${lengths.length} entries; it needs one for each of the ${length} ${each}`);
  const bad = lengths.findIndex((n, s) => n < 0 || n > spans.lengths[s]);
  if (bad >= 0)
    throw optionError(
      `${argument}[${bad}] is ${lengths[bad]}; it must be from 0 to the sequence length ${spans.lengths[bad]}`,
    );
  return { begins: spans.begins, lengths };
}

function zip(queries: Spans, keys: Spans): Int32Array {
  const sequences = new Int32Array(queries.begins.length * 4);
  for (let s = 0; s < queries.begins.length; s++) {
    sequences[s * 4] = queries.begins[s];
    sequences[s * 4 + 1] = queries.lengths[s];
    sequences[s * 4 + 2] = keys.begins[s];
    sequences[s * 4 + 3] = keys.lengths[s];
  }
  return sequences;
}

const longest = ({ lengths }: Spans) => lengths.reduce((most, n) => Math.max(most, n), 0);

/** Reads `cuSeqlensQ`, `cuSeqlensK`, `qLens` and `kLens`. */
export function readSequences(
  options: AttentionOptions,
  { batch, queryRows, keyRows }: { readonly batch: number; readonly queryRows: number; readonly keyRows: number },
): Sequences {
  const { cuSeqlensQ, cuSeqlensK, qLens, kLens } = options;
  const packed = cuSeqlensQ !== undefined && cuSeqlensK !== undefined;
  if (!packed && qLens === undefined && kLens === undefined)
    return { batch, sequences: undefined, queryLength: queryRows, keyLength: keyRows };
  const queries = packed ? readOffsets(cuSeqlensQ, 'cuSeqlensQ', queryRows) : whole(batch, queryRows);
  const keys = packed ? readOffsets(cuSeqlensK, 'cuSeqlensK', keyRows) : whole(batch, keyRows);
  if (queries.begins.length !== keys.begins.length)
    throw optionError(
      `cuSeqlensQ has ${queries.begins.length + 1} entries and cuSeqlensK ${keys.begins.length + 1}; both need sequences + 1`,
    );
  const each = packed ? 'sequences' : 'batch entries';
  return {
    batch: queries.begins.length,
    sequences: zip(shorten(queries, qLens, 'qLens', each), shorten(keys, kLens, 'kLens', each)),
    queryLength: packed ? longest(queries) : queryRows,
    keyLength: packed ? longest(keys) : keyRows,
  };
}
