import { isIntegerList } from '../base/arrays.js';
import { checkArray, checkBoolean, checkInteger, checkIntegers, checkOptions, checkWord } from '../base/check.js';
import { and, causal, dilated, globalTokens, not, or, perBatch, perHead } from '../masks/index.js';
import type { Mask } from '../masks/mask.js';

export interface LongformerOptions {
  /** Keys on each side of the query. Hugging Face's `attention_window` counts both sides: twice this. */
  readonly window: number;
  /** Distance of neighbours in the window, for all heads or for each. Default 1. */
  readonly dilation?: number | readonly number[];
  /** Whether queries see nothing after themselves. Default false. */
  readonly autoregressive?: boolean;
  /**
   * Positions of the global tokens, for all batch entries or a list for each; those beyond a sequence are ignored.
   * Default none.
   */
  readonly globals?: readonly number[] | readonly (readonly number[])[];
  /**
   * Which queries see anything: 'all' (default), the 'local' ones or the 'global' ones. The Longformer gives global
   * queries projections of their own: its output is attention over q, k, v with 'local' plus attention over the other
   * projections with 'global', as rows that see nothing are 0.
   */
  readonly queries?: 'all' | 'local' | 'global';
}

type Side = 'asKeys' | 'asQueries';

function globalMask(globals: NonNullable<LongformerOptions['globals']>, side: Side): Mask {
  const one = (tokens: readonly number[], argument: string) =>
    globalTokens(checkIntegers(tokens, argument, 0), { asKeys: side === 'asKeys', asQueries: side === 'asQueries' });
  const isPerBatch = Array.isArray(globals) && globals.some(isIntegerList);
  if (!isPerBatch) return one(globals as readonly number[], 'globals');
  return perBatch(
    checkArray(globals, 'globals', 'lists', (list, argument) => one(list as readonly number[], argument)),
  );
}

/**
 * Longformer (Beltagy et al. 2020, "Longformer: The Long-Document Transformer"; allenai/longformer). With w = window and
 * d = dilation of the head, query i sees key i + d * c for c = -w to w (to 0 when autoregressive) and every global key;
 * a global query sees everything. When autoregressive, global tokens too are seen, and see, only backwards.
 *
 * @throws ERR_OPTION
 */
export function longformer(options: LongformerOptions): Mask {
  checkOptions(options, ['window', 'dilation', 'autoregressive', 'globals', 'queries']);
  const { window, dilation = 1, autoregressive = false, globals = [], queries = 'all' } = options;
  checkInteger(window, 'window', 0);
  checkBoolean(autoregressive, 'autoregressive');
  checkWord(queries, 'queries', ['all', 'local', 'global']);
  const band = (step: number) => dilated(step, { left: window, right: autoregressive ? 0 : window });
  const local =
    typeof dilation === 'number'
      ? band(checkInteger(dilation, 'dilation', 1))
      : perHead(checkIntegers(dilation, 'dilation', 1).map(band));
  const globalKeys = globalMask(globals, 'asKeys');
  const globalQueries = globalMask(globals, 'asQueries');
  const seen = {
    all: () => or(local, globalKeys, globalQueries),
    local: () => and(or(local, globalKeys), not(globalQueries)),
    global: () => globalQueries,
  }[queries]();
  return autoregressive ? and(seen, causal()) : seen;
}
