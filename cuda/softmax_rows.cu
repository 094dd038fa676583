// Softmax, its logarithm, and the gradients of both, over rows that lie anywhere. A row is read twice, the second time from
// a cache: for the running maximum and sum, and for the result.
#include "launch.h"
#include "online_sum.cuh"
#include "row_walk.cuh"

namespace flashattn {

namespace {

struct SoftmaxLaunch {
  SoftmaxParams params;
  RowTeam team;
  int32_t vectors;  // 1: every vector of a row is one access
};

/** Where this thread's row is. */
struct RowPlace {
  int64_t at[3];  // of the outer dims
  bool exists;

  FLASHATTN_DEVICE RowPlace(const SoftmaxParams& p, RowTeam team) {
    const int64_t block = static_cast<int64_t>(ptx::block().x);
    int64_t outer;
    if (team == RowTeam::Columns) {
      const int64_t blocks = (p.outer[2] + 31) / 32;
      at[2] = block % blocks * 32 + row_lane();
      outer = block / blocks;
    } else {
      const int64_t row = team == RowTeam::Warp ? block * kRowWarps + row_warp() : block;
      at[2] = row % p.outer[2];
      outer = row / p.outer[2];
    }
    at[1] = outer % p.outer[1];
    at[0] = outer / p.outer[1];
    exists = at[2] < p.outer[2] && at[0] < p.outer[0];
  }

  FLASHATTN_DEVICE int64_t offset(const int64_t* strides) const {
    return exists ? at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2] : 0;
  }
};

FLASHATTN_KERNEL(kRowThreads) softmax_kernel(SoftmaxLaunch launch) {
  const SoftmaxParams& p = launch.params;
  const RowPlace place(p, launch.team);
  const RowWalk walk(launch.team, launch.vectors, place.exists ? p.length : 0);
  const int64_t from = place.offset(p.x_strides), to = place.offset(p.result_strides);

  float x[kVector];
  OnlineSum sum;
  for (int64_t base = walk.first; base < walk.length; base += walk.jump) {
    load_part(x, p.dtype, p.x, from, p.x_strides[3], walk, base, true, -INFINITY);
    sum.take(x);
  }
  const float most = combine_row(launch.team, 0, sum.maximum, larger);
  const float total = sum_row(launch.team, 1, sum.above(most));
  const float factor = 1 / total, logarithm = p.log ? ptx::log(total) : 0.0f;

  for (int64_t base = walk.first; base < walk.length; base += walk.jump) {
    load_part(x, p.dtype, p.x, from, p.x_strides[3], walk, base, true);
    for (int e = 0; e < kVector; ++e) x[e] = p.log ? x[e] - most - logarithm : natural_exp(x[e] - most) * factor;
    store_part(p.dtype, p.result, to, p.result_strides[3], walk, base, true, x);
  }
}

FLASHATTN_KERNEL(kRowThreads) softmax_backward_kernel(SoftmaxLaunch launch) {
  const SoftmaxParams& p = launch.params;
  const RowPlace place(p, launch.team);
  const RowWalk walk(launch.team, launch.vectors, place.exists ? p.length : 0);
  const int64_t from_y = place.offset(p.x_strides), from_dy = place.offset(p.d_out_strides);
  const int64_t to = place.offset(p.result_strides);

  float sum = 0, lost = 0, y[kVector], dy[kVector];
  const auto load = [&](int64_t base) {
    load_part(y, p.dtype, p.x, from_y, p.x_strides[3], walk, base, true);
    load_part(dy, p.dtype, p.d_out, from_dy, p.d_out_strides[3], walk, base, true);
  };
  for (int64_t base = walk.first; base < walk.length; base += walk.jump) {
    load(base);
    if (!p.log)
      for (int e = 0; e < kVector; ++e) dy[e] *= y[e];
    add_compensated(sum, lost, sum_part(dy));
  }
  const float total = sum_row(launch.team, 0, sum - lost);

  for (int64_t base = walk.first; base < walk.length; base += walk.jump) {
    load(base);
    for (int e = 0; e < kVector; ++e) y[e] = p.log ? dy[e] - natural_exp(y[e]) * total : y[e] * (dy[e] - total);
    store_part(p.dtype, p.result, to, p.result_strides[3], walk, base, true, y);
  }
}

bool are_vectors(const SoftmaxParams& p, const void* data, const int64_t* strides) {
  int64_t outer = 0;
  for (int axis = 0; axis < 3; ++axis)
    if (p.outer[axis] > 1) outer |= strides[axis];
  return strides[3] == 1 && is_aligned(data) && outer * element_size(p.dtype) % kAccessBytes == 0;
}

cudaError_t launch(const char* name, void (*kernel)(SoftmaxLaunch), const SoftmaxParams& p, cudaStream_t stream) {
  const bool neighbours = p.x_strides[2] == 1 && p.result_strides[2] == 1 && (!p.d_out || p.d_out_strides[2] == 1);
  const bool columns = neighbours && p.outer[2] > 1 && (p.length == 1 || p.result_strides[3] != 1);
  const RowTeam team = columns ? RowTeam::Columns : team_for(p.length);
  const bool vectors = !columns && are_vectors(p, p.x, p.x_strides) && are_vectors(p, p.result, p.result_strides) &&
                       (!p.d_out || are_vectors(p, p.d_out, p.d_out_strides));
  const int64_t outer = p.outer[0] * p.outer[1];
  const dim3 grid = columns ? row_grid(team, p.outer[2], outer) : row_grid(team, outer * p.outer[2]);
  return launched(
      name, ptx::launch(kernel, name, grid, kRowThreads, kRowSharedBytes, stream, SoftmaxLaunch{p, team, vectors}));
}

}  // namespace

cudaError_t launch_softmax(const SoftmaxParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch("softmax", softmax_kernel, p, stream);
}

cudaError_t launch_softmax_backward(const SoftmaxParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch("softmax_backward", softmax_backward_kernel, p, stream);
}

}  // namespace flashattn
