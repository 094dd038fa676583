/** Sums of products by the names of axes in float64, with their gradients: every product of elements is visited. */
import type { OracleArray } from './matmul.js';

export interface NamedArray extends OracleArray {
  /** Of each axis; an axis of length 1 broadcasts. */
  readonly labels: readonly string[];
}

export interface EinsumResult {
  readonly out: Float64Array;
  /** Of each input, given that of the result. */
  readonly gradients: readonly Float64Array[];
}

const elements = (shape: readonly number[]) => shape.reduce((x, n) => x * n, 1);

/** Where the element at these indices lies in a row-major array; an axis of length 1 has one place. */
function place(shape: readonly number[], labels: readonly string[], index: ReadonlyMap<string, number>): number {
  let at = 0;
  for (const [axis, label] of labels.entries()) {
    const n = shape[axis] as number;
    at = at * n + (n === 1 ? 0 : (index.get(label) as number));
  }
  return at;
}

/** out[output...] = the sum over all other labels of the product of the inputs; `gradient` is that of the result. */
export function einsum(
  inputs: readonly NamedArray[],
  output: readonly string[],
  sizes: ReadonlyMap<string, number>,
  gradient?: ArrayLike<number>,
): EinsumResult {
  const shape = output.map((label) => sizes.get(label) as number);
  const out = new Float64Array(elements(shape));
  const gradients = inputs.map(({ data }) => new Float64Array(data.length));
  const labels = [...sizes.keys()];
  const index = new Map<string, number>();
  const visit = (at: number): void => {
    if (at < labels.length) {
      const label = labels[at] as string;
      for (let i = 0; i < (sizes.get(label) as number); i++) {
        index.set(label, i);
        visit(at + 1);
      }
      return;
    }
    const places = inputs.map((input) => place(input.shape, input.labels, index));
    const values = inputs.map(({ data }, i) => data[places[i] as number] as number);
    const to = place(shape, output, index);
    (out[to] as number) += values.reduce((x, y) => x * y, 1);
    for (const [i, own] of gradients.entries()) {
      const others = values.reduce((x, y, j) => (i === j ? x : x * y), 1);
      (own[places[i] as number] as number) += others * ((gradient?.[to] ?? 0) as number);
    }
  };
  visit(0);
  return { out, gradients };
}
