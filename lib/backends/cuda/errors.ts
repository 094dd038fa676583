import { FlashAttnError } from '../../base/errors.js';
import type { AttentionProblem } from '../../kernels/attention.js';
import type { AddonError } from './addon.js';

// After these the device's state in this process is lost; every later call fails in the same way.
const fatal = new Set([
  'cudaErrorAssert',
  'cudaErrorContained',
  'cudaErrorECCUncorrectable',
  'cudaErrorExternalDevice',
  'cudaErrorHardwareStackError',
  'cudaErrorIllegalAddress',
  'cudaErrorIllegalInstruction',
  'cudaErrorInvalidAddressSpace',
  'cudaErrorInvalidPc',
  'cudaErrorLaunchFailure',
  'cudaErrorLaunchTimeout',
  'cudaErrorMisalignedAddress',
  'cudaErrorNvlinkUncorrectable',
  'cudaErrorTensorMemoryLeak',
  'cudaErrorUnknown',
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

/** What was going on, as far as one can tell: errors of kernels come with whatever call is next. */
function describeLaunch({ launch, ended, cuda }: AddonError, problem: AttentionProblem | undefined): string {
  if (launch === undefined) return '';
  const shapes = problem ? ` for ${describeShapes(problem)}` : '';
  if (ended) return `${launch} failed${shapes}`;
  if (cuda !== undefined && fatal.has(cuda))
    return `${launch}${shapes}, or a kernel launched before it, failed (FLASHATTN_SYNC=1 tells which)`;
  return `the launch of ${launch} failed${shapes}`;
}

/** Errors of one device. */
export class DeviceErrors {
  readonly #device: string;
  /** What took the device away from this process. */
  #cause: string | undefined;

  constructor(device: string) {
    this.#device = device;
  }

  /** The library's error for what a call into the addon threw. */
  of(thrown: unknown, problem?: AttentionProblem): unknown {
    if (!(thrown instanceof Error)) return thrown;
    const { code, cuda, requested, free, total } = thrown as AddonError;
    const device = this.#device;
    const error = (kind: 'ERR_DEVICE' | 'ERR_OUT_OF_MEMORY', message: string) =>
      new FlashAttnError(kind, message, { cause: thrown });
    if (code === 'ERR_OUT_OF_MEMORY')
      return error(
        'ERR_OUT_OF_MEMORY',
        `${device}: ${requested} bytes were asked for and ${free} of its ${total} bytes are free; dispose tensors or split the problem`,
      );
    if (cuda === 'cudaErrorMemoryAllocation') return error('ERR_OUT_OF_MEMORY', `${device}: ${thrown.message}`);
    if (code !== 'ERR_DEVICE') return thrown;
    const said = [describeLaunch(thrown as AddonError, problem), thrown.message].filter(Boolean).join(': ');
    const lost = 'the device cannot be used any more by this process';
    if (this.#cause !== undefined) return error('ERR_DEVICE', `${device}: ${lost}, since ${this.#cause}; now: ${said}`);
    if (cuda === undefined || !fatal.has(cuda)) return error('ERR_DEVICE', `${device}: ${said}`);
    this.#cause = said;
    return error('ERR_DEVICE', `${device}: ${said}; ${lost}`);
  }
}
