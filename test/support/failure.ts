import { expect } from 'vitest';

/** What a call or a promise throws. */
export async function failureOf(
  call: (() => unknown) | Promise<unknown>,
): Promise<Error & { readonly code?: unknown }> {
  try {
    await (typeof call === 'function' ? call() : call);
  } catch (error) {
    return error as Error;
  }
  throw new Error('nothing was thrown');
}

/** That a call or a promise throws an error of this package, with this code and a message that has this in it. */
export async function expectFailure(
  call: (() => unknown) | Promise<unknown>,
  code: string,
  message: string | RegExp,
): Promise<void> {
  const failure = await failureOf(call);
  expect(failure.message).toMatch(message);
  expect(failure).toMatchObject({ name: 'FlashAttnError', code });
}
