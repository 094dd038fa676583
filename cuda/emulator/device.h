// What kernels see instead of nvcc's half of ptx.cuh when g++ compiles them: the same `ptx::` names, which run each
// device thread as a fiber. Every wrapper takes the place it was called from as a hidden last argument, so that a
// report names a line of the kernel.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "calls.h"
#include "number.h"
#include "runtime/cuda_runtime_api.h"

#define FLASHATTN_DEVICE inline __attribute__((always_inline))
#define FLASHATTN_CALLED inline __attribute__((noinline))
#define FLASHATTN_CONSTANT
#define FLASHATTN_KERNEL(...) void

namespace ptx {

using emulator::Site;

inline constexpr int kArchitecture = 0;

// Where a thread is -----------------------------------------------------------------------------------------------

FLASHATTN_DEVICE int thread() { return emulator::thread_index(); }
FLASHATTN_DEVICE int opaque(int x) { return x; }
FLASHATTN_DEVICE float* opaque(float* x) { return x; }
FLASHATTN_DEVICE dim3 block() { return emulator::block_index(); }
FLASHATTN_DEVICE dim3 grid() { return emulator::grid_size(); }
FLASHATTN_DEVICE uint32_t shared_base() { return emulator::kSharedBase; }

// Synchronisation ---------------------------------------------------------------------------------------------------

FLASHATTN_DEVICE void sync_threads(Site site = Site::current()) { emulator::sync_threads(site); }
FLASHATTN_DEVICE void sync_warp(Site site = Site::current()) { emulator::sync_warp(site); }
FLASHATTN_DEVICE void wait_for(const int32_t* flag, int32_t value, Site site = Site::current()) {
  emulator::wait_for(flag, value, site);
}
FLASHATTN_DEVICE void signal(int32_t* flag, int32_t value, Site site = Site::current()) {
  emulator::signal(flag, value, site);
}
FLASHATTN_DEVICE int32_t fetch_add(int32_t* counter, int32_t value, Site site = Site::current()) {
  return emulator::fetch_add(counter, value, site);
}
FLASHATTN_DEVICE void fence() { emulator::fence(); }

// Asynchronous copies -------------------------------------------------------------------------------------------------

template <int Size>
FLASHATTN_DEVICE void cp_async(uint32_t to, const void* from, int bytes, Site site = Site::current()) {
  static_assert(Size == 4 || Size == 8 || Size == 16);
  emulator::copy_async(to, from, bytes, Size, site);
}
template <int Size>
FLASHATTN_DEVICE void cp_async(uint32_t to, const void* from, Site site = Site::current()) {
  static_assert(Size == 16);
  emulator::copy_async(to, from, Size, Size, site);
}
FLASHATTN_DEVICE void cp_async_commit() { emulator::commit_copies(); }
template <int Pending>
FLASHATTN_DEVICE void cp_async_wait() {
  static_assert(Pending >= 0);
  emulator::wait_copies(Pending);
}

// Memory: T is a 2, 4, 8 or 16-byte type ------------------------------------------------------------------------------

template <class T>
FLASHATTN_DEVICE T load_shared(uint32_t from, Site site = Site::current()) {
  static_assert(emulator::kAccessible<T>);
  T value;
  emulator::load_shared(from, &value, sizeof(T), site);
  return value;
}
template <class T>
FLASHATTN_DEVICE void store_shared(uint32_t to, T value, Site site = Site::current()) {
  static_assert(emulator::kAccessible<T>);
  emulator::store_shared(to, &value, sizeof(T), site);
}
template <class T>
FLASHATTN_DEVICE T load_global(const T* from, Site site = Site::current()) {
  T value;
  emulator::load_global(from, &value, sizeof(T), alignof(T), site);
  return value;
}
template <class T>
FLASHATTN_DEVICE void store_global(T* to, T value, Site site = Site::current()) {
  emulator::store_global(to, &value, sizeof(T), alignof(T), site);
}
FLASHATTN_DEVICE void add_global(float* to, float value, Site site = Site::current()) {
  emulator::add_global(to, value, site);
}
FLASHATTN_DEVICE void add_global(float2* to, float2 value, Site site = Site::current()) {
  emulator::add_global(&to->x, value.x, site);
  emulator::add_global(&to->y, value.y, site);
}

// Matrix fragments --------------------------------------------------------------------------------------------------

FLASHATTN_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row, Site site = Site::current()) {
  emulator::ldmatrix(r, row, false, site);
}
FLASHATTN_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row, Site site = Site::current()) {
  emulator::ldmatrix(r, row, true, site);
}
FLASHATTN_DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                              Site site = Site::current()) {
  emulator::mma(emulator::Format::F16, c, a, b0, b1, site);
}
FLASHATTN_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                               Site site = Site::current()) {
  emulator::mma(emulator::Format::BF16, c, a, b0, b1, site);
}
FLASHATTN_DEVICE void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                               Site site = Site::current()) {
  emulator::mma(emulator::Format::TF32, c, a, b0, b1, site);
}
FLASHATTN_DEVICE void mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                             Site site = Site::current()) {
  float bits[4];
  for (int i = 0; i < 4; ++i) bits[i] = std::bit_cast<float>(c[i]);
  emulator::mma(emulator::Format::S8, bits, a, b0, b1, site);
  for (int i = 0; i < 4; ++i) c[i] = std::bit_cast<int32_t>(bits[i]);
}

