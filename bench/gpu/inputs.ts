/** Random inputs, made once for every shape of a dtype: all shapes have as many elements. */
import { type DeviceName, type FloatDType, type Tensor, tensor } from 'flashattn';
import type { Shape, Sizes } from './shapes.js';

/** q, k, v and the gradient of the output, as seen by one problem. */
export interface Inputs {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly dOut: Tensor;
}

const names = ['q', 'k', 'v', 'dOut'] as const;

/** So many numbers with a standard normal distribution: zeros or few bits would make hardware faster than it is. */
const tableSize = 1 << 16;

export function normalTable(dtype: FloatDType): Float32Array | Uint16Array {
  const numbers = Float32Array.from({ length: tableSize }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
    return radius * Math.cos(2 * Math.PI * Math.random());
  });
  using rounded = tensor(numbers, [tableSize], { dtype, device: 'wasm' });
  return rounded.dataSync();
}

/** Elements drawn from a table of them, in an order that no other seed gives. */
function draw<Elements extends Float32Array | Uint16Array>(from: Elements, into: Elements, seed: number): Elements {
  let state = seed * 2 + 1;
  for (let i = 0; i < into.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    into[i] = from[state >>> 16];
  }
  return into;
}

/** A tensor [count] on the device. */
export function drawn(
  from: Float32Array | Uint16Array,
  count: number,
  seed: number,
  dtype: FloatDType,
  device: DeviceName,
) {
  if (from instanceof Float32Array) return tensor(draw(from, new Float32Array(count), seed), [count], { device });
  const bits = draw(from, new Uint16Array(count), seed);
  return tensor(bits, [count], { dtype: dtype as 'float16' | 'bfloat16', device });
}

/** Sets of inputs that take turns, so that none is still in the cache when it is read again. */
export class InputSets implements Disposable {
  readonly #sets: Tensor[][];

  constructor(sizes: Sizes, dtype: FloatDType, device: DeviceName) {
    const count = sizes.tokens * sizes.width;
    const table = normalTable(dtype);
    const one = (seed: number): Tensor => drawn(table, count, seed, dtype, device);
    const first = names.map((_, i) => one(i));
    const setBytes = first.reduce((sum, { byteLength }) => sum + byteLength, 0);
    const sets = Math.max(2, Math.ceil(sizes.cacheBytes / setBytes));
    this.#sets = [first];
    for (let set = 1; set < sets; set++) this.#sets.push(names.map((_, i) => one(set * names.length + i)));
  }

  /** Views of every set. */
  as({ batch, length, heads, dim }: Shape): Inputs[] {
    const view = (t: Tensor) => t.reshape([batch, length, heads, dim]);
    return this.#sets.map(([q, k, v, dOut]) => ({ q: view(q), k: view(k), v: view(v), dOut: view(dOut) }));
  }

  [Symbol.dispose](): void {
    for (const set of this.#sets) for (const t of set) t.dispose();
  }
}

export function disposeInputs(sets: readonly Inputs[]): void {
  for (const inputs of sets) for (const name of names) inputs[name].dispose();
}
