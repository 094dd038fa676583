import type { CpuReason } from '../backends/cpu/threads/addon.js';
import { type CpuStatus, cpuBackend, describeCpu } from '../backends/cpu/threads/device.js';
import { describeWasm, type WasmStatus, wasmBackend } from '../backends/cpu/wasm/device.js';
import { type LoadResult, loadEmulator } from '../backends/cuda/addon.js';
import { CudaBackend, type CudaDeviceName, type CudaStatus } from '../backends/cuda/backend.js';
import { describeCudaSearch } from '../backends/cuda/search.js';
import { cudaSupport, type DeviceReason, findDevices, type UsableDevice } from '../backends/cuda/support.js';
import { type ErrorCode, FlashAttnError, optionError, show } from '../base/errors.js';
import type { Backend, MatmulKernels, MemoryReport } from '../kernels/device.js';

export type { CudaReasonCode, DeviceReason } from '../backends/cuda/support.js';
export type { MatmulKernels } from '../kernels/device.js';

/**
 * What a caller can ask for. 'auto' is the best device that works here: the first CUDA device that can be used, or 'cpu'
 * (native threads), or 'wasm'. The others throw when they cannot be had; 'cuda' is the first CUDA device that can be used.
 */
export type DeviceName = 'auto' | 'cpu' | 'wasm' | 'cuda' | `cuda:${number}`;

/** Why WebAssembly cannot be used: the code and the message of the error that using it throws. */
export interface WasmReason {
  readonly device: 'wasm';
  readonly code: ErrorCode;
  readonly hint: string;
}

interface Resolution {
  readonly requested: DeviceName;
  /** Devices that were preferred but cannot be used, and why. */
  readonly reasons: readonly (DeviceReason | CpuReason | WasmReason)[];
}

/** `status` of a name that stands for the processor's native threads. */
export interface CpuDeviceStatus extends CpuStatus, Resolution {
  readonly device: 'cpu';
}

/** `status` of a name that stands for WebAssembly. */
export interface WasmDeviceStatus extends WasmStatus, Resolution {
  readonly device: 'wasm';
}

/** `status` of a name that stands for a CUDA device. */
export interface CudaDeviceStatus extends CudaStatus, Resolution {
  readonly device: CudaDeviceName;
  /** What multiplies matrices: NVIDIA's cuBLASLt where it was found, which this call looks for if nothing has yet. */
  readonly matmul: MatmulKernels;
}

/** `status` of 'auto' where no device can be used. */
export interface NoDeviceStatus extends Resolution {
  readonly device: 'none';
}

/** Told apart by `device`. */
export type Status = CpuDeviceStatus | WasmDeviceStatus | CudaDeviceStatus | NoDeviceStatus;

type Resolved = {
  readonly backend: Backend;
  /** What `status` says of the device. */
  readonly describe: () => Description;
  readonly reasons: Reasons;
};

type Description =
  | ({ readonly device: 'wasm' } & WasmStatus)
  | ({ readonly device: 'cpu' } & CpuStatus)
  | ({ readonly device: CudaDeviceName; readonly matmul: MatmulKernels } & CudaStatus);

type Reasons = readonly (DeviceReason | CpuReason)[];

const onCuda = (backend: CudaBackend, reasons: Reasons = []): Resolved => ({
  backend,
  describe: () => ({ device: backend.device, ...backend.status, matmul: backend.matmulKernels }),
  reasons,
});

const onWasm = (reasons: Reasons = []): Resolved => ({
  backend: wasmBackend(),
  describe: () => ({ device: 'wasm', ...describeWasm() }),
  reasons,
});

/** Or why not. */
function onCpu(reasons: Reasons = []): Resolved | CpuReason {
  const backend = cpuBackend();
  if ('code' in backend) return backend;
  return { backend, describe: () => ({ device: 'cpu', ...describeCpu(backend) }), reasons };
}

const cudaBackends = new Map<string, CudaBackend>();

/** @throws ERR_DEVICE when the device cannot be set up */
function openCuda(device: CudaDeviceName, usable: UsableDevice): CudaBackend {
  const known = cudaBackends.get(device);
  if (known) return known;
  const backend = new CudaBackend(device, usable);
  cudaBackends.set(device, backend);
  return backend;
}

/** `loaded`: without an addon the message also tells where it was looked for. */
function cannotBeUsed(requested: DeviceName, reasons: Reasons, loaded?: LoadResult): FlashAttnError {
  const because = reasons.map(({ device, code, hint }) => `${device} (${code}): ${hint}`).join('; ');
  const search = loaded !== undefined && 'tried' in loaded ? describeCudaSearch(loaded.tried) : [];
  const lines = [`device ${show(requested)} cannot be used: ${because}`, ...search];
  return new FlashAttnError('ERR_DEVICE', lines.join('\n  '));
}

/** Devices that could not be set up although CUDA lists them, so that every call gives the same answer. */
const broken = new Map<string, DeviceReason>();

/** The first CUDA device that works. */
function firstCuda(): { readonly cuda?: CudaBackend; readonly reasons: readonly DeviceReason[] } {
  const { usable, reasons } = cudaSupport();
  const failures: DeviceReason[] = [];
  for (const candidate of usable) {
    const device = `cuda:${candidate.description.index}` as const;
    const known = broken.get(device);
    if (!known) {
      try {
        return { cuda: openCuda(device, candidate), reasons: [...reasons, ...failures] };
      } catch (error) {
        broken.set(device, { device, code: 'DEVICE_ERROR', hint: `${(error as Error).message}: look at nvidia-smi` });
      }
    }
    failures.push(broken.get(device) as DeviceReason);
  }
  return { reasons: [...reasons, ...failures] };
}

