import { optionError } from '../base/errors.js';
import { elementSpan } from './shape.js';
import type { AnyTensor } from './tensor.js';

/** Tensors by the names of their arguments. */
export type NamedTensors = Readonly<Record<string, AnyTensor | undefined>>;

interface MemoryRange {
  readonly name: string;
  readonly begin: number;
  readonly end: number;
}

/** The bytes that a tensor lies in; also memory that two buffers share is found, for a device knows each by its address. */
function rangeOf(name: string, t: AnyTensor): MemoryRange {
  const { buffer, offset } = t.operand(name, t.backend);
  const bytes = t.size === 0 ? 0 : t.byteLength / t.size;
  const begin = buffer.address + offset * bytes;
  return { name, begin, end: begin + elementSpan(t.shape, t.strides) * bytes };
}

/**
 * Checks that no input lies in memory that is about to be written: kernels would read what they have just written.
 *
 * @param owner whose the outputs are, as messages say it: 'of the plan'
 * @throws ERR_OPTION
 */
export function checkDisjoint(inputs: NamedTensors, outputs: NamedTensors, owner = ''): void {
  const ranges = (tensors: NamedTensors) =>
    Object.entries(tensors).flatMap(([name, t]) => (t ? [rangeOf(name, t)] : []));
  const written = ranges(outputs);
  for (const read of ranges(inputs)) {
    const clash = written.find(({ begin, end }) => read.begin < end && begin < read.end);
    if (clash)
      throw optionError(
        `${read.name} overlaps ${[clash.name, owner].filter(Boolean).join(' ')}, which this call writes; it must lie in memory of its own`,
      );
  }
}
