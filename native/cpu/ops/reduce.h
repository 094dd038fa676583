// Sums and extremes over axes. Sums keep what rounding cuts off (Kahan), and a long one is made of splits of fixed length,
// added up in their order: the bits depend on neither threads nor vectors of memory.
#pragma once
#include "ops/copy.h"
#include "structs/reduce.h"

namespace flashattn {

namespace detail {

inline int64_t kept_count(const ReduceParams& p) { return p.kept[0] * p.kept[1] * p.kept[2]; }
inline int64_t reduced_count(const ReduceParams& p) { return p.reduced[0] * p.reduced[1] * p.reduced[2]; }

inline bool is_sum(const ReduceParams& p) {
  return p.reduction == Reduction::Sum || p.reduction == Reduction::Magnitude;
}

/** What is left of the bits of an element: of magnitudes all but the sign. */
inline UintVec kept_bits(const ReduceParams& p) {
  return UintVec{} + (p.reduction == Reduction::Magnitude ? 0x7fffffffu : ~0u);
}
FLASHATTN_INLINE Vec masked(Vec x, UintVec bits) { return (Vec)((UintVec)x & bits); }

inline int reduce_splits(const ReduceParams& p) {
  const int64_t count = reduced_count(p);
  return p.partial ? static_cast<int>((count + kReduceSplit - 1) / kReduceSplit) : 1;
}

/** Where the element with row-major index `at` lies. */
inline int64_t place_at(const int64_t* sizes, const int64_t* strides, int64_t at) {
  int64_t place = 0;
  for (int axis = kReduceDims - 1; axis >= 0; --axis) {
    place += at % sizes[axis] * strides[axis];
    at /= sizes[axis];
  }
  return place;
}

/** Neighbours in memory are results of their own: a vector holds as many sums. */
inline bool is_vertical(const ReduceParams& p) {
  constexpr int kInner = kReduceDims - 1;
  return p.kept_strides[kInner] == 1 && p.kept[kInner] > 1 && p.reduced_strides[kInner] != 1;
}

/** A running sum, with what its roundings have cut off, or a running extreme. NaN stays. */
template <Reduction kReduction>
struct Running {
  static constexpr Reduction kKind = kReduction;
  Vec value, rest;

  static Running start() {
    const float first = kReduction == Reduction::Maximum   ? -kInfinity
                        : kReduction == Reduction::Minimum ? kInfinity
                                                           : 0.0f;
    return {splat(first), Vec{}};
  }

  __attribute__((always_inline)) void take(Vec x) {
    if constexpr (kReduction == Reduction::Maximum) {
      value = select((x > value) | (x != x), x, value);
    } else if constexpr (kReduction == Reduction::Minimum) {
      value = select((x < value) | (x != x), x, value);
    } else {
      const Vec y = x - rest, sum = value + y;
      rest = (sum - value) - y;
      rest = select(rest - rest == splat(0.0f), rest, Vec{});  // of an infinite sum there is none
      value = sum;
    }
  }
};

template <Reduction kReduction>
FLASHATTN_INLINE float across_lanes(const Running<kReduction>& running) {
  if constexpr (kReduction == Reduction::Sum) {
    float sum = 0, rest = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const float y = running.value[lane] - (running.rest[lane] + rest), next = sum + y;
      rest = (next - sum) - y;
      if (rest - rest != 0) rest = 0;
      sum = next;
    }
    return sum - rest;
  } else {
    Running<kReduction> all = Running<kReduction>::start();
    for (int lane = 0; lane < kLanes; ++lane) all.take(splat(running.value[lane]));
    return all.value[0];
  }
}

/** Rows of up to kRowElements neighbours in memory, each its own result: from `begin` on, of split `split`. */
template <Reduction kReduction>
FLASHATTN_CALLED void reduce_columns(const ReduceParams& p, int64_t begin, int n, int split, RowWorkspace& ws) {
  const CopySide from{const_cast<uint8_t*>(bytes_of(p.from)), p.from_dtype, 1};
  const int64_t start = place_at(p.kept, p.kept_strides, begin), first = int64_t{split} * kReduceSplit;
  int64_t last = first + kReduceSplit;
  if (!p.partial || last > reduced_count(p)) last = reduced_count(p);
  float *value = ws.row[0], *rest = ws.row[1];
  const UintVec bits = kept_bits(p);
  for (int i = 0; i < n; i += kLanes) {
    store(value + i, Running<kReduction>::start().value);
    store(rest + i, Vec{});
  }
  for (int64_t at = first; at < last; ++at) {
    from.load(ws.row[2], start + place_at(p.reduced, p.reduced_strides, at), n);
    for (int i = 0; i < n; i += kLanes) {
      Running<kReduction> running{load(value + i), load(rest + i)};
      running.take(masked(load(ws.row[2] + i), bits));
      store(value + i, running.value);
      store(rest + i, running.rest);
    }
  }
}

/** One result of split `split`. */
template <Reduction kReduction>
FLASHATTN_CALLED float reduce_run(const ReduceParams& p, int64_t result, int split, RowWorkspace& ws) {
  constexpr int kInner = kReduceDims - 1;
  const CopySide from{const_cast<uint8_t*>(bytes_of(p.from)), p.from_dtype, p.reduced_strides[kInner]};
  const int64_t start = place_at(p.kept, p.kept_strides, result), first = int64_t{split} * kReduceSplit;
  int64_t last = first + kReduceSplit;
  if (!p.partial || last > reduced_count(p)) last = reduced_count(p);
  Running<kReduction> running = Running<kReduction>::start();
  const UintVec bits = kept_bits(p);
  for (int64_t at = first; at < last;) {
    int64_t length = p.reduced[kInner] - at % p.reduced[kInner];
    if (length > last - at) length = last - at;
    if (length > kRowElements) length = kRowElements;
    const int n = static_cast<int>(length);
    const int64_t place = start + place_at(p.reduced, p.reduced_strides, at);
    const float* row = ws.row[0];
    if (from.stride == 1 && p.from_dtype == DType::Float32 && n % kLanes == 0)
      row = reinterpret_cast<const float*>(from.element(place));
    else
      from.load(ws.row[0], place, n);
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) running.take(masked(load(row + i), bits));
    if (i < n) {
      Vec tail = Running<kReduction>::start().value;
      for (int lane = 0; lane < n - i; ++lane) tail[lane] = row[i + lane];
      running.take(masked(tail, bits));
    }
    at += n;
  }
  return across_lanes(running);
}