// Numbers -----------------------------------------------------------------------------------------------------------

FLASHATTN_DEVICE uint32_t pack_f16(float low, float high) {
  return emulator::to_f16(low) | static_cast<uint32_t>(emulator::to_f16(high)) << 16;
}
FLASHATTN_DEVICE uint32_t pack_bf16(float low, float high) {
  return emulator::to_bf16(low) | static_cast<uint32_t>(emulator::to_bf16(high)) << 16;
}
FLASHATTN_DEVICE float from_f16(uint16_t bits) { return emulator::from_f16(bits); }
FLASHATTN_DEVICE float from_bf16(uint16_t bits) { return emulator::from_bf16(bits); }
FLASHATTN_DEVICE uint32_t to_tf32(float x) { return emulator::to_tf32(x); }
FLASHATTN_DEVICE uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
FLASHATTN_DEVICE float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
FLASHATTN_DEVICE float exp2(float x) {
  constexpr float kSmallestNormal = -126;
  return x < kSmallestNormal ? 0.0f : ::exp2f(x);
}
FLASHATTN_DEVICE float product(float a, float b) { return a * b; }
FLASHATTN_DEVICE float log(float x) { return ::logf(x); }
FLASHATTN_DEVICE float tanh(float x) { return ::tanhf(x); }
FLASHATTN_DEVICE float normal_cdf(float x) { return static_cast<float>(0.5 * ::erfc(-x * 0.70710678118654752440)); }
FLASHATTN_DEVICE int lowest_bit(uint32_t mask) { return std::countr_zero(mask); }
FLASHATTN_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

// Exchange within a warp: every lane takes part -----------------------------------------------------------------------

FLASHATTN_DEVICE float shuffle_xor(float value, int mask, Site site = Site::current()) {
  return float_of(emulator::shuffle_xor(bits_of(value), mask, site));
}
FLASHATTN_DEVICE float shuffle(float value, int lane, Site site = Site::current()) {
  return float_of(emulator::shuffle(bits_of(value), lane, site));
}
FLASHATTN_DEVICE int shuffle(int value, int lane, Site site = Site::current()) {
  return static_cast<int>(emulator::shuffle(static_cast<uint32_t>(value), lane, site));
}
FLASHATTN_DEVICE uint32_t ballot(bool predicate, Site site = Site::current()) {
  return emulator::ballot(predicate, site);
}

// Launching -----------------------------------------------------------------------------------------------------------

/** Runs `kernel` to its end. What it reported shows up as in CUDA: as an error of a later call on the stream. */
template <class Params>
cudaError_t launch(void (*kernel)(Params), const char* name, dim3 grid, int threads, int shared_bytes,
                   cudaStream_t stream, const Params& params) {
  struct Call {
    void (*kernel)(Params);
    Params params;
  } call{kernel, params};
  static_assert(std::is_trivially_copyable_v<Call>);
  const auto run = [](const void* data) {
    const Call& call = *static_cast<const Call*>(data);
    call.kernel(call.params);
  };
  return emulator::launch({run, &call, sizeof(Call), name, grid, threads, shared_bytes, stream});
}

}  // namespace ptx
