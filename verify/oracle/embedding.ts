/** Rows by their index in float64: taken, and added up. */

/** [ids, width]; NaN for an id that is no row of `table` [rows, width]. */
export function takeRows(table: ArrayLike<number>, width: number, ids: ArrayLike<number>): Float64Array {
  const rows = width === 0 ? 0 : table.length / width;
  const out = new Float64Array(ids.length * width).fill(Number.NaN);
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i] as number;
    if (id < 0 || id >= rows) continue;
    for (let e = 0; e < width; e++) out[i * width + e] = table[id * width + e] as number;
  }
  return out;
}

/** [rows, width]: onto `before`, where there is one. */
export function addRows(
  rows: number,
  width: number,
  ids: ArrayLike<number>,
  values: ArrayLike<number>,
  before?: ArrayLike<number>,
): Float64Array {
  const out = before ? Float64Array.from(before) : new Float64Array(rows * width);
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i] as number;
    if (id < 0 || id >= rows) continue;
    for (let e = 0; e < width; e++) (out[id * width + e] as number) += values[i * width + e] as number;
  }
  return out;
}
