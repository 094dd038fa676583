// Operations along one axis: the largest element, sorting, picking elements by their index and adding them up again, sums up
// to each element.
#pragma once
#include "ops/copy.h"
#include "simd/math.h"
#include "simd/rows.h"
#include "structs/lines.h"

namespace flashattn {

namespace detail {

constexpr int kSelectBits = 11;        // of a key, by which most of what is not wanted is dropped
constexpr int kSummedElements = 2048;  // of a line that are added up at a time

}  // namespace detail

struct alignas(kCacheLine) LineWorkspace {
  double sums[detail::kSummedElements];
  float row[kRowElements];
  int32_t counts[1 << detail::kSelectBits];
};

namespace detail {

/** Where a line begins in data and in what has `count` elements of each line. */
struct LinePlace {
  int64_t data, others;

  LinePlace(const LinesParams& p, int line) {
    const int64_t row = line / p.inner, column = line % p.inner;
    data = row * p.length * p.inner + column;
    others = row * p.count * p.inner + column;
  }
};

inline CopySide data_side(const LinesParams& p) { return {bytes_of(p.data), p.dtype, p.inner}; }
inline CopySide others_side(const LinesParams& p) { return {bytes_of(p.others), p.others_dtype, p.inner}; }

/** Lines that an item handles: short ones together. */
inline int lines_per_item(const LinesParams& p) {
  return max(1, min(kRowsPerItem, static_cast<int>(kChunk) / max(1, p.length)));
}

template <class F>
inline void for_lines(const LinesParams& p, int item, F f) {
  const int lines = lines_per_item(p), begin = item * lines;
  for (int line = begin; line < begin + min(lines, p.lines - begin); ++line) f(line);
}

}  // namespace detail

inline int line_items(const LinesParams& p) { return divide_up(p.lines, detail::lines_per_item(p)); }

namespace detail {

/** The place of the first largest element; of the first NaN where there is one. */
inline int largest_of_line(const LinesParams& p, int line, float* chunk /* [kRowElements] */) {
  const CopySide data = data_side(p);
  const LinePlace place(p, line);
  int best = 0;
  float most = -kInfinity;
  for (int begin = 0; begin < p.length; begin += kRowElements) {
    const int n = min(kRowElements, p.length - begin);
    data.load(chunk, place.data + int64_t{begin} * p.inner, n);
    for (int at = n; at % kLanes != 0; ++at) chunk[at] = -kInfinity;
    Vec largest = splat(-kInfinity);
    IntVec nan{};
    for (int at = 0; at < n; at += kLanes) {
      const Vec x = load(chunk + at);
      nan |= x != x;
      largest = flashattn::max(largest, x);
    }
    if (any(nan)) {
      for (int at = 0; at < n; ++at)
        if (chunk[at] != chunk[at]) return begin + at;
    }
    float found = -kInfinity;
    for (int lane = 0; lane < kLanes; ++lane)
      if (largest[lane] > found) found = largest[lane];
    if (found <= most) continue;
    most = found;
    int at = 0;
    while (chunk[at] != found) ++at;
    best = begin + at;
  }
  return best;
}

}  // namespace detail

FLASHATTN_CALLED void argmax_item(const LinesParams& p, int item, LineWorkspace& ws) {
  detail::for_lines(p, item, [&](int line) {
    p.indices[detail::LinePlace(p, line).others] = detail::largest_of_line(p, line, ws.row);
  });
}

namespace detail {

/** Rises with x; NaN, of either sign, is above everything, and both zeros are the same. */
inline uint32_t sort_key(float x, bool reversed) {
  uint32_t bits = 0;
  if (x != 0) __builtin_memcpy(&bits, &x, 4);
  uint32_t key = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  if (x != x) key = 0xffffffffu;
  return reversed ? ~key : key;
}

/** Sorts [n] by the high halves: a stable sort by one byte after the other, to and fro between two arrays; where they end. */
inline uint64_t* sort_keys(uint64_t* keys, uint64_t* other, int n, int32_t* counts) {
  for (int shift = 32; shift < 64; shift += 8) {
    const auto byte = [&](uint64_t key) { return static_cast<int>(key >> shift & 0xff); };
    for (int b = 0; b < 256; ++b) counts[b] = 0;
    for (int i = 0; i < n; ++i) ++counts[byte(keys[i])];
    if (n == 0 || counts[byte(keys[0])] == n) continue;
    for (int b = 0, begin = 0; b < 256; ++b) {
      const int count = counts[b];
      counts[b] = begin;
      begin += count;
    }
    for (int i = 0; i < n; ++i) other[counts[byte(keys[i])]++] = keys[i];
    uint64_t* const sorted = other;
    other = keys;
    keys = sorted;
  }
  return keys;
}

}  // namespace detail

inline int sort_items(const LinesParams& p) { return p.lines; }

/** The first `count` of the elements of a line in order, and where they were; what is equal stays in order. */
FLASHATTN_CALLED void sort_item(const LinesParams& p, int item, LineWorkspace& ws) {
  using namespace detail;
  const CopySide data = data_side(p), others = others_side(p);
  const LinePlace place(p, p.first + item);
  constexpr int kSelectShift = 64 - kSelectBits;
  uint64_t* keys = p.keys + size_t(2) * item * p.length;
  for (int32_t& count : ws.counts) count = 0;
  for (int begin = 0; begin < p.length; begin += kRowElements) {
    const int n = min(kRowElements, p.length - begin);
    data.load(ws.row, place.data + int64_t{begin} * p.inner, n);
    for (int at = 0; at < n; ++at) {
      const uint64_t key = static_cast<uint64_t>(sort_key(ws.row[at], p.reversed)) << 32 | uint32_t(begin + at);
      keys[begin + at] = key;
      ++ws.counts[key >> kSelectShift];
    }
  }
  int kept = p.length;
  if (p.count < p.length) {
    uint64_t last = 0;
    for (int below = ws.counts[0]; below < p.count; below += ws.counts[last]) ++last;
    kept = 0;
    for (int at = 0; at < p.length; ++at) {
      keys[kept] = keys[at];
      kept += keys[at] >> kSelectShift <= last;
    }
  }
  const uint64_t* sorted = sort_keys(keys, keys + p.length, kept, ws.counts);
  for (int at = 0; at < p.count; ++at) {
    const auto index = static_cast<int32_t>(sorted[at]);
    const int64_t to = place.others + int64_t{at} * p.inner;
    p.indices[to] = index;
    copy_bits(data, place.data + int64_t{index} * p.inner, others, to, 1);
  }
}

inline int take_along_items(const LinesParams& p) { return chunks(int64_t{p.lines} * p.count); }

/** others[r, i, c] = data[r, indices[r, i, c], c]; NaN where that is no place of a line. */
FLASHATTN_CALLED void take_along_item(const LinesParams& p, int item) {
  using namespace detail;
  const CopySide data = data_side(p), others = others_side(p);
  const int64_t begin = item * kChunk, end = begin + chunk_length(int64_t{p.lines} * p.count, item);
  int column = static_cast<int>(begin % p.inner), i = static_cast<int>(begin / p.inner % p.count);
  int64_t row = begin / p.inner / p.count;
  float nan[kLanes];  // stores read whole vectors
  fill(nan, __builtin_nanf(""), kLanes);
  for (int64_t at = begin; at < end; ++at) {
    const int32_t index = p.indices[at];
    if (static_cast<uint32_t>(index) < static_cast<uint32_t>(p.length))
      copy_bits(data, (row * p.length + index) * p.inner + column, others, at, 1);
    else
      others.store(nan, at, 1);
    if (++column < p.inner) continue;
    column = 0;
    if (++i < p.count) continue;
    i = 0;
    ++row;
  }
}

inline int add_along_items(const LinesParams& p) { return p.lines * divide_up(p.length, detail::kSummedElements); }

/** data[r, j, c] = the sum of others[r, i, c] over all i with indices[r, i, c] = j, in the order of i. */
FLASHATTN_CALLED void add_along_item(const LinesParams& p, int item, LineWorkspace& ws) {
  using namespace detail;
  const CopySide data = data_side(p), others = others_side(p);
  const int parts = divide_up(p.length, kSummedElements), begin = item % parts * kSummedElements;
  const int n = min(kSummedElements, p.length - begin);
  const LinePlace place(p, item / parts);
  for (int at = 0; at < n; ++at) ws.sums[at] = 0;
  for (int i = 0; i < p.count; ++i) {
    const int64_t from = place.others + int64_t{i} * p.inner;
    const uint32_t at = static_cast<uint32_t>(p.indices[from]) - static_cast<uint32_t>(begin);
    if (at >= static_cast<uint32_t>(n)) continue;
    others.load(ws.row, from, 1);
    ws.sums[at] += ws.row[0];
  }
  for (int first = 0; first < n; first += kRowElements) {
    const int count = min(kRowElements, n - first);
    for (int at = 0; at < count; ++at) ws.row[at] = static_cast<float>(ws.sums[first + at]);
    data.store(ws.row, place.data + int64_t{begin + first} * p.inner, count);
  }
}

/** Sums of neighbouring lines are made side by side. */
inline int cumulative_sum_items(const LinesParams& p) {
  return p.inner == 1 ? line_items(p) : p.lines / p.inner * divide_up(p.inner, kRowElements);
}

/** others[r, i, c] = the sum of data[r, j, c] over j <= i, or over j >= i. */
FLASHATTN_CALLED void cumulative_sum_item(const LinesParams& p, int item, LineWorkspace& ws) {
  using namespace detail;
  const uint8_t* data = bytes_of(p.data);
  uint8_t* sums = bytes_of(p.others);
  const size_t size = element_size(p.dtype), sum_size = element_size(p.others_dtype);
  if (p.inner == 1)
    return for_lines(p, item, [&](int line) {
      double sum = 0;
      for (int done = 0; done < p.length; done += kRowElements) {
        const int n = min(kRowElements, p.length - done);
        const size_t first = size_t(line) * p.length + (p.reversed ? p.length - done - n : done);
        load_row(ws.row, data + first * size, p.dtype, n);
        for (int at = 0; at < n; ++at) {
          float& x = ws.row[p.reversed ? n - 1 - at : at];
          sum += x;
          x = static_cast<float>(sum);
        }
        store_row(sums + first * sum_size, p.others_dtype, ws.row, n);
      }
    });
  const int parts = divide_up(p.inner, kRowElements), column = item % parts * kRowElements;
  const int n = min(kRowElements, p.inner - column);
  for (int at = 0; at < n; ++at) ws.sums[at] = 0;
  for (int i = 0; i < p.length; ++i) {
    const size_t row = size_t(item / parts) * p.length + (p.reversed ? p.length - 1 - i : i);
    const size_t first = row * p.inner + column;
    load_row(ws.row, data + first * size, p.dtype, n);
    for (int at = 0; at < n; ++at) {
      ws.sums[at] += ws.row[at];
      ws.row[at] = static_cast<float>(ws.sums[at]);
    }
    store_row(sums + first * sum_size, p.others_dtype, ws.row, n);
  }
}

}  // namespace flashattn
