// Singular values and vectors of small matrices: native/cpu/ops/svd.h with a block for each matrix. Rows meet in rounds of
// pairs that have no row in common, as teams of a tournament do; a warp turns a pair.
#include "structs/svd.h"

#include "flat.cuh"
#include "launch.h"
#include "tile.cuh"

namespace flashattn {

namespace {

constexpr int kSvdThreads = 256;
constexpr int kSvdWarps = kSvdThreads / kWarpSize;
constexpr int kSvdSharedBytes = 2 * kSvdThreads * static_cast<int>(sizeof(float));

/** Every lane of the warp takes part. */
FLASHATTN_DEVICE float sum_warp(float x) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) x += ptx::shuffle_xor(x, mask);
  return x;
}

/** [2, kSvdThreads] */
FLASHATTN_DEVICE uint32_t svd_shared(int part, int thread) {
  return ptx::shared_base() + static_cast<uint32_t>((part * kSvdThreads + thread) * sizeof(float));
}

/** The largest over the block of a number that is not NaN, in every thread. */
FLASHATTN_DEVICE float max_block(float x) {
  ptx::sync_threads();
  ptx::store_shared(svd_shared(0, ptx::thread()), x);
  ptx::sync_threads();
  for (int thread = 0; thread < kSvdThreads; ++thread) {
    const float other = ptx::load_shared<float>(svd_shared(0, thread));
    if (other > x) x = other;
  }
  return x;
}

/** x y over the warp, in every lane. */
FLASHATTN_DEVICE float dot_warp(const float* x, const float* y, int n, int lane) {
  float sum = 0;
  for (int i = lane; i < n; i += kWarpSize) sum += ptx::load_global(x + i) * ptx::load_global(y + i);
  return sum_warp(sum);
}

FLASHATTN_DEVICE void rotate_warp(float* a, float* b, int n, int lane, float c, float s) {
  for (int i = lane; i < n; i += kWarpSize) {
    const float x = ptx::load_global(a + i), y = ptx::load_global(b + i);
    ptx::store_global(a + i, c * x - s * y);
    ptx::store_global(b + i, s * x + c * y);
  }
}

struct SvdMatrix {
  float* rows;    // [count, length]
  float* others;  // [count, count]
  float* values;  // [count]
  int count, length;

  FLASHATTN_DEVICE float* row(int i) const { return rows + int64_t{i} * length; }
  FLASHATTN_DEVICE float* other(int i) const { return others + int64_t{i} * count; }
};

/** Whether the rows were not orthogonal yet. */
FLASHATTN_DEVICE bool turn_pair(const SvdMatrix& m, int i, int j, float tolerance, int lane) {
  float* const a = m.row(i);
  float* const b = m.row(j);
  float first = 0, second = 0, both = 0;
  for (int k = lane; k < m.length; k += kWarpSize) {
    const float x = ptx::load_global(a + k), y = ptx::load_global(b + k);
    first += x * x;
    second += y * y;
    both += x * y;
  }
  first = sum_warp(first);
  second = sum_warp(second);
  both = sum_warp(both);
  if (!(fabsf(both) > tolerance * sqrtf(first) * sqrtf(second))) return false;
  const float zeta = (second - first) / (2 * both), size = fabsf(zeta);
  const float t = copysignf(1 / (size + sqrtf(1 + size * size)), zeta);
  const float c = 1 / sqrtf(1 + t * t);
  rotate_warp(a, b, m.length, lane, c, c * t);
  rotate_warp(m.other(i), m.other(j), m.count, lane, c, c * t);
  return true;
}

FLASHATTN_DEVICE void orthogonalise_block(const SvdMatrix& m) {
  const int warp = ptx::thread() / kWarpSize, lane = ptx::thread() % kWarpSize;
  const float root = sqrtf(static_cast<float>(m.length));
  const float tolerance = 0x1p-24f * (root > 8.0f ? root : 8.0f);
  // With an odd number one row rests.
  const int teams = m.count + m.count % 2, rounds = teams - 1;
  for (int sweep = 0; sweep < kSvdMostSweeps; ++sweep) {
    float turned = 0;
    for (int round = 0; round < rounds; ++round) {
      for (int pair = warp; pair < teams / 2; pair += kSvdWarps) {
        const int i = pair == 0 ? rounds : (round + pair) % rounds;
        const int j = (round - pair + rounds) % rounds;
        if (i >= m.count || j >= m.count) continue;
        if (turn_pair(m, i < j ? i : j, i < j ? j : i, tolerance, lane)) turned = 1;
      }
      ptx::sync_threads();
    }
    if (max_block(turned) == 0) return;
  }
}

