import { FlashAttnError } from '../../../base/errors.js';
import { CpuBackend } from '../backend.js';
import { type CpuReason, cpuSupport } from './addon.js';
import { ThreadsHost } from './host.js';

export interface CpuStatus {
  /** Which kernels run: 'avx512bf16', 'avx512', 'avx2', 'amx' (only where FLASHATTN_CPU asks for it), 'neonbf16', 'neon'. */
  readonly instructionSet: string;
  /** How many threads work on a launch. */
  readonly threads: number;
}

let backend: CpuBackend<ThreadsHost> | undefined;

/** Native threads; one for each JavaScript environment. Or why there are none. */
export function cpuBackend(): CpuBackend<ThreadsHost> | CpuReason {
  if (backend) return backend;
  const support = cpuSupport();
  if ('code' in support) return support;
  try {
    backend = new CpuBackend(new ThreadsHost(support.addon, support.instructionSet));
    return backend;
  } catch (error) {
    if (!(error instanceof FlashAttnError)) throw error;
    return { device: 'cpu', code: 'LOAD_FAILED', hint: error.message };
  }
}

export function describeCpu({ host }: CpuBackend<ThreadsHost>): CpuStatus {
  return { instructionSet: host.instructionSet, threads: host.activeThreads };
}
