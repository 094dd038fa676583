// Merging states, gathering rows, filling and copying: on memory of exactly their size, against plain loops.
#include <algorithm>
#include <vector>

#include "attention/merge.h"
#include "cases.h"
#include "check.h"
#include "ops/copy.h"
#include "ops/gather.h"
#include "ops/peak.h"
#include "problem.h"
#include "simd/math.h"

namespace flashattn::test {

namespace {

constexpr double kTolerance = 2e-5;

template <class Run>
void run_items(int items, Run run) {
  const auto workspace = poisoned_workspace<RowWorkspace>();
  for (int item = items - 1; item >= 0; --item) run(item, *workspace);
}

struct State {
  Tensor out, d_out;
  Array<float> lse, d_lse;
};

/** States to merge, and the result. */
struct Merge {
  explicit Merge(Random& random) {
    batch = random.integer(1, 2);
    heads = random.integer(1, 3);
    queries = random.integer(1, 130);
    dim = random.chance(20) ? random.integer(71, 256) : random.integer(1, 70);
    dtype = static_cast<DType>(random.integer(0, 2));
    layout = random.chance(50) ? Layout::HeadsFirst : Layout::SequenceFirst;
    for (int count = random.integer(1, 4); count > 0; --count) {
      State state{tensor(), tensor(), random_array(rows(), random), Array<float>(rows())};
      state.out.randomize(random);
      for (size_t at = 0; at < rows(); ++at)
        if (random.chance(15)) state.lse[at] = -kInfinity;
      states.push_back(std::move(state));
    }
    result = {tensor(), tensor(), Array<float>(rows()), {}};
    result.d_out.randomize(random);
    if (random.chance(50)) result.d_lse = random_array(rows(), random);
    parts = Array<MergePart>(states.size());
    for (size_t at = 0; at < states.size(); ++at) {
      const State& state = states[at];
      parts[at] = {state.out.ref(), state.d_out.ref(), state.lse.data(), state.d_lse.data()};
    }
  }

  Tensor tensor() const { return Tensor(batch, queries, heads, dim, dtype, layout); }
  size_t rows() const { return size_t(batch) * heads * queries; }

  MergeParams params() const {
    return {parts.data(),
            result.out.ref(),
            result.d_out.ref(),
            result.lse.data(),
            result.d_lse.data(),
            static_cast<int32_t>(states.size()),
            batch,
            heads,
            queries,
            dim,
            0};
  }

