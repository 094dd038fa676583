/** Exit codes of every command. */
export const exitCode = {
  /** Everything is fine. */
  fine: 0,
  /** The work was done and its result is bad, or something went wrong while it was done. */
  failed: 1,
  /** The requested device cannot be used on this machine. */
  unusable: 2,
  /** The command line is wrong (EX_USAGE of sysexits.h). */
  usage: 64,
} as const;

export type ExitCode = (typeof exitCode)[keyof typeof exitCode];
