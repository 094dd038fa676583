/** Row i of the result is the sum of the source rows indices[offsets[i]] to indices[offsets[i + 1] - 1]. Immutable. */
export interface RowLists {
  readonly offsets: Int32Array;
  readonly indices: Int32Array;
  /** Rows of the result. */
  readonly rows: number;
}
