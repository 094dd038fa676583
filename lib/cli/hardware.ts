// What Linux knows about NVIDIA hardware without CUDA: it tells a machine that has no GPU from one that lacks a driver.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { CudaReasonCode } from '../devices/registry.js';

export interface Hardware {
  /** NVIDIA GPUs on the PCI bus; undefined where it cannot be read. */
  readonly gpus?: number;
  /** The version of the loaded kernel driver, such as '580.65.06'. */
  readonly driver?: string;
  readonly container: boolean;
  /** Windows Subsystem for Linux, where the driver is that of Windows. */
  readonly wsl: boolean;
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

function countGpus(root: string): number | undefined {
  const bus = join(root, 'sys/bus/pci/devices');
  if (!existsSync(bus)) return undefined;
  const isGpu = (device: string) =>
    read(join(bus, device, 'vendor'))?.trim() === '0x10de' &&
    read(join(bus, device, 'class'))?.startsWith('0x03') === true; // display controllers
  return readdirSync(bus).filter(isGpu).length;
}

/** `root`: where the file system lies, for tests. */
export function inspectHardware(root = '/'): Hardware {
  const gpus = countGpus(root);
  const driver = /\s(\d{3,}\.\d+(?:\.\d+)*)\s/.exec(read(join(root, 'proc/driver/nvidia/version')) ?? '')?.[1];
  const container =
    existsSync(join(root, '.dockerenv')) ||
    existsSync(join(root, 'run/.containerenv')) ||
    /docker|kubepods|containerd|lxc/.test(read(join(root, 'proc/1/cgroup')) ?? '');
  const wsl = existsSync(join(root, 'dev/dxg'));
  return { ...(gpus !== undefined && { gpus }), ...(driver !== undefined && { driver }), container, wsl };
}

/** The step that helps on this machine, where its hardware says more than CUDA does. */
export function stepFor(code: CudaReasonCode, { gpus, driver, container, wsl }: Hardware): string | undefined {
  if (code !== 'NO_DRIVER' && code !== 'NO_DEVICE') return undefined;
  if (wsl) return 'install or update the NVIDIA driver of Windows; Linux gets it from there';
  if (driver !== undefined && container)
    return `the host has driver ${driver}: start this container with the GPU, such as docker run --gpus all`;
  if (gpus === 0 && driver === undefined)
    return 'the PCI bus has no NVIDIA GPU: nothing has to be done, WebAssembly is what this machine can have';
  if (gpus !== undefined && code === 'NO_DRIVER') {
    const found = gpus === 1 ? 'an NVIDIA GPU' : `${gpus} NVIDIA GPUs`;
    return `the PCI bus has ${found}: install the NVIDIA driver${container ? ' on the host and the container toolkit' : ''}`;
  }
  return undefined;
}
