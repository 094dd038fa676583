// The cross entropy of rows of logits, each read once: a warp, or a block where classes are many, owns a row.
#include "block_sum.cuh"
#include "launch.h"
#include "online_sum.cuh"
#include "row_group.cuh"

namespace flashattn {

namespace {

constexpr int kExchanges = 3;

FLASHATTN_DEVICE float added(float a, float b) { return a + b; }

/** A row in pieces of kVector classes that lie at multiples of an access, wherever the row begins. */
struct RowPieces {
  int64_t offset;  // of the row, in elements
  int classes, skipped, count;

  FLASHATTN_DEVICE RowPieces(const CrossEntropyParams& p, int64_t row)
      : offset(row * p.logits_row),
        classes(p.classes) {
    const int bytes = p.dtype == DType::Float32 ? 4 : 2;
    const uint64_t begin = reinterpret_cast<uint64_t>(static_cast<const void*>(p.logits)) + offset * bytes;
    skipped = static_cast<int>(begin % kAccessBytes) / bytes;
    count = static_cast<int>((int64_t{classes} + skipped + kVector - 1) / kVector);
  }
  /** The first class of a piece; those before the first piece's are negative. */
  FLASHATTN_DEVICE int64_t first(int piece) const { return int64_t{piece} * kVector - skipped; }
  FLASHATTN_DEVICE bool is_whole(int64_t first) const { return first >= 0 && first + kVector <= classes; }
};

/** Classes [first, first + kVector) of a row of logits; -Infinity where there is none. */
FLASHATTN_DEVICE void load_piece(float (&x)[kVector], const CrossEntropyParams& p, const RowPieces& row,
                                 int64_t first) {
  if (row.is_whole(first)) return load_vector(x, p.dtype, p.logits, row.offset + first, kVector, true);
  for (int e = 0; e < kVector; ++e) {
    x[e] = -INFINITY;
    if (first + e < 0 || first + e >= row.classes) continue;
    float one[kVector];
    load_vector(one, p.dtype, p.logits, row.offset + first + e, 1, false);
    x[e] = one[0];
  }
}

FLASHATTN_DEVICE void store_piece(const CrossEntropyParams& p, const RowPieces& row, int64_t row_index, int64_t first,
                                  const float (&x)[kVector]) {
  const int64_t offset = row_index * p.d_logits_row + first;
  const int bytes = p.dtype == DType::Float32 ? 4 : 2;
  const bool aligned =
      (reinterpret_cast<uint64_t>(static_cast<void*>(p.d_logits)) + offset * bytes) % kAccessBytes == 0;
  if (row.is_whole(first)) return store_vector(p.dtype, p.d_logits, offset, x, kVector, aligned);
  for (int e = 0; e < kVector; ++e) {
    if (first + e < 0 || first + e >= row.classes) continue;
    const float one[kVector] = {x[e]};
    store_vector(p.dtype, p.d_logits, offset + e, one, 1, false);
  }
}

template <int kGroupWarps>
FLASHATTN_KERNEL(kFlatThreads)
cross_entropy_kernel(CrossEntropyParams p) {
  using Group = RowGroup<kGroupWarps>;
  const int64_t row = Group::row();
  if (row >= p.rows) return;
  const int32_t target = ptx::load_global(p.targets + row);
  const bool first_thread = Group::thread() == 0;
  if (target == p.ignored) {
    if (!first_thread) return;
    ptx::store_global(p.losses + row, 0.0f);
    ptx::store_global(p.lse + row, 0.0f);
    ptx::store_global(p.lse + p.rows + row, 0.0f);
    return;
  }

  const RowPieces pieces(p, row);
  float total = 0, lost_of_total = 0, x[kVector];
  OnlineSum own;
  for (int piece = Group::thread(); piece < pieces.count; piece += Group::kThreads) {
    const int64_t first = pieces.first(piece);
    load_piece(x, p, pieces, first);
    own.take(x);
    if (p.smoothing == 0) continue;
    float logits = 0;
    for (int e = 0; e < kVector; ++e)
      if (first + e >= 0 && first + e < p.classes) logits += x[e];
    add_compensated(total, lost_of_total, logits);
  }
  const float maximum = Group::reduce(own.maximum, 0, larger);
  const float sum = Group::reduce(own.above(maximum), 1, added);
  if (p.smoothing != 0) total = Group::reduce(total - lost_of_total, 2, added);
  if (!first_thread) return;

  const double reference = maximum == -INFINITY ? 0.0 : static_cast<double>(maximum);
  const double log_sum = sum == 0 ? -INFINITY : ptx::log(sum);
  const float lse = static_cast<float>(reference + log_sum);
  const double missing = reference - lse + log_sum;
  ptx::store_global(p.lse + row, lse);
  ptx::store_global(p.lse + p.rows + row, missing - missing == 0 ? static_cast<float>(missing) : 0.0f);
  double loss = NAN;
  if (static_cast<uint32_t>(target) < static_cast<uint32_t>(p.classes)) {
    load_vector(x, p.dtype, p.logits, pieces.offset + target, 1, false);
    const double of_target = reference - x[0] + log_sum;
    loss = of_target;
    if (p.smoothing != 0)
      loss += p.smoothing * (reference - static_cast<double>(total) / p.classes + log_sum - of_target);
    if (p.z != 0) loss += p.z * (reference + log_sum) * (reference + log_sum);
  }
  ptx::store_global(p.losses + row, static_cast<float>(loss));
}

constexpr int kReduceThreads = 512;

/** One block. */
FLASHATTN_KERNEL(kReduceThreads) reduce_losses_kernel(CrossEntropyParams p) {
  double sum = 0;
  int32_t counted = 0;
  for (int64_t row = ptx::thread(); row < p.rows; row += kReduceThreads) {
    sum += ptx::load_global(p.losses + row);
    counted += ptx::load_global(p.targets + row) != p.ignored;
  }
  sum = sum_block<kReduceThreads>(sum);
  ptx::sync_threads();
  const double count = sum_block<kReduceThreads>(counted);
  if (ptx::thread() != 0) return;
  ptx::store_global(p.result, static_cast<float>(p.reduction == LossReduction::Mean ? sum / count : sum));
  ptx::store_global(p.counted, static_cast<float>(count));
}

template <int kGroupWarps>
FLASHATTN_KERNEL(kFlatThreads)
cross_entropy_backward_kernel(CrossEntropyParams p) {
  using Group = RowGroup<kGroupWarps>;
  const int64_t row = Group::row();
  if (row >= p.rows) return;
  const int32_t target = ptx::load_global(p.targets + row);
  const bool ignored = target == p.ignored;
  const bool none = !ignored && static_cast<uint32_t>(target) >= static_cast<uint32_t>(p.classes);
  float d_loss = ptx::load_global(p.d_loss + row * p.d_loss_row);
  if (p.reduction == LossReduction::Mean) d_loss /= ptx::load_global(p.counted);
  const float lse = ptx::load_global(p.lse + row), rest = ptx::load_global(p.lse + p.rows + row);
  const float scale = d_loss * (1 + 2 * p.z * lse), uniform = d_loss * (p.smoothing / static_cast<float>(p.classes));
  const float of_target = d_loss * (1 - p.smoothing);

  const RowPieces pieces(p, row);
  for (int piece = Group::thread(); piece < pieces.count; piece += Group::kThreads) {
    const int64_t first = pieces.first(piece);
    float x[kVector];
    if (ignored || none) {
      for (int e = 0; e < kVector; ++e) x[e] = none ? NAN : 0.0f;
    } else {
      load_piece(x, p, pieces, first);
      for (int e = 0; e < kVector; ++e) {
        x[e] = natural_exp(x[e] - lse - rest) * scale - uniform;
        if (first + e == target) x[e] -= of_target;
      }
    }
    store_piece(p, pieces, row, first, x);
  }
}

}  // namespace

cudaError_t launch_cross_entropy(const CrossEntropyParams& p, const DeviceLimits&, cudaStream_t stream) {
  const cudaError_t error = launch_groups("cross_entropy", cross_entropy_kernel<1>, cross_entropy_kernel<kFlatWarps>,
                                          p.rows, p.classes, kExchanges, stream, p);
  if (error || !p.result) return error;
  return launched("reduce_losses", ptx::launch(reduce_losses_kernel, "reduce_losses", dim3(1), kReduceThreads,
                                               kSumBytes<kReduceThreads>, stream, p));
}

cudaError_t launch_cross_entropy_backward(const CrossEntropyParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_groups("cross_entropy_backward", cross_entropy_backward_kernel<1>,
                       cross_entropy_backward_kernel<kFlatWarps>, p.rows, p.classes, 0, stream, p);
}

}  // namespace flashattn
