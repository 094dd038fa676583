import { release, type } from 'node:os';
import { type DeviceName, memory, type Status, status } from '../device.js';
import { FlashAttnError } from '../errors.js';
import { version } from '../version.js';
import { type SelfTestReport, selfTest } from './selfTest.js';
import { formatBytes, formatTable, readFlags } from './usage.js';

interface Diagnosis {
  readonly healthy: boolean;
  readonly flashattn: string;
  readonly node: string;
  readonly v8: string;
  readonly platform: string;
  readonly status?: Status;
  readonly memoryLimitBytes?: number;
  readonly selfTest?: SelfTestReport;
  readonly error?: { readonly code: string; readonly message: string };
}

async function diagnose(device: DeviceName): Promise<Diagnosis> {
  const versions = {
    flashattn: version,
    node: process.versions.node,
    v8: process.versions.v8,
    platform: `${process.platform}-${process.arch} (${type()} ${release()})`,
  };
  try {
    const found = status(device);
    const report = await selfTest(device);
    return {
      healthy: report.passed,
      ...versions,
      status: found,
      memoryLimitBytes: memory(device).bytesLimit,
      selfTest: report,
    };
  } catch (error) {
    const code = error instanceof FlashAttnError ? error.code : 'ERR_UNEXPECTED';
    return { healthy: false, ...versions, error: { code, message: (error as Error).message } };
  }
}

function describeDevice(found: Status): string {
  if (found.device === 'wasm') {
    const { simd, threads } = found;
    const why =
      simd === 'relaxed' ? 'relaxed SIMD with fused multiply-add' : 'plain SIMD; relaxed SIMD would be faster';
    return `wasm, ${threads} ${threads === 1 ? 'thread' : 'threads'}, ${why}`;
  }
  const { device, name, computeCapability, multiprocessors, driver, runtime } = found;
  const versions = `driver for CUDA ${driver}, kernels built with CUDA ${runtime}`;
  return `${device}, ${name}, compute capability ${computeCapability}, ${multiprocessors} multiprocessors, ${versions}`;
}

function print(d: Diagnosis): void {
  const rows: [string, string][] = [
    ['flashattn', d.flashattn],
    ['node', `${d.node} (V8 ${d.v8})`],
    ['platform', d.platform],
  ];
  if (d.status) {
    rows.push(['device', describeDevice(d.status)]);
    for (const reason of d.status.reasons) rows.push([`not ${reason.device}`, `${reason.hint} (${reason.code})`]);
  }
  if (d.memoryLimitBytes !== undefined) rows.push(['memory', `up to ${formatBytes(d.memoryLimitBytes)}`]);
  if (d.selfTest) {
    const { cases, worst, seconds, gflops, speedProblem } = d.selfTest;
    rows.push([
      'self-test',
      `${cases} problems forward and backward, largest error ${worst.toExponential(1)}, ${seconds.toFixed(1)} s`,
    ]);
    rows.push(['speed', `${gflops.toFixed(0)} GFLOP/s forward on ${speedProblem}`]);
    for (const failure of d.selfTest.failures) rows.push(['FAILED', failure]);
  }
  if (d.error) rows.push(['error', `${d.error.code}: ${d.error.message}`]);
  console.log(formatTable(rows));
  console.log(d.healthy ? '\nhealthy' : '\nNOT healthy');
}

/** `flashattn doctor` */
export async function doctor(args: string[]): Promise<number> {
  const flags = readFlags(args, { json: { type: 'boolean' }, device: { type: 'string', default: 'auto' } });
  const diagnosis = await diagnose(flags.device as DeviceName);
  if (flags.json) console.log(JSON.stringify(diagnosis, null, 2));
  else print(diagnosis);
  return diagnosis.healthy ? 0 : 1;
}
