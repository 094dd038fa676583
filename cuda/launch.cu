// From a problem to its kernels: element type and head-dim bucket become template arguments here. The instantiations are
// compiled one to a file (see CMakeLists.txt).
#include "launch.h"

#include <utility>

#include "element.cuh"
#include "range.cuh"
#include "sm80/backward_parts.h"
#include "sm80/choose.h"

namespace flashattn {

template <class Element, int HeadDim>
cudaError_t launch_forward_bucket(const AttentionParams&, const DeviceLimits&, cudaStream_t);
template <class Element, int HeadDim>
cudaError_t launch_backward_bucket(const AttentionParams&, const DeviceLimits&, cudaStream_t);
template <class Element, int HeadDim>
cudaError_t launch_gradients_bucket(const AttentionParams&, const DeviceLimits&, cudaStream_t);

namespace {

/** f(element, std::integral_constant<int, bucket>) */
template <class F>
cudaError_t with_instance(const AttentionParams& p, F f) {
  return dispatch(p.query.dtype, [&](auto element) {
    switch (head_dim_bucket(p)) {
      case 32: return f(element, std::integral_constant<int, 32>{});
      case 64: return f(element, std::integral_constant<int, 64>{});
      case 96: return f(element, std::integral_constant<int, 96>{});
      case 128: return f(element, std::integral_constant<int, 128>{});
      case 192: return f(element, std::integral_constant<int, 192>{});
      case 256: return f(element, std::integral_constant<int, 256>{});
      default: return cudaErrorInvalidValue;
    }
  });
}

int64_t tiles_of(const AttentionShape& p, int length, int tile, int heads) {
  return static_cast<int64_t>(divide_up(length, tile)) * heads * p.batch;
}

cudaError_t clear_words(void* data, int64_t count, const DeviceLimits& limits, cudaStream_t stream) {
  return count == 0 ? cudaSuccess : launch_fill({static_cast<uint32_t*>(data), count, 0, 0}, limits, stream);
}

}  // namespace

AttentionPartition attention_partition(const AttentionShape& p, const DeviceLimits& limits) {
  const int bytes = element_size(p.dtype), bucket = head_dim_bucket(p);
  const Variant variant = forward_variant(p, limits);
  const ForwardShape forward = forward_shape(bytes, bucket, variant);
  const GradientShape gradient = gradient_shape(bytes, bucket);
  const int64_t tiles = static_cast<int64_t>(divide_up(p.query_length, gradient.query_tile)) * p.batch;
  const int64_t wanted = divide_up(2 * limits.multiprocessors, p.heads);  // blocks a head
  const int slices = static_cast<int>(tiles < wanted ? tiles : wanted) * (gradient.query_tile / 16);
  const int turn_tile = backward_shape(bytes, bucket, backward_variant(p, limits)).query_tile;

  AttentionPartition result{};
  result.items = tiles_of(p, p.query_length, forward.query_tile, p.heads);
  result.query_tile = forward.query_tile;
  result.key_tile = forward.key_tile;
  result.threads = forward.query_tile / forward.warp_rows * kWarpSize;
  result.shared_memory = forward_shared_bytes(bytes, bucket, variant);
  result.tiles_per_item = 1;
  result.key_splits = 1;
  result.row_terms = 2 * p.lse_rows + head_range_floats(p);
  result.d_query_sum = p.lse_rows * bucket;
  result.turns = p.deterministic ? 1 + tiles_of(p, p.query_length, turn_tile, p.heads) : 0;
  result.d_relative_partial = p.bucket_count ? int64_t{2} * slices * p.heads * p.bucket_count : 0;
  result.relative_slices = p.bucket_count ? slices : 0;
  return result;
}

cudaError_t launch_forward(const AttentionParams& p, const DeviceLimits& limits, cudaStream_t stream) {
  return with_instance(p, [&](auto element, auto bucket) {
    return launch_forward_bucket<decltype(element), bucket>(p, limits, stream);
  });
}

cudaError_t launch_backward(const AttentionParams& p, const DeviceLimits& limits, cudaStream_t stream) {
  const AttentionPartition scratch = attention_partition(shape_of(p), limits);
  const auto main_kernel = [&] {
    return with_instance(p, [&](auto element, auto bucket) {
      return launch_backward_bucket<decltype(element), bucket>(p, limits, stream);
    });
  };
  const auto gradients = [&] {
    if (!p.d_bias && !p.d_relative) return cudaSuccess;
    return with_instance(p, [&](auto element, auto bucket) {
      return launch_gradients_bucket<decltype(element), bucket>(p, limits, stream);
    });
  };
  cudaError_t error = clear_words(p.d_query_sum, scratch.d_query_sum, limits, stream);
  if (!error) error = clear_words(p.turns, scratch.turns, limits, stream);
  if (!error) error = launch_backward_rows(p, stream);
  if (!error) error = main_kernel();
  if (!error) error = launch_backward_finish(p, stream);
  if (!error) error = gradients();
  if (!error) error = launch_backward_tables(p, stream);
  if (!error) error = launch_backward_sink(p, stream);
  return error;
}

}  // namespace flashattn
