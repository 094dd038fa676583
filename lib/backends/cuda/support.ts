// Which CUDA devices can be used, and why the others cannot.
import { type Addon, type DeviceDescription, type DeviceList, type LoadResult, loadAddon } from './addon.js';

/** Stable identifiers of why CUDA cannot be used. */
export type CudaReasonCode =
  | 'NO_ADDON'
  | 'NO_DRIVER'
  | 'DRIVER_TOO_OLD'
  | 'NO_DEVICE'
  | 'UNSUPPORTED_ARCHITECTURE'
  | 'DEVICE_ERROR';

/** Why a device was passed over, and the one step that would change it. */
export interface DeviceReason {
  /** 'cuda', or 'cuda:<index>' when one device of several is meant. */
  readonly device: string;
  readonly code: CudaReasonCode;
  readonly hint: string;
}

/** A device that the kernels run on. */
export interface UsableDevice {
  readonly addon: Addon;
  readonly list: DeviceList;
  readonly description: DeviceDescription;
}

export interface CudaSupport {
  readonly usable: readonly UsableDevice[];
  readonly reasons: readonly DeviceReason[];
  readonly loaded: LoadResult;
  /** What CUDA says of the machine; none without an addon. */
  readonly list?: DeviceList;
}

// The kernels need asynchronous copies and bfloat16 products.
const leastCapability = { major: 8, name: 'Ampere' };

/** '13.2' of 13020 */
export const formatVersion = (version: number) => `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;

const reason = (code: CudaReasonCode, hint: string, device = 'cuda'): DeviceReason => ({ device, code, hint });

/** Why no device can be counted, or undefined where some can. */
function explainList({ driverVersion, runtimeVersion, error, message, devices }: DeviceList): DeviceReason | undefined {
  if (error === undefined)
    return devices.length > 0
      ? undefined
      : reason('NO_DEVICE', 'CUDA sees no GPU: look at nvidia-smi and at the variable CUDA_VISIBLE_DEVICES');
  if (driverVersion === 0)
    return reason(
      'NO_DRIVER',
      'there is no NVIDIA driver: install it (in a container, start it with the GPU, such as docker run --gpus all)',
    );
  const needed = Math.floor(runtimeVersion / 1000);
  if (error === 'cudaErrorInsufficientDriver' || driverVersion < needed * 1000)
    return reason(
      'DRIVER_TOO_OLD',
      `the NVIDIA driver is for CUDA ${formatVersion(driverVersion)}: install one for CUDA ${needed} or later`,
    );
  if (error === 'cudaErrorNoDevice')
    return reason('NO_DEVICE', 'CUDA sees no GPU: look at nvidia-smi and at the variable CUDA_VISIBLE_DEVICES');
  return reason('DEVICE_ERROR', `the devices cannot be listed (${error}: ${message}): look at nvidia-smi`);
}

function explainDevice({ index, name, major, minor, error, message }: DeviceDescription): DeviceReason | undefined {
  const device = `cuda:${index}`;
  if (error !== undefined)
    return reason('DEVICE_ERROR', `the device cannot be asked (${error}: ${message}): look at nvidia-smi`, device);
  if (major >= leastCapability.major) return undefined;
  return reason(
    'UNSUPPORTED_ARCHITECTURE',
    `${name} has compute capability ${major}.${minor}: use a GPU with ${leastCapability.major}.0 (${leastCapability.name}) or later`,
    device,
  );
}

/** @internal Looks at every device of a loaded addon. */
export function findDevices(loaded: LoadResult): CudaSupport {
  if ('missing' in loaded) return { usable: [], reasons: [reason('NO_ADDON', loaded.missing)], loaded };
  const { addon } = loaded;
  const list = addon.devices();
  const unusable = explainList(list);
  if (unusable) return { usable: [], reasons: [unusable], loaded, list };
  const usable: UsableDevice[] = [];
  const reasons: DeviceReason[] = [];
  for (const description of list.devices) {
    const problem = explainDevice(description);
    if (problem) reasons.push(problem);
    else usable.push({ addon, list, description });
  }
  return { usable, reasons, loaded, list };
}

let support: CudaSupport | undefined;

/** What this machine has, looked up once. */
export function cudaSupport(): CudaSupport {
  support ??= findDevices(loadAddon());
  return support;
}
