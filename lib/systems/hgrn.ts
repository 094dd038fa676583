import type { FloatDType } from '../base/dtype.js';
import { type LinearScanOptions, linearScan } from '../linear/linearScan.js';
import type { Scanned } from '../linear/scanOperands.js';
import type { Shape, Tensor } from '../tensor/tensor.js';

/**
 * The recurrence of HGRN (Qin, Yang and Zhong, "Hierarchically Gated Recurrent Neural Network for Sequence Modeling", 2023) as
 * flash-linear-attention has it: h_t = e^(g_t) h_{t-1} + x_t, for each channel. The input gate, 1 - e^g of the paper, is in x.
 *
 * @param x [batch, length, channels]
 * @param g of the shape of x: logarithms of the forget gates, at most 0
 * @returns `out`, h of every position, and `state`, float32 [batch, channels], that of the last
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function hgrnRecurrence<D extends FloatDType, S extends Shape>(
  x: Tensor<D, S>,
  g: Tensor<FloatDType, Shape>,
  options: LinearScanOptions = {},
): Scanned<D, S> {
  return linearScan(x, g, options);
}
