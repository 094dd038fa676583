// Where a thread is, and how threads meet: within a warp, within a block, and across blocks.
#pragma once
#include "device.h"
#include "numbers.cuh"

namespace flashattn::test {

inline constexpr int kWarp = 32;

struct Place {
  static constexpr int kThreads = 64, kWords = 4;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const dim3 block = ptx::block(), grid = ptx::grid();
    const unsigned index = (block.z * grid.y + block.y) * grid.x + block.x;
    const uint32_t words[kWords] = {static_cast<uint32_t>(ptx::thread()), block.x | block.y << 8 | block.z << 16,
                                    grid.x | grid.y << 8 | grid.z << 16, ptx::shared_base() % 1024};
    for (int i = 0; i < kWords; ++i)
      ptx::store_global(arrays.out + (i * grid.x * grid.y * grid.z + index) * kThreads + ptx::thread(), words[i]);
  }
};

inline Words places(dim3 grid) {
  Words words;
  const unsigned blocks = grid.x * grid.y * grid.z;
  const auto add = [&](auto word) {  // of (thread, block)
    for (unsigned block = 0; block < blocks; ++block)
      for (unsigned thread = 0; thread < Place::kThreads; ++thread)
        words.push_back(word(thread, dim3(block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y)));
  };
  add([](unsigned thread, dim3) { return thread; });
  add([](unsigned, dim3 block) { return block.x | block.y << 8 | block.z << 16; });
  add([=](unsigned, dim3) { return grid.x | grid.y << 8 | grid.z << 16; });
  add([](unsigned, dim3) { return 0u; });
  return words;
}

/** Words move on by one thread in every round, through shared memory, over the whole block or within each warp. */
template <bool OfBlock>
struct PassOnBody {
  static constexpr int kThreads = 128, kRounds = 5, kBytes = 2 * kThreads * 4;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int thread = ptx::thread();
    uint32_t word = ptx::load_global(arrays.in + thread);
    for (int round = 0; round < kRounds; ++round) {
      const uint32_t row = ptx::shared_base() + round % 2 * kThreads * 4;
      ptx::store_shared(row + thread * 4, word);
      if constexpr (OfBlock)
        ptx::sync_threads();
      else
        ptx::sync_warp();
      word = ptx::load_shared<uint32_t>(row + next(thread) * 4);
    }
    ptx::store_global(arrays.out + thread, word);
  }
  static constexpr int kCircle = OfBlock ? kThreads : kWarp;

 private:
  static FLASHATTN_DEVICE int next(int thread) { return thread / kCircle * kCircle + (thread + 1) % kCircle; }
};

template <bool OfBlock>
Words passed_on(const Words& words) {
  constexpr int kCircle = PassOnBody<OfBlock>::kCircle;
  Words result(words.size());
  for (int i = 0; i < static_cast<int>(words.size()); ++i)
    result[i] = words[i / kCircle * kCircle + (i + PassOnBody<OfBlock>::kRounds) % kCircle];
  return result;
}

/** What each lane of two warps gives for each of several arguments. */
template <class F>
struct WarpBody {
  static constexpr int kThreads = 2 * kWarp;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const uint32_t word = ptx::load_global(arrays.in + ptx::thread());
    for (int argument = 0; argument < F::kArguments; ++argument)
      ptx::store_global(arrays.out + argument * kThreads + ptx::thread(), F::exchange(word, argument));
  }
};

/** From the lane `F::source(lane, argument)` of the own warp. */
template <class F>
Words exchanged(const Words& words) {
  Words result;
  for (int argument = 0; argument < F::kArguments; ++argument)
    for (int thread = 0; thread < WarpBody<F>::kThreads; ++thread)
      result.push_back(words[thread / kWarp * kWarp + F::source(thread % kWarp, argument)]);
  return result;
}

