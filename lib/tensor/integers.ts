// What the host knows of the whole numbers that it has written: enough to refuse an id before anything is launched.

/** The extremes of a list: without the first, or the last, of them too, for one number may be allowed anywhere. */
export interface Extremes {
  readonly least: number;
  /** The smallest number above `least`; Infinity where there is none. */
  readonly second: number;
  /** The largest number below `most`; -Infinity where there is none. */
  readonly secondMost: number;
  readonly most: number;
}

export function extremesOf(numbers: ArrayLike<number>): Extremes {
  let [least, second] = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
  let [secondMost, most] = [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (let at = 0; at < numbers.length; at++) {
    const x = numbers[at];
    if (x < least) {
      second = least;
      least = x;
    } else if (x > least && x < second) second = x;
    if (x > most) {
      secondMost = most;
      most = x;
    } else if (x < most && x > secondMost) secondMost = x;
  }
  return { least, second, secondMost, most };
}

/** Of both lists together. */
export const joinExtremes = (a: Extremes, b: Extremes): Extremes =>
  extremesOf(
    [a, b].flatMap(({ least, second, secondMost, most }) => [least, second, secondMost, most]).filter(Number.isFinite),
  );

/** Whether all numbers but `allowed` lie in [0, count). */
export function areWithin({ least, second, secondMost, most }: Extremes, count: number, allowed?: number): boolean {
  return (least === allowed ? second : least) >= 0 && (most === allowed ? secondMost : most) < count;
}
