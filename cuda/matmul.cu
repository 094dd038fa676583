// From a product of matrices to its kernel: how its factors lie, and which tile it gets. The instantiations are compiled
// one to a file (see CMakeLists.txt).
#include <type_traits>

#include "carry.cuh"
#include "launch.h"
#include "sm80/matmul_tiles.cuh"

namespace flashattn {

template <class Element, Along AlongA, Along AlongB>
cudaError_t launch_matmul_layout(const MatmulParams&, MatmulTile, bool, cudaStream_t);

namespace {

int64_t blocks_of(const MatmulParams& p, int bytes, MatmulTile tile) {
  const MatmulShape shape = matmul_shape(bytes, tile);
  return p.batch[0] * p.batch[1] * p.batch[2] * p.batch[3] * divide_up(p.rows, shape.rows) *
         divide_up(p.columns, shape.columns);
}

/** By its strides. What is contiguous along neither dim is loaded element by element, to either kind of tile. */
Along along_of(int64_t outer, int64_t inner) { return outer == 1 && inner != 1 ? Along::Outer : Along::Inner; }

/** Tiles as large as leave a block for every multiprocessor. */
MatmulTile tile_of(const MatmulParams& p, int bytes, bool carries, const DeviceLimits& limits) {
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  const bool fits = matmul_shared_bytes(bytes, MatmulTile::Large, carries) <= limits.shared_memory;
  const int64_t small = blocks_of(p, bytes, MatmulTile::Small);
  // A small tile is eight thin ones, which read more and wait less; but not where they load A element by element.
  const bool few = 4 * small <= limits.multiprocessors && along_of(p.a.row, p.a.column) == Along::Inner;
  if ((p.rows <= 16 || few) && blocks_of(p, bytes, MatmulTile::Thin) <= kMostBlocks) return MatmulTile::Thin;
  return fits && blocks_of(p, bytes, MatmulTile::Large) >= limits.multiprocessors ? MatmulTile::Large
                                                                                  : MatmulTile::Small;
}

template <class F>
cudaError_t with_along(Along along, F f) {
  return along == Along::Inner ? f(std::integral_constant<Along, Along::Inner>{})
                               : f(std::integral_constant<Along, Along::Outer>{});
}

}  // namespace

cudaError_t launch_matmul(const MatmulParams& p, const DeviceLimits& limits, cudaStream_t stream) {
  const bool carries = p.c.dtype == DType::Float32 && p.inner > kCarryRows;
  const MatmulTile tile = tile_of(p, element_size(p.a.dtype), carries, limits);
  const Along a = tile == MatmulTile::Thin ? Along::Inner : along_of(p.a.row, p.a.column);
  const Along b = along_of(p.b.column, p.b.row);
  return dispatch(p.a.dtype, [&](auto element) {
    return with_along(a, [&](auto along_a) {
      return with_along(b, [&](auto along_b) {
        return launch_matmul_layout<decltype(element), along_a(), along_b()>(p, tile, carries, stream);
      });
    });
  });
}

}  // namespace flashattn
