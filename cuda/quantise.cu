// Numbers become whole ones of few bits, in words. A warp has a row, and each lane 16 neighbouring codes at a time.
#include <cmath>

#include "launch.h"
#include "row_walk.cuh"

namespace flashattn {

namespace {

constexpr int kCodes = 16;

struct QuantiseLaunch {
  QuantiseParams params;
  int32_t aligned;  // 1: every vector of a row is one access
};

/** x = elements [begin, begin + kCodes) of a row, zero beyond it. */
FLASHATTN_DEVICE void load_codes(float (&x)[2][kVector], const QuantiseLaunch& launch, int64_t row, int32_t begin) {
  const QuantiseParams& p = launch.params;
  for (int half = 0; half < 2; ++half) {
    const int32_t at = begin + half * kVector;
    load_vector(x[half], p.dtype, p.x, row * p.x_row + at, p.inner - at, launch.aligned != 0);
  }
}

/** The larger by its bits, which order as numbers above 0 do, with Infinity and then NaN above all others. */
FLASHATTN_DEVICE float larger_bits(float a, float b) { return ptx::bits_of(a) > ptx::bits_of(b) ? a : b; }

FLASHATTN_DEVICE float scale_of_row(const QuantiseLaunch& launch, int64_t row) {
  const QuantiseParams& p = launch.params;
  float most = 0, x[2][kVector];
  for (int32_t begin = row_lane() * kCodes; begin < p.inner; begin += 32 * kCodes) {
    load_codes(x, launch, row, begin);
    for (int i = 0; i < kCodes; ++i)
      most = larger_bits(most, ptx::float_of(ptx::bits_of(x[i / kVector][i % kVector]) & 0x7fffffffu));
  }
  for (int mask = 16; mask > 0; mask >>= 1) most = larger_bits(most, ptx::shuffle_xor(most, mask));
  if (!(most < INFINITY)) return NAN;
  return 127.0f / (most > p.least ? most : p.least);
}

/** round(x), ties to even, within the bounds; NaN gives the smallest. */
FLASHATTN_DEVICE int32_t code_of(float x, const QuantiseParams& p) {
  constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low mantissa bits
  const float above = x > p.smallest ? x : p.smallest, bounded = above < p.largest ? above : p.largest;
  return static_cast<int32_t>(ptx::bits_of(bounded + kRoundToInteger) - 0x4b400000u);
}

FLASHATTN_KERNEL(kRowThreads) quantise_kernel(QuantiseLaunch launch) {
  const QuantiseParams& p = launch.params;
  const int64_t row = static_cast<int64_t>(ptx::block().x) * kRowWarps + row_warp();
  if (row >= p.rows) return;
  const float* const given = p.scale;
  const float scale = given ? ptx::load_global(given) : scale_of_row(launch, row);
  if (!given && row_lane() == 0) ptx::store_global(static_cast<float*>(p.row_scale) + row, scale);

  const bool trits = p.format == CodeFormat::Trits;
  int32_t* const words = static_cast<int32_t*>(p.codes) + row * p.words;
  const int32_t used = (p.inner + 3) / 4, chunks = trits ? p.words : p.words / 4;
  int32_t sum = 0;
  for (int32_t chunk = row_lane(); chunk < chunks; chunk += 32) {
    float x[2][kVector];
    load_codes(x, launch, row, chunk * kCodes);
    uint32_t quads[4] = {};
    for (int i = 0; i < kCodes; ++i) {
      const bool inside = chunk * kCodes + i < p.inner;
      const int32_t code = inside ? code_of(ptx::product(x[i / kVector][i % kVector], scale), p) : 0;
      sum += code;
      quads[i / 4] |= (static_cast<uint32_t>(trits ? code + 1 : code) & 255u) << 8 * (i % 4);
    }
    if (trits) {
      const uint32_t word = quads[0] | quads[1] << 2 | quads[2] << 4 | quads[3] << 6;
      ptx::store_global(words + chunk, static_cast<int32_t>(chunk * kCodes < p.inner ? word : 0));
    } else {
      for (int q = 0; q < 4; ++q)
        if (4 * chunk + q != used) ptx::store_global(words + 4 * chunk + q, static_cast<int32_t>(quads[q]));
    }
  }
  if (trits) return;
  for (int mask = 16; mask > 0; mask >>= 1)
    sum += static_cast<int32_t>(ptx::bits_of(ptx::shuffle_xor(ptx::float_of(static_cast<uint32_t>(sum)), mask)));
  if (row_lane() == 0) ptx::store_global(words + used, sum);
}

}  // namespace

cudaError_t launch_quantise(const QuantiseParams& p, const DeviceLimits&, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  const bool aligned = is_aligned(p.x) && p.x_row * element_size(p.dtype) % kAccessBytes == 0;
  return launched("quantise", ptx::launch(quantise_kernel, "quantise", row_grid(RowTeam::Warp, p.rows), kRowThreads, 0,
                                          stream, QuantiseLaunch{p, aligned}));
}

}  // namespace flashattn
