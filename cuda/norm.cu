// Layer norm (Ba, Kiros and Hinton 2016) and RMS norm (Zhang and Sennrich 2019), and their gradients. A row is kept in
// registers while its mean, its variance and the result are computed. The gradients of gain and bias are summed up within
// chunks of rows that follow from the shapes alone, then over the chunks in their order.
#include "launch.h"
#include "row_walk.cuh"
#include "sum.cuh"

namespace flashattn {

namespace {

struct NormLaunch {
  NormParams params;
  RowTeam team;
  int32_t vectors;                     // 1: every vector of a row is one access
  int32_t gain_aligned, bias_aligned;  // 1: also those of a parameter
};

FLASHATTN_DEVICE int64_t norm_row(RowTeam team) {
  const int64_t block = static_cast<int64_t>(ptx::block().x);
  return team == RowTeam::Warp ? block * kRowWarps + row_warp() : block;
}

/** gain = its part, or ones. */
FLASHATTN_DEVICE void load_gain(float (&gain)[kVector], const NormLaunch& launch, const RowWalk& walk, int64_t base) {
  const NormParams& p = launch.params;
  if (p.gain)
    load_part(gain, p.gain_dtype, p.gain, 0, 1, walk, base, launch.gain_aligned);
  else
    for (int e = 0; e < kVector; ++e) gain[e] = 1;
}

// Forward -------------------------------------------------------------------------------------------------------------

// The parts of a row that a thread keeps: all of them in rows of up to 1,024 elements of a warp, or 8,192 of a block.
constexpr int kKeptParts = 4;

/** A row as it is normalised. What is beyond the kept parts is read again. */
struct NormedRow {
  const NormParams& p;
  const RowWalk& walk;
  int64_t row;
  float kept[kKeptParts][kVector];

  /** Reads the row, or makes it: x + residual, rounded to their dtype. f(base, x) for every part. */
  template <class F>
  FLASHATTN_DEVICE void make(F f) {
    visit([&](int64_t base, float(&x)[kVector], bool) {
      load_part(x, p.dtype, p.x, row * p.x_row, 1, walk, base, true);
      if (p.residual) {
        float added[kVector];
        load_part(added, p.dtype, p.residual, row * p.residual_row, 1, walk, base, true);
        for (int e = 0; e < kVector; ++e) x[e] = rounded(x[e] + added[e]);
        store_part(p.dtype, p.sum, row * p.dim, 1, walk, base, true, x);
      }
      f(base, x);
    });
  }

  template <class F>
  FLASHATTN_DEVICE void for_each(F f) {
    visit([&](int64_t base, float(&x)[kVector], bool is_kept) {
      if (!is_kept && p.residual)
        load_part(x, p.dtype, p.sum, row * p.dim, 1, walk, base, true);
      else if (!is_kept)
        load_part(x, p.dtype, p.x, row * p.x_row, 1, walk, base, true);
      f(base, x);
    });
  }

 private:
  template <class F>
  FLASHATTN_DEVICE void visit(F f) {
#pragma unroll
    for (int k = 0; k < kKeptParts; ++k) {
      const int64_t base = walk.first + k * walk.jump;
      if (base < walk.length) f(base, kept[k], true);
    }
    for (int64_t base = walk.first + kKeptParts * walk.jump; base < walk.length; base += walk.jump) {
      float x[kVector];
      f(base, x, false);
    }
  }

