/**
 * Matrix product on plain typed arrays, blocked as in Goto and van de Geijn, "Anatomy of High-Performance
 * Matrix Multiplication" (2008).
 *
 * JavaScript has no SIMD, so the ceiling is one scalar multiply and one scalar add a cycle, and what counts is to keep
 * both units busy: a 4 x 4 tile of the result stays in registers while one column of A and one row of B stream past,
 * which is 32 operations for 8 loads. A and B are first copied ("packed") so that those loads walk through memory in
 * order, whatever the strides of the operands; transposed operands therefore cost nothing extra.
 *
 * The packed copies are Float64Arrays. JavaScript computes in float64, and a Float32Array would be widened at every
 * load of the inner loop; packing widens each element once. Measured, that is twice as fast as Float32Array panels
 * with Math.fround arithmetic, and sums are more accurate too.
 */

/** A window on a typed array: element (i, j) stands at offset + i * rowStride + j * columnStride. */
export interface Matrix {
  readonly data: Float32Array;
  readonly rows: number;
  readonly columns: number;
  readonly rowStride: number;
  readonly columnStride: number;
  readonly offset: number;
}

/** A row-major matrix; a `rowStride` above `columns` selects some columns of a wider one. */
export function matrix(data: Float32Array, rows: number, columns: number, rowStride = columns, offset = 0): Matrix {
  return { data, rows, columns, rowStride, columnStride: 1, offset };
}

export function transpose(m: Matrix): Matrix {
  return {
    data: m.data,
    rows: m.columns,
    columns: m.rows,
    rowStride: m.columnStride,
    columnStride: m.rowStride,
    offset: m.offset,
  };
}

/** Rows and columns of the register tile: 16 sums, as many as an x86-64 core has vector registers. */
const TILE = 4;
/** Depth of a block: two packed strips of 4 x 256 doubles are 16 KiB, half of a common L1 cache. */
const DEPTH = 256;
/** Rows of A packed at a time: 128 x 256 doubles are 256 KiB, which stays in L2 while all of B passes by. */
const ROWS = 128;

const packedA = new Float64Array(ROWS * DEPTH);
let packedB = new Float64Array(0);
/** Where tiles that hang over the edge of the result are computed before the part inside is copied out. */
const edgeTile = new Float32Array(TILE * TILE);

/** out = a b, or out += a b when `accumulate` is set. `out` must be row-major. */
export function matmul(out: Matrix, a: Matrix, b: Matrix, accumulate = false): void {
  const { rows, columns } = out;
  const inner = a.columns;
  if (a.rows !== rows || b.columns !== columns || b.rows !== inner || out.columnStride !== 1) {
    throw new RangeError(
      `matmul: ${rows}x${columns} (column stride ${out.columnStride}) = ${a.rows}x${inner} times ${b.rows}x${b.columns}`,
    );
  }
  if (!accumulate) {
    for (let i = 0; i < rows; i++) {
      const row = out.offset + i * out.rowStride;
      out.data.fill(0, row, row + columns);
    }
  }
  const paddedColumns = Math.ceil(columns / TILE) * TILE;
  if (packedB.length < paddedColumns * DEPTH) packedB = new Float64Array(paddedColumns * DEPTH);

  for (let k = 0; k < inner; k += DEPTH) {
    const depth = Math.min(DEPTH, inner - k);
    pack(packedB, b.data, b.offset + k * b.rowStride, columns, depth, b.columnStride, b.rowStride);
    for (let i = 0; i < rows; i += ROWS) {
      const blockRows = Math.min(ROWS, rows - i);
      const first = a.offset + i * a.rowStride + k * a.columnStride;
      pack(packedA, a.data, first, blockRows, depth, a.rowStride, a.columnStride);
      multiplyBlock(out, i, blockRows, depth);
    }
  }
}

