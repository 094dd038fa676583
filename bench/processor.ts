// The processor as a device: --device wasm, the default, or cpu.
import { availableParallelism, cpus } from 'node:os';
import { status } from 'flashattn';

export type Processor = 'wasm' | 'cpu';

export function readProcessor(name: string | undefined): Processor {
  if (name === undefined || name === 'wasm' || name === 'cpu') return name ?? 'wasm';
  throw new Error(`--device is ${name}; it must be wasm or cpu`);
}

/** What it is and which kernels it runs, for the head of a table. */
export function describeProcessor(device: Processor): string {
  const found = device === 'wasm' ? status('wasm') : status('cpu');
  const kernels = found.device === 'wasm' ? `${found.simd} SIMD` : found.instructionSet;
  const machine = `${cpus()[0]?.model.trim()}, ${availableParallelism()} cores, ${found.threads} threads`;
  return `${machine}; node ${process.versions.node}; ${found.device}: ${kernels}`;
}
