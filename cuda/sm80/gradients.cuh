// The gradients of what is added to scores: bias and relative positions, where they are wanted.
#pragma once
#include "backward_bias.cuh"
#include "backward_relative.cuh"
#include "choose.h"

namespace flashattn {

template <class Element, int HeadDim>
cudaError_t launch_gradients_bucket(const AttentionParams& p, const DeviceLimits&, cudaStream_t stream) {
  if (p.d_bias)
    if (const cudaError_t error = launch_backward_bias<Element, HeadDim>(p, stream)) return error;
  return p.d_relative ? launch_backward_relative<Element, HeadDim>(p, stream) : cudaSuccess;
}

}  // namespace flashattn
