// What a function makes a device do, launch by launch.
import { checkFunction, checkNumber, checkOptions } from '../base/check.js';
import { bytesPerElement } from '../base/dtype.js';
import { optionError } from '../base/errors.js';
import type { Backend, ObservedLaunch } from '../kernels/device.js';
import { opcodes } from '../kernels/expression.js';
import type { DeviceBuffer } from '../kernels/memory.js';
import type { Operand } from '../kernels/operand.js';
import { backendFor, type DeviceName } from './registry.js';

export interface ProfileOptions {
  /** Whose launches are measured. Default 'auto'. */
  readonly device?: DeviceName;
  /** Floating-point operations per second to compare with. Default what `measurePeak` finds. */
  readonly peak?: number;
}

/** One launch. */
export interface ProfiledLaunch {
  /** The operation of the kernels; of arithmetic on elements with its first instructions. */
  readonly name: string;
  /** Of what it works on, such as '[8, 256, 96] x [96, 384]'. */
  readonly shape: string;
  readonly milliseconds: number;
  /** Of the arrays that are read and written, each once. */
  readonly bytes: number;
  /** Floating-point operations, roughly: moving an element counts as 8. */
  readonly work: number;
}

/** All launches of one name and shape. */
export interface ProfileRow extends ProfiledLaunch {
  readonly launches: number;
  /** Of the time of all launches. */
  readonly timeShare: number;
  /** `work` in this time, of the arithmetic peak of the device. */
  readonly peakShare: number;
}

/** See `profile`. */
export class Profile<T = unknown> {
  /** By name and shape, what took longest first. */
  readonly table: readonly ProfileRow[];

  /** @internal Use `profile`. */
  constructor(
    /** What the function gave. */
    readonly result: T,
    /** In the order of the launches. */
    readonly trace: readonly ProfiledLaunch[],
    readonly device: string,
    /** Floating-point operations per second. */
    readonly peak: number,
  ) {
    this.table = rowsOf(trace, peak);
  }

  /** Of all launches. */
  get milliseconds(): number {
    return this.trace.reduce((sum, { milliseconds }) => sum + milliseconds, 0);
  }

  /** The table as text. */
  toString(): string {
    const header = ['operation', 'shape', 'launches', 'ms', 'time', 'GB/s', 'GFLOP/s', 'of peak'];
    const lines = this.table.map((row) => {
      const seconds = row.milliseconds / 1000;
      const rate = (count: number) => (seconds > 0 ? (count / seconds / 1e9).toFixed(1) : '-');
      return [
        row.name,
        row.shape,
        String(row.launches),
        row.milliseconds.toFixed(3),
        percent(row.timeShare),
        rate(row.bytes),
        rate(row.work),
        percent(row.peakShare),
      ];
    });
    const count = this.trace.length;
    const title = `${count} launches on ${this.device}, ${this.milliseconds.toFixed(3)} ms, each run alone`;
    return [title, ...alignColumns([header, ...lines])].join('\n');
  }

  /** JSON for chrome://tracing and Perfetto: one launch behind the other, without the time between them. */
  toChromeTrace(): string {
    let at = 0;
    const traceEvents = this.trace.map(({ name, shape, milliseconds, bytes, work }) => {
      const event = {
        name,
        ph: 'X',
        pid: 1,
        tid: 1,
        ts: at * 1000,
        dur: milliseconds * 1000,
        args: { shape, bytes, work },
      };
      at += milliseconds;
      return event;
    });
    const process = { name: 'process_name', ph: 'M', pid: 1, tid: 1, args: { name: this.device } };
    return JSON.stringify({ traceEvents: [process, ...traceEvents], displayTimeUnit: 'ms' });
  }
}

const percent = (share: number) => `${(100 * share).toFixed(1)}%`;

/** Names to the left, numbers to the right. */
function alignColumns(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] as readonly string[]).map((_, i) =>
    Math.max(...rows.map((row) => (row[i] as string).length)),
  );
  return rows.map((row) =>
    row
      .map((cell, i) => (i < 2 ? cell.padEnd(widths[i] as number) : cell.padStart(widths[i] as number)))
      .join('  ')
      .trimEnd(),
  );
}

function rowsOf(trace: readonly ProfiledLaunch[], peak: number): ProfileRow[] {
  const groups = new Map<string, ProfiledLaunch[]>();
  for (const launch of trace) {
    const key = `${launch.name} ${launch.shape}`;
    const group = groups.get(key);
    if (group) group.push(launch);
    else groups.set(key, [launch]);
  }
  const sum = (group: readonly ProfiledLaunch[], what: 'milliseconds' | 'bytes' | 'work') =>
    group.reduce((total, launch) => total + launch[what], 0);
  const all = sum(trace, 'milliseconds');
  const rows = [...groups.values()].map((group) => {
    const [{ name, shape }] = group as [ProfiledLaunch];
    const [milliseconds, bytes, work] = [sum(group, 'milliseconds'), sum(group, 'bytes'), sum(group, 'work')];
    return {
      name,
      shape,
      launches: group.length,
      milliseconds,
      bytes,
      work,
      timeShare: all > 0 ? milliseconds / all : 0,
      peakShare: milliseconds > 0 ? work / (milliseconds / 1000) / peak : 0,
    };
  });
  return rows.sort((a, b) => b.milliseconds - a.milliseconds);
}

