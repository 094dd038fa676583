import { release, type } from 'node:os';
import { type CpuReason, cpuAddon, cpuSupport } from '../backends/cpu/threads/addon.js';
import { threadsPrebuilds } from '../backends/cpu/threads/search.js';
import { cudaPrebuilds } from '../backends/cuda/search.js';
import { cudaSupport, formatVersion } from '../backends/cuda/support.js';
import type { AddonFailure, AddonProblem, Attempt } from '../backends/shared/addon/search.js';
import { describeSystem } from '../backends/shared/addon/system.js';
import { FlashAttnError } from '../base/errors.js';
import { version } from '../base/version.js';
import { type CudaReasonCode, type DeviceName, type DeviceReason, usableStatus } from '../devices/registry.js';
import { type DeviceReport, reportDevices } from './devices.js';
import { type ExitCode, exitCode } from './exit.js';
import { type Hardware, inspectHardware, stepFor } from './hardware.js';
import { type Comparison, compare, type SelfTest, type SelfTestReport, selfTest } from './selfTest.js';

export interface AddonReport {
  /** Where it was loaded from. */
  readonly path?: string;
  /** The CUDA version that it was built with. */
  readonly cuda?: string;
  /** Why there is none; stable. */
  readonly problem?: AddonProblem;
  readonly message?: string;
  readonly tried?: readonly Attempt[];
  /** Those that are there, such as 'linux-x64/flashattn.glibc.node'. */
  readonly prebuilds: readonly string[];
}

/** Of the addon for native threads. */
export interface CpuAddonReport extends Omit<AddonReport, 'cuda'> {
  /** Those that it has and this processor runs, the fastest first. */
  readonly supported?: readonly string[];
  /** Those that it has and this processor does not run. */
  readonly unsupported?: readonly string[];
}

/** Why a device was passed over. */
export type Reason = (DeviceReason | CpuReason) & {
  /** What would change it on this machine, where its hardware says more than `hint`. */
  readonly step?: string;
};

export interface Diagnosis {
  readonly healthy: boolean;
  readonly exitCode: ExitCode;
  readonly flashattn: string;
  readonly node: string;
  readonly v8: string;
  readonly system: {
    readonly platform: string;
    readonly os: string;
    readonly libc?: 'glibc' | 'musl';
    readonly glibc?: string;
  };
  /** On Linux. */
  readonly hardware?: Hardware;
  readonly addon: AddonReport;
  readonly cpuAddon: CpuAddonReport;
  /** The CUDA version that the NVIDIA driver is for, where there is a driver. */
  readonly driverCuda?: string;
  readonly devices: readonly DeviceReport[];
  readonly requested: string;
  /** What the requested name stands for, where it can be used. */
  readonly device?: string;
  /** Devices that were preferred but cannot be used. */
  readonly reasons: readonly Reason[];
  /** Why the requested device cannot be used. */
  readonly error?: { readonly code: string; readonly message: string };
  readonly selfTests: readonly SelfTestReport[];
  readonly comparisons: readonly Comparison[];
}

const reportFailure = ({ problem, missing, tried }: AddonFailure) => ({ problem, message: missing, tried });

function reportCpuAddon(): CpuAddonReport {
  const loaded = cpuAddon();
  const prebuilds = threadsPrebuilds();
  if ('problem' in loaded) return { ...reportFailure(loaded), prebuilds };
  const { supported, unsupported } = loaded.addon;
  return { path: loaded.path, supported, unsupported, prebuilds };
}

function reportAddon(): AddonReport {
  const { loaded, list } = cudaSupport();
  const prebuilds = cudaPrebuilds();
  if ('addon' in loaded)
    return {
      ...(loaded.path !== undefined && { path: loaded.path }),
      ...(list && { cuda: formatVersion(list.runtimeVersion) }),
      prebuilds,
    };
  return { ...reportFailure(loaded), prebuilds };
}

function locate(requested: DeviceName): Pick<Diagnosis, 'device' | 'error'> {
  try {
    return { device: usableStatus(requested).device };
  } catch (error) {
    const code = error instanceof FlashAttnError ? error.code : 'ERR_UNEXPECTED';
    return { error: { code, message: (error as Error).message } };
  }
}

/** All devices when any would do; otherwise the one that is meant and WebAssembly, which it is compared with. */
function chooseTested(requested: DeviceName, device: string, devices: readonly DeviceReport[]): DeviceName[] {
  const usable = devices.filter((report) => report.usable).map((report) => report.device);
  const chosen = requested === 'auto' ? usable : [device, ...usable.filter((other) => other === 'wasm')];
  return [...new Set(chosen)] as DeviceName[];
}

export async function diagnose(requested: DeviceName): Promise<Diagnosis> {
  const hardware = process.platform === 'linux' ? inspectHardware() : undefined;
  const system = describeSystem();
  const { reasons: cudaReasons, list } = cudaSupport();
  const cpu = cpuSupport();
  const devices = reportDevices();
  const { device, error } = locate(requested);

  const tests: SelfTest[] = [];
  if (device !== undefined)
    for (const name of chooseTested(requested, device, devices)) tests.push(await selfTest(name));
  const wasm = tests.find(({ report }) => report.device === 'wasm');
  const comparisons = wasm ? tests.filter((other) => other !== wasm).map((other) => compare(other, wasm)) : [];

  const passed = tests.every(({ report }) => report.passed) && comparisons.every((comparison) => comparison.passed);
  const code = error ? exitCode.unusable : passed ? exitCode.fine : exitCode.failed;
  const reasons = [...cudaReasons, ...('code' in cpu ? [cpu] : [])];
  const withStep = (reason: DeviceReason | CpuReason): Reason => {
    const step = hardware && reason.device !== 'cpu' ? stepFor(reason.code as CudaReasonCode, hardware) : undefined;
    return step === undefined ? reason : { ...reason, step };
  };
  return {
    healthy: code === exitCode.fine,
    exitCode: code,
    flashattn: version,
    node: system.node,
    v8: process.versions.v8,
    system: {
      platform: system.platform,
      os: `${type()} ${release()}`,
      ...(system.libc && { libc: system.libc }),
      ...(system.glibc && { glibc: system.glibc }),
    },
    ...(hardware && { hardware }),
    addon: reportAddon(),
    cpuAddon: reportCpuAddon(),
    ...(list && list.driverVersion > 0 && { driverCuda: formatVersion(list.driverVersion) }),
    devices,
    requested,
    ...(device !== undefined && { device }),
    reasons: requested === 'wasm' || requested === 'cpu' ? [] : reasons.map(withStep),
    ...(error && { error }),
    selfTests: tests.map(({ report }) => report),
    comparisons,
  };
}
