import type { AttentionProblem } from '../../kernels/attention.js';
import type { DeviceBuffer, Flat, View } from '../../kernels/device.js';
import type { AttentionTensors } from '../shared/operands.js';
import type { AttentionMemory } from './params.js';

// Any address that is not null.
const address = 256;
const buffer: DeviceBuffer = { address, byteLength: 0 };

/**
 * What stands in for the tensors of a problem where only their presence matters: tiles depend on which options there are,
 * not on where they lie.
 */
export function standIns(p: AttentionProblem): { tensors: AttentionTensors; memory: AttentionMemory } {
  const view: View = { buffer, offset: 0, dtype: p.dtype, batchStride: 0, seqStride: 0, headStride: 0 };
  const lse: Flat = { buffer, offset: 0, dtype: 'float32', count: 0 };
  const present = (option: unknown) => (option ? address : 0);
  const tensors = { query: view, key: view, value: view, out: view, lse };
  const memory: AttentionMemory = {
    sequences: present(p.sequences),
    bias: present(p.biasShape),
    alibi: present(p.alibi),
    relativeTable: present(p.relative),
    buckets: present(p.relative),
    queryPosition: present(p.relative?.queryPosition),
    keyPosition: present(p.relative?.keyPosition),
    sink: present(p.hasSink),
    blockMask: undefined,
    delta: 0,
    dQuerySum: 0,
    turns: 0,
    dRelativePartial: 0,
    dRelative: present(p.relative),
    dSink: present(p.hasSink),
    dBias: present(p.biasShape),
  };
  return { tensors, memory };
}
