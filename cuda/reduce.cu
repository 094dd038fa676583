// Sums and extremes over axes. A team of threads makes each result; sums keep what rounding cuts off, and a long one is made
// of splits of fixed length. Which thread adds what, and in which order, depends on the shape alone.
#include <cmath>

#include "flat.cuh"
#include "launch.h"
#include "structs/reduce.h"
#include "sum.cuh"
#include "vector.cuh"

namespace flashattn {

namespace {

constexpr int kInner = kReduceDims - 1;
constexpr int kTeamThreads = 512;  // of a block, which has several teams or one
/** So many threads are enough for a device: with more results each has fewer, down to those of a warp or a column. */
constexpr int64_t kManyThreads = 1 << 18;

struct ReduceLaunch {
  ReduceParams params;  // `to` is [splits, kept]
  int64_t kept, reduced;
  uint32_t tiles;  // blocks of a split
  int32_t splits;
  int32_t members;  // threads of a team, a power of two
  /** Between the members of a team in a block: 1, or the number of teams where neighbours in memory are results of their own. */
  int32_t distance;
  int32_t step;  // neighbours that a member takes with one access: 1 or kVector
};

/** Whether one stride leads from each element to the next. */
FLASHATTN_DEVICE bool is_line(const int64_t (&sizes)[kReduceDims]) { return sizes[0] == 1 && sizes[1] == 1; }

/** Where the element with row-major index `at` lies. */
FLASHATTN_DEVICE int64_t place_at(const int64_t (&sizes)[kReduceDims], const int64_t (&strides)[kReduceDims],
                                  int64_t at) {
  if (is_line(sizes)) return at * strides[kInner];
  const int64_t outer = at / sizes[2], first = sizes[0] == 1 ? 0 : outer / sizes[1];
  return first * strides[0] + (outer - first * sizes[1]) * strides[1] + (at - outer * sizes[2]) * strides[2];
}

/** A running sum, with what rounding has made it too large by, or a running extreme. NaN stays. */
template <Reduction kReduction>
struct Running {
  float value = kReduction == Reduction::Sum ? 0.0f : kReduction == Reduction::Maximum ? -INFINITY : INFINITY;
  float lost = 0.0f;