/** What operands of any operation may have that tells of their size. */
interface AnyOperands {
  readonly batch?: number | readonly number[];
  readonly rows?: number;
  readonly columns?: number;
  readonly inner?: number;
  readonly dim?: number;
  readonly count?: number;
  readonly rowElements?: number;
  readonly lines?: number;
  readonly length?: number;
  readonly program?: { readonly instructions: readonly number[] };
  readonly problem?: Readonly<Record<string, unknown>>;
  readonly buffer?: DeviceBuffer;
  /** Of operations that take more than tensors. */
  readonly operands?: AnyOperands;
}

const text = (shape: readonly unknown[]) => `[${shape.join(', ')}]`;

/** The shape of the first array of these names that has one. */
function shapeIn(operands: object): readonly number[] | undefined {
  const all = operands as Readonly<Record<string, unknown>>;
  for (const name of ['outputs', 'from', 'result', 'x']) {
    const value = Array.isArray(all[name]) ? (all[name] as unknown[])[0] : all[name];
    const shape = (value as { readonly shape?: readonly number[] } | undefined)?.shape;
    if (shape) return shape;
  }
  return undefined;
}

function shapeOf(launched: AnyOperands): string {
  const operands: AnyOperands = { ...launched, ...launched.operands };
  const { batch, rows, columns, inner, dim, count, rowElements, lines, length, problem, buffer } = operands;
  if (columns !== undefined)
    return `${text([...(batch as readonly number[]), rows, inner])} x ${text([inner, columns])}`;
  if (problem?.classes !== undefined) return text([problem.rows, problem.classes]);
  if (problem?.headDim !== undefined) {
    const { batch: n, heads, queryRows, queryLength = queryRows, keyLength, headDim } = problem;
    return `${text([n, heads, queryLength, headDim])} x ${keyLength} keys`;
  }
  const shape = shapeIn(operands);
  if (shape) return text(shape);
  if (dim !== undefined) return text([rows, dim]);
  if (rowElements !== undefined) return text([count ?? rows, rowElements]);
  if (lines !== undefined) return text([lines, length]);
  return buffer ? text([buffer.byteLength / 4]) : '';
}

const shownInstructions = 4;

function nameOf(operation: string, { program }: AnyOperands): string {
  if (!program) return operation;
  const names = program.instructions.map((word) => opcodes[word & 255] as string);
  const rest = names.length > shownInstructions ? ' ...' : '';
  return `${operation} ${names.slice(0, shownInstructions).join(' ')}${rest}`.trimEnd();
}

/** The bytes that the operands name of each buffer. */
function namedBytes(value: unknown, found = new Map<DeviceBuffer, number>(), depth = 0): Map<DeviceBuffer, number> {
  if (value === null || typeof value !== 'object' || ArrayBuffer.isView(value) || depth > 3) return found;
  const { buffer, dtype, shape, strides, count } = value as Partial<Operand> & {
    readonly shape?: readonly number[];
    readonly strides?: readonly number[];
    readonly count?: number;
  };
  if (buffer && dtype) {
    // Axes of stride 0 repeat what lies there once.
    const elements =
      shape && strides ? shape.reduce((all, n, axis) => (strides[axis] === 0 ? all : all * n), 1) : count;
    const bytes = elements === undefined ? buffer.byteLength : elements * bytesPerElement[dtype];
    found.set(buffer, (found.get(buffer) ?? 0) + bytes);
    return found;
  }
  for (const each of Object.values(value)) namedBytes(each, found, depth + 1);
  return found;
}

function bytesOf({ operands, reads, writes }: ObservedLaunch): number {
  const named = namedBytes(operands);
  const of = (buffers: readonly DeviceBuffer[]) =>
    [...new Set(buffers)].reduce(
      (sum, buffer) => sum + Math.min(buffer.byteLength, named.get(buffer) ?? buffer.byteLength),
      0,
    );
  return of(reads) + of(writes);
}

async function peakOf(backend: Backend): Promise<number> {
  let most = 0;
  for (let i = 0; i < 3; i++) most = Math.max(most, await backend.measurePeak());
  return most;
}

/**
 * Measures every launch of `f` on a device. Each runs alone: on the processor the host waits for the one before and for
 * itself, by the host's clock; on CUDA it lies between two events on the stream, so that a launch of a few microseconds shows
 * what it takes to queue one. What the host does in between is not measured, nor are copies between host and device.
 *
 * `console.log(String(await profile(() => model.loss(ids, targets).backward())))`
 *
 * @param f may be asynchronous: what is launched until its promise settles is measured
 * @throws ERR_OPTION, ERR_DEVICE, and what `f` throws
 */
export async function profile<T>(f: () => T | Promise<T>, options: ProfileOptions = {}): Promise<Profile<T>> {
  checkFunction(f, 'f');
  checkOptions(options, ['device', 'peak']);
  const backend = backendFor(options.device);
  if (options.peak !== undefined) checkNumber(options.peak, 'peak', Number.MIN_VALUE);
  const peak = options.peak ?? (await peakOf(backend));
  if (backend.observer) throw optionError(`what runs on ${backend.device} is being profiled already`);
  const seen: { readonly launch: Omit<ProfiledLaunch, 'milliseconds'>; readonly milliseconds: () => number }[] = [];
  backend.observer = (launch) => {
    const operands = launch.operands as AnyOperands;
    const name = nameOf(launch.operation, operands);
    const { work, milliseconds } = launch;
    seen.push({ launch: { name, shape: shapeOf(operands), bytes: bytesOf(launch), work }, milliseconds });
  };
  let result: T;
  try {
    result = await f();
  } finally {
    backend.observer = undefined;
  }
  const trace = seen.map(({ launch, milliseconds }) => ({ ...launch, milliseconds: milliseconds() }));
  return new Profile(result, trace, backend.device, peak);
}
