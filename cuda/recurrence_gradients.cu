// The gradients of chunks, a block for each. Sums over chunks are added up in order at the end, so that nothing depends on
// who comes first.
#include "launch.h"
#include "sm80/recurrence_low_rank.cuh"

namespace flashattn {

namespace {

/** Of the chunks of all sequences, the first of a packed one's. */
FLASHATTN_DEVICE int first_chunk(const RecurrenceParams& p, int s) {
  return ptx::load_global(p.offsets + s) / kRecurrenceChunk + s;
}

template <RecurrenceKind kKind>
FLASHATTN_KERNEL(kRecurrenceThreads, 2)
recurrence_gradients_kernel(FLASHATTN_CONSTANT const RecurrenceLaunch launch) {
  const RecurrenceParams& p = launch.params;
  const int h = static_cast<int>(ptx::block().x) % p.heads, index = static_cast<int>(ptx::block().x) / p.heads;
  int s = 0, chunk = 0;
  if (p.offsets) {
    int end = p.batch;  // the last sequence that begins no later
    while (end - s > 1) {
      const int middle = (s + end) / 2;
      (first_chunk(p, middle) <= index ? s : end) = middle;
    }
    chunk = index - first_chunk(p, s);
  } else {
    const int chunks = divide_up(p.length, kRecurrenceChunk);
    s = index / chunks;
    chunk = index % chunks;
  }
  using Gradients = std::conditional_t<kKind == RecurrenceKind::LowRank, LowRankGradients, RecurrenceGradients<kKind>>;
  Gradients(launch, s, h, chunk).run();
}

/** Of a state, the sums over its chunks. */
class ChunkSums : RecurrenceBlock<RecurrenceKind::Positions> {
 public:
  FLASHATTN_DEVICE ChunkSums(const RecurrenceLaunch& launch, int item)
      : RecurrenceBlock<RecurrenceKind::Positions>(launch.params, item / launch.params.heads,
                                                   item % launch.params.heads, 0),
        launch_(launch) {}

  FLASHATTN_DEVICE void run() {
    const int width = p_.bonus ? p_.key_dim : 1;
    if (thread_ >= width) return;
    const float* const from = launch_.scratch.sums + (h_ * launch_.scratch.rows + kept_row(0)) * width + thread_;
    double sum = 0;
    for (int chunk = chunks(); chunk-- > 0;) sum += ptx::load_global(from + int64_t{chunk} * width);
    if (p_.bonus)
      ptx::store_global(p_.d_bonus + (int64_t{s_} * p_.heads + h_) * width + thread_, static_cast<float>(sum));
    else
      ptx::store_global(static_cast<float*>(p_.d_decay.data) + s_ * p_.d_decay.batch + h_ * p_.d_decay.head,
                        static_cast<float>(sum));
  }

 private:
  const RecurrenceLaunch& launch_;
};

FLASHATTN_KERNEL(kRecurrenceThreads) recurrence_sums_kernel(FLASHATTN_CONSTANT const RecurrenceLaunch launch) {
  ChunkSums(launch, static_cast<int>(ptx::block().x)).run();
}

}  // namespace

cudaError_t launch_recurrence_gradients(const RecurrenceParams& p, const RecurrenceScratch& scratch,
                                        RecurrenceKind kind, cudaStream_t stream) {
  const RecurrenceLaunch launch{p, scratch, 0, 0};
  const int64_t chunks = p.chunk_rows * p.heads, states = int64_t{p.batch} * p.heads;
  if (chunks > 0) {
    const cudaError_t error = with_kind(kind, [&](auto constant) {
      constexpr const char* kName = "recurrence gradients";
      constexpr int kShared = RecurrenceGradientTiles<constant() == RecurrenceKind::LowRank>::kSharedBytes;
      return launched(kName,
                      ptx::launch(recurrence_gradients_kernel<constant()>, kName, dim3(static_cast<uint32_t>(chunks)),
                                  kRecurrenceThreads, kShared, stream, launch));
    });
    if (error) return error;
  }
  if (!p.bonus && p.decay_kind != Decay::Head) return cudaSuccess;
  constexpr const char* kName = "recurrence sums";
  return launched(kName, ptx::launch(recurrence_sums_kernel, kName, dim3(static_cast<uint32_t>(states)),
                                     kRecurrenceThreads, 0, stream, launch));
}

}  // namespace flashattn
