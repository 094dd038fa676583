// What this library needs of NVIDIA's cuBLASLt: values, types and functions as its documentation gives them
// (https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api), the same in versions 12 and 13. Nothing links it, and no
// header of it is needed.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace flashattn::cublaslt {

/** cublasStatus_t */
enum class Status : int {
  Success = 0,
  NotInitialized = 1,
  AllocFailed = 3,
  InvalidValue = 7,
  ArchMismatch = 8,
  NotSupported = 15,
};

/** cudaDataType */
enum class DataType : int { Float32 = 0, Float16 = 2, BFloat16 = 14 };

/** cublasComputeType_t: sums in float32; factors of float32 are multiplied as such, not cut to tf32. */
enum class ComputeType : int { Float32 = 68 };

/** cublasOperation_t */
enum class Transform : int32_t { None = 0, Transpose = 1 };

/** cublasLtEpilogue_t */
enum class Epilogue : uint32_t { None = 1, Bias = 4 };

/** cublasLtMatmulDescAttributes_t, with the types of their values. */
enum class DescAttribute : int {
  TransA = 3,            // Transform
  TransB = 4,            // Transform
  Epilogue = 7,          // Epilogue
  BiasPointer = 8,       // const void*: [rows of D]
  BiasBatchStride = 10,  // int64_t, in elements
};

/** cublasLtMatrixLayoutAttribute_t */
enum class LayoutAttribute : int {
  BatchCount = 5,   // int32_t
  BatchStride = 6,  // int64_t, in elements
};

/** cublasLtMatmulPreferenceAttributes_t */
enum class PreferenceAttribute : int {
  MaxWorkspaceBytes = 1,  // uint64_t
  ReductionSchemes = 3,   // uint32_t, a mask
  MinAlignmentA = 5,      // uint32_t, in bytes, as the next three
  MinAlignmentB = 6,
  MinAlignmentC = 7,
  MinAlignmentD = 8,
};

/** cublasLtReductionScheme_t: parts of the inner dim are added up in float32, in the workspace and in a fixed order. */
inline constexpr uint32_t kReducedInFloat32 = 2;

using Handle = struct HandleOf*;
using MatmulDesc = struct MatmulDescOf*;
using MatrixLayout = struct MatrixLayoutOf*;
using Preference = struct PreferenceOf*;

/** cublasLtMatmulAlgo_t */
struct Algorithm {
  uint64_t data[8];
};

/** cublasLtMatmulHeuristicResult_t */
struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(HeuristicResult) == 96);

struct Functions {
  size_t (*get_version)();
  const char* (*get_status_name)(Status);
  Status (*create)(Handle*);
  Status (*destroy)(Handle);

  Status (*desc_create)(MatmulDesc*, ComputeType, DataType scale);
  Status (*desc_destroy)(MatmulDesc);
  Status (*desc_set)(MatmulDesc, DescAttribute, const void* value, size_t bytes);

  Status (*layout_create)(MatrixLayout*, DataType, uint64_t rows, uint64_t columns, int64_t column_stride);
  Status (*layout_destroy)(MatrixLayout);
  Status (*layout_set)(MatrixLayout, LayoutAttribute, const void* value, size_t bytes);

  Status (*preference_create)(Preference*);
  Status (*preference_destroy)(Preference);
  Status (*preference_set)(Preference, PreferenceAttribute, const void* value, size_t bytes);

  Status (*get_heuristic)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d,
                          Preference, int most, HeuristicResult*, int* found);

  /** D = alpha * op(A) op(B) + beta * C, then the epilogue. `alpha` and `beta` are a float on the host. */
  Status (*matmul)(Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout, const void* b, MatrixLayout,
                   const void* beta, const void* c, MatrixLayout, void* d, MatrixLayout, const Algorithm*,
                   void* workspace, size_t workspace_bytes, cudaStream_t);
};

}  // namespace flashattn::cublaslt
