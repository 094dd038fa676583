// The cross entropy of rows of logits x with one class t each, with label smoothing s over C classes (Szegedy et al., "Rethinking
// the Inception Architecture for Computer Vision", 2016) and z-loss (Chowdhery et al., "PaLM", 2022):
//
//   loss = (1 - s) (lse - x[t]) + s (lse - mean(x)) + z lse^2,  lse = log sum_j e^x[j]
//   d_x[j] = d_loss (softmax[j] (1 + 2 z lse) - (1 - s) [j = t] - s / C)
#pragma once
#include "types.h"

namespace flashattn {

enum class LossReduction : int32_t { None, Sum, Mean };

struct CrossEntropyParams {
  Pointer<const void> logits;      // [rows, classes]
  Pointer<const int32_t> targets;  // [rows]
  Pointer<float> losses;           // [rows]: 0 where ignored, NaN where the target is no class
  Pointer<float> lse;              // [2, rows]: the nearest float, and what is missing from it; 0 where ignored
  Pointer<float> result;           // [1]: the sum or mean of losses; null: none
  Pointer<float> counted;          // [1]: rows that are not ignored; null: none, or none is needed
  Pointer<const float> d_loss;     // [rows], of stride d_loss_row
  Pointer<void> d_logits;          // [rows, classes]; may be the logits themselves
  int64_t logits_row, d_logits_row, d_loss_row;  // strides; classes lie side by side
  DType dtype;                                   // of logits and d_logits
  int32_t rows, classes, ignored;                // ignored: the target of rows that do not count
  float smoothing, z;
  LossReduction reduction;
  int32_t reserved;
};
FLASHATTN_FIELDS(CrossEntropyParams, logits, targets, losses, lse, result, counted, d_loss, d_logits, logits_row,
                 d_logits_row, d_loss_row, dtype, rows, classes, ignored, smoothing, z, reduction, reserved);

}  // namespace flashattn
