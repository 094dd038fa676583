// What a backward pass launches around its main kernel.
#pragma once
#include <cuda_runtime_api.h>

#include "structs/attention.h"

namespace flashattn {

/**
 * delta = sum_d d_out * out - d_lse, of every row of every sequence: what softmax's Jacobian subtracts from dP. And the
 * head ranges, where the dtype needs them.
 */
cudaError_t launch_backward_rows(const AttentionParams&, cudaStream_t);

/** d_query = scale * d_query_sum, of every row of every sequence. d_query_sum is aligned to 16 bytes. */
cudaError_t launch_backward_finish(const AttentionParams&, cudaStream_t);

/** d_sink from lse and delta, summed in a fixed order. Nothing where d_sink is null. */
cudaError_t launch_backward_sink(const AttentionParams&, cudaStream_t);

/** d_relative from d_relative_partial, summed in a fixed order. Nothing where d_relative is null. */
cudaError_t launch_backward_tables(const AttentionParams&, cudaStream_t);

}  // namespace flashattn
