// Keys and values go to their places in a cache: a thread has one element, or the two that are turned together.
#include "element.cuh"
#include "flat.cuh"
#include "launch.h"
#include "vector.cuh"

namespace flashattn {

namespace {

FLASHATTN_KERNEL(kFlatThreads) store_rows_kernel(StoreRowsParams p) {
  const int units = p.dim - p.pairs;  // of a row: its pairs, and then what is left
  const int64_t thread = flat_thread(), row = thread / units / p.heads;
  if (row >= p.count) return;
  const int unit = static_cast<int>(thread % units), h = static_cast<int>(thread / units % p.heads);
  const int64_t to_row = ptx::load_global(p.rows + row);
  if (to_row < 0) return;
  const int64_t from = row * p.from.seq + h * p.from.head, to = to_row * p.to.seq + h * p.to.head;
  const auto load = [&](int d) {
    float x[kVector];
    load_vector(x, p.from.dtype, p.from.data, from + d, 1, false);
    return x[0];
  };
  const auto store = [&](int d, float x) {
    const float all[kVector] = {x};
    store_vector(p.to.dtype, p.to.data, to + d, all, 1, false);
  };
  if (unit >= p.pairs) {
    const int d = unit + p.pairs;
    return store(d, load(d));
  }
  const int first = p.interleaved ? 2 * unit : unit, second = p.interleaved ? first + 1 : unit + p.pairs;
  const int64_t angle = int64_t{ptx::load_global(p.positions + row)} * p.pairs + unit;
  const float cos = ptx::load_global(p.angles.cos + angle), sin = ptx::load_global(p.angles.sin + angle);
  const float x = load(first), y = load(second);
  store(first, x * cos - y * sin);
  store(second, x * sin + y * cos);
}

}  // namespace

cudaError_t launch_store_rows(const StoreRowsParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_flat("store_rows", store_rows_kernel, int64_t{p.count} * p.heads * (p.dim - p.pairs), stream, p);
}

}  // namespace flashattn