struct ShuffleXor {
  static constexpr int kArguments = 5;
  static FLASHATTN_DEVICE uint32_t exchange(uint32_t word, int argument) {
    return ptx::bits_of(ptx::shuffle_xor(ptx::float_of(word), 1 << argument));
  }
  static int source(int lane, int argument) { return lane ^ (1 << argument); }
};
struct ShuffleFloat {
  static constexpr int kArguments = kWarp;
  static FLASHATTN_DEVICE uint32_t exchange(uint32_t word, int argument) {
    return ptx::bits_of(ptx::shuffle(ptx::float_of(word), argument));
  }
  static int source(int, int argument) { return argument; }
};
struct ShuffleInt {
  static constexpr int kArguments = kWarp;
  static FLASHATTN_DEVICE uint32_t exchange(uint32_t word, int argument) {
    return static_cast<uint32_t>(ptx::shuffle(static_cast<int>(word), (ptx::thread() + argument) % kWarp));
  }
  static int source(int lane, int argument) { return (lane + argument) % kWarp; }
};
struct Ballot {
  static constexpr int kArguments = 32;
  static FLASHATTN_DEVICE uint32_t exchange(uint32_t word, int argument) { return ptx::ballot(word >> argument & 1); }
};

inline Words ballots(const Words& words) {
  Words result;
  for (int argument = 0; argument < Ballot::kArguments; ++argument)
    for (int thread = 0; thread < WarpBody<Ballot>::kThreads; ++thread) {
      uint32_t votes = 0;
      for (int lane = 0; lane < kWarp; ++lane) votes |= (words[thread / kWarp * kWarp + lane] >> argument & 1) << lane;
      result.push_back(votes);
    }
  return result;
}

/** Blocks take turns in a fixed order, as in a deterministic backward pass: each changes what the last one wrote. */
struct TurnsBody {
  static constexpr int kThreads = 64, kBlocks = 12, kSharedBytes = 16;
  // out: [0] whose turn it is, [1] tickets, [2 ...] the numbers that are changed
  static constexpr int kFirst = 2, kWords = kFirst + kThreads;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    int32_t* turn = reinterpret_cast<int32_t*>(arrays.out);
    int32_t* tickets = turn + 1;
    const int thread = ptx::thread();
    // A block that has a ticket runs, so that a lower ticket is never waited for in vain.
    if (thread == 0) ptx::store_shared(ptx::shared_base(), ptx::fetch_add(tickets, 1));
    ptx::sync_threads();
    const int32_t ticket = ptx::load_shared<int32_t>(ptx::shared_base());
    if (thread == 0) ptx::wait_for(turn, ticket);
    ptx::sync_threads();
    uint32_t* number = arrays.out + kFirst + thread;
    ptx::store_global(number, ptx::load_global(number) * 3 + static_cast<uint32_t>(ticket));
    ptx::fence();
    ptx::sync_threads();
    if (thread == 0) ptx::signal(turn, ticket + 1);
  }
};

/** The case of a body that changes words of `out` which are there at the start. */
template <class Body>
Case started_case(const char* function, const char* aspect, const Words& start, const Words& expected) {
  const Grid grid{dim3(Body::kBlocks), Body::kSharedBytes};
  const auto on_device = [=] { return run_body<Body>(function, {0}, start, grid); };
  return {function, aspect, kSameBits, on_device, [=] { return expected; }};
}

inline Words after_turns() {
  Words words(TurnsBody::kWords);
  words[0] = words[1] = TurnsBody::kBlocks;
  for (uint32_t ticket = 0; ticket < TurnsBody::kBlocks; ++ticket)
    for (int i = TurnsBody::kFirst; i < TurnsBody::kWords; ++i) words[i] = words[i] * 3 + ticket;
  return words;
}

/** Every thread draws a number; each is drawn once. */
struct DrawBody {
  static constexpr int kThreads = 64, kBlocks = 8, kDrawn = kThreads * kBlocks, kWords = kDrawn + 1, kSharedBytes = 0;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    int32_t* counter = reinterpret_cast<int32_t*>(arrays.out) + kDrawn;
    ptx::store_global(arrays.out + ptx::fetch_add(counter, 1), 1u);
  }
};

/** Every thread adds to one of few sums; the numbers are such that the order does not matter. */
struct AddBody {
  static constexpr int kThreads = 64, kBlocks = 8, kSums = 8, kSharedBytes = 0;
  static constexpr float kUnit = 0.25f;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int index = static_cast<int>(ptx::block().x) * kThreads + ptx::thread();
    ptx::add_global(reinterpret_cast<float*>(arrays.out) + index % kSums, static_cast<float>(index) * kUnit);
  }
};

