import { setImmediate as nextTurn } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

/**
 * Collects what nobody refers to. A test that compares memory before and after an `await` begins with it: tensors that
 * earlier tests left behind may be collected meanwhile.
 */
export async function collectGarbage(): Promise<void> {
  collect();
  // Finalizers run in turns of their own.
  await nextTurn();
  await nextTurn();
}
