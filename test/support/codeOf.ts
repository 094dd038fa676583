import { FlashAttnError } from 'flashattn';

/** What `say` says of the error that a call throws, 'none' if it throws none; other errors are thrown on. */
function thrownBy(call: () => unknown, say: (error: FlashAttnError) => string): string {
  try {
    call();
  } catch (error) {
    if (error instanceof FlashAttnError) return say(error);
    throw error;
  }
  return 'none';
}

/** Its code. */
export const codeOf = (call: () => unknown): string => thrownBy(call, ({ code }) => code);

/** Its code and message. */
export const errorOf = (call: () => unknown): string => thrownBy(call, ({ code, message }) => `${code}: ${message}`);

/** The code of the error that a promise is rejected with. */
export async function codeOfPromise(promise: Promise<unknown>): Promise<string> {
  const ended = await promise.then(
    () => () => undefined,
    (error: unknown) => () => {
      throw error;
    },
  );
  return codeOf(ended);
}
