/** A column of a table that is printed row by row, as its rows are measured. */
export interface Column<Row> {
  readonly head: string;
  readonly cell: (row: Row) => string;
}

/** Text, on the left. */
export function text<Row>(head: string, width: number, value: (row: Row) => string): Column<Row> {
  return { head: head.padEnd(width), cell: (row) => value(row).padEnd(width) };
}

/** A number, on the right; '-' where there is none. */
export function number<Row>(
  head: string,
  width: number,
  value: (row: Row) => number | undefined,
  format: (x: number) => string = String,
): Column<Row> {
  const cell = (x: number | undefined) => (x === undefined ? '-' : format(x));
  return { head: head.padStart(width), cell: (row) => cell(value(row)).padStart(width) };
}

/** A format: so many digits behind the point, and a unit. */
export const fixed =
  (digits: number, unit = '') =>
  (x: number): string =>
    `${x.toFixed(digits)}${unit}`;

/** A format of parts of a whole. */
export const percent =
  (digits: number) =>
  (x: number): string =>
    `${(100 * x).toFixed(digits)} %`;

export const headsOf = <Row>(columns: readonly Column<Row>[]): string =>
  columns
    .map(({ head }) => head)
    .join(' ')
    .trimEnd();

export const lineOf = <Row>(columns: readonly Column<Row>[], row: Row): string =>
  columns
    .map(({ cell }) => cell(row))
    .join(' ')
    .trimEnd();
