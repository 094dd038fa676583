// Numbers of the host on their way into a tensor.
import { bytesPerElement } from '../base/dtype.js';
import { asStrided, copy } from '../kernels/copy.js';
import type { Backend } from '../kernels/device.js';
import type { Flat } from '../kernels/operand.js';
import type { Encoded } from './source.js';

const chunkElements = 1 << 20;

/**
 * Overwrites `target`, in order behind what was launched on it. What the device has to round goes through it in chunks, and
 * so does what launches under way still use: nobody waits for them.
 */
export function writeElements(backend: Backend, target: Flat, { dtype, bytes }: Encoded): void {
  if (dtype === target.dtype && !backend.isInUse(target.buffer)) {
    backend.write(target.buffer, target.offset * bytesPerElement[dtype], bytes);
    return;
  }
  const bytesOfChunk = chunkElements * bytesPerElement[dtype];
  const allocate = () => backend.allocate(Math.min(bytesOfChunk, bytes.byteLength), 'hostWritten');
  // Two in turn: the host fills one while the device reads the other.
  const staging = [allocate()];
  try {
    staging.push(allocate());
    for (let begin = 0, turn = 0; begin < bytes.byteLength; begin += bytesOfChunk, turn = 1 - turn) {
      const chunk = bytes.subarray(begin, begin + bytesOfChunk);
      const buffer = staging[turn];
      const [count, at] = [chunk.byteLength / bytesPerElement[dtype], begin / bytesPerElement[dtype]];
      backend.write(buffer, 0, chunk);
      const from = asStrided({ buffer, offset: 0, dtype, count });
      backend.launch(copy, { from, to: asStrided({ ...target, offset: target.offset + at, count }) });
    }
  } finally {
    for (const buffer of staging) backend.free(buffer);
  }
}