  FLASHATTN_DEVICE void take(float x) {
    if constexpr (kReduction == Reduction::Maximum) {
      value = x > value || x != x ? x : value;
    } else if constexpr (kReduction == Reduction::Minimum) {
      value = x < value || x != x ? x : value;
    } else {
      add_compensated_finite(value, lost, x);
      // Of a sum that has become infinite nothing is lost.
      if (!(::fabsf(lost) < INFINITY)) lost = 0.0f;
    }
  }
  FLASHATTN_DEVICE void take(const Running& other) {
    if constexpr (kReduction == Reduction::Sum) lost += other.lost;
    take(other.value);
  }
  FLASHATTN_DEVICE float result() const { return value - lost; }
};

/** Joins what the members of each team have; all threads of the block come here. The first member has it all. */
template <Reduction kReduction>
FLASHATTN_DEVICE void join(Running<kReduction>& running, const ReduceLaunch& launch, int member) {
  const uint32_t base = ptx::shared_base();
  const auto cell = [&](int thread) { return base + static_cast<uint32_t>(thread * 8); };
#pragma unroll 1
  for (int half = launch.members / 2; half > 0; half /= 2) {
    const int distance = half * launch.distance, thread = ptx::thread();
    Running<kReduction> other;
    if (distance < 32) {
      other.value = ptx::shuffle_xor(running.value, distance);
      other.lost = ptx::shuffle_xor(running.lost, distance);
    } else {
      ptx::store_shared(cell(thread), uint2{ptx::bits_of(running.value), ptx::bits_of(running.lost)});
      ptx::sync_threads();
      if (member < half) {
        const uint2 bits = ptx::load_shared<uint2>(cell(thread + distance));
        other.value = ptx::float_of(bits.x);
        other.lost = ptx::float_of(bits.y);
      }
      ptx::sync_threads();
    }
    if (member < half) running.take(other);
  }
}

/** Elements `at`, `at` + members, ... of the reduced axes, as far as they are below `last`. */
FLASHATTN_DEVICE void load_apart(float (&x)[kVector], const ReduceLaunch& launch, int64_t start, int64_t at,
                                 int64_t last) {
  const ReduceParams& p = launch.params;
  const bool line = is_line(p.reduced);
  const int64_t stride = launch.members * p.reduced_strides[kInner];
  with_any_element(p.from_dtype, [&](auto element) {
    using Element = decltype(element);
    const auto* from = static_cast<const typename Element::Storage*>(static_cast<const void*>(p.from)) + start;
    if (line) {
      from += at * p.reduced_strides[kInner];
#pragma unroll
      for (int e = 0; e < kVector; ++e)
        x[e] = at + e * launch.members < last ? Element::load(ptx::load_global(from + e * stride)) : 0.0f;
    } else {
      // Not unrolled: of many divisions at a time little stays in registers.
#pragma unroll 1
      for (int e = 0; e < kVector; ++e) {
        float next = 0.0f;
        const int64_t own = at + e * launch.members;
        if (own < last) next = Element::load(ptx::load_global(from + place_at(p.reduced, p.reduced_strides, own)));
        shift(x, next);
      }
    }
  });
}

/** What this member of a team finds between `first` and `last` of the reduced axes of the result that begins at `start`. */
template <Reduction kReduction>
FLASHATTN_DEVICE Running<kReduction> reduce_range(const ReduceLaunch& launch, int64_t start, int64_t first,
                                                  int64_t last, int member) {
  const ReduceParams& p = launch.params;
  const int64_t stride = kVector * launch.members;
  Running<kReduction> running;
  const uint32_t bits = p.reduction == Reduction::Magnitude ? 0x7fffffffu : ~0u;  // of an element that are left
  const auto take = [&](float value) { running.take(ptx::float_of(ptx::bits_of(value) & bits)); };
  float x[kVector] = {};
  if (launch.step == kVector) {
    // Two accesses are under way at a time.
#pragma unroll 1
    for (int64_t at = first + member * kVector; at < last; at += 2 * stride) {
      float y[kVector];
      const bool two = at + stride < last;
      load_any_vector(x, p.from_dtype, p.from, start + place_at(p.reduced, p.reduced_strides, at), kVector, true);
      if (two)
        load_any_vector(y, p.from_dtype, p.from, start + place_at(p.reduced, p.reduced_strides, at + stride), kVector,
                        true);
#pragma unroll
      for (int e = 0; e < kVector; ++e) take(x[e]);
      if (!two) break;
#pragma unroll
      for (int e = 0; e < kVector; ++e) take(y[e]);
    }
  } else {
#pragma unroll 1
    for (int64_t at = first + member; at < last; at += stride) {
      load_apart(x, launch, start, at, last);
#pragma unroll
      for (int e = 0; e < kVector; ++e)
        if (at + e * launch.members < last) take(x[e]);
    }
  }
  return running;
}

template <Reduction kReduction>
FLASHATTN_KERNEL(kTeamThreads, 2)
reduce_kernel(const FLASHATTN_CONSTANT ReduceLaunch launch) {
  const ReduceParams& p = launch.params;
  const int thread = ptx::thread(), teams = kTeamThreads / launch.members;
  const int member = thread / launch.distance % launch.members;
  const int team = launch.distance == 1 ? thread / launch.members : thread % launch.distance;
  const uint32_t split = ptx::block().x / launch.tiles, tile = ptx::block().x - split * launch.tiles;
  const int64_t result = int64_t{tile} * teams + team;

  Running<kReduction> running;
  if (result < launch.kept) {
    const int64_t first = int64_t{split} * kReduceSplit;
    int64_t last = first + kReduceSplit;
    if (launch.splits == 1 || last > launch.reduced) last = launch.reduced;
    running = reduce_range<kReduction>(launch, place_at(p.kept, p.kept_strides, result), first, last, member);
  }
  join(running, launch, member);
  if (member > 0 || result >= launch.kept) return;
  float value = running.result();
  if (kReduction == Reduction::Sum && p.scale != 1.0f) value *= p.scale;
  with_any_element(p.to_dtype, [&](auto element) {
    using Element = decltype(element);
    auto* to = static_cast<typename Element::Storage*>(static_cast<void*>(p.to));
    ptx::store_global(to + int64_t{split} * launch.kept + result, Element::store(value));
  });
}

/** Whether every kVector elements of the reduced axes, counted from the begin of each result, are one access, aligned to it. */
bool takes_vectors(const ReduceParams& p) {
  const int64_t size = element_size(p.from_dtype);
  int64_t strides = 0;
  for (int axis = 0; axis < kReduceDims; ++axis) {
    if (p.kept[axis] > 1) strides |= p.kept_strides[axis];
    if (axis != kInner && p.reduced[axis] > 1) strides |= p.reduced_strides[axis];
  }
  return p.reduced_strides[kInner] == 1 && p.reduced[kInner] % kVector == 0 && is_aligned(p.from) &&
         strides * size % kAccessBytes == 0;
}

/** Neighbours in memory are results of their own. */
bool is_vertical(const ReduceParams& p) {
  return p.kept_strides[kInner] == 1 && p.kept[kInner] > 1 && p.reduced_strides[kInner] != 1;
}

cudaError_t launch_pass(const ReduceParams& p, int splits, cudaStream_t stream) {
  ReduceLaunch launch{};
  launch.params = p;
  launch.splits = splits;
  launch.kept = p.kept[0] * p.kept[1] * p.kept[2];
  launch.reduced = p.reduced[0] * p.reduced[1] * p.reduced[2];
  if (launch.kept == 0) return cudaSuccess;
  const bool vertical = is_vertical(p);
  launch.step = !vertical && takes_vectors(p) ? kVector : 1;

  // A member has eight elements at least. A column's team leaves room for whole sectors of memory beside it.
  const int64_t length = splits > 1 ? kReduceSplit : launch.reduced;
  const int sector = 32 / element_size(p.from_dtype), most = vertical ? kTeamThreads / sector : kTeamThreads;
  launch.members = 1;
  while (launch.members < most && launch.members * kVector < length) launch.members *= 2;
  const int least = vertical ? 1 : 32;
  while (launch.members > least && launch.members * launch.kept * splits > kManyThreads) launch.members /= 2;

  const int teams = kTeamThreads / launch.members;
  launch.distance = vertical ? teams : 1;
  launch.tiles = static_cast<uint32_t>((launch.kept + teams - 1) / teams);
  const dim3 grid(launch.tiles * static_cast<uint32_t>(splits));
  const auto kernel = p.reduction == Reduction::Maximum   ? reduce_kernel<Reduction::Maximum>
                      : p.reduction == Reduction::Minimum ? reduce_kernel<Reduction::Minimum>
                                                          : reduce_kernel<Reduction::Sum>;
  const int shared_bytes = launch.members * launch.distance > 32 ? kTeamThreads * 8 : 0;
  return launched("reduce", ptx::launch(kernel, "reduce", grid, kTeamThreads, shared_bytes, stream, launch));
}

}  // namespace

cudaError_t launch_reduce(const ReduceParams& p, const DeviceLimits&, cudaStream_t stream) {
  if (!p.partial) return launch_pass(p, 1, stream);
  const int64_t kept = p.kept[0] * p.kept[1] * p.kept[2], reduced = p.reduced[0] * p.reduced[1] * p.reduced[2];
  const int splits = static_cast<int>((reduced + kReduceSplit - 1) / kReduceSplit);
  float* const partial = p.partial;
  ReduceParams each = p;
  each.to = partial;
  each.to_dtype = DType::Float32;
  each.scale = 1;
  if (const cudaError_t error = launch_pass(each, splits, stream)) return error;
  // Of [splits, kept].
  const ReduceParams all{partial,      p.to,           nullptr,    {1, 1, kept}, {0, 0, 1}, {1, 1, splits},
                         {0, 0, kept}, DType::Float32, p.to_dtype, p.reduction,  p.scale};
  return launch_pass(all, 1, stream);
}

}  // namespace flashattn
