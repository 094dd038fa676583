// The backward kernels of one element type and head-dim bucket, ELEMENT and HEAD_DIM, against plain loops.
#include "sm80/backward.cuh"

#include "backward_problem.h"
#include "sm80/backward_parts.h"

namespace flashattn::test {

namespace {

// Large tiles wherever there are some; small ones, as for a device with little shared memory and many multiprocessors.
constexpr DeviceLimits kLarge{9, 0, 232448, 1}, kSmall{8, 6, kSharedMemoryFloor, 1 << 20};

const char* name_of(Variant variant) {
  return variant == Variant::Large ? "large" : variant == Variant::Small ? "small" : "extras";
}

/** What launch_backward does, for one instance. */
void run(Backward& problem, AttentionParams p, const DeviceLimits& limits, DeviceArray<float>& sum) {
  const BackwardShape shape =
      backward_shape(element_size(p.query.dtype), HEAD_DIM, backward_variant(shape_of(p), limits));
  const size_t query_tiles = static_cast<size_t>(divide_up(p.query_length, shape.query_tile)) * p.batch * p.heads;
  DeviceArray<int32_t> turns(1 + query_tiles, 0);
  p.turns = turns.data();
  p.d_query_sum = sum.data();
  check(launch_backward_rows(p, nullptr));
  check(launch_backward_bucket<ELEMENT, HEAD_DIM>(p, limits, nullptr));
  check(launch_backward_finish(p, nullptr));
  problem.check_gradients();
  sum.download();
}

/** In any order, and twice in a fixed one, with other schedules of the emulator: the bits are the same. */
void check_instance(Backward& problem, AttentionParams p, const DeviceLimits& limits) {
  const int schedule = emulator::config().schedule;
  DeviceArray<float> sum(problem.lse_rows() * HEAD_DIM, 0.0f);
  run(problem, p, limits, sum);
  if (problem.problem.has_nan()) return;
  p.deterministic = 1;
  const uint64_t unordered = emulator::statistics().unordered_adds;
  std::vector<float> bits;
  for (const int other : {schedule + 3, schedule + 1}) {
    emulator::config().schedule = other;
    DeviceArray<float> ordered(problem.lse_rows() * HEAD_DIM, 0.0f);
    run(problem, p, limits, ordered);
    expect(bits.empty() || ordered.host == bits, "%s: other bits", problem.problem.name);
    bits = ordered.host;
  }
  emulator::config().schedule = schedule;
  expect(emulator::statistics().unordered_adds == unordered, "%s: additions in no fixed order", problem.problem.name);
}

void check_problem(Problem problem, Random& random) {
  problem.head_dim = problem.head_dim ? problem.head_dim : HEAD_DIM;
  problem.value_dim = problem.value_dim ? problem.value_dim : problem.head_dim;
  Backward backward(problem, ELEMENT::kDType, random);
  const AttentionParams p = backward.params();
  const Variant first = backward_variant(shape_of(p), kLarge), second = backward_variant(shape_of(p), kSmall);
  for (const DeviceLimits& limits : {kLarge, kSmall}) {
    if (limits.major == kSmall.major && first == second) continue;
    const int before = failures;
    check_instance(backward, p, limits);
    if (failures != before)
      std::printf("in %s, %s tiles\n", problem.name, name_of(backward_variant(shape_of(p), limits)));
  }
}

}  // namespace

}  // namespace flashattn::test

/** The names of some problems; none: all of them. */
int main(int count, char** names) {
  using namespace flashattn;
  using namespace flashattn::test;
  start();
  Random random(1);
  const int whole = HEAD_DIM, odd = HEAD_DIM - 11;
  const Problem problems[] = {
      {.name = "dense", .batch = 2, .heads = 2, .kv_heads = 2, .queries = 70, .keys = 150},
      {.name = "one query", .heads = 2, .kv_heads = 1, .queries = 1, .keys = 67, .layout = Layout::HeadsFirst},
      {.name = "more queries than a sum takes", .queries = 4200, .keys = 20},
      {.name = "causal", .heads = 2, .kv_heads = 1, .queries = 140, .keys = 200, .window_right = 0},
      {.name = "more queries than keys", .queries = 150, .keys = 60, .window_right = 0},
      {.name = "odd dims", .queries = 40, .keys = 50, .head_dim = odd, .value_dim = whole, .layout = Layout::Padded},
      {.name = "other dims", .queries = 40, .keys = 50, .head_dim = whole, .value_dim = 8},
      {.name = "window", .queries = 150, .keys = 170, .window_left = 20, .window_right = 30},
      {.name = "sequences",
       .heads = 2,
       .kv_heads = 2,
       .queries = 120,
       .keys = 125,
       .window_right = 0,
       .sink = true,
       .sequences = {{0, 50, 0, 70}, {50, 0, 70, 20}, {50, 4, 90, 0}, {54, 66, 90, 35}}},
      {.name = "blocks of 64", .heads = 2, .kv_heads = 1, .queries = 200, .keys = 150, .block_size = 64},
      {.name = "blocks of 128, causal", .queries = 300, .keys = 290, .window_right = 0, .block_size = 128},
      {.name = "softcap",
       .heads = 2,
       .kv_heads = 2,
       .queries = 70,
       .keys = 80,
       .window_right = 0,
       .alibi = true,
       .softcap = 0.7f},
      {.name = "biases", .heads = 2, .kv_heads = 1, .queries = 40, .keys = 70, .bias = true, .relative = true},
      {.name = "dropout",
       .batch = 2,
       .heads = 2,
       .kv_heads = 1,
       .queries = 70,
       .keys = 66,
       .softcap = 1.5f,
       .dropout = 0.3f},
      {.name = "a NaN that few see", .queries = 90, .keys = 130, .window_right = 0, .top_left = true, .nan_query = 3},
      {.name = "a NaN in a window",
       .heads = 2,
       .kv_heads = 1,
       .queries = 140,
       .keys = 140,
       .window_left = 20,
       .window_right = 5,
       .nan_query = 70,
       .nan_key = 30},
      {.name = "a NaN that bits hide",
       .queries = 100,
       .keys = 130,
       .block_size = 64,
       .nan_key = 77,
       .hide_nan_key = true},
      {.name = "a NaN that a bias hides", .queries = 40, .keys = 70, .bias = true, .nan_key = 7, .hide_nan_key = true},
  };
  const auto is_wanted = [&](const Problem& problem) {
    return count == 1 || std::find(names + 1, names + count, std::string(problem.name)) != names + count;
  };
  for (const Problem& problem : problems)
    if (is_wanted(problem)) check_problem(problem, random);
  for (const emulator::ConflictSite& site : emulator::conflict_sites())
    // Pairs of float32 are stored at two to a bank.
    expect(ELEMENT::kDType == DType::Float32, "%llu bank conflicts at %s",
           static_cast<unsigned long long>(site.conflicts), site.place.c_str());
  return finish();
}