function indexedCuda(requested: `cuda:${number}`): CudaBackend {
  const index = Number(requested.slice('cuda:'.length));
  const { usable, reasons, loaded } = cudaSupport();
  const found = usable.find(({ description }) => description.index === index);
  if (found) return openCuda(`cuda:${index}`, found);
  const own = reasons.filter(({ device }) => device === requested || device === 'cuda');
  if (own.length > 0) throw cannotBeUsed(requested, own, loaded);
  const names = usable.map(({ description }) => `cuda:${description.index}`).join(', ');
  const hint = `there is no such device: use ${names || 'another device'}`;
  throw cannotBeUsed(requested, [{ device: requested, code: 'NO_DEVICE', hint }]);
}

function emulator(): CudaBackend {
  const known = cudaBackends.get('emulator');
  if (known) return known;
  const { usable, reasons } = findDevices(loadEmulator());
  const [first] = usable;
  if (!first) throw cannotBeUsed('emulator' as DeviceName, reasons);
  return openCuda('emulator', first);
}

function resolve(requested: DeviceName): Resolved {
  if (requested === 'wasm') return onWasm();
  if (requested === 'cpu') {
    const found = onCpu();
    if ('code' in found) throw cannotBeUsed(requested, [found]);
    return found;
  }
  if (requested === 'auto' || requested === 'cuda') {
    const { cuda, reasons } = firstCuda();
    if (cuda) return onCuda(cuda, reasons);
    if (requested === 'cuda') throw cannotBeUsed(requested, reasons, cudaSupport().loaded);
    const found = onCpu(reasons);
    return 'code' in found ? onWasm([...reasons, found]) : found;
  }
  // Not among the names: it is for tests of this library, thousands of times slower, and only a checkout has it.
  if ((requested as string) === 'emulator') return onCuda(emulator());
  if (typeof requested === 'string' && /^cuda:(0|[1-9]\d*)$/.test(requested)) return onCuda(indexedCuda(requested));
  throw new FlashAttnError(
    'ERR_DEVICE',
    `device is ${show(requested)}; it must be 'auto', 'cpu', 'wasm', 'cuda' or 'cuda:<index>'`,
  );
}

/** @internal */
export function backendFor(requested: DeviceName = 'auto'): Backend {
  return resolve(requested).backend;
}

/**
 * What `device` (default 'auto') stands for on this machine and why. 'auto' is always answered, with the device 'none'
 * where nothing can be used.
 *
 * @throws ERR_DEVICE, ERR_OPTION when a device other than 'auto' cannot be used
 */
export function status(device: 'cpu'): CpuDeviceStatus;
export function status(device: 'wasm'): WasmDeviceStatus;
export function status(device: 'cuda' | `cuda:${number}`): CudaDeviceStatus;
export function status(device?: DeviceName): Status;
export function status(device: DeviceName = 'auto'): Status {
  try {
    return usableStatus(device);
  } catch (error) {
    if (device !== 'auto') throw error;
    const { code, message } = error as FlashAttnError;
    const cpu = onCpu();
    const reasons = [
      ...firstCuda().reasons,
      ...('code' in cpu ? [cpu] : []),
      { device: 'wasm', code, hint: message } as const,
    ];
    return { requested: device, device: 'none', reasons };
  }
}

/** @internal As `status`, where the device is about to be used. @throws ERR_DEVICE, ERR_OPTION when it cannot be */
export function usableStatus(device: DeviceName): Exclude<Status, NoDeviceStatus> {
  const { describe, reasons } = resolve(device);
  return { requested: device, reasons, ...describe() };
}

/** Device memory of tensors and workspaces: what is alive now, at most so far, and how much there can be. */
export function memory(device: DeviceName = 'auto'): MemoryReport {
  return backendFor(device).memory();
}

/**
 * Gives memory that is kept for later tensors back to the device or the system, as far as nothing is using it. On CUDA,
 * where no more is kept than a program needed lately, it waits for what is under way; on 'wasm', whose memory grows and
 * stays, it does nothing. Of the processor's devices `memory().bytesReserved` stays as it is: addresses are kept.
 */
export function emptyCache(device: DeviceName = 'auto'): void {
  backendFor(device).emptyCache();
}

/** Resolves when everything launched on the device so far is done. */
export async function synchronize(device: DeviceName = 'auto'): Promise<void> {
  await backendFor(device).synchronize();
}

/**
 * Measures the arithmetic peak of the device, multiply-adds on registers alone, in floating-point operations per
 * second: what the speed of a kernel is to be compared with. Takes some tens of milliseconds; take a median of several.
 */
export async function measurePeak(device: DeviceName = 'auto'): Promise<number> {
  return backendFor(device).measurePeak();
}

/**
 * Milliseconds that the device spends on what `run` launches: on CUDA between two events on its stream, on WebAssembly
 * until all of it is done. What was launched before does not count.
 */
export async function measureTime(run: () => void, device: DeviceName = 'auto'): Promise<number> {
  if (typeof run !== 'function') throw optionError(`run is ${show(run)}; it must be a function`);
  return backendFor(device).measure(run);
}

/** @internal The emulator's switches and findings. @throws ERR_DEVICE where there is no emulator */
export function emulatorControls() {
  return emulator().emulator;
}