  FLASHATTN_DEVICE float rounded(float x) const {
    float result = x;
    with_element(p.dtype, [&](auto element) {
      using Element = decltype(element);
      result = Element::load(Element::store(x));
    });
    return result;
  }
};

/** The sum of f(x) over the elements of a row. */
template <class F>
FLASHATTN_DEVICE float sum_elements(RowTeam team, int slot, NormedRow& row, F f) {
  float sum = 0, lost = 0;
  row.for_each([&](int64_t base, const float(&x)[kVector]) {
    float terms[kVector];
    for (int e = 0; e < kVector; ++e) terms[e] = base + e * row.walk.gap < row.walk.length ? f(x[e]) : 0.0f;
    add_compensated(sum, lost, sum_part(terms));
  });
  return sum_row(team, slot, sum - lost);
}

FLASHATTN_KERNEL(kRowThreads) norm_kernel(NormLaunch launch) {
  const NormParams& p = launch.params;
  const int64_t r = norm_row(launch.team);
  const bool exists = r < p.rows;
  const RowWalk walk(launch.team, launch.vectors, exists ? p.dim : 0);
  NormedRow row{p, walk, r, {}};
  const float count = static_cast<float>(p.dim);

  float sum = 0, lost = 0;
  row.make([&](int64_t, const float(&x)[kVector]) { add_compensated(sum, lost, sum_part(x)); });
  float mean = 0;
  if (p.centered) mean = sum_row(launch.team, 0, sum - lost) / count;
  float variance = sum_elements(launch.team, 1, row, [&](float x) { return (x - mean) * (x - mean); }) / count;
  float rstd = 1 / sqrtf(variance + p.epsilon);
  // Squares beyond the range of float32 are taken again of a scaled row.
  if (!(variance < INFINITY)) {
    constexpr float kScale = 0x1p-96f;
    float scaled_mean = 0;
    if (p.centered) scaled_mean = sum_elements(launch.team, 2, row, [&](float x) { return x * kScale; }) / count;
    const auto square = [&](float x) {
      const float d = x * kScale - scaled_mean;
      return d * d;
    };
    variance = sum_elements(launch.team, 3, row, square) / count;
    mean = scaled_mean / kScale;
    rstd = variance == 0 ? 1 / sqrtf(p.epsilon) : kScale / sqrtf(variance);
  }

  row.for_each([&](int64_t base, const float(&x)[kVector]) {
    float gain[kVector], bias[kVector] = {}, out[kVector];
    load_gain(gain, launch, walk, base);
    if (p.bias) load_part(bias, p.bias_dtype, p.bias, 0, 1, walk, base, launch.bias_aligned);
    for (int e = 0; e < kVector; ++e) out[e] = (x[e] - mean) * rstd * gain[e] + bias[e];
    store_part(p.dtype, p.out, r * p.dim, 1, walk, base, true, out);
  });
  const bool first = exists && (launch.team == RowTeam::Warp ? row_lane() == 0 : ptx::thread() == 0);
  if (first && p.mean) ptx::store_global(p.mean + r, mean);
  if (first && p.rstd) ptx::store_global(p.rstd + r, rstd);
}

// Backward ------------------------------------------------------------------------------------------------------------

struct RowStatistics {
  float mean, rstd;

  FLASHATTN_DEVICE RowStatistics(const NormParams& p, int64_t r)
      : mean(p.mean ? ptx::load_global(p.mean + r) : 0.0f),
        rstd(ptx::load_global(p.rstd + r)) {}
};

/** dx = rstd (g - mean(g) - y mean(g y)) + d_sum, with y = (x - mean) rstd and g = dy gain. */
FLASHATTN_KERNEL(kRowThreads) norm_backward_kernel(NormLaunch launch) {
  const NormParams& p = launch.params;
  const int64_t r = norm_row(launch.team);
  const bool exists = r < p.rows;
  const RowWalk walk(launch.team, launch.vectors, exists ? p.dim : 0);
  const RowStatistics s(p, exists ? r : 0);

  float y[kVector], g[kVector], gain[kVector];
  const auto load = [&](int64_t base) {
    load_part(y, p.dtype, p.x, r * p.x_row, 1, walk, base, true, s.mean);
    load_part(g, p.dtype, p.d_out, r * p.d_out_row, 1, walk, base, true);
    load_gain(gain, launch, walk, base);
    for (int e = 0; e < kVector; ++e) {
      y[e] = (y[e] - s.mean) * s.rstd;
      g[e] *= gain[e];
    }
  };
  float sum = 0, lost = 0, product = 0, lost_of_product = 0;
  for (int64_t base = walk.first; base < walk.length; base += walk.jump) {
    load(base);
    add_compensated(sum, lost, sum_part(g));
    for (int e = 0; e < kVector; ++e) g[e] *= y[e];
    add_compensated(product, lost_of_product, sum_part(g));
  }
  const float count = static_cast<float>(p.dim);
  float mean_g = 0;
  if (p.centered) mean_g = sum_row(launch.team, 0, sum - lost) / count;
  const float mean_product = sum_row(launch.team, 1, product - lost_of_product) / count;

  for (int64_t base = walk.first; base < walk.length; base += walk.jump) {
    load(base);
    float d_sum[kVector] = {};
    if (p.d_sum) load_part(d_sum, p.dtype, p.d_sum, r * p.d_sum_row, 1, walk, base, true);
    for (int e = 0; e < kVector; ++e) y[e] = (g[e] - mean_g - y[e] * mean_product) * s.rstd + d_sum[e];
    store_part(p.dtype, p.d_x, r * p.dim, 1, walk, base, true, y);
  }
}

/** Of gain (0) or bias (1): the sum of a chunk, and what rounding has cut off it. */
FLASHATTN_DEVICE float* chunk_sum(const NormParams& p, int64_t chunk, int which, int part) {
  return p.partial + ((chunk * 2 + which) * 2 + part) * p.partial_row;
}

FLASHATTN_DEVICE float load_one(DType dtype, const void* data, int64_t at) {
  float value = 0;
  with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    value = Element::load(ptx::load_global(static_cast<const typename Element::Storage*>(data) + at));
  });
  return value;
}