/** A row that is orthogonal to those before it: what is left of a unit vector, one of which most is. */
FLASHATTN_DEVICE void complete_row(const SvdMatrix& m, int at) {
  float* const row = m.row(at);
  const int thread = ptx::thread();
  float least = INFINITY;
  int place = 0;
  for (int k = thread; k < m.length; k += kSvdThreads) {
    float sum = 0;
    for (int j = 0; j < at; ++j) {
      const float x = ptx::load_global(m.row(j) + k);
      sum += x * x;
    }
    if (!(sum < least)) continue;
    least = sum;
    place = k;
  }
  ptx::sync_threads();
  ptx::store_shared(svd_shared(0, thread), least);
  ptx::store_shared(svd_shared(1, thread), place);
  ptx::sync_threads();
  for (int other = 0; other < kSvdThreads; ++other) {
    const float sum = ptx::load_shared<float>(svd_shared(0, other));
    const int k = ptx::load_shared<int>(svd_shared(1, other));
    if (sum < least || (sum == least && k < place)) {
      least = sum;
      place = k;
    }
  }
  if (thread >= kWarpSize) return;
  for (int k = thread; k < m.length; k += kWarpSize) ptx::store_global(row + k, k == place ? 1.0f : 0.0f);
  // Once more: what rounding has left of the others is as large as what little may remain.
  for (int pass = 0; pass < 2; ++pass)
    for (int j = 0; j < at; ++j) {
      const float part = dot_warp(row, m.row(j), m.length, thread);
      for (int k = thread; k < m.length; k += kWarpSize)
        ptx::store_global(row + k, ptx::load_global(row + k) - part * ptx::load_global(m.row(j) + k));
    }
  const float scale = 1 / sqrtf(dot_warp(row, row, m.length, thread));
  for (int k = thread; k < m.length; k += kWarpSize) ptx::store_global(row + k, scale * ptx::load_global(row + k));
}

FLASHATTN_DEVICE void swap_block(float* a, float* b, int n) {
  for (int i = ptx::thread(); i < n; i += kSvdThreads) {
    const float x = ptx::load_global(a + i);
    ptx::store_global(a + i, ptx::load_global(b + i));
    ptx::store_global(b + i, x);
  }
}

/** 2^-e for the largest of the numbers, between 2^e and 2^(e + 1) in size; 0 where one is no number or infinite. */
FLASHATTN_DEVICE float scale_block(const float* x, int64_t n) {
  float most = 0;
  for (int64_t i = ptx::thread(); i < n; i += kSvdThreads) {
    const float size = fabsf(ptx::load_global(x + i));
    if (!(size <= most)) most = size == size ? size : INFINITY;
  }
  most = max_block(most);
  if (most == INFINITY) return 0;
  int exponent = static_cast<int>(ptx::bits_of(most) >> 23) - 127;
  exponent = exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
  return ptx::float_of(static_cast<uint32_t>(127 - exponent) << 23);
}

FLASHATTN_KERNEL(kSvdThreads) svd_kernel(SvdParams p) {
  const int64_t matrix = ptx::block().x;
  const int count = p.count, length = p.length, thread = ptx::thread();
  const SvdMatrix m = {p.vectors + matrix * count * length, p.others + matrix * count * count,
                       p.values + matrix * count, count, length};
  const int64_t elements = int64_t{count} * length;
  const float scale = scale_block(m.rows, elements);
  for (int i = thread; i < count * count; i += kSvdThreads)
    ptx::store_global(m.others + i, scale == 0 ? NAN : i / count == i % count ? 1.0f : 0.0f);
  for (int64_t i = thread; i < elements; i += kSvdThreads)
    ptx::store_global(m.rows + i, scale == 0 ? NAN : scale * ptx::load_global(m.rows + i));
  if (scale == 0) {
    for (int i = thread; i < count; i += kSvdThreads) ptx::store_global(m.values + i, NAN);
    return;
  }
  ptx::sync_threads();
  orthogonalise_block(m);

  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  for (int i = warp; i < count; i += kSvdWarps) {
    // What rounding has made of the length of both.
    const float size = sqrtf(dot_warp(m.other(i), m.other(i), count, lane));
    for (int k = lane; k < count; k += kWarpSize)
      ptx::store_global(m.other(i) + k, ptx::load_global(m.other(i) + k) / size);
    const float length_of_row = sqrtf(dot_warp(m.row(i), m.row(i), length, lane)), value = length_of_row / size;
    if (value >= kSvdLeastValue)
      for (int k = lane; k < length; k += kWarpSize)
        ptx::store_global(m.row(i) + k, ptx::load_global(m.row(i) + k) / length_of_row);
    if (lane == 0) ptx::store_global(m.values + i, value < kSvdLeastValue ? 0.0f : value);
  }
  for (int i = 0; i < count; ++i) {
    ptx::sync_threads();
    int best = i;
    float most = ptx::load_global(m.values + i);
    for (int j = i + 1; j < count; ++j) {
      const float value = ptx::load_global(m.values + j);
      if (value <= most) continue;
      most = value;
      best = j;
    }
    ptx::sync_threads();
    if (best != i) {
      swap_block(m.values + i, m.values + best, 1);
      swap_block(m.row(i), m.row(best), length);
      swap_block(m.other(i), m.other(best), count);
      ptx::sync_threads();
    }
    if (most == 0) complete_row(m, i);
  }
  ptx::sync_threads();
  for (int i = thread; i < count; i += kSvdThreads)
    ptx::store_global(m.values + i, ptx::load_global(m.values + i) / scale);
}

}  // namespace

cudaError_t launch_svd(const SvdParams& p, const DeviceLimits&, cudaStream_t stream) {
  const dim3 grid(static_cast<uint32_t>(p.matrices));
  return launched("svd", ptx::launch(svd_kernel, "svd", grid, kSvdThreads, kSvdSharedBytes, stream, p));
}

}  // namespace flashattn
