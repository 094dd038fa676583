// The only file with inline PTX, __shared__ and launches: one wrapper per instruction. Under g++ the same names come from
// emulator/device.h, so that every kernel also runs on the CPU with its races and bounds checked.
//
// Shared memory is addressed by 32-bit offsets (`shared_base() + ...`), never by pointer; global memory goes through
// load_global and store_global. Lane numbering of fragments follows the PTX ISA, "Matrix fragments for mma.m16n8k16".
#pragma once
#include <cmath>
#include <cstdint>

#if !defined(__CUDACC__)
#include "emulator/device.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <mutex>
#include <set>
#include <utility>

#define FLASHATTN_DEVICE __device__ __forceinline__
#define FLASHATTN_CALLED inline __device__ __noinline__
#define FLASHATTN_CONSTANT __grid_constant__
#define FLASHATTN_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)  // threads, least blocks an SM

namespace ptx {

/** Of what is compiled, such as 90; 0 on the host. */
#if defined(__CUDA_ARCH__)
inline constexpr int kArchitecture = __CUDA_ARCH__ / 10;
#else
inline constexpr int kArchitecture = 0;
#endif

// Where a thread is -----------------------------------------------------------------------------------------------

FLASHATTN_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
/** `x`, of which the compiler knows nothing: what is computed from it is not kept in registers from before. */
FLASHATTN_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
FLASHATTN_DEVICE float* opaque(float* x) {
  asm volatile("" : "+l"(x));
  return x;
}
FLASHATTN_DEVICE dim3 block() { return blockIdx; }
FLASHATTN_DEVICE dim3 grid() { return gridDim; }
FLASHATTN_DEVICE uint32_t shared_base() {
  extern __shared__ __align__(1024) uint8_t dynamic_shared[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared));
}

// Synchronisation ---------------------------------------------------------------------------------------------------

FLASHATTN_DEVICE void sync_threads() { __syncthreads(); }
FLASHATTN_DEVICE void sync_warp() { __syncwarp(); }

/** Waits until another block has set *flag to `value` with `signal`; what it wrote before is then visible. One thread. */
FLASHATTN_DEVICE void wait_for(const int32_t* flag, int32_t value) {
  int32_t seen;
  do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  while (seen != value);
}
FLASHATTN_DEVICE void signal(int32_t* flag, int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
/** The value before. */
FLASHATTN_DEVICE int32_t fetch_add(int32_t* counter, int32_t value) { return atomicAdd(counter, value); }
/** Orders this thread's earlier writes before its later ones for the whole device. */
FLASHATTN_DEVICE void fence() { __threadfence(); }

// Asynchronous copies -------------------------------------------------------------------------------------------------

/** Copies `bytes` (0 to Size) from global memory aligned to Size (4, 8 or 16) and fills the rest of Size with zeros. */
template <int Size>
FLASHATTN_DEVICE void cp_async(uint32_t to, const void* from, int bytes) {
  // Around the first cache where it is possible: nothing is read again by the same multiprocessor.
  if constexpr (Size == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(from), "r"(bytes), "n"(Size)
                 : "memory");
}
/** Copies 16 bytes. */
template <int Size>
FLASHATTN_DEVICE void cp_async(uint32_t to, const void* from) {
  static_assert(Size == 16);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
FLASHATTN_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/** Until at most `Pending` of this thread's groups are still under way. */
template <int Pending>
FLASHATTN_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Memory: T is a 2, 4, 8 or 16-byte type ------------------------------------------------------------------------------

template <class T>
FLASHATTN_DEVICE T load_shared(uint32_t from) {
  T value;
  if constexpr (sizeof(T) == 16) {
    uint4& v = reinterpret_cast<uint4&>(value);
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(from)
                 : "memory");
  } else if constexpr (sizeof(T) == 8) {
    uint2& v = reinterpret_cast<uint2&>(value);
    asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(reinterpret_cast<uint32_t&>(value)) : "r"(from) : "memory");
  } else {
    static_assert(sizeof(T) == 2);
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(reinterpret_cast<uint16_t&>(value)) : "r"(from) : "memory");
  }
  return value;
}

