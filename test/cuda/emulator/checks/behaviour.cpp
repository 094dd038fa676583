// What kernels compute: positions, exchanges between lanes, late and eager copies, poisoned memory, schedules, sums.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "expect.h"
#include "ptx.cuh"

namespace {

constexpr int kThreads = 64;

struct Memory {
  int* out;   // as a kernel says
  float* in;  // [kThreads * 4]
};

struct Buffers {
  explicit Buffers(size_t count) : out(count, "out"), in(kThreads * 4, "in") {
    for (int& x : out) x = 0;
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  }
  Memory memory() const { return {out.data(), in.data()}; }
  emulator::Buffer<int> out;
  emulator::Buffer<float> in;
};

FLASHATTN_DEVICE uint32_t slot(int thread) { return ptx::shared_base() + static_cast<uint32_t>(thread) * 16; }

/** out [blocks, kThreads] */
FLASHATTN_KERNEL(kThreads) positions(const Memory m) {
  const dim3 b = ptx::block(), g = ptx::grid();
  const int block = static_cast<int>((b.z * g.y + b.y) * g.x + b.x);
  ptx::store_global(m.out + block * kThreads + ptx::thread(), block * 1000 + ptx::thread());
}

void check_positions() {
  const Buffers buffers(12 * kThreads);
  ptx::launch(positions, "positions", dim3(2, 3, 2), kThreads, 0, nullptr, buffers.memory());
  for (int i = 0; i < 12 * kThreads; ++i)
    EXPECT(buffers.out[static_cast<size_t>(i)] == i / kThreads * 1000 + i % kThreads);
}

/** out [4, kThreads] */
FLASHATTN_KERNEL(kThreads) exchanges(const Memory m) {
  const int t = ptx::thread();
  ptx::store_global(m.out + t, static_cast<int>(ptx::shuffle_xor(static_cast<float>(t), 5)));
  ptx::store_global(m.out + kThreads + t, ptx::shuffle(t, 3));
  ptx::store_global(m.out + 2 * kThreads + t, static_cast<int>(ptx::shuffle(static_cast<float>(t), t / 2 % 32)));
  ptx::store_global(m.out + 3 * kThreads + t, static_cast<int>(ptx::ballot(t % 3 == 0)));
}

void check_exchanges() {
  const Buffers buffers(4 * kThreads);
  ptx::launch(exchanges, "exchanges", dim3(1), kThreads, 0, nullptr, buffers.memory());
  for (int t = 0; t < kThreads; ++t) {
    const int warp = t / 32 * 32;
    const auto row = [&](int r) { return buffers.out[static_cast<size_t>(r * kThreads + t)]; };
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= static_cast<uint32_t>((warp + lane) % 3 == 0) << lane;
    EXPECT(row(0) == (t ^ 5) && row(1) == warp + 3 && row(2) == warp + t / 2 % 32);
    EXPECT(row(3) == static_cast<int>(votes));
  }
}

/** A copy reads its source until it has been waited for. out [kThreads * 4] */
FLASHATTN_KERNEL(kThreads) source_overwritten(const Memory m) {
  const int t = ptx::thread();
  ptx::cp_async<16>(slot(t), m.in + 4 * t, 12);
  ptx::cp_async_commit();
  ptx::store_global(m.in + 4 * t, -1.0f);
  ptx::cp_async_wait<0>();
  for (uint32_t i = 0; i < 4; ++i)
    ptx::store_global(m.out + 4 * t + i, static_cast<int>(ptx::load_shared<float>(slot(t) + 4 * i)));
}

void check_copies(bool eager) {
  emulator::config().eager_copies = eager;
  const Buffers buffers(kThreads * 4);
  ptx::launch(source_overwritten, "source_overwritten", dim3(1), kThreads, kThreads * 16, nullptr, buffers.memory());
  for (int t = 0; t < kThreads; ++t) {
    const auto out = [&](int i) { return buffers.out[static_cast<size_t>(4 * t + i)]; };
    EXPECT(out(0) == (eager ? 4 * t : -1) && out(1) == 4 * t + 1 && out(2) == 4 * t + 2 && out(3) == 0);
  }
  emulator::config().eager_copies = false;
}

/** What cannot be read is NaN. out [3] */
FLASHATTN_KERNEL(kThreads) poison(const Memory m) {
  if (ptx::thread() != 0) return;
  ptx::store_global(m.out, std::isnan(ptx::load_shared<float>(slot(0))) ? 1 : 0);
  ptx::store_global(m.out + 1, std::isnan(ptx::load_shared<float>(slot(kThreads))) ? 1 : 0);
  ptx::store_global(m.out + 2, std::isnan(ptx::load_global(m.in - 1)) ? 1 : 0);
}

void check_poison() {
  const Buffers buffers(3);
  ptx::launch(poison, "poison", dim3(1), kThreads, kThreads * 16, nullptr, buffers.memory());
  EXPECT(buffers.out[0] == 1 && buffers.out[1] == 1 && buffers.out[2] == 1);
  EXPECT(emulator::reports().size() == 3 && cudaGetLastError() == cudaErrorLaunchFailure);
  emulator::clear_reports();
  EXPECT(std::isnan(emulator::Buffer<float>(1)[0]));
}

/** The order in which threads come to a counter. out [1 + kThreads] */
FLASHATTN_KERNEL(kThreads) arrivals(const Memory m) {
  ptx::store_global(m.out + 1 + ptx::fetch_add(m.out, 1), ptx::thread());
}

std::vector<int> arrival_order(int schedule) {
  emulator::config().schedule = schedule;
  const Buffers buffers(1 + kThreads);
  ptx::launch(arrivals, "arrivals", dim3(1), kThreads, 0, nullptr, buffers.memory());
  emulator::config().schedule = 0;
  return {buffers.out.begin() + 1, buffers.out.end()};
}

void check_schedules() {
  const std::vector<int> first = arrival_order(0), last = arrival_order(1);
  EXPECT(first.front() == 0 && first.back() == kThreads - 1);
  EXPECT(last.front() == kThreads - 1 && last.back() == 0);
  EXPECT(arrival_order(2) == arrival_order(2));
  EXPECT(arrival_order(2) != arrival_order(3) && arrival_order(3) != arrival_order(4));
}

constexpr int kRounds = 6;

/** Which block comes to a counter, once a round. out [1 + blocks * kRounds] */
FLASHATTN_KERNEL(kThreads) rounds(const Memory m) {
  for (int round = 0; round < kRounds; ++round) {
    ptx::sync_threads();
    if (ptx::thread() == 40) ptx::store_global(m.out + 1 + ptx::fetch_add(m.out, 1), static_cast<int>(ptx::block().x));
  }
}

std::vector<int> block_order(int schedule, unsigned blocks) {
  emulator::config().schedule = schedule;
  const Buffers buffers(1 + blocks * kRounds);
  ptx::launch(rounds, "rounds", dim3(blocks), kThreads, 0, nullptr, buffers.memory());
  emulator::config().schedule = 0;
  return {buffers.out.begin() + 1, buffers.out.end()};
}

/** Two blocks run in turn, and nothing says which begin first. */
void check_blocks() {
  constexpr int kBlocks = 7;
  for (int schedule = 0; schedule < 8; ++schedule) {
    const std::vector<int> order = block_order(schedule, kBlocks);
    for (int block = 0; block < kBlocks; ++block) EXPECT(std::count(order.begin(), order.end(), block) == kRounds);
    const auto other = std::find_if(order.begin(), order.end(), [&](int block) { return block != order[0]; });
    EXPECT(std::find(other, order.end(), order[0]) != order.end());
    EXPECT(schedule != 0 || order[0] <= 1);
    EXPECT(schedule != 1 || order[0] >= kBlocks - 2);
  }
  EXPECT(block_order(2, kBlocks) == block_order(2, kBlocks) && block_order(2, kBlocks) != block_order(3, kBlocks));
}

/** Launches from several host threads run one after the other. */
void check_host_threads() {
  const auto work = [] {
    for (int i = 0; i < 50; ++i) {
      cudaStream_t stream;
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      const Buffers buffers(2 * kThreads);
      ptx::launch(positions, "positions", dim3(2), kThreads, 0, stream, buffers.memory());
      EXPECT(cudaStreamSynchronize(stream) == cudaSuccess && buffers.out[kThreads + 1] == 1001);
      cudaStreamDestroy(stream);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
}

FLASHATTN_KERNEL(kThreads) counted(const Memory m) {
  const uint32_t a[4] = {};
  uint32_t r[4];
  float c[4] = {};
  ptx::cp_async<16>(slot(ptx::thread()), m.in + 4 * ptx::thread(), 16);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  ptx::sync_threads();
  ptx::ldmatrix_x4(r, slot(ptx::thread()));
  ptx::mma_f16(c, a, r[0], r[1]);
  ptx::mma_bf16(c, a, r[0], r[1]);
}

void check_statistics() {
  const Buffers buffers(1);
  emulator::clear_statistics();
  ptx::launch(counted, "counted", dim3(3), kThreads, kThreads * 16, nullptr, buffers.memory());
  const emulator::Statistics& s = emulator::statistics();
  EXPECT(s.launches == 1 && s.blocks == 3 && s.copies == 3 * kThreads && s.barriers == 3);
  EXPECT(s.ldmatrix == 6 && s.mma == 12 && s.collectives == 18 && s.switches > 0 && s.bank_conflicts == 0);
}

/** All elements of a, of b and of c. */
struct Product {
  float a, b, c;
  float* out;  // [1]
};

FLASHATTN_KERNEL(32) multiplied(const Product p) {
  const uint32_t word = std::bit_cast<uint32_t>(p.a), a[4] = {word, word, word, word};
  const uint32_t b = std::bit_cast<uint32_t>(p.b);
  float c[4] = {p.c, p.c, p.c, p.c};
  ptx::mma_tf32(c, a, b, b);
  if (ptx::thread() == 0) ptx::store_global(p.out, c[0]);
}

/** c + 8 a b, as mma_tf32 adds it. */
float product(bool cut, float a, float b, float c) {
  const emulator::Buffer<float> out(1);
  emulator::config().cut_sums = cut;
  ptx::launch(multiplied, "multiplied", dim3(1), 32, 0, nullptr, Product{a, b, c, out.data()});
  emulator::config().cut_sums = false;
  return out[0];
}

/** Sums that are cut lose what is below the last bit of the largest addend, towards zero; others round. */
void check_sums() {
  constexpr float kUnit = 0x1p-23f;  // the last bit of 1
  EXPECT(product(false, 1, 1, 2) == 10 && product(true, 1, 1, 2) == 10 && product(true, -1, 0.5f, 2) == -2);
  // Each of the products is cut away, though together they are more than one bit.
  EXPECT(product(false, kUnit / 4, 1, 1) == 1 + 2 * kUnit && product(true, kUnit / 4, 1, 1) == 1);
  EXPECT(product(false, kUnit / 4, -1, -1) == -1 - 2 * kUnit && product(true, kUnit / 4, -1, -1) == -1);
  // One unit and a half is cut to one.
  EXPECT(product(true, kUnit * 1.5f, 1, 1) == 1 + 8 * kUnit && product(false, kUnit * 1.5f, 1, 1) == 1 + 12 * kUnit);
  // The sum of four is cut again: its last bit is 2.
  EXPECT(product(true, 0x1p22f, 1, 0x1p24f - 1) == 0x1p25f + 0x1p24f - 4);
  EXPECT(std::isnan(product(true, NAN, 1, 1)) && product(true, INFINITY, 1, 1) == INFINITY);
}

/** Every block adds to a sum; `in_turn`: after the block before it, by a flag. */
struct Turns {
  int32_t* flag;  // [1]
  float* sum;     // [1]
  bool in_turn;
};

FLASHATTN_KERNEL(kThreads) add_up(const Turns t) {
  const int block = static_cast<int>(ptx::block().x);
  if (t.in_turn && ptx::thread() == 0) ptx::wait_for(t.flag, block);
  ptx::sync_threads();
  if (ptx::thread() == 5) ptx::add_global(t.sum, 1.0f);
  ptx::sync_threads();
  if (t.in_turn && ptx::thread() == 0) ptx::signal(t.flag, block + 1);
}

/** Additions in no fixed order are counted: not the first one, nor those of another launch. */
void check_adds() {
  for (const bool in_turn : {false, true}) {
    emulator::Buffer<int32_t> flag(1);
    emulator::Buffer<float> sum(1);
    flag[0] = 0, sum[0] = 0;
    for (const int blocks : {4, 1}) {
      flag[0] = 0;
      emulator::clear_statistics();
      ptx::launch(add_up, "add_up", dim3(blocks), kThreads, 0, nullptr, Turns{flag.data(), sum.data(), in_turn});
      EXPECT(emulator::statistics().unordered_adds == static_cast<uint64_t>(in_turn ? 0 : blocks - 1));
    }
    EXPECT(sum[0] == 5 && emulator::reports().empty());
  }
}

/** A block must not wait for one that may not have begun: without tickets, for any. */
void check_waits_for_blocks() {
  emulator::Buffer<int32_t> flag(1);
  emulator::Buffer<float> sum(1);
  emulator::config().schedule = 1;
  flag[0] = 0, sum[0] = 0;
  ptx::launch(add_up, "add_up", dim3(4), kThreads, 0, nullptr, Turns{flag.data(), sum.data(), true});
  emulator::config().schedule = 0;
  EXPECT(emulator::reports().size() == 1 && emulator::reports()[0].find("deadlock") != std::string::npos);
  emulator::clear_reports();
  cudaGetLastError();
}

}  // namespace

int main() {
  for (int schedule = 0; schedule < 4; ++schedule) {
    emulator::config().schedule = schedule;
    check_positions();
    check_exchanges();
    check_copies(false);
    check_copies(true);
  }
  check_poison();
  check_schedules();
  check_host_threads();
  check_statistics();
  check_blocks();
  check_adds();
  check_waits_for_blocks();
  check_sums();
  return finish();
}
