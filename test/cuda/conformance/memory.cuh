// Loads, stores and asynchronous copies.
#pragma once
#include "device.h"

namespace flashattn::test {

/** Words that tell where they come from. */
inline Words counted(size_t count) {
  Words words(count);
  for (uint32_t i = 0; i < count; ++i) words[i] = i * 0x01010101u + 0x00030201u;
  return words;
}

/** Each thread moves one T with the wrappers of shared memory; words go in and come out otherwise. */
template <class T, bool Stores>
struct SharedBody {
  static constexpr int kThreads = 64, kBytes = kThreads * static_cast<int>(sizeof(T));
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int thread = ptx::thread();
    const uint32_t base = ptx::shared_base(), own = base + thread * static_cast<uint32_t>(sizeof(T));
    if constexpr (Stores) {
      ptx::store_shared(own, ptx::load_global(reinterpret_cast<const T*>(arrays.in) + thread));
      ptx::sync_threads();
      for (int half = thread; half < kBytes / 2; half += kThreads)
        ptx::store_global(reinterpret_cast<uint16_t*>(arrays.out) + half, ptx::load_shared<uint16_t>(base + half * 2));
    } else {
      for (int half = thread; half < kBytes / 2; half += kThreads)
        ptx::store_shared(base + half * 2, ptx::load_global(reinterpret_cast<const uint16_t*>(arrays.in) + half));
      ptx::sync_threads();
      ptx::store_global(reinterpret_cast<T*>(arrays.out) + thread, ptx::load_shared<T>(own));
    }
  }
};

/** Each thread moves one T from `in` to `out`; the threads' order is reversed, so that places count. */
template <class T>
struct GlobalBody {
  static constexpr int kThreads = 64;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int from = ptx::thread(), to = kThreads - 1 - from;
    ptx::store_global(reinterpret_cast<T*>(arrays.out) + to,
                      ptx::load_global(reinterpret_cast<const T*>(arrays.in) + from));
  }
};

template <class T>
Words reversed(const Words& words) {
  Words result(words.size());
  const auto* from = reinterpret_cast<const uint8_t*>(words.data());
  auto* to = reinterpret_cast<uint8_t*>(result.data());
  const size_t count = words.size() * sizeof(uint32_t) / sizeof(T);
  for (size_t i = 0; i < count; ++i) std::memcpy(to + (count - 1 - i) * sizeof(T), from + i * sizeof(T), sizeof(T));
  return result;
}

template <class T>
void add_memory_cases_of(Cases& cases, const char* type) {
  const Words words = counted(GlobalBody<T>::kThreads * sizeof(T) / sizeof(uint32_t));
  const Grid grid{dim3(1), SharedBody<T, true>::kBytes};
  cases.push_back(body_case<SharedBody<T, true>>("store_shared", type, kSameBits, words, words, grid));
  cases.push_back(body_case<SharedBody<T, false>>("load_shared", type, kSameBits, words, words, grid));
  for (const char* function : {"load_global", "store_global"})
    cases.push_back(body_case<GlobalBody<T>>(function, type, kSameBits, words, reversed<T>(words)));
}

inline constexpr int kCopyBytes = 16, kCopyWords = 4;

/** Thread t copies t of Size bytes over words that are all set. */
template <int Size>
struct CopyBody {
  static constexpr int kThreads = 32;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int thread = ptx::thread();
    if (thread > Size) return;
    const uint32_t to = ptx::shared_base() + thread * kCopyBytes;
    for (int i = 0; i < kCopyWords; ++i) ptx::store_shared(to + i * 4, 0xffffffffu);
    ptx::cp_async<Size>(to, arrays.in + thread * kCopyWords, thread);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    for (int i = 0; i < kCopyWords; ++i)
      ptx::store_global(arrays.out + thread * kCopyWords + i, ptx::load_shared<uint32_t>(to + i * 4));
  }
};

template <int Size>
Words copied(const Words& words) {
  Words result(words.size(), 0xffffffffu);
  for (int bytes = 0; bytes <= Size; ++bytes) {
    std::memset(&result[bytes * kCopyWords], 0, Size);
    std::memcpy(&result[bytes * kCopyWords], &words[bytes * kCopyWords], bytes);
  }
  return result;
}

/** Three groups of copies are under way; each is read once only the later ones can be missing. */
struct GroupsBody {
  static constexpr int kThreads = 64, kGroups = 3, kGroupBytes = kThreads * kCopyBytes;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int thread = ptx::thread();
    for (int group = 0; group < kGroups; ++group) {
      ptx::cp_async<16>(ptx::shared_base() + group * kGroupBytes + thread * kCopyBytes,
                        arrays.in + (group * kThreads + thread) * kCopyWords);
      ptx::cp_async_commit();
    }
    ptx::cp_async_wait<2>();
    copy_out(arrays, 0);
    ptx::cp_async_wait<1>();
    copy_out(arrays, 1);
    ptx::cp_async_wait<0>();
    copy_out(arrays, 2);
  }

 private:
  /** What another warp's threads have copied. */
  static FLASHATTN_DEVICE void copy_out(const Arrays& arrays, int group) {
    ptx::sync_threads();
    const int other = kThreads - 1 - ptx::thread();
    const uint4 words = ptx::load_shared<uint4>(ptx::shared_base() + group * kGroupBytes + other * kCopyBytes);
    ptx::store_global(reinterpret_cast<uint4*>(arrays.out) + group * kThreads + other, words);
  }
};

template <int Size>
Case copy_case(const char* aspect) {
  const Words words = counted((Size + 1) * kCopyWords);
  return body_case<CopyBody<Size>>("cp_async", aspect, kSameBits, words, copied<Size>(words),
                                   {dim3(1), (Size + 1) * kCopyBytes});
}

inline void add_memory_cases(Cases& cases) {
  add_memory_cases_of<uint16_t>(cases, "2 bytes");
  add_memory_cases_of<uint32_t>(cases, "4 bytes");
  add_memory_cases_of<uint2>(cases, "8 bytes");
  add_memory_cases_of<uint4>(cases, "16 bytes");
  const Words many = counted(GroupsBody::kGroups * GroupsBody::kThreads * kCopyWords);
  cases.push_back(copy_case<4>("0 to 4 bytes"));
  cases.push_back(copy_case<8>("0 to 8 bytes"));
  cases.push_back(copy_case<16>("0 to 16 bytes"));
  for (const char* function : {"cp_async_commit", "cp_async_wait"})
    cases.push_back(body_case<GroupsBody>(function, "three groups", kSameBits, many, many,
                                          {dim3(1), GroupsBody::kGroups * GroupsBody::kGroupBytes}));
}

}  // namespace flashattn::test
