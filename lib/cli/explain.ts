import { explain } from '../attention/explain.js';
import type { Problem } from '../attention/plan.js';
import type { FloatDType } from '../base/dtype.js';
import type { DeviceName } from '../devices/registry.js';
import { describeMatmul } from './devices.js';
import { formatBytes, formatTable, readFlags, readIntegers, UsageError } from './usage.js';

function describeCopies(bytes: number): string {
  const ahead = bytes > 2 ? '' : ', nothing of them ahead';
  return `rows are copied in pieces of ${bytes} bytes instead of 16${ahead}: a head dim that is a multiple of 8 (float32: 4) is faster`;
}

/** `flashattn explain` */
export async function explainCommand(args: string[]): Promise<number> {
  const flags = readFlags(args, {
    shape: { type: 'string' },
    'kv-shape': { type: 'string' },
    layout: { type: 'string' },
    dtype: { type: 'string' },
    device: { type: 'string' },
    window: { type: 'string' },
    causal: { type: 'boolean' },
    backward: { type: 'boolean' },
    json: { type: 'boolean' },
  });
  if (flags.shape === undefined) throw new UsageError('explain needs --shape, such as --shape 1,4096,8,64');
  const problem: Problem = {
    q: readIntegers(flags.shape, '--shape', 4),
    ...(flags['kv-shape'] !== undefined && { k: readIntegers(flags['kv-shape'], '--kv-shape', 4) }),
    ...(flags.layout !== undefined && { layout: flags.layout as 'bshd' }),
    ...(flags.dtype !== undefined && { dtype: flags.dtype as FloatDType }),
    ...(flags.device !== undefined && { device: flags.device as DeviceName }),
    ...(flags.window !== undefined && { window: readIntegers(flags.window, '--window', 2) as [number, number] }),
    ...(flags.causal && { causal: true }),
    ...(flags.backward && { backward: true }),
  };
  const cost = explain(problem);
  if (flags.json) {
    console.log(JSON.stringify(cost, null, 2));
    return 0;
  }
  const { block } = cost;
  const work = block
    ? `${cost.items} blocks of ${block.threads} threads with ${formatBytes(block.sharedMemoryBytes)} of shared memory`
    : `${cost.items} items`;
  const copies = block && block.copyBytes < 16 ? [['copies', describeCopies(block.copyBytes)] as const] : [];
  const gflops = (flops: number) => `${Number((flops / 1e9).toPrecision(4))} GFLOP`;
  console.log(
    formatTable([
      ['device', cost.device],
      [
        'kernel',
        `${cost.kernel}, ${cost.dtype}, tiles of ${cost.tiles.query} queries x ${cost.tiles.key} keys, ${work}`,
      ],
      ...copies,
      ...(cost.matmul ? [['matmul', describeMatmul(cost.matmul)] as const] : []),
      ['arithmetic', `${gflops(cost.flops.forward)} forward, ${gflops(cost.flops.backward)} backward`],
      ['sparsity', `${(100 * cost.sparsity).toFixed(1)} % of the query-key pairs are masked`],
      ['tensors', formatBytes(cost.bytes)],
      ['workspace', formatBytes(cost.workspaceBytes)],
      ['unfused', `${formatBytes(cost.unfusedBytes)} of scores and probabilities are never made`],
    ]),
  );
  return 0;
}
