/**
 * Su Jianlin's sparse self-attentions (bojone/attention, attention_keras.py): AtrousSelfAttention, LocalSelfAttention and
 * SparseSelfAttention, and a dilated window. `causal` hides what comes after the query.
 */

import { checkBoolean, checkInteger } from '../base/check.js';
import { type AlignOptions, dilated, or, slidingWindow } from '../masks/index.js';
import type { Mask } from '../masks/mask.js';

export interface StrideOptions extends AlignOptions {
  /** Default false. */
  readonly causal?: boolean;
}

const rightOf = ({ causal = false }: StrideOptions, both: number): number =>
  checkBoolean(causal, 'causal') ? 0 : both;

/** Query i sees key j when (i - j) mod k = 0. @throws ERR_OPTION */
export const atrous = (k: number, options: StrideOptions = {}): Mask =>
  dilated(checkInteger(k, 'k', 1), { ...options, left: -1, right: rightOf(options, -1) });

/** Query i sees key j when |i - j| <= k. @throws ERR_OPTION */
export const local = (k: number, options: StrideOptions = {}): Mask =>
  slidingWindow(checkInteger(k, 'k', 0), rightOf(options, k), options);

/** Query i sees key j when |i - j| <= k or (i - j) mod k = 0: `local` and `atrous` together. @throws ERR_OPTION */
export const sparse = (k: number, options: StrideOptions = {}): Mask => or(atrous(k, options), local(k, options));

/** Query i sees key j when (i - j) mod rate = 0 and |i - j| <= k * rate. @throws ERR_OPTION */
export const localDilated = (k: number, rate: number, options: StrideOptions = {}): Mask =>
  dilated(checkInteger(rate, 'rate', 1), {
    ...options,
    left: checkInteger(k, 'k', 0),
    right: rightOf(options, k),
  });
