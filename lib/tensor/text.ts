import type { DType } from '../base/dtype.js';
import { show } from '../base/errors.js';
import type { Shape } from './shape.js';

/** What `console.log` calls in Node.js, and other JavaScript hosts ignore. */
export const inspect: unique symbol = Symbol.for('nodejs.util.inspect.custom');

interface Described {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly device: string;
  readonly disposed: boolean;
}

/** A tensor in a few words, without its data: 'Tensor [2, 3] float32 on wasm'. */
export const describe = ({ shape, dtype, device, disposed }: Described): string =>
  `Tensor ${show(shape)} ${dtype} on ${device}${disposed ? ', disposed' : ''}`;
