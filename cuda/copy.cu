// Elements copied, cast or added up between any two strided arrays, and memory filled.
#include "flat.cuh"
#include "launch.h"
#include "vector.cuh"

namespace flashattn {

namespace {

constexpr int kDims = 6;

struct CopyLaunch {
  CopyParams params;
  int32_t step;  // neighbours of the innermost dim that a thread handles
};

struct CopyPlace {
  int64_t from, to;  // in elements
};

FLASHATTN_DEVICE CopyPlace place_of(const CopyParams& p, int64_t index) {
  CopyPlace place{};
  for (int axis = kDims - 1; axis >= 0; --axis) {
    const int64_t size = p.sizes[axis], at = index % size;
    index /= size;
    place.from += at * p.from_strides[axis];
    place.to += at * p.to_strides[axis];
  }
  return place;
}

FLASHATTN_KERNEL(kFlatThreads) copy_kernel(CopyLaunch launch) {
  const CopyParams& p = launch.params;
  int64_t count = 1;
  for (int axis = 0; axis < kDims; ++axis) count *= p.sizes[axis];
  const int64_t first = flat_thread() * launch.step;
  if (first >= count) return;
  const bool aligned = launch.step == kVector;
  const CopyPlace place = place_of(p, first);
  float x[kVector];
  load_any_vector(x, p.from_dtype, p.from, place.from, launch.step, aligned);
  if (p.accumulate) {
    float before[kVector];
    load_vector(before, p.to_dtype, p.to, place.to, launch.step, aligned);
    for (int e = 0; e < kVector; ++e) x[e] += before[e];
  }
  store_any_vector(p.to_dtype, p.to, place.to, x, launch.step, aligned);
}

/** Whether every kVector neighbours of the innermost dim lie side by side, aligned to an access. */
bool is_vector_access(const void* data, DType dtype, const int64_t* sizes, const int64_t* strides) {
  int64_t outer = 0;
  for (int axis = 0; axis < kDims - 1; ++axis)
    if (sizes[axis] > 1) outer |= strides[axis];
  return strides[kDims - 1] == 1 && is_aligned(data) && outer * element_size(dtype) % 16 == 0;
}

struct FillLaunch {
  FillParams params;
  int32_t step;  // words a thread writes
};

constexpr int kFillVector = 4;

FLASHATTN_KERNEL(kFlatThreads) fill_kernel(FillLaunch launch) {
  const FillParams& p = launch.params;
  const int64_t first = flat_thread() * launch.step;
  if (launch.step == kFillVector && first + kFillVector <= p.count) {
    ptx::store_global(reinterpret_cast<uint4*>(p.data + first), uint4{p.bits, p.bits, p.bits, p.bits});
    return;
  }
  for (int64_t i = first; i < first + launch.step && i < p.count; ++i) ptx::store_global(p.data + i, p.bits);
}

}  // namespace

cudaError_t launch_copy(const CopyParams& p, const DeviceLimits&, cudaStream_t stream) {
  int64_t count = 1;
  for (int axis = 0; axis < kDims; ++axis) count *= p.sizes[axis];
  const bool vectors = p.sizes[kDims - 1] % kVector == 0 &&
                       is_vector_access(p.from, p.from_dtype, p.sizes, p.from_strides) &&
                       is_vector_access(p.to, p.to_dtype, p.sizes, p.to_strides);
  const int step = vectors ? kVector : 1;
  CopyLaunch launch{p, step};
  // Words as words: not every int32 is a float.
  if (p.from_dtype == DType::Int32 && p.to_dtype == DType::Int32)
    launch.params.from_dtype = launch.params.to_dtype = DType::Float32;
  return launch_flat("copy", copy_kernel, count / step, stream, launch);
}

cudaError_t launch_fill(const FillParams& p, const DeviceLimits&, cudaStream_t stream) {
  const int step = is_aligned(p.data) ? kFillVector : 1;
  return launch_flat("fill", fill_kernel, (p.count + step - 1) / step, stream, FillLaunch{p, step});
}

}  // namespace flashattn
