// What the emulated device gives to a library that stands in for one of NVIDIA's: a real one would look for a GPU. It is
// given to the function `flashattn_use_device` of the library, which has to have one.
#pragma once
#include <cstddef>
#include <cstdint>

namespace flashattn::emulated {

struct Device {
  /**
   * Queues a kernel of one thread, with a copy of `call`, on a stream: it runs now, or with the graph that the stream is
   * captured into. An error of CUDA, or 0.
   */
  int (*launch)(void* stream, const char* name, void (*run)(const void* call), const void* call, size_t call_bytes);
  /** Whether [data, data + bytes) lies in one live allocation of the device. */
  bool (*is_memory)(const void* data, size_t bytes);
  /** Told of a call that a real library would not take, or could not: the launch under way fails with these words. */
  void (*complain)(const char* message);
  /** Adds to a number that tests read. */
  void (*count)(const char* name, int64_t by);
  /** What tests want the library to do; empty: what it should. */
  const char* (*behaviour)();
};

using UseDevice = void (*)(const Device*);

}  // namespace flashattn::emulated
