import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { optionError, show } from '../../base/errors.js';

/** Processors that the control group of this process may use at a time, where it is limited. Linux alone has such. */
function groupLimit(): number {
  try {
    const [quota, period] = readFileSync('/sys/fs/cgroup/cpu.max', 'utf8').split(' ').map(Number);
    if (quota > 0 && period > 0) return Math.max(1, Math.ceil(quota / period));
  } catch {
    // There is none.
  }
  return Number.POSITIVE_INFINITY;
}

/** FLASHATTN_THREADS, or one thread for each processor that this process may use. */
export function threadCount(): number {
  const { FLASHATTN_THREADS: setting } = process.env;
  if (setting === undefined || setting === '') return Math.min(availableParallelism(), groupLimit());
  const threads = Number(setting);
  if (Number.isInteger(threads) && threads >= 1 && threads <= 256) return threads;
  throw optionError(
    `the environment variable FLASHATTN_THREADS is ${show(setting)}; it must be an integer from 1 to 256`,
  );
}