  int batch, heads, queries, dim;
  DType dtype;
  Layout layout;
  std::vector<State> states;
  State result;
  Array<MergePart> parts;
};

/** e^(lse_p - lse), 0 for a state that saw nothing. */
double weight_of(float lse, double of_all) { return lse == -kInfinity ? 0 : exp(lse - of_all); }

void check_merged_row(Check& check, const Merge& m, int b, int h, int i, size_t row) {
  double sum = 0;
  for (const State& state : m.states) sum += exp(state.lse[row]);
  check.near("lse", m.result.lse[row], log(sum), kTolerance, 0);
  for (int d = 0; d < m.dim; ++d) {
    double out = 0;
    for (const State& state : m.states) out += weight_of(state.lse[row], log(sum)) * state.out.get(b, i, h, d);
    check.near("out", m.result.out.get(b, i, h, d), out, kTolerance, rounding(m.dtype));
  }
}

void check_merged_gradients(Check& check, const Merge& m, int b, int h, int i, size_t row) {
  for (const State& state : m.states) {
    const double weight = weight_of(state.lse[row], m.result.lse[row]);
    double dot = m.result.d_lse.size() ? m.result.d_lse[row] : 0;
    for (int d = 0; d < m.dim; ++d) {
      const double d_out = m.result.d_out.get(b, i, h, d);
      dot += d_out * (state.out.get(b, i, h, d) - m.result.out.get(b, i, h, d));
      check.near("d_out", state.d_out.get(b, i, h, d), weight * d_out, kTolerance, rounding(m.dtype));
    }
    check.near("d_lse", state.d_lse[row], weight * dot, 1e-4 * fmax(1, fabs(dot)), 0);
  }
}

using CheckRow = void (*)(Check&, const Merge&, int b, int h, int i, size_t row);

void check_rows(Check& check, const Merge& m, CheckRow check_row) {
  for (int b = 0; b < m.batch; ++b)
    for (int h = 0; h < m.heads; ++h)
      for (int i = 0; i < m.queries; ++i) check_row(check, m, b, h, i, (size_t(b) * m.heads + h) * m.queries + i);
}

/** Bits of every kind of number, special ones often. */
uint32_t any_bits(Random& random, DType dtype) {
  const auto bits = static_cast<uint32_t>(random.bits());
  if (dtype != DType::Float32) return bits & 0xffff;
  if (random.chance(70)) return bits;
  return (bits & 0x80000000u) | (random.integer(0, 1) ? 0x7f800000u : 0) | (bits & uint32_t(random.integer(0, 3)));
}

/** Rounds to nearest, ties to even, as IEEE 754 says. */
double rounded(double value, DType dtype) {
  if (dtype == DType::Float32 || value == 0 || value - value != 0) return value;
  const int digits = dtype == DType::Float16 ? 11 : 8, least = dtype == DType::Float16 ? -24 : -133;
  int exponent;
  frexp(value, &exponent);
  const int unit = std::max(exponent - digits, least);
  const double nearest = ldexp(nearbyint(ldexp(value, -unit)), unit);
  const double limit = dtype == DType::Float16 ? 65504 : ldexp(255, 120);
  return fabs(nearest) > limit ? copysign(INFINITY, value) : nearest;
}

/** Up to six dims in any order on either side, with gaps; sometimes added to what is there. */
void check_copy(Check& check, Random& random) {
  const auto from = static_cast<DType>(random.integer(0, 2)), to = static_cast<DType>(random.integer(0, 2));
  const bool accumulate = random.chance(30);
  CopyParams p{};
  int64_t count = 1;
  for (int axis = 0; axis < 6; ++axis) {
    p.sizes[axis] = random.chance(50) ? 1 : random.integer(1, axis == 5 ? 700 : 4);
    count *= p.sizes[axis];
  }
  if (random.chance(20)) p.sizes[5] = kChunk + random.integer(-1, 300);
  const auto lay_out = [&](int64_t* strides) {
    int order[6] = {5, 4, 3, 2, 1, 0};
    if (random.chance(50)) std::swap(order[random.integer(0, 5)], order[random.integer(0, 5)]);
    int64_t stride = random.chance(30) ? 2 : 1;
    for (const int axis : order) {
      strides[axis] = stride;
      stride *= p.sizes[axis] + (random.chance(20) ? 1 : 0);
    }
    return stride;
  };
  const auto source_count = static_cast<size_t>(lay_out(p.from_strides));
  const auto target_count = static_cast<size_t>(lay_out(p.to_strides));
  const size_t from_size = element_size(from), to_size = element_size(to);
  Array<uint8_t> source(source_count * from_size), target(target_count * to_size), before(target_count * to_size);
  for (size_t at = 0; at < source_count; ++at) {
    const uint32_t bits = any_bits(random, from);
    memcpy(source.data() + at * from_size, &bits, from_size);
  }
  for (size_t at = 0; at < target_count; ++at) {
    const uint32_t bits = any_bits(random, to);
    memcpy(target.data() + at * to_size, &bits, to_size);
  }
  memcpy(before.data(), target.data(), target_count * to_size);
  p.from = source.data(), p.to = target.data();
  p.from_dtype = from, p.to_dtype = to, p.accumulate = accumulate;
  run_items(copy_items(p), [&](int item, RowWorkspace& ws) { copy_item(p, item, ws); });

  std::vector<bool> written(target_count);
  int64_t index[6] = {};
  for (bool more = true; more;) {
    int64_t from_at = 0, to_at = 0;
    for (int axis = 0; axis < 6; ++axis)
      from_at += index[axis] * p.from_strides[axis], to_at += index[axis] * p.to_strides[axis];
    const double copied = decode(source.data() + from_at * from_size, from);
    const double old = decode(before.data() + to_at * to_size, to);
    const double wanted = rounded(accumulate ? static_cast<float>(old) + static_cast<float>(copied) : copied, to);
    const double got = decode(target.data() + to_at * to_size, to);
    if (wanted == wanted || got == got) check.equal("a copied element", got, wanted);
    written[to_at] = true;
    int axis = 5;
    for (; axis >= 0 && ++index[axis] == p.sizes[axis]; --axis) index[axis] = 0;
    more = axis >= 0;
  }
  for (size_t at = 0; at < target_count; ++at)
    if (!written[at] && memcmp(target.data() + at * to_size, before.data() + at * to_size, to_size) != 0)
      check.fail("a gap", 1, 0);
}

void check_fill(Check& check, Random& random) {
  const auto count = static_cast<uint32_t>(random.chance(30) ? kChunk + random.integer(-1, 1) : random.integer(1, 600));
  Array<uint32_t> data(count);
  const FillParams p{data.data(), count, static_cast<uint32_t>(random.bits()), 0};
  for (int item = 0; item < fill_items(p); ++item) fill_item(p, item);
  for (uint32_t at = 0; at < count; ++at) check.equal("a filled element", data[at], p.bits);
}

void check_peak(Check& check) {
  Array<float> numbers(3);
  numbers[0] = 0.5f;
  numbers[1] = 0.25f;
  peak_item({numbers.data(), 1, 8}, 0);
  double sum = 0;
  for (int chain = 0; chain < kPeakChains; ++chain) sum += kLanes * (1 + 0.001 * chain + 8 * 0.125);
  check.near("the sum of the peak", numbers[2], sum, 1e-4, 0);
}

}  // namespace

bool merge_case(uint64_t seed) {
  Random random(seed);
  const Merge m(random);
  const MergeParams p = m.params();
  Check check({"merge", seed});
  run_items(merge_items(p), [&](int item, RowWorkspace& ws) { merge_item(p, item, ws); });
  check_rows(check, m, check_merged_row);
  if (!check.passed()) return false;
  run_items(merge_items(p), [&](int item, RowWorkspace& ws) { merge_backward_item(p, item, ws); });
  check_rows(check, m, check_merged_gradients);
  return check.passed();
}

bool gather_case(uint64_t seed) {
  Random random(seed);
  const int batch = random.integer(1, 2), source_rows = random.integer(1, 60), rows = random.integer(1, 150);
  const int elements = random.chance(30) ? random.integer(250, 600) : random.integer(1, 70);
  const auto dtype = static_cast<DType>(random.integer(0, 2));
  Tensor source(batch, source_rows, 1, elements, dtype, Layout::SequenceFirst);
  const Tensor result(batch, rows, 1, elements, dtype, Layout::SequenceFirst);
  source.randomize(random);
  std::vector<int32_t> list;
  Array<int32_t> offsets(rows + 1);
  for (int row = 0; row <= rows; ++row) {
    offsets[row] = static_cast<int32_t>(list.size());
    for (int count = row < rows ? random.integer(0, 3) : 0; count > 0; --count)
      list.push_back(random.integer(0, source_rows - 1));
  }
  Array<int32_t> indices(list.size());
  std::copy(list.begin(), list.end(), indices.data());
  const float scale = random.chance(50) ? 1 : 0.5f;
  const TensorRef from = source.ref();
  const GatherParams p{from.data,
                       result.bytes.data(),
                       from.batch,
                       from.seq,
                       {offsets.data(), indices.data()},
                       dtype,
                       batch,
                       rows,
                       elements,
                       scale,
                       0};
  run_items(gather_items(p), [&](int item, RowWorkspace& ws) { gather_item(p, item, ws); });

  Check check({"gather", seed});
  for (int b = 0; b < batch; ++b)
    for (int row = 0; row < rows; ++row)
      for (int d = 0; d < elements; ++d) {
        double sum = 0;
        for (int at = offsets[row]; at < offsets[row + 1]; ++at) sum += source.get(b, indices[at], 0, d);
        check.near("an element", result.get(b, row, 0, d), scale * sum, 1e-6, rounding(dtype));
      }
  return check.passed();
}

bool copy_case(uint64_t seed) {
  Random random(seed);
  Check check({"copy", seed});
  for (int round = 0; round < 4; ++round) check_copy(check, random);
  check_fill(check, random);
  check_peak(check);
  return check.passed();
}

}  // namespace flashattn::test
