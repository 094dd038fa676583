// Tensors that a function leaves behind.
import { type CallSite, callSite } from '../base/callSite.js';
import { checkFunction } from '../base/check.js';
import { FlashAttnError, show } from '../base/errors.js';
import { checkSynchronous, tensorsIn } from '../tape/scope.js';
import { keptBeside, type RecordedNode, seeingRecords } from '../tape/tape.js';
import type { AnyTensor } from '../tensor/tensor.js';
import { type Handle, seeing, watching } from '../tensor/track.js';

const mostListed = 20;

const line = (what: string, { name, place }: CallSite) => `${what}, made by ${name} at ${place}`;

/**
 * What `f` returns, if nothing else that it made is left: tensors that have not been disposed, and graphs that no
 * `backward()` has freed and that the result does not need. Gradients of parameters do not count, nor what modules and
 * optimizers keep for themselves: whatever `scope` would leave. For tests; it is slow.
 *
 * @param f synchronous
 * @throws ERR_LEAK naming for each tensor the operation and the line that made it; they stay as they are
 * @throws ERR_OPTION, and what `f` throws
 */
export function checkLeaks<T>(f: () => T): T {
  checkFunction(f, 'f');
  const sites = new Map<Handle, CallSite>();
  const left = new Set<Handle>();
  const recorded = new Map<RecordedNode, CallSite>();
  const result = seeing(
    (t) => sites.set(t, callSite()),
    () =>
      watching(
        (t) => left.add(t),
        () => seeingRecords((node) => recorded.set(node, callSite()), f),
      ),
  );
  checkSynchronous(result, 'the function of checkLeaks()');
  const returned = tensorsIn(result);
  const lines: string[] = [];
  for (const t of left as Set<AnyTensor>)
    if (!t.disposed && !returned.has(t)) lines.push(line(`${t.dtype} ${show(t.shape)}`, sites.get(t) as CallSite));
  for (const node of keptBeside([...recorded.keys()], [...returned])) {
    const site = recorded.get(node) as CallSite;
    lines.push(line(`what ${node.name} keeps for its gradient`, site));
  }
  if (lines.length === 0) return result;
  const rest = lines.length > mostListed ? [`... ${lines.length} in all`] : [];
  throw new FlashAttnError(
    'ERR_LEAK',
    [`f leaves ${lines.length} tensors or graphs behind:`, ...lines.slice(0, mostListed), ...rest].join('\n  '),
  );
}
