/** Singular values and vectors in float64, by the eigenvectors of X^T X: two-sided Jacobi rotations. */

export interface OracleSvd {
  /** [m, r], [r] and [n, r], r = min(m, n). */
  readonly u: Float64Array;
  readonly s: Float64Array;
  readonly v: Float64Array;
}

/** Eigenvalues of a symmetric [n, n], and its eigenvectors as columns. */
function eigen(matrix: Float64Array, n: number): { values: Float64Array; vectors: Float64Array } {
  const a = matrix.slice();
  const vectors = Float64Array.from({ length: n * n }, (_, i) => (Math.floor(i / n) === i % n ? 1 : 0));
  const at = (array: Float64Array, i: number, j: number) => array[i * n + j] as number;
  for (let sweep = 0; sweep < 60; sweep++)
    for (let p = 0; p < n; p++)
      for (let q = p + 1; q < n; q++) {
        const apq = at(a, p, q);
        if (Math.abs(apq) < 1e-300) continue;
        const theta = (at(a, q, q) - at(a, p, p)) / (2 * apq);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(1 + theta * theta));
        const c = 1 / Math.sqrt(1 + t * t);
        const turn = (array: Float64Array, i: number, j: number) => {
          const [x, y] = [array[i] as number, array[j] as number];
          array[i] = c * x - c * t * y;
          array[j] = c * t * x + c * y;
        };
        for (let k = 0; k < n; k++) turn(a, k * n + p, k * n + q);
        for (let k = 0; k < n; k++) turn(a, p * n + k, q * n + k);
        for (let k = 0; k < n; k++) turn(vectors, k * n + p, k * n + q);
      }
  return { values: Float64Array.from({ length: n }, (_, i) => at(a, i, i)), vectors };
}

/** @param x [m, n] of full rank, as far as u is looked at */
export function svd(x: ArrayLike<number>, m: number, n: number): OracleSvd {
  if (m < n) {
    const turned = Float64Array.from({ length: m * n }, (_, i) => x[(i % m) * n + Math.floor(i / m)] as number);
    const { u, s, v } = svd(turned, n, m);
    return { u: v, s, v: u };
  }
  const gram = new Float64Array(n * n);
  for (let i = 0; i < n; i++)
    for (let j = 0; j < n; j++)
      for (let k = 0; k < m; k++) (gram[i * n + j] as number) += (x[k * n + i] as number) * (x[k * n + j] as number);
  const { values, vectors } = eigen(gram, n);
  const order = [...values.keys()].sort((i, j) => (values[j] as number) - (values[i] as number));
  const s = Float64Array.from(order, (i) => Math.sqrt(Math.max(0, values[i] as number)));
  const v = new Float64Array(n * n);
  const u = new Float64Array(m * n);
  for (const [to, from] of order.entries()) {
    for (let k = 0; k < n; k++) v[k * n + to] = vectors[k * n + from] as number;
    for (let k = 0; k < m; k++) {
      for (let l = 0; l < n; l++) (u[k * n + to] as number) += (x[k * n + l] as number) * (v[l * n + to] as number);
      (u[k * n + to] as number) /= s[to] as number;
    }
  }
  return { u, s, v };
}
