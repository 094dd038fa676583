import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import { and, causal as causalMask, dilated, documents, or } from '../masks/index.js';
import { checkTokens, type Mask } from '../masks/mask.js';

export interface SqrtNOptions {
  /** Tokens of the sequence. */
  readonly length: number;
  /** Tokens of a block. Default ceil(sqrt(length)). */
  readonly block?: number;
  /** Whether tokens also see those at their own offset in all other blocks. Default false. */
  readonly strided?: boolean;
  /** Default false. */
  readonly causal?: boolean;
}

/**
 * Attention in blocks of b = ceil(sqrt(N)) tokens, O(N sqrt(N)) in all (Child et al. 2019 without their summaries): query
 * i sees key j when floor(i / b) = floor(j / b), or, when strided, when i mod b = j mod b; when causal only if j <= i.
 * The last block may be shorter.
 *
 * @throws ERR_OPTION
 */
export function sqrtN(options: SqrtNOptions): Mask {
  checkOptions(options, ['length', 'block', 'strided', 'causal']);
  const { length, strided = false, causal = false } = options;
  checkTokens(length, 'length', 1);
  const { block = Math.ceil(Math.sqrt(length)) } = options;
  checkInteger(block, 'block', 1);
  const blocks = Array.from({ length: Math.ceil(length / block) }, (_, at) => Math.min(block, length - at * block));
  const own = documents(blocks);
  const seen = checkBoolean(strided, 'strided') ? or(own, dilated(block)) : own;
  return checkBoolean(causal, 'causal') ? and(seen, causalMask()) : seen;
}
