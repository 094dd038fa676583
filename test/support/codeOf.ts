import { FlashAttnError } from 'flashattn';

/** The code of the error that a call throws, 'none' if it throws none; other errors are thrown on. */
export function codeOf(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    if (error instanceof FlashAttnError) return error.code;
    throw error;
  }
  return 'none';
}
