/** The devices that this checkout can try operations on. */
import {
  type DeviceName,
  FlashAttnError,
  gatherRows,
  matmul,
  neg,
  RowMap,
  recurrence,
  scope,
  sum,
  type Tensor,
  tensor,
} from '../../lib/index.js';
import { hasCpu, onCpu } from './cpu.js';
import { hasEmulator, onEmulator } from './emulator.js';

export interface TestDevice {
  readonly device: DeviceName;
  readonly present: boolean;
  /** Of a suite on it, with the reason when it is skipped. */
  readonly title: (name: string) => string;
  /** How many random cases are worth their time: the emulator runs every thread of a GPU. */
  readonly runs: (cases: number) => number;
  /** Whether large shapes are worth their time. */
  readonly isSlow: boolean;
}

export const testDevices: readonly TestDevice[] = [
  { device: 'wasm', present: true, title: (name) => `${name} on wasm`, runs: (cases) => cases, isSlow: false },
  { device: 'cpu', present: hasCpu, title: (name) => onCpu(`${name} on cpu`), runs: (cases) => cases, isSlow: false },
  {
    device: 'emulator' as DeviceName,
    present: hasEmulator,
    title: (name) => onEmulator(`${name} on the emulator`),
    runs: (cases) => Math.ceil(cases / 8),
    isSlow: true,
  },
];

/** A call that needs a kind of kernels. */
const probes = {
  elementwise: (x: Tensor) => neg(x),
  reduce: (x: Tensor) => sum(x),
  matmul: (x: Tensor) => matmul(x, x),
  gather: (x: Tensor) => gatherRows(x, RowMap.of([0], 1)),
  recurrence: (x: Tensor) =>
    scope(() => {
      const one = x.reshape([1, 1, 1, 1]);
      return recurrence(one, one, one).out as Tensor;
    }),
} as const;

/** Why a device cannot do this; undefined: it can, or says itself in its tests what is wrong. */
function lacks(device: DeviceName, kernels: readonly (keyof typeof probes)[]): string | undefined {
  const x = tensor([1], [1, 1], { device });
  try {
    for (const each of kernels) probes[each](x).dispose();
  } catch (error) {
    if (error instanceof FlashAttnError && error.message.includes('has no operation')) return error.message;
  } finally {
    x.dispose();
  }
  return undefined;
}

/** The devices, those absent that have no kernels of these kinds yet. */
export const devicesWith = (...kernels: (keyof typeof probes)[]): readonly TestDevice[] =>
  testDevices.map((each) => {
    const reason = each.present ? lacks(each.device, kernels) : undefined;
    return reason === undefined ? each : { ...each, present: false, title: (name) => `${name} (skipped: ${reason})` };
  });