/** f(a Running of this reduction) */
template <class F>
FLASHATTN_INLINE void with_reduction(Reduction reduction, F f) {
  if (reduction == Reduction::Sum || reduction == Reduction::Magnitude)
    f(Running<Reduction::Sum>{});
  else if (reduction == Reduction::Maximum)
    f(Running<Reduction::Maximum>{});
  else
    f(Running<Reduction::Minimum>{});
}

/** to[begin + i] = scale * row[i] */
inline void store_results(const ReduceParams& p, float* row, int64_t begin, int n) {
  if (is_sum(p) && p.scale != 1)
    for (int i = 0; i < n; i += kLanes) store(row + i, load(row + i) * splat(p.scale));
  store_row(bytes_of(p.to) + begin * element_size(p.to_dtype), p.to_dtype, row, n);
}

/** How the results are cut into items, splits aside. */
struct ReduceGrid {
  int64_t groups;
  int per_group;  // results
  bool vertical;

  explicit ReduceGrid(const ReduceParams& p) : vertical(is_vertical(p)) {
    const int64_t count = kept_count(p), length = reduced_count(p);
    if (vertical) {
      // Runs of neighbours do not cross the end of the inner axis.
      per_group = kRowElements;
      const int64_t inner = p.kept[kReduceDims - 1];
      groups = count / inner * ((inner + per_group - 1) / per_group);
    } else {
      const int64_t each = length < kReduceSplit ? (length < 1 ? 1 : length) : kReduceSplit;
      per_group = static_cast<int>(min(kRowElements, max(1, static_cast<int>(kChunk / each))));
      groups = (count + per_group - 1) / per_group;
    }
  }
};

}  // namespace detail

inline int reduce_items(const ReduceParams& p) {
  return static_cast<int>(detail::ReduceGrid(p).groups) * detail::reduce_splits(p);
}

FLASHATTN_CALLED void reduce_item(const ReduceParams& p, int item, RowWorkspace& ws) {
  using namespace detail;
  const ReduceGrid grid(p);
  const int splits = reduce_splits(p), split = item % splits;
  const int64_t group = item / splits;
  int64_t begin = group * grid.per_group, n = kept_count(p) - begin;
  if (n > grid.per_group) n = grid.per_group;
  float* row = ws.row[0];
  float results[kRowElements];
  if (grid.vertical) {
    const int64_t inner = p.kept[kReduceDims - 1], chunks_of_inner = (inner + grid.per_group - 1) / grid.per_group;
    begin = group / chunks_of_inner * inner + group % chunks_of_inner * grid.per_group;
    n = inner - group % chunks_of_inner * grid.per_group;
    if (n > grid.per_group) n = grid.per_group;
    with_reduction(p.reduction, [&](auto running) {
      reduce_columns<decltype(running)::kKind>(p, begin, static_cast<int>(n), split, ws);
    });
    if (is_sum(p))
      for (int i = 0; i < n; i += kLanes) store(row + i, load(row + i) - load(ws.row[1] + i));
  } else {
    with_reduction(p.reduction, [&](auto running) {
      for (int i = 0; i < n; ++i) results[i] = reduce_run<decltype(running)::kKind>(p, begin + i, split, ws);
    });
    row = results;
  }
  if (!p.partial) return store_results(p, row, begin, static_cast<int>(n));
  float* partial = p.partial + static_cast<size_t>(split * kept_count(p) + begin);
  for (int i = 0; i < n; ++i) partial[i] = row[i];
}

/** Adds the splits up. */
inline int reduce_split_items(const ReduceParams& p) {
  return p.partial ? static_cast<int>((detail::kept_count(p) + kRowElements - 1) / kRowElements) : 0;
}

FLASHATTN_CALLED void reduce_split_item(const ReduceParams& p, int item, RowWorkspace& ws) {
  using namespace detail;
  const int64_t count = kept_count(p), begin = int64_t{item} * kRowElements;
  const int n = static_cast<int>(count - begin < kRowElements ? count - begin : kRowElements);
  with_reduction(p.reduction, [&](auto running) {
    for (int i = 0; i < n; i += kLanes) {
      running = decltype(running)::start();
      for (int split = 0; split < reduce_splits(p); ++split) {
        load_row(ws.row[1], p.partial + static_cast<size_t>(split * count + begin + i), DType::Float32,
                 min(kLanes, n - i));
        running.take(load(ws.row[1]));
      }
      store(ws.row[0] + i, running.value - (is_sum(p) ? running.rest : Vec{}));
    }
  });
  store_results(p, ws.row[0], begin, n);
}

}  // namespace flashattn
