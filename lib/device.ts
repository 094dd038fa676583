import type { Backend, MemoryReport } from './backends/backend.js';
import { describeWasm, type WasmStatus, wasmBackend } from './backends/wasm/backend.js';
import { FlashAttnError, show } from './errors.js';

/** What a caller can ask for. 'auto' is the best device that works here; the others throw when they cannot be had. */
export type DeviceName = 'auto' | 'wasm' | 'cuda' | `cuda:${number}`;

/** Why a device was passed over, and the one step that would change it. */
export interface DeviceReason {
  readonly device: string;
  readonly code: 'NO_ADDON';
  readonly hint: string;
}

export interface Status extends WasmStatus {
  /** The device that `requested` stands for. */
  readonly device: 'wasm';
  readonly requested: DeviceName;
  /** Devices that were preferred but cannot be used. */
  readonly reasons: readonly DeviceReason[];
}

const noAddon: DeviceReason = {
  device: 'cuda',
  code: 'NO_ADDON',
  hint: 'this version of flashattn has no CUDA addon; it runs on WebAssembly',
};

function resolve(requested: DeviceName): { device: 'wasm'; reasons: readonly DeviceReason[] } {
  if (requested === 'auto') return { device: 'wasm', reasons: [noAddon] };
  if (requested === 'wasm') return { device: 'wasm', reasons: [] };
  if (typeof requested === 'string' && /^cuda(:\d+)?$/.test(requested))
    throw new FlashAttnError(
      'ERR_DEVICE',
      `device ${show(requested)} cannot be used (${noAddon.code}): ${noAddon.hint}`,
    );
  throw new FlashAttnError(
    'ERR_DEVICE',
    `device is ${show(requested)}; it must be 'auto', 'wasm', 'cuda' or 'cuda:<index>'`,
  );
}

/** @internal */
export function backendFor(requested: DeviceName = 'auto'): Backend {
  resolve(requested);
  return wasmBackend();
}

/**
 * What `device` (default 'auto') stands for on this machine and why.
 *
 * @throws ERR_DEVICE when a device other than 'auto' cannot be used
 */
export function status(device: DeviceName = 'auto'): Status {
  return { requested: device, ...resolve(device), ...describeWasm() };
}

/** Device memory of tensors and workspaces: what is alive now, at most so far, and how much there can be. */
export function memory(device: DeviceName = 'auto'): MemoryReport {
  return backendFor(device).memory();
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
