/** The command line itself is wrong, or nothing can be run with it. */
export class UsageError extends Error {}

/** What an error says. */
export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
