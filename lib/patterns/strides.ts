/**
 * Su Jianlin's sparse self-attentions (bojone/attention, attention_keras.py): AtrousSelfAttention, LocalSelfAttention and
 * SparseSelfAttention, and a dilated window. `causal` hides what comes after the query.
 */

import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import { type AlignOptions, dilated, or, slidingWindow } from '../masks/index.js';
import type { Mask } from '../masks/mask.js';

export interface StrideOptions extends AlignOptions {
  /** Default false. */
  readonly causal?: boolean;
}

/** What the band masks take: `both` keys after the query unless causal. */
function bandOf(options: StrideOptions, both: number): { readonly right: number; readonly align: AlignOptions } {
  checkOptions(options, ['align', 'causal']);
  const { align, causal = false } = options;
  return { right: checkBoolean(causal, 'causal') ? 0 : both, align: align === undefined ? {} : { align } };
}

/** Query i sees key j when (i - j) mod k = 0. @throws ERR_OPTION */
export function atrous(k: number, options: StrideOptions = {}): Mask {
  const { right, align } = bandOf(options, -1);
  return dilated(checkInteger(k, 'k', 1), { ...align, left: -1, right });
}

/** Query i sees key j when |i - j| <= k. @throws ERR_OPTION */
export function local(k: number, options: StrideOptions = {}): Mask {
  const { right, align } = bandOf(options, checkInteger(k, 'k', 0));
  return slidingWindow(k, right, align);
}

/** Query i sees key j when |i - j| <= k or (i - j) mod k = 0: `local` and `atrous` together. @throws ERR_OPTION */
export const sparse = (k: number, options: StrideOptions = {}): Mask => or(atrous(k, options), local(k, options));

/** Query i sees key j when (i - j) mod rate = 0 and |i - j| <= k * rate. @throws ERR_OPTION */
export function localDilated(k: number, rate: number, options: StrideOptions = {}): Mask {
  const { right, align } = bandOf(options, checkInteger(k, 'k', 0));
  return dilated(checkInteger(rate, 'rate', 1), { ...align, left: k, right });
}
