import type { DeviceName } from '../devices/registry.js';
import { type DeviceReport, describeMatmul, type KernelReport } from './devices.js';
import { type AddonReport, type Diagnosis, diagnose } from './diagnosis.js';
import { formatBytes, formatTable, readFlags } from './usage.js';

type Row = [name: string, value: string];

/** '128 x 64 (head dim 32 to 96), 64 x 64 (128 to 256)' */
function describeTiles(kernels: readonly KernelReport[]): string {
  const groups: { tiles: string; dims: number[] }[] = [];
  for (const { tiles, headDim } of kernels) {
    const name = `${tiles.query} x ${tiles.key}`;
    const last = groups.at(-1);
    if (last?.tiles === name) last.dims.push(headDim);
    else groups.push({ tiles: name, dims: [headDim] });
  }
  const range = (dims: readonly number[]) => (dims.length > 1 ? `${dims[0]} to ${dims.at(-1)}` : `${dims[0]}`);
  return groups.map(({ tiles, dims }) => `${tiles} (head dim ${range(dims)})`).join(', ');
}

/** A line for all dtypes that get the same. */
function kernelRows(kernels: readonly KernelReport[]): Row[] {
  const lines = new Map<string, string[]>();
  for (const dtype of new Set(kernels.map((kernel) => kernel.dtype))) {
    const own = kernels.filter((kernel) => kernel.dtype === dtype);
    const line = `${own[0].kernel}, queries x keys in a tile: ${describeTiles(own)}`;
    lines.set(line, [...(lines.get(line) ?? []), dtype]);
  }
  return [...lines].map(([line, dtypes]) => ['  kernels', `${dtypes.join(', ')}: ${line}`]);
}

function deviceRows(report: DeviceReport): Row[] {
  const { device } = report;
  if (!report.usable) {
    const { name, architecture, computeCapability, memoryBytes, code, hint } = report;
    const known = name
      ? [name, architecture, `compute capability ${computeCapability}`, formatBytes(memoryBytes ?? 0)]
      : [];
    return [
      [device, [...known, 'cannot be used'].join(', ')],
      ['  because', `${hint} (${code})`],
    ];
  }
  const { memoryBytes, kernels } = report;
  const memory = formatBytes(memoryBytes);
  if (report.kind === 'cuda') {
    const { name, architecture, computeCapability, multiprocessors } = report;
    const capability = `compute capability ${computeCapability} (${architecture})`;
    return [
      [device, `${name}, ${capability}, ${memory}, ${multiprocessors} multiprocessors`],
      ...kernelRows(kernels),
      ['  matmul', describeMatmul(report.matmul)],
    ];
  }
  const workers = `${report.threads} ${report.threads === 1 ? 'thread' : 'threads'}`;
  const speed =
    report.kind === 'cpu'
      ? report.instructionSet
      : report.simd === 'relaxed'
        ? 'relaxed SIMD with fused multiply-add'
        : 'plain SIMD; relaxed SIMD would be faster';
  return [[device, `${workers}, ${speed}, up to ${memory}`], ...kernelRows(kernels)];
}

/** Why an addon is not there and what was tried. */
function missingRows({ tried = [], prebuilds }: Pick<AddonReport, 'tried' | 'prebuilds'>): Row[] {
  return [
    ...tried.map(({ path, result }): Row => ['  tried', `${path}: ${result}`]),
    ['  found', prebuilds.join(', ') || 'no such addons'],
  ];
}

function machineRows({ flashattn, node, v8, system, hardware, addon, cpuAddon, driverCuda }: Diagnosis): Row[] {
  const { platform, os, libc, glibc } = system;
  const rows: Row[] = [
    ['flashattn', flashattn],
    ['node', `${node} (V8 ${v8})`],
    ['platform', [platform, [libc, glibc].filter(Boolean).join(' '), os].filter(Boolean).join(', ')],
  ];
  if (addon.path !== undefined) rows.push(['CUDA addon', `${addon.path}, built with CUDA ${addon.cuda}`]);
  else rows.push(['CUDA addon', `none (${addon.problem})`], ...missingRows(addon));
  if (driverCuda !== undefined) {
    const installed = hardware?.driver === undefined ? '' : `${hardware.driver}, `;
    rows.push(['driver', `${installed}for CUDA ${driverCuda}`]);
  }
  if (cpuAddon.path !== undefined)
    rows.push([
      'cpu addon',
      `${cpuAddon.path}, with ${cpuAddon.supported?.join(', ') || 'nothing for this processor'}`,
    ]);
  else rows.push(['cpu addon', `none (${cpuAddon.problem})`], ...missingRows(cpuAddon));
  return rows;
}

function testRows({ selfTests, comparisons }: Diagnosis): Row[] {
  const rows: Row[] = [];
  for (const { device, cases, worst, seconds, gflops, speedProblem, failures } of selfTests) {
    const checked = `${cases} problems forward and backward, largest error ${worst.toExponential(1)}`;
    rows.push(['self-test', `${device}: ${checked}, ${seconds.toFixed(1)} s`]);
    rows.push(['  speed', `${gflops.toPrecision(3)} GFLOP/s forward on ${speedProblem}`]);
    for (const failure of failures) rows.push(['  FAILED', failure]);
  }
  for (const { devices, worst, failures } of comparisons) {
    rows.push(['compared', `${devices.join(' and ')}: largest difference ${worst.toExponential(1)}`]);
    for (const failure of failures) rows.push(['  FAILED', failure]);
  }
  return rows;
}

function print(d: Diagnosis): void {
  const rows = [...machineRows(d), ...d.devices.flatMap(deviceRows)];
  if (d.device !== undefined && d.device !== d.requested) rows.push([d.requested, `is ${d.device}`]);
  // Devices that are listed have said why already.
  const listed = new Set(d.devices.map(({ device }) => device));
  for (const { device, hint, code, step } of d.reasons.filter((reason) => !listed.has(reason.device))) {
    rows.push([`not ${device}`, `${hint} (${code})`]);
    if (step !== undefined) rows.push(['  here', step]);
  }
  rows.push(...testRows(d));
  // Where it was looked for stands above already.
  if (d.error) rows.push(['error', `${d.error.code}: ${d.error.message.split('\n')[0]}`]);
  console.log(formatTable(rows));
  console.log(d.healthy ? '\nhealthy' : '\nNOT healthy');
}

/** `flashattn doctor` */
export async function doctor(args: string[]): Promise<number> {
  const flags = readFlags(args, { json: { type: 'boolean' }, device: { type: 'string', default: 'auto' } });
  const diagnosis = await diagnose(flags.device as DeviceName);
  if (flags.json) console.log(JSON.stringify(diagnosis, null, 2));
  else print(diagnosis);
  return diagnosis.exitCode;
}
