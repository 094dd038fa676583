// Sleeping on a word of memory by the system's own means. What std::atomic does differs from one C++ library to the next:
// on Windows libc++ looks at the word every few milliseconds.
#pragma once
#include <stddef.h>
#include <stdint.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(_WIN32)
// windows.h defines words such as min and max.
extern "C" __declspec(dllimport) int __stdcall WaitOnAddress(volatile void*, void*, size_t, unsigned long);
extern "C" __declspec(dllimport) void __stdcall WakeByAddressAll(void*);
#else
#include <atomic>
#endif

namespace cpu_host {

/** Sleeps while `word` is `seen`, and perhaps wakes for nothing. */
inline void sleep_on(uint32_t& word, uint32_t seen) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#elif defined(_WIN32)
  WaitOnAddress(&word, &seen, sizeof(seen), ~0ul);
#else
  reinterpret_cast<std::atomic<uint32_t>&>(word).wait(seen);
#endif
}

/** Wakes whoever sleeps on `word`. */
inline void wake_all(uint32_t& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#elif defined(_WIN32)
  WakeByAddressAll(&word);
#else
  reinterpret_cast<std::atomic<uint32_t>&>(word).notify_all();
#endif
}

}  // namespace cpu_host
