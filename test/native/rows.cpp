// Merging states, gathering rows, filling and converting: on memory of exactly their size, against plain loops.
#include <algorithm>
#include <vector>

#include "cases.h"
#include "check.h"
#include "elementwise.h"
#include "gather.h"
#include "merge.h"
#include "problem.h"

namespace flashattn::test {

namespace {

constexpr double kTolerance = 2e-5;

template <class Run>
void run_items(int items, Run run) {
  const auto workspace = poisoned_workspace<BackwardWorkspace>();
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
      parts[at] = {state.out.ref(), state.lse.data(), state.d_out.ref(), state.d_lse.data()};
    }
  }

  Tensor tensor() const { return Tensor(batch, queries, heads, dim, dtype, layout); }
  size_t rows() const { return size_t(batch) * heads * queries; }

  MergeParams params() const {
    return {parts.data(),
            static_cast<int32_t>(states.size()),
            batch,
            heads,
            queries,
            dim,
            result.out.ref(),
            result.lse.data(),
            result.d_out.ref(),
            result.d_lse.data()};
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

void check_convert(Check& check, Random& random) {
  const auto from = static_cast<DType>(random.integer(0, 2)), to = static_cast<DType>(random.integer(0, 2));
  const auto count =
      static_cast<uint32_t>(random.chance(30) ? kChunk + random.integer(-1, 300) : random.integer(1, 600));
  const size_t size = element_size(from);
  Array<uint8_t> source(count * size), result(count * element_size(to));
  for (uint32_t at = 0; at < count; ++at) {
    const uint32_t bits = any_bits(random, from);
    memcpy(source.data() + at * size, &bits, size);
  }
  const ConvertParams p{source.data(), result.data(), from, to, count};
  run_items(chunks(count), [&](int item, BackwardWorkspace& ws) { convert_item(p, item, ws); });
  for (uint32_t at = 0; at < count; ++at) {
    const double wanted = rounded(decode(source.data() + at * size, from), to);
    const double got = decode(result.data() + at * element_size(to), to);
    if (wanted != wanted && got != got) continue;
    check.equal("a converted element", got, wanted);
  }
}

void check_fill(Check& check, Random& random) {
  const auto count = static_cast<uint32_t>(random.chance(30) ? kChunk + random.integer(-1, 1) : random.integer(1, 600));
  Array<uint32_t> data(count);
  const FillParams p{data.data(), count, static_cast<uint32_t>(random.bits())};
  for (int item = 0; item < chunks(count); ++item) fill_item(p, item);
  for (uint32_t at = 0; at < count; ++at) check.equal("a filled element", data[at], p.bits);
}

void check_peak(Check& check) {
  Array<float> numbers(3);
  numbers[0] = 0.5f;
  numbers[1] = 0.25f;
  peak_item({1, 8, numbers.data()});
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
  run_items(merge_items(p), [&](int item, BackwardWorkspace& ws) { merge_item(p, item, ws); });
  check_rows(check, m, check_merged_row);
  if (!check.passed()) return false;
  run_items(merge_items(p), [&](int item, BackwardWorkspace& ws) { merge_backward_item(p, item, ws); });
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
  const GatherParams p{from.data, dtype, from.batch, from.seq, result.bytes.data(), {offsets.data(), indices.data()},
                       batch,     rows,  elements,   scale};
  run_items(gather_items(p), [&](int item, BackwardWorkspace& ws) { gather_item(p, item, ws); });

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

bool elementwise_case(uint64_t seed) {
  Random random(seed);
  Check check({"elementwise", seed});
  check_convert(check, random);
  check_fill(check, random);
  check_peak(check);
  return check.passed();
}

}  // namespace flashattn::test
