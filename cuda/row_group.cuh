// Threads of a block that share a row, and what they make of their parts of it together.
#pragma once
#include "flat.cuh"
#include "tile.cuh"

namespace flashattn {

inline constexpr int kFlatWarps = kFlatThreads / kWarpSize;

/** kWarps warps of a block of kFlatThreads. */
template <int kWarps>
struct RowGroup {
  static constexpr int kThreads = kWarps * kWarpSize;

  /** May be beyond the last row, of a whole group at a time. */
  static FLASHATTN_DEVICE int64_t row() {
    return static_cast<int64_t>(ptx::block().x) * (kFlatWarps / kWarps) + ptx::thread() / kThreads;
  }
  static FLASHATTN_DEVICE int thread() { return ptx::thread() % kThreads; }

  /**
   * combine() of everybody's x, in everybody, always in the same order. Each exchange has a place of its own, of 8 bytes a
   * warp.
   */
  template <class T, class Combine>
  static FLASHATTN_DEVICE T reduce(T x, int exchange, Combine combine) {
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) x = combine(x, exchanged(x, mask));
    if constexpr (kWarps > 1) {
      const auto at = [&](int warp) {
        return ptx::shared_base() + static_cast<uint32_t>((exchange * kFlatWarps + warp) * sizeof(uint64_t));
      };
      if (thread() % kWarpSize == 0) ptx::store_shared(at(thread() / kWarpSize), x);
      ptx::sync_threads();
      x = ptx::load_shared<T>(at(0));
      for (int warp = 1; warp < kWarps; ++warp) x = combine(x, ptx::load_shared<T>(at(warp)));
    }
    return x;
  }

 private:
  static FLASHATTN_DEVICE float exchanged(float x, int mask) { return ptx::shuffle_xor(x, mask); }
  static FLASHATTN_DEVICE uint64_t exchanged(uint64_t x, int mask) {
    const auto half = [&](uint64_t bits) {
      return ptx::bits_of(ptx::shuffle_xor(ptx::float_of(static_cast<uint32_t>(bits)), mask));
    };
    return half(x) | static_cast<uint64_t>(half(x >> 32)) << 32;
  }
};

/** Rows of more elements than this have a block for themselves. */
inline constexpr int kLongRow = 2048;

/** Launches a kernel on groups that fit the length of rows; `exchanges` of each. */
template <class Params>
cudaError_t launch_groups(const char* name, void (*narrow)(Params), void (*wide)(Params), int64_t rows, int length,
                          int exchanges, cudaStream_t stream, const Params& params) {
  if (rows == 0) return cudaSuccess;
  const bool is_long = length > kLongRow;
  const dim3 grid(static_cast<unsigned>(is_long ? rows : (rows + kFlatWarps - 1) / kFlatWarps));
  const int shared_bytes = exchanges * kFlatWarps * static_cast<int>(sizeof(uint64_t));
  return launched(name, ptx::launch(is_long ? wide : narrow, name, grid, kFlatThreads, shared_bytes, stream, params));
}

}  // namespace flashattn
