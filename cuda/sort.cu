// The elements of lines in order: bitonic sorts (Batcher, "Sorting networks and their applications", 1968) of numbers that
// are a key above a place, so that no two are equal and what is equal stays in order. A block owns a line.
#include "launch.h"
#include "line.cuh"
#include "row_group.cuh"

namespace flashattn {

namespace {

constexpr int kSortThreads = 512;
constexpr int kMostChunk = 2048;  // numbers that are sorted in shared memory

struct SortLaunch {
  LinesParams params;
  int32_t chunk, padded;  // powers of two; padded is at least the length of a line
};

/** Rises with x; NaN, of either sign, is above everything, and both zeros are the same. */
FLASHATTN_DEVICE uint32_t sort_key(float x, bool reversed) {
  const uint32_t bits = x == 0 ? 0 : ptx::bits_of(x);
  const uint32_t key = x != x ? 0xffffffffu : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  return reversed ? ~key : key;
}

FLASHATTN_DEVICE uint32_t shared_key(int64_t at) {
  return ptx::shared_base() + static_cast<uint32_t>(at * sizeof(uint64_t));
}
FLASHATTN_DEVICE uint64_t load_key(int64_t at) { return ptx::load_shared<uint64_t>(shared_key(at)); }

/** Puts pairs at a distance of `stride` in order: rising where the place, from `offset` on, has no bit in common with `size`. */
template <class Load, class Store>
FLASHATTN_DEVICE void exchange_pairs(int count, int stride, int64_t size, int64_t offset, Load load, Store store) {
  for (int pair = ptx::thread(); pair < count / 2; pair += kSortThreads) {
    const int a = pair / stride * 2 * stride + pair % stride, b = a + stride;
    const uint64_t x = load(a), y = load(b);
    if ((x > y) != (((offset + a) & size) == 0)) continue;
    store(a, y);
    store(b, x);
  }
  ptx::sync_threads();
}

/** A bitonic sequence in shared memory becomes a sorted one. */
FLASHATTN_DEVICE void merge_shared(int begin, int count, int64_t size, int64_t offset) {
  for (int stride = count / 2; stride > 0; stride /= 2)
    exchange_pairs(
        count, stride, size, offset, [&](int at) { return load_key(begin + at); },
        [&](int at, uint64_t key) { ptx::store_shared(shared_key(begin + at), key); });
}

/** Numbers [offset, offset + chunk) of a line, in shared memory from `begin` on, sorted. */
FLASHATTN_DEVICE void sort_chunk(const SortLaunch& launch, int64_t line_begin, int begin, int64_t offset) {
  const LinesParams& p = launch.params;
  for (int at = ptx::thread(); at < launch.chunk; at += kSortThreads) {
    const int64_t place = offset + at;
    uint64_t key = ~uint64_t{0};
    if (place < p.length) {
      const float x = load_element(p.dtype, p.data, line_begin + place * p.inner);
      key = static_cast<uint64_t>(sort_key(x, p.reversed)) << 32 | static_cast<uint64_t>(place);
    }
    ptx::store_shared(shared_key(begin + at), key);
  }
  ptx::sync_threads();
  for (int size = 2; size <= launch.chunk; size *= 2) {
    // All of the pieces of `size`, one beside the other.
    for (int stride = size / 2; stride > 0; stride /= 2)
      exchange_pairs(
          launch.chunk, stride, size, offset, [&](int at) { return load_key(begin + at); },
          [&](int at, uint64_t key) { ptx::store_shared(shared_key(begin + at), key); });
  }
}

/** Elements [first, first + n) of the result, whose numbers `key` tells. */
template <class Key>
FLASHATTN_DEVICE void store_sorted(const LinesParams& p, const LinePlace& place, int64_t first, int64_t n, Key key) {
  for (int64_t at = ptx::thread(); at < n && first + at < p.count; at += kSortThreads) {
    const auto index = static_cast<int32_t>(static_cast<uint32_t>(key(at)));
    const int64_t to = place.others + (first + at) * p.inner;
    ptx::store_global(p.indices + to, index);
    store_element(p.others_dtype, p.others, to, load_element(p.dtype, p.data, place.data + int64_t{index} * p.inner));
  }
}

/** What is kept fits a chunk: the best so far are merged with one sorted chunk after the other. */
FLASHATTN_KERNEL(kSortThreads) select_kernel(SortLaunch launch) {
  const LinesParams& p = launch.params;
  const LinePlace place(p, p.first + static_cast<int64_t>(ptx::block().x));
  const int chunk = launch.chunk;
  sort_chunk(launch, place.data, 0, 0);
  for (int64_t offset = chunk; offset < p.length; offset += chunk) {
    // Chunks of a sort rise and fall in turn.
    sort_chunk(launch, place.data, chunk, offset);
    const bool falls = (offset & chunk) != 0;
    for (int at = ptx::thread(); at < chunk; at += kSortThreads) {
      const uint64_t other = load_key(chunk + (falls ? at : chunk - 1 - at));
      if (other < load_key(at)) ptx::store_shared(shared_key(at), other);
    }
    ptx::sync_threads();
    merge_shared(0, chunk, chunk, 0);
  }
  store_sorted(p, place, 0, chunk, [](int64_t at) { return load_key(at); });
}

/** A whole line in memory, of which chunks are merged in shared memory. */
FLASHATTN_KERNEL(kSortThreads) sort_kernel(SortLaunch launch) {
  const LinesParams& p = launch.params;
  const int64_t line = ptx::block().x;
  const LinePlace place(p, p.first + line);
  uint64_t* keys = p.keys + 2 * line * p.length;
  const int chunk = launch.chunk;
  const auto copy_in = [&](int64_t offset) {
    for (int at = ptx::thread(); at < chunk; at += kSortThreads)
      ptx::store_shared(shared_key(at), ptx::load_global(keys + offset + at));
    ptx::sync_threads();
  };
  const auto copy_out = [&](int64_t offset) {
    for (int at = ptx::thread(); at < chunk; at += kSortThreads) ptx::store_global(keys + offset + at, load_key(at));
    ptx::sync_threads();
  };
  for (int64_t offset = 0; offset < launch.padded; offset += chunk) {
    sort_chunk(launch, place.data, 0, offset);
    copy_out(offset);
  }
  for (int64_t size = 2 * int64_t{chunk}; size <= launch.padded; size *= 2) {
    for (int64_t stride = size / 2; stride >= chunk; stride /= 2)
      exchange_pairs(
          launch.padded, static_cast<int>(stride), size, 0, [&](int at) { return ptx::load_global(keys + at); },
          [&](int at, uint64_t key) { ptx::store_global(keys + at, key); });
    for (int64_t offset = 0; offset < launch.padded; offset += chunk) {
      copy_in(offset);
      merge_shared(0, chunk, size, offset);
      copy_out(offset);
    }
  }
  store_sorted(p, place, 0, p.length, [&](int64_t at) { return ptx::load_global(keys + at); });
}

FLASHATTN_DEVICE uint64_t larger_key(uint64_t a, uint64_t b) { return a < b ? b : a; }

template <int kWarps>
FLASHATTN_KERNEL(kFlatThreads)
argmax_kernel(LinesParams p) {
  using Group = RowGroup<kWarps>;
  const int64_t line = Group::row();
  if (line >= p.lines) return;
  const LinePlace place(p, line);
  uint64_t best = 0;
  for (int64_t at = Group::thread(); at < p.length; at += Group::kThreads) {
    const uint32_t key = sort_key(load_element(p.dtype, p.data, place.data + at * p.inner), false);
    // The first of those that are equal is the largest.
    best = larger_key(best, static_cast<uint64_t>(key) << 32 | (0xffffffffu - static_cast<uint32_t>(at)));
  }
  best = Group::reduce(best, 0, larger_key);
  if (Group::thread() == 0)
    ptx::store_global(p.indices + place.others, static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best)));
}

int power_of_two_from(int n) {
  int power = 2;
  while (power < n) power *= 2;
  return power;
}

}  // namespace

cudaError_t launch_argmax(const LinesParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_groups("argmax", argmax_kernel<1>, argmax_kernel<kFlatWarps>, p.lines, p.length, 1, stream, p);
}

cudaError_t launch_sort(const LinesParams& p, const DeviceLimits&, cudaStream_t stream) {
  if (p.lines == 0 || p.count == 0) return cudaSuccess;
  const int padded = power_of_two_from(p.length), chunk = padded < kMostChunk ? padded : kMostChunk;
  const bool selects = p.count <= chunk;
  const char* name = selects ? "select" : "sort";
  const int shared_bytes = (selects ? 2 : 1) * chunk * static_cast<int>(sizeof(uint64_t));
  return launched(name, ptx::launch(selects ? select_kernel : sort_kernel, name, dim3(static_cast<unsigned>(p.lines)),
                                    kSortThreads, shared_bytes, stream, SortLaunch{p, chunk, padded}));
}

}  // namespace flashattn
