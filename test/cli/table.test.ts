/** Tables of the benchmarks: every cell lies under its head. */
import { expect, it } from 'vitest';
import { type Column, fixed, headsOf, lineOf, number, percent, text } from '../../lib/cli/table.js';

interface Row {
  readonly name: string;
  readonly ms?: number;
  readonly share: number;
}

const columns: readonly Column<Row>[] = [
  text('name', 6, (row) => row.name),
  number('ms', 8, (row) => row.ms, fixed(1, 'ms')),
  number('share', 7, (row) => row.share, percent(0)),
];

it('puts text on the left and numbers on the right, and a dash where there is none', () => {
  const rows = [
    { name: 'one', ms: 12.34, share: 0.5 },
    { name: 'other', share: 1 },
  ].map((row) => lineOf(columns, row));
  expect([headsOf(columns), ...rows]).toEqual([
    'name         ms   share',
    'one      12.3ms    50 %',
    'other         -   100 %',
  ]);
});

it('ends no line with blanks', () => {
  const names = columns.slice(0, 1);
  expect([headsOf(names), lineOf(names, { name: 'a', share: 0 })]).toEqual(['name', 'a']);
});
