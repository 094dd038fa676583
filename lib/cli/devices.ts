// Every device of this machine, usable or not, and the kernels that the usable ones run.

import { explain } from '../attention/explain.js';
import { cpuSupport } from '../backends/cpu/threads/addon.js';
import type { DeviceDescription } from '../backends/cuda/addon.js';
import { type CudaSupport, cudaSupport } from '../backends/cuda/support.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError } from '../base/errors.js';
import {
  type CpuDeviceStatus,
  type CudaDeviceStatus,
  type DeviceName,
  type MatmulKernels,
  memory,
  status,
  type WasmDeviceStatus,
} from '../devices/registry.js';

/** What a problem of this dtype and head dim gets. */
export interface KernelReport {
  readonly dtype: FloatDType;
  readonly headDim: number;
  readonly kernel: string;
  readonly tiles: { readonly query: number; readonly key: number };
}

interface Usable {
  readonly device: string;
  readonly usable: true;
  readonly memoryBytes: number;
  readonly kernels: readonly KernelReport[];
}

export interface UsableGpu
  extends Usable,
    Pick<CudaDeviceStatus, 'name' | 'computeCapability' | 'multiprocessors' | 'matmul'> {
  readonly kind: 'cuda';
  readonly architecture: string;
  readonly pciBusId: string;
}

export interface UsableCpu extends Usable, Pick<CpuDeviceStatus, 'threads' | 'instructionSet'> {
  readonly kind: 'cpu';
}

export interface UsableWasm extends Usable, Pick<WasmDeviceStatus, 'threads' | 'simd'> {
  readonly kind: 'wasm';
}

export interface UnusableDevice {
  readonly device: string;
  readonly kind: 'cuda' | 'cpu' | 'wasm';
  readonly usable: false;
  readonly name?: string;
  readonly architecture?: string;
  readonly computeCapability?: string;
  readonly memoryBytes?: number;
  /** Stable. */
  readonly code: string;
  /** Why not, and the one step that would change it. */
  readonly hint: string;
}

export type DeviceReport = UsableGpu | UsableCpu | UsableWasm | UnusableDevice;

const architectures: readonly [capability: number, name: string][] = [
  [10, 'Blackwell'],
  [9, 'Hopper'],
  [8.9, 'Ada Lovelace'],
  [8, 'Ampere'],
  [7.5, 'Turing'],
  [7, 'Volta'],
  [6, 'Pascal'],
  [5, 'Maxwell'],
  [3, 'Kepler'],
];

/** NVIDIA's name for a compute capability such as '9.0'. */
export function architectureName(computeCapability: string): string {
  const capability = Number(computeCapability);
  return architectures.find(([least]) => capability >= least)?.[1] ?? 'unknown';
}

/** 'cuBLASLt 13.1.1 (/usr/local/cuda/lib64/libcublasLt.so.13)' */
export function describeMatmul(matmul: MatmulKernels): string {
  if (matmul.kernels === 'cublasLt') return `cuBLASLt ${matmul.version} (${matmul.path})`;
  return matmul.kernels === 'none' ? matmul.because : `kernels of this package: ${matmul.because}`;
}

const dtypes: readonly FloatDType[] = ['float16', 'bfloat16', 'float32'];
const headDims = [32, 64, 96, 128, 192, 256];

function kernelsOf(device: DeviceName): KernelReport[] {
  return dtypes.flatMap((dtype) =>
    headDims.map((headDim) => {
      const { kernel, tiles } = explain({ q: [1, 4096, 16, headDim], dtype, device });
      return { dtype, headDim, kernel, tiles };
    }),
  );
}

function unusable(device: string, kind: UnusableDevice['kind'], error: unknown): UnusableDevice {
  const code = error instanceof FlashAttnError ? error.code : 'ERR_UNEXPECTED';
  return { device, kind, usable: false, code, hint: (error as Error).message };
}

function reportCpu(): DeviceReport {
  const support = cpuSupport();
  if ('code' in support) return { kind: 'cpu', usable: false, ...support };
  try {
    const { threads, instructionSet } = status('cpu');
    const memoryBytes = memory('cpu').bytesLimit;
    return {
      device: 'cpu',
      kind: 'cpu',
      usable: true,
      threads,
      instructionSet,
      memoryBytes,
      kernels: kernelsOf('cpu'),
    };
  } catch (error) {
    return unusable('cpu', 'cpu', error);
  }
}

function reportWasm(): DeviceReport {
  try {
    const { threads, simd } = status('wasm');
    const memoryBytes = memory('wasm').bytesLimit;
    return { device: 'wasm', kind: 'wasm', usable: true, threads, simd, memoryBytes, kernels: kernelsOf('wasm') };
  } catch (error) {
    return unusable('wasm', 'wasm', error);
  }
}

function reportGpu({ index, name, major, minor, memory, error }: DeviceDescription, support: CudaSupport) {
  const device = `cuda:${index}` as const;
  const computeCapability = `${major}.${minor}`;
  const known =
    error === undefined
      ? { name, computeCapability, architecture: architectureName(computeCapability), memoryBytes: memory }
      : {};
  const reason = support.reasons.find((other) => other.device === device);
  if (reason) return { device, kind: 'cuda', usable: false, ...known, code: reason.code, hint: reason.hint } as const;
  try {
    const { requested: _, reasons: _none, driver: _driver, runtime: _runtime, ...found } = status(device);
    const architecture = architectureName(found.computeCapability);
    return { ...found, device, kind: 'cuda', usable: true, architecture, kernels: kernelsOf(device) } as const;
  } catch (error) {
    return { ...known, ...unusable(device, 'cuda', error), code: 'DEVICE_ERROR' };
  }
}

/** Sets up every device that can be used. */
export function reportDevices(): DeviceReport[] {
  const support = cudaSupport();
  return [...(support.list?.devices ?? []).map((gpu) => reportGpu(gpu, support)), reportCpu(), reportWasm()];
}