inline Words added() {
  Words words;
  for (int sum = 0; sum < AddBody::kSums; ++sum) {
    float total = 0;
    for (int i = sum; i < AddBody::kThreads * AddBody::kBlocks; i += AddBody::kSums)
      total += static_cast<float>(i) * AddBody::kUnit;
    words.push_back(std::bit_cast<uint32_t>(total));
  }
  return words;
}

/** The same in pairs, the second twice the first. */
struct AddPairsBody {
  static constexpr int kThreads = 64, kBlocks = 8, kPairs = 4, kSharedBytes = 0;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int index = static_cast<int>(ptx::block().x) * kThreads + ptx::thread();
    const float value = static_cast<float>(index) * AddBody::kUnit;
    ptx::add_global(reinterpret_cast<float2*>(arrays.out) + index % kPairs, make_float2(value, 2 * value));
  }
};

inline Words added_pairs() {
  Words words;
  for (int pair = 0; pair < AddPairsBody::kPairs; ++pair) {
    float total = 0;
    for (int i = pair; i < AddPairsBody::kThreads * AddPairsBody::kBlocks; i += AddPairsBody::kPairs)
      total += static_cast<float>(i) * AddBody::kUnit;
    words.push_back(std::bit_cast<uint32_t>(total));
    words.push_back(std::bit_cast<uint32_t>(2 * total));
  }
  return words;
}

/** More shared memory than a block gets without asking. */
struct LargeBody {
  static constexpr int kThreads = 128, kBytes = 96 * 1024;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int thread = ptx::thread();
    const uint32_t base = ptx::shared_base();
    for (int i = thread; i < kBytes / 4; i += kThreads) ptx::store_shared(base + i * 4, static_cast<uint32_t>(i));
    ptx::sync_threads();
    ptx::store_global(arrays.out + thread, ptx::load_shared<uint32_t>(base + kBytes - (thread + 1) * 4));
  }
};

inline Words last_words() {
  Words words;
  for (uint32_t i = 0; i < LargeBody::kThreads; ++i) words.push_back(LargeBody::kBytes / 4 - 1 - i);
  return words;
}

inline void add_thread_cases(Cases& cases) {
  const dim3 grid(3, 2, 2);
  for (const char* function : {"thread", "block", "grid", "shared_base"})
    cases.push_back(body_case<Place>(function, "a grid of 3 x 2 x 2", kSameBits, {0}, places(grid), {grid, 64}));
  const Words words = random_words(PassOnBody<true>::kThreads, 5), lanes = random_words(2 * kWarp, 6);
  cases.push_back(body_case<PassOnBody<true>>("sync_threads", "", kSameBits, words, passed_on<true>(words),
                                              {dim3(1), PassOnBody<true>::kBytes}));
  cases.push_back(body_case<PassOnBody<false>>("sync_warp", "", kSameBits, words, passed_on<false>(words),
                                               {dim3(1), PassOnBody<false>::kBytes}));
  cases.push_back(body_case<WarpBody<ShuffleXor>>("shuffle_xor", "", kSameBits, lanes, exchanged<ShuffleXor>(lanes)));
  cases.push_back(
      body_case<WarpBody<ShuffleFloat>>("shuffle", "float", kSameBits, lanes, exchanged<ShuffleFloat>(lanes)));
  cases.push_back(body_case<WarpBody<ShuffleInt>>("shuffle", "int", kSameBits, lanes, exchanged<ShuffleInt>(lanes)));
  cases.push_back(body_case<WarpBody<Ballot>>("ballot", "", kSameBits, lanes, ballots(lanes)));
  for (const char* function : {"wait_for", "signal", "fence"})
    cases.push_back(started_case<TurnsBody>(function, "turns of blocks", Words(TurnsBody::kWords, 0), after_turns()));
  Words all_drawn(DrawBody::kWords, 1);
  all_drawn.back() = DrawBody::kDrawn;
  cases.push_back(started_case<DrawBody>("fetch_add", "", Words(DrawBody::kWords, 0), all_drawn));
  cases.push_back(started_case<AddBody>("add_global", "", Words(AddBody::kSums, 0), added()));
  cases.push_back(started_case<AddPairsBody>("add_global", "pairs", Words(2 * AddPairsBody::kPairs, 0), added_pairs()));
  cases.push_back(body_case<LargeBody>("launch", "96 KB of shared memory", kSameBits, {0}, last_words(),
                                       {dim3(1), LargeBody::kBytes}));
}

}  // namespace flashattn::test