/** A block is a chunk of rows of 32 columns; a warp adds up every eighth row, a lane a column. */
FLASHATTN_KERNEL(kRowThreads) norm_parameters_kernel(NormLaunch launch) {
  const NormParams& p = launch.params;
  const int64_t blocks = (p.dim + 31) / 32, block = static_cast<int64_t>(ptx::block().x);
  const int64_t chunk = block / blocks, column = block % blocks * 32 + row_lane();
  const bool exists = column < p.dim;
  const int64_t begin = chunk * p.chunk_rows;
  const int64_t end = p.rows - begin < p.chunk_rows ? p.rows : begin + p.chunk_rows;

  float sum[2] = {}, lost[2] = {};
  for (int64_t r = begin + row_warp(); exists && r < end; r += kRowWarps) {
    const RowStatistics s(p, r);
    const float dy = load_one(p.dtype, p.d_out, r * p.d_out_row + column);
    const float y = (load_one(p.dtype, p.x, r * p.x_row + column) - s.mean) * s.rstd;
    add_compensated(sum[0], lost[0], dy * y);
    add_compensated(sum[1], lost[1], dy);
  }
  const auto at = [](int slot, int warp) {
    return ptx::shared_base() + static_cast<uint32_t>((slot * kRowThreads + warp * 32 + row_lane()) * sizeof(float));
  };
  for (int which = 0; which < 2; ++which) {
    ptx::store_shared(at(2 * which, row_warp()), sum[which]);
    ptx::store_shared(at(2 * which + 1, row_warp()), lost[which]);
  }
  ptx::sync_threads();
  const int which = row_warp();
  if (which >= 2 || !exists) return;
  float total = 0, cut = 0, rest = 0;
  for (int warp = 0; warp < kRowWarps; ++warp) {
    add_compensated(total, cut, ptx::load_shared<float>(at(2 * which, warp)));
    rest -= ptx::load_shared<float>(at(2 * which + 1, warp));
  }
  ptx::store_global(chunk_sum(p, chunk, which, 0) + column, total);
  ptx::store_global(chunk_sum(p, chunk, which, 1) + column, rest - cut);
}

/** A thread is a column of the gradient of gain or bias. */
FLASHATTN_KERNEL(kFlatThreads) norm_finish_kernel(NormLaunch launch) {
  const NormParams& p = launch.params;
  const int64_t thread = flat_thread(), column = thread % p.dim;
  const int which = static_cast<int>(thread / p.dim);
  void* const result = which == 0 ? p.d_gain : p.d_bias;
  if (which >= 2 || result == nullptr) return;
  float sum = 0, lost = 0, rest = 0;
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    add_compensated(sum, lost, ptx::load_global(chunk_sum(p, chunk, which, 0) + column));
    rest += ptx::load_global(chunk_sum(p, chunk, which, 1) + column);
  }
  with_element(which == 0 ? p.gain_dtype : p.bias_dtype, [&](auto element) {
    using Element = decltype(element);
    ptx::store_global(static_cast<typename Element::Storage*>(result) + column, Element::store(sum + (rest - lost)));
  });
}

// Launches ------------------------------------------------------------------------------------------------------------

/** Whether vectors of rows `stride` apart are one access each; also where there are no such rows. */
bool are_vectors(const NormParams& p, const void* data, int64_t stride) {
  return data == nullptr || (is_aligned(data) && (p.rows == 1 || stride * element_size(p.dtype) % kAccessBytes == 0));
}

NormLaunch launch_of(const NormParams& p) {
  const bool vectors = are_vectors(p, p.x, p.x_row) && are_vectors(p, p.residual, p.residual_row) &&
                       are_vectors(p, p.out, p.dim) && are_vectors(p, p.sum, p.dim) &&
                       are_vectors(p, p.d_out, p.d_out_row) && are_vectors(p, p.d_sum, p.d_sum_row) &&
                       are_vectors(p, p.d_x, p.dim);
  return {p, team_for(p.dim), vectors, is_aligned(p.gain), is_aligned(p.bias)};
}

cudaError_t launch(const char* name, void (*kernel)(NormLaunch), dim3 grid, const NormLaunch& params,
                   cudaStream_t stream) {
  return launched(name, ptx::launch(kernel, name, grid, kRowThreads, kRowSharedBytes, stream, params));
}

}  // namespace

cudaError_t launch_norm(const NormParams& p, const DeviceLimits&, cudaStream_t stream) {
  const NormLaunch params = launch_of(p);
  return launch("norm", norm_kernel, row_grid(params.team, p.rows), params, stream);
}

cudaError_t launch_norm_backward(const NormParams& p, const DeviceLimits&, cudaStream_t stream) {
  const NormLaunch params = launch_of(p);
  cudaError_t error = cudaSuccess;
  if (p.d_x && p.rows > 0)
    error = launch("norm_backward", norm_backward_kernel, row_grid(params.team, p.rows), params, stream);
  if (!p.d_gain && !p.d_bias) return error;
  if (!error && p.chunks > 0) {
    const dim3 grid = row_grid(RowTeam::Columns, p.dim, p.chunks);
    error = launch("norm_parameters", norm_parameters_kernel, grid, params, stream);
  }
  return error ? error : launch_flat("norm_finish", norm_finish_kernel, 2 * p.dim, stream, params);
}

}  // namespace flashattn