/**
 * Copies `count` rows of A (or columns of B) as strips of four, each strip `depth` steps long with its four elements
 * side by side; a last strip that is not full is padded with zeros, so that the inner loop needs no edge cases.
 */
function pack(
  packed: Float64Array,
  data: Float32Array,
  offset: number,
  count: number,
  depth: number,
  stride: number,
  depthStride: number,
): void {
  let to = 0;
  for (let i = 0; i < count; i += TILE) {
    let from = offset + i * stride;
    if (i + TILE <= count) {
      for (let k = 0; k < depth; k++, from += depthStride, to += TILE) {
        packed[to] = data[from];
        packed[to + 1] = data[from + stride];
        packed[to + 2] = data[from + 2 * stride];
        packed[to + 3] = data[from + 3 * stride];
      }
    } else {
      for (let k = 0; k < depth; k++, from += depthStride) {
        for (let t = 0; t < TILE; t++) packed[to++] = i + t < count ? data[from + t * stride] : 0;
      }
    }
  }
}

/** Adds the product of the packed block of A (rows `firstRow`...) and the packed B to the result. */
function multiplyBlock(out: Matrix, firstRow: number, blockRows: number, depth: number): void {
  const { data, columns, rowStride } = out;
  for (let j = 0; j < columns; j += TILE) {
    for (let i = 0; i < blockRows; i += TILE) {
      const corner = out.offset + (firstRow + i) * rowStride + j;
      const tileRows = Math.min(TILE, blockRows - i);
      const tileColumns = Math.min(TILE, columns - j);
      if (tileRows === TILE && tileColumns === TILE) {
        multiplyTile(i * depth, j * depth, depth, data, corner, rowStride);
      } else {
        edgeTile.fill(0);
        multiplyTile(i * depth, j * depth, depth, edgeTile, 0, TILE);
        for (let r = 0; r < tileRows; r++) {
          for (let c = 0; c < tileColumns; c++) data[corner + r * rowStride + c] += edgeTile[r * TILE + c];
        }
      }
    }
  }
}

/** The inner loop. The sums are sixteen variables because only variables, never array elements, live in registers. */
// biome-ignore format: a column of A against a row of B, as the tile stands
function multiplyTile(
  a: number,
  b: number,
  depth: number,
  out: Float32Array,
  corner: number,
  rowStride: number,
): void {
  const A = packedA;
  const B = packedB;
  let c00 = 0, c01 = 0, c02 = 0, c03 = 0;
  let c10 = 0, c11 = 0, c12 = 0, c13 = 0;
  let c20 = 0, c21 = 0, c22 = 0, c23 = 0;
  let c30 = 0, c31 = 0, c32 = 0, c33 = 0;
  for (let k = 0; k < depth; k++, a += TILE, b += TILE) {
    const b0 = B[b], b1 = B[b + 1], b2 = B[b + 2], b3 = B[b + 3];
    const a0 = A[a];
    c00 += a0 * b0; c01 += a0 * b1; c02 += a0 * b2; c03 += a0 * b3;
    const a1 = A[a + 1];
    c10 += a1 * b0; c11 += a1 * b1; c12 += a1 * b2; c13 += a1 * b3;
    const a2 = A[a + 2];
    c20 += a2 * b0; c21 += a2 * b1; c22 += a2 * b2; c23 += a2 * b3;
    const a3 = A[a + 3];
    c30 += a3 * b0; c31 += a3 * b1; c32 += a3 * b2; c33 += a3 * b3;
  }
  let o = corner;
  out[o] += c00; out[o + 1] += c01; out[o + 2] += c02; out[o + 3] += c03;
  o += rowStride;
  out[o] += c10; out[o + 1] += c11; out[o + 2] += c12; out[o + 3] += c13;
  o += rowStride;
  out[o] += c20; out[o + 1] += c21; out[o + 2] += c22; out[o + 3] += c23;
  o += rowStride;
  out[o] += c30; out[o + 1] += c31; out[o + 2] += c32; out[o + 3] += c33;
}
