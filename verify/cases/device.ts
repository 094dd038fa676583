import type { DeviceName } from 'flashattn';

/** Where tests run that do not name a device: the environment variable FLASHATTN_TEST_DEVICE, or wasm. */
export const testDevice = (process.env.FLASHATTN_TEST_DEVICE || 'wasm') as DeviceName;