template <class T>
FLASHATTN_DEVICE void store_shared(uint32_t to, T value) {
  if constexpr (sizeof(T) == 16) {
    const uint4& v = reinterpret_cast<const uint4&>(value);
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    const uint2& v = reinterpret_cast<const uint2&>(value);
    asm volatile("st.shared.v2.b32 [%0], {%1,%2};" ::"r"(to), "r"(v.x), "r"(v.y) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(reinterpret_cast<const uint32_t&>(value)) : "memory");
  } else {
    static_assert(sizeof(T) == 2);
    asm volatile("st.shared.b16 [%0], %1;" ::"r"(to), "h"(reinterpret_cast<const uint16_t&>(value)) : "memory");
  }
}

template <class T>
FLASHATTN_DEVICE T load_global(const T* from) {
  return *from;
}
template <class T>
FLASHATTN_DEVICE void store_global(T* to, T value) {
  *to = value;
}
FLASHATTN_DEVICE void add_global(float* to, float value) {
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "f"(value) : "memory");
}
/** `to` is aligned to 8 bytes. Each half is atomic by itself. */
FLASHATTN_DEVICE void add_global(float2* to, float2 value) {
#if __CUDA_ARCH__ >= 900
  // One instruction, and whole sectors of memory for a fragment.
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "f"(value.x), "f"(value.y)
               : "memory");
#else
  add_global(&to->x, value.x);
  add_global(&to->y, value.y);
#endif
}

// Matrix fragments --------------------------------------------------------------------------------------------------

/** Four 8 x 8 matrices of 16-bit elements; lane l names the row l % 8 of matrix l / 8. */
FLASHATTN_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
FLASHATTN_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

/** c [16, 8] += a [16, 16] b [16, 8] */
FLASHATTN_DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
FLASHATTN_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/** c [16, 8] += a [16, 8] b [8, 8], of numbers rounded by to_tf32 */
FLASHATTN_DEVICE void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/** c [16, 8] += a [16, 32] b [32, 8], of bytes with signs; sums wrap around. */
FLASHATTN_DEVICE void mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Numbers -----------------------------------------------------------------------------------------------------------

/** Both rounded to nearest even; `low` in the low half. */
FLASHATTN_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
FLASHATTN_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
FLASHATTN_DEVICE float from_f16(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
FLASHATTN_DEVICE float from_bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
FLASHATTN_DEVICE uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}
FLASHATTN_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
FLASHATTN_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
/** 2^x, two units in the last place; exactly 0 far below. */
FLASHATTN_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/** a b, rounded by itself: the compiler does not merge it with an addition. */
FLASHATTN_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
FLASHATTN_DEVICE float log(float x) { return logf(x); }
FLASHATTN_DEVICE float tanh(float x) { return tanhf(x); }
/** The share of a standard normal distribution below x. */
FLASHATTN_DEVICE float normal_cdf(float x) { return normcdff(x); }
/** The position of the lowest 1 of a mask that has one. */
FLASHATTN_DEVICE int lowest_bit(uint32_t mask) { return __ffs(static_cast<int>(mask)) - 1; }
FLASHATTN_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// Exchange within a warp: every lane takes part -----------------------------------------------------------------------

FLASHATTN_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
FLASHATTN_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
FLASHATTN_DEVICE int shuffle(int value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
FLASHATTN_DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

// Launching -----------------------------------------------------------------------------------------------------------

/** Lets a kernel have more shared memory than the 48 KB that need no asking; once on each device. */
inline cudaError_t allow_shared_bytes(const void* kernel, int bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  static std::mutex mutex;
  static auto& allowed = *new std::set<std::pair<const void*, int> >;  // other threads may outlive main
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const std::scoped_lock lock(mutex);
  if (allowed.count({kernel, device})) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) allowed.insert({kernel, device});
  return error;
}

/** Queues `kernel`; `name` is for the emulator's reports. */
template <class Params>
cudaError_t launch(void (*kernel)(Params), const char* /*name*/, dim3 grid, int threads, int shared_bytes,
                   cudaStream_t stream, const Params& params) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (const cudaError_t error = allow_shared_bytes(function, shared_bytes)) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  void* arguments[] = {const_cast<Params*>(&params)};
  // Its own return code: the last error may be another's.
  return cudaLaunchKernelExC(&config, function, arguments);
}

}  // namespace ptx
#endif
