import type { Backend } from '../../kernels/device.js';
import type { DeviceBuffer } from '../../kernels/memory.js';
import {
  type MergeBackwardOperands,
  type MergeOperands,
  type MergePart,
  merge,
  mergeBackward,
  mergePart,
  partValues,
} from '../../kernels/merge.js';
import { StructMemory } from './structWriter.js';

/** Writes the table of parts to the device for as long as `run` queues launches. */
function withTable(
  backend: Backend,
  parts: readonly MergePart[],
  gradients: readonly MergePart[],
  run: (table: DeviceBuffer) => void,
): void {
  const bytes = new ArrayBuffer(parts.length * mergePart.byteLength);
  const memory = new StructMemory(bytes);
  for (const [i, part] of parts.entries())
    memory.write(mergePart, partValues(part, gradients[i]), i * mergePart.byteLength);
  const table = backend.allocate(bytes.byteLength, 'hostWritten');
  try {
    backend.write(table, 0, new Uint8Array(bytes));
    run(table);
  } finally {
    backend.free(table);
  }
}

/** Queues the merge of states. */
export function mergeForward(backend: Backend, operands: MergeOperands): void {
  withTable(backend, operands.parts, [], (table) => backend.launch(merge, { ...operands, table }));
}

/** Queues the gradients of every state. */
export function mergeGradients(backend: Backend, operands: MergeBackwardOperands): void {
  withTable(backend, operands.parts, operands.dParts, (table) => backend.launch(mergeBackward, { ...operands, table }));
}
