/** What the checks of a device are made of. They know nothing of a test runner, so that any program can run them. */
import { type DeviceName, memory } from 'flashattn';
import type { EmulatorControls } from '../../lib/backends/cuda/addon.js';
import { type Case, instantiate } from '../cases/case.js';
import { failureOf, Judge, runOptionsOf } from '../cases/check.js';
import { runLibrary } from '../cases/library.js';

/** In what order an emulated device runs threads, when asynchronous copies land, and how tensor cores add. */
export interface Schedule {
  readonly schedule: number;
  readonly eagerCopies: boolean;
  readonly cutSums: boolean;
}

export interface Settings {
  /** Random cases of each kind. */
  readonly cases: number;
  /** How often work is repeated that has to give the same bits. */
  readonly repeats: number;
  /** Also problems that fill a device, too large for an emulated one. */
  readonly large: boolean;
  /** Of the device, where it is emulated. */
  readonly emulator?: EmulatorControls | undefined;
}

/** Lowest thread first, with copies as late as allowed and sums that round. */
const FIRST_SCHEDULE: Schedule = { schedule: 0, eagerCopies: false, cutSums: false };

/**
 * Lowest thread first, highest first, and at random. Late copies show missing waits, early ones inputs overwritten too
 * soon; sums that are cut, what tensor cores may do to results.
 */
export const schedulesOf = (seed: number): readonly [Schedule, Schedule, Schedule, Schedule] => [
  FIRST_SCHEDULE,
  { schedule: 2 + seed, eagerCopies: true, cutSums: true },
  { schedule: 1, eagerCopies: false, cutSums: true },
  { schedule: 2 + seed, eagerCopies: false, cutSums: false },
];

/** Two of them, in turn: a kernel, which cases of many seeds run, goes through all. */
function twoSchedulesOf(seed: number): readonly Schedule[] {
  const schedules = schedulesOf(seed);
  return seed % 4 < 2 ? schedules.slice(0, 2) : schedules.slice(2);
}

export interface Check {
  readonly name: string;
  /** Throws when something is wrong. */
  run(device: DeviceName): void | Promise<void>;
}

export interface Group {
  readonly name: string;
  readonly checks: readonly Check[];
}

/** A failure, and where there is one the case that shows it alone. */
export class CheckFailure extends Error {
  override readonly name = 'CheckFailure';

  constructor(
    message: string,
    readonly replay?: Case,
  ) {
    super(message);
  }
}

/** Thrown where there is nothing to check. */
export class Unsupported extends Error {
  override readonly name = 'Unsupported';
}

export function ensure(condition: boolean, message: string): asserts condition {
  if (!condition) throw new CheckFailure(message);
}

/** A case that has to agree with the references. */
export function caseCheck(name: string, c: Case): Check {
  return {
    name,
    run(device) {
      const failure = failureOf(c, device);
      if (failure) throw new CheckFailure(failure, c);
    },
  };
}

/** The same, on an emulated device in two schedules. */
export function scheduledCheck(name: string, c: Case, { emulator }: Settings): Check {
  return {
    name,
    run(device) {
      const instance = instantiate(c);
      const judge = new Judge(instance, c.dtype);
      const run = () => judge.failures(runLibrary(instance, runOptionsOf(c, device))).join('; ');
      for (const schedule of emulator ? twoSchedulesOf(c.seed) : [undefined]) {
        if (schedule) emulator?.configure(schedule);
        const failure = attempt(run);
        if (failure) throw new CheckFailure(schedule ? `${failure} (${JSON.stringify(schedule)})` : failure, c);
      }
    },
  };
}

/** What `run` says or throws. */
function attempt(run: () => string): string {
  try {
    return run();
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

export interface CheckReport {
  /** What is wrong; empty when the check passed. */
  readonly problems: readonly Error[];
  readonly unsupported: boolean;
}

/** Runs a check. The emulator's findings and lost tensors count as failures too. */
export async function runCheck(check: Check, device: DeviceName, { emulator }: Settings): Promise<CheckReport> {
  const problems: Error[] = [];
  let unsupported = false;
  emulator?.clearReports();
  const tensors = memory(device).tensors;
  try {
    await check.run(device);
    const left = memory(device).tensors - tensors;
    if (left !== 0) problems.push(new CheckFailure(`${left} tensors are left over`));
  } catch (error) {
    if (error instanceof Unsupported) unsupported = true;
    else problems.push(error instanceof Error ? error : new Error(String(error)));
  }
  for (const report of emulator?.reports() ?? []) problems.push(new CheckFailure(report));
  emulator?.clearReports();
  emulator?.configure(FIRST_SCHEDULE);
  return { problems, unsupported };
}
