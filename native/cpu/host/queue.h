// The launch queue between a host and the threads that run its items, in shared memory. The host is JavaScript for
// WebAssembly (lib/backends/cpu/wasm/queue.ts repeats this layout), and host/threads/pool.h for native threads.
//
// The host writes a slot and raises `published`; every worker runs `worker_loop`, which takes items of the oldest
// unfinished launch one at a time. A launch is complete when its last item is, whoever ran it, and only then does the
// next one start: launches are in order, a late worker delays nobody, and the host is not needed between them. A thread
// that blocks for a launch takes items too (`run_available`), so no launch depends on a worker having started.
#pragma once
#include <stddef.h>
#include <stdint.h>
#if !defined(__wasm__)
#include "host/threads/sleep.h"
#endif

#include "structs/fields.h"

namespace flashattn {

inline constexpr uint32_t kSlots = 4096;
inline constexpr uint32_t kSlotParamWords = 256;

struct alignas(64) Slot {
  uint64_t ticket;  // launch number << 32 | next item: a worker that slept through the launch cannot take from the next
  uint32_t items, done, launch, unused[11];
  uint32_t params[kSlotParamWords];
};
FLASHATTN_FIELDS(Slot, ticket, items, done, launch, unused, params);

struct QueueHeader {
  uint32_t published;  // launches written, modulo 2^32
  uint32_t completed;  // launches finished
  uint32_t event;      // changes whenever there is a launch to begin: what idle workers sleep on
  uint32_t spins;      // how often an idle worker looks before it sleeps
  uint32_t fault;      // set by the host when a worker died or is to end: pending launches are lost
  uint32_t slots;      // kSlots
  uint32_t awaited;    // until this launch is finished nobody needs to be told of `completed`
  uint32_t sleepers;   // how many workers sleep, or are about to
  uint32_t unused[8];
};
FLASHATTN_FIELDS(QueueHeader, published, completed, event, spins, fault, slots, awaited, sleepers, unused);

struct Queue {
  QueueHeader header;
  Slot slots[kSlots];
};

static_assert(offsetof(Queue, slots) == sizeof(QueueHeader));

namespace detail {

inline uint32_t read(const uint32_t& x) { return __atomic_load_n(&x, __ATOMIC_SEQ_CST); }

/** Sleeps while `word` is `seen`, and perhaps wakes for nothing. */
inline void sleep(uint32_t& word, uint32_t seen) {
#if defined(__wasm__)
  __builtin_wasm_memory_atomic_wait32(reinterpret_cast<int*>(&word), static_cast<int>(seen), -1);
#else
  cpu_host::sleep_on(word, seen);
#endif
}

/** Wakes whoever sleeps on `word`. */
inline void announce(uint32_t& word) {
#if defined(__wasm__)
  __builtin_wasm_memory_atomic_notify(reinterpret_cast<int*>(&word), ~0u);
#else
  cpu_host::wake_all(word);
#endif
}

/** Leaves the core to its other thread for a moment. */
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/** Whether `event` differs from `seen` after so many looks at most. */
inline bool look_for_event(const Queue& queue, uint32_t seen, uint32_t spins) {
  for (; spins > 0; --spins) {
    if (read(queue.header.event) != seen) return true;
    relax();
  }
  return false;
}

/** Sleeps until `event` differs from `seen`, after looking for a while: waking through the kernel costs 80 us. */
inline void await_event(Queue& queue, uint32_t seen) {
  QueueHeader& header = queue.header;
  if (look_for_event(queue, seen, read(header.spins))) return;
  __atomic_add_fetch(&header.sleepers, 1, __ATOMIC_SEQ_CST);
  sleep(header.event, seen);
  __atomic_sub_fetch(&header.sleepers, 1, __ATOMIC_SEQ_CST);
}

/**
 * Tells workers that there is something to do. Whoever is not counted as a sleeper yet looks at `event` once more before it
 * sleeps.
 */
inline void raise_event(QueueHeader& header) {
  __atomic_add_fetch(&header.event, 1, __ATOMIC_SEQ_CST);
  if (read(header.sleepers) > 0) announce(header.event);
}

/** Launches up to `completed` are finished. Waking a thread takes a core from those that work: only who can go on is. */
inline void complete(QueueHeader& header, uint32_t completed) {
  __atomic_store_n(&header.completed, completed, __ATOMIC_SEQ_CST);
  if (completed != read(header.published)) raise_event(header);
  if (static_cast<int32_t>(completed - read(header.awaited)) >= 0) announce(header.completed);
}

/** Takes the next item of launch `number`; false when there is none left. */
inline bool take_item(Slot& slot, uint32_t number, uint32_t& item) {
  uint64_t ticket = __atomic_load_n(&slot.ticket, __ATOMIC_SEQ_CST);
  while (static_cast<uint32_t>(ticket >> 32) == number && static_cast<uint32_t>(ticket) < read(slot.items)) {
    if (__atomic_compare_exchange_n(&slot.ticket, &ticket, ticket + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
      item = static_cast<uint32_t>(ticket);
      return true;
    }
  }
  return false;
}

}  // namespace detail

/** Runs items of the oldest unfinished launch until none is left to take; whether that completed it. */
template <class RunItem>
inline bool run_oldest(Queue& queue, RunItem run_item) {
  const uint32_t number = detail::read(queue.header.completed);
  if (number == detail::read(queue.header.published)) return false;
  Slot& slot = queue.slots[number % kSlots];
  bool worked = false;
  uint32_t item;
  while (detail::take_item(slot, number, item)) {
    run_item(slot.launch, slot.params, item);
    worked = true;
    if (__atomic_add_fetch(&slot.done, 1, __ATOMIC_SEQ_CST) == detail::read(slot.items)) {
      detail::complete(queue.header, number + 1);
      break;
    }
  }
  return worked && detail::read(queue.header.completed) != number;
}

/** What a thread that waits for launches does first: runs what it can take, up to items that other threads hold. */
template <class RunItem>
inline void run_available(Queue& queue, RunItem run_item) {
  while (!detail::read(queue.header.fault) && run_oldest(queue, run_item)) {
  }
}

/**
 * What a worker does until the queue is given up. `after` is called when it has completed a launch.
 *
 * `event` is read before what it tells of: whoever changes something and then raises it is either seen, or keeps the worker
 * from sleeping.
 */
template <class RunItem, class After>
inline void worker_loop(Queue& queue, RunItem run_item, After after) {
  for (;;) {
    const uint32_t event = detail::read(queue.header.event);
    if (detail::read(queue.header.fault)) return;
    if (run_oldest(queue, run_item))
      after();
    else
      detail::await_event(queue, event);
  }
}

}  // namespace flashattn
