import { FlashAttnError } from '../../base/errors.js';
import type { AttentionProblem } from '../../kernels/attention.js';
import type { AddonError } from './addon.js';

// After these the device's state in this process is lost; every later call fails in the same way.
const fatal = new Set([
  'cudaErrorIllegalAddress',
  'cudaErrorIllegalInstruction',
  'cudaErrorInvalidAddressSpace',
  'cudaErrorInvalidPc',
  'cudaErrorMisalignedAddress',
  'cudaErrorLaunchFailure',
  'cudaErrorLaunchTimeout',
  'cudaErrorHardwareStackError',
  'cudaErrorECCUncorrectable',
  'cudaErrorAssert',
]);

/** 'q float16 [2, 128, 8, 64], k [2, 128, 2, 64], v [2, 128, 2, 64]' */
function describeShapes(p: AttentionProblem): string {
  const shape = (rows: number, heads: number, dim: number) => {
    if (p.layout === 'varlen') return `[${rows}, ${heads}, ${dim}]`;
    return p.layout === 'bshd' ? `[${p.batch}, ${rows}, ${heads}, ${dim}]` : `[${p.batch}, ${heads}, ${rows}, ${dim}]`;
  };
  const q = shape(p.queryRows, p.heads, p.headDim);
  const k = shape(p.keyRows, p.kvHeads, p.headDim);
  const v = shape(p.keyRows, p.kvHeads, p.valueDim);
  return `q ${p.dtype} ${q}, k ${k}, v ${v}`;
}

/** The library's error for what a call into the addon threw. */
export function deviceError(device: string, thrown: unknown, problem?: AttentionProblem): unknown {
  if (!(thrown instanceof Error)) return thrown;
  const { code, cuda, kernel, requested, free, total } = thrown as AddonError;
  if (code === 'ERR_OUT_OF_MEMORY')
    return new FlashAttnError(
      'ERR_OUT_OF_MEMORY',
      `${device}: ${requested} bytes were asked for and ${free} of its ${total} bytes are free; dispose tensors or split the problem`,
      { cause: thrown },
    );
  if (cuda === 'cudaErrorMemoryAllocation')
    return new FlashAttnError('ERR_OUT_OF_MEMORY', `${device}: ${thrown.message}`, { cause: thrown });
  if (code !== 'ERR_DEVICE') return thrown;
  const launch = kernel ? `the launch of ${kernel} failed` : undefined;
  const shapes = problem && `for ${describeShapes(problem)}`;
  const context = [launch, shapes].filter(Boolean).join(' ');
  const after = cuda !== undefined && fatal.has(cuda) ? '; the device cannot be used any more by this process' : '';
  const message = [device, context, thrown.message].filter(Boolean).join(': ');
  return new FlashAttnError('ERR_DEVICE', `${message}${after}`, { cause: thrown });
}
