// The product of matrices. A block owns one tile of C and walks the inner dim: tiles of A and B are copied to shared memory
// ahead of their use, each pair into the next of kSlots slots. A warp owns a part of the tile, or of a thin one all of it
// for a part of the inner dim; such parts are added up in order at the end.
//
// Precision is that of attention. 16-bit elements are multiplied by tensor cores, which add in float32; float32 is split
// into two tf32 numbers, and its sums go on outside of tensor cores (factor.cuh). Where C is float32, sums are carried
// every kCarryRows of the inner dim (carry.cuh), here to shared memory: C may hold what is to be added to. An infinity
// times the parts of a number is not what it is times the number: where there was one, NaNs are computed again.
#pragma once
#include "../activation.cuh"
#include "../carry.cuh"
#include "../launch_error.h"
#include "../matrix.cuh"
#include "matmul_tiles.cuh"

namespace flashattn {

struct MatmulLaunch {
  MatmulParams params;
  int32_t row_tiles, column_tiles;
  int32_t carries;  // 1: the launch has shared memory for it
  int32_t reserved;
};

/** Which tile of C a block owns. */
struct MatmulPlace {
  BatchEntry entry;
  int row, column;  // its first

  /**
   * Blocks that run at the same time share as much of A and B as they can: tiles go down kBand rows of tiles, then on to
   * the next column of tiles.
   */
  template <class Tiles>
  FLASHATTN_DEVICE static MatmulPlace of(const MatmulLaunch& launch, int index) {
    constexpr int kBand = 8;
    const int tiles = launch.row_tiles * launch.column_tiles, tile = index % tiles;
    const int band = tile / (kBand * launch.column_tiles), in_band = tile % (kBand * launch.column_tiles);
    const int height = min_of(launch.row_tiles - band * kBand, kBand);
    return {BatchEntry(launch.params, index / tiles), (band * kBand + in_band % height) * Tiles::kRows,
            in_band / height * Tiles::kColumns};
  }
};

template <class Element, MatmulTile Kind, Along AlongA, Along AlongB>
class MatmulBlock {
 public:
  using Tiles = MatmulTiles<Element, Kind, AlongA, AlongB>;
  using TileOfA = typename Tiles::TileOfA;
  using TileOfB = typename Tiles::TileOfB;
  using SumTile = typename Tiles::SumTile;
  static constexpr bool kSplits = Tiles::kElementBytes == 4;
  static constexpr int kSlots = Tiles::kSlots, kCarrySteps = kCarryRows / Tiles::kInner;

  FLASHATTN_DEVICE MatmulBlock(const MatmulLaunch& launch, const MatmulPlace& place)
      : launch_(launch),
        p_(launch.params),
        lane_(ptx::thread()),
        first_row_(place.row),
        first_column_(place.column),
        a_(factor_of<AlongA>(p_.a, place.entry, p_.a.row, p_.rows)),
        b_(factor_of<AlongB>(p_.b, place.entry, p_.b.column, p_.columns)) {
    const int warp = ptx::thread() / kWarpSize, side = warp / Tiles::kInnerWarps;
    inner_warp_ = warp % Tiles::kInnerWarps;
    warp_row_ = side / Tiles::kShape.column_warps * Tiles::kWarpRows;
    warp_column_ = side % Tiles::kShape.column_warps * Tiles::kWarpColumns;
  }

  FLASHATTN_DEVICE void run(const MatmulPlace& place) {
    walk_inner();
    finish(place);
  }

 private:
  /** `outer` is the stride of the dim that C has, `count` its size. */
  template <Along kAlong>
  FLASHATTN_DEVICE Factor factor_of(const MatrixRef& matrix, const BatchEntry& entry, int64_t outer, int count) const {
    constexpr int64_t kBytes = Tiles::kElementBytes;
    const int64_t inner = &matrix == &p_.a ? matrix.column : matrix.row;
    uint8_t* data = static_cast<uint8_t*>(matrix.data) + entry.offset(matrix) * kBytes;
    if (kAlong == Along::Inner) return {data, outer * kBytes, inner * kBytes, count, p_.inner};
    return {data, inner * kBytes, outer * kBytes, p_.inner, count};
  }

  FLASHATTN_DEVICE uint32_t slot(int number) const {
    return ptx::shared_base() + static_cast<uint32_t>(number * Tiles::kSlotBytes);
  }
  FLASHATTN_DEVICE TileOfA tile_of_a(int number) const { return {slot(number)}; }
  FLASHATTN_DEVICE TileOfB tile_of_b(int number) const { return {slot(number) + TileOfA::kBytes}; }

  template <Along kAlong, class TileType>
  FLASHATTN_DEVICE static void load(TileType tile, const Factor& from, int outer, int inner) {
    constexpr bool kRows = kAlong == Along::Inner;
    // The thread's place is made anew for each tile: kept, it would take registers that sums need.
    load_tile<Tiles::kThreads>(tile, from, kRows ? outer : inner, kRows ? inner : outer, ptx::opaque(ptx::thread()));
  }

  /** One group of copies, also where there is nothing left to copy: waiting counts groups. */
  FLASHATTN_DEVICE void load(int number, int step, int steps) const {
    if (step < steps) {
      load<AlongA>(tile_of_a(number), a_, first_row_, step * Tiles::kInner);
      load<AlongB>(tile_of_b(number), b_, first_column_, step * Tiles::kInner);
    }
    ptx::cp_async_commit();
  }

  FLASHATTN_DEVICE void walk_inner() {
    const int steps = divide_up(p_.inner, Tiles::kInner);
#pragma unroll
    for (int step = 0; step < kSlots - 1; ++step) load(step, step, steps);
    sums_.clear();
    int number = 0, in_registers = 0;
    bool carried = false;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::cp_async_wait<kSlots - 2>();
      ptx::sync_threads();  // the tiles have landed, and nobody reads the slot that the next go to
      load(number == 0 ? kSlots - 1 : number - 1, step + kSlots - 1, steps);
      multiply_tiles(number);
      number = number + 1 == kSlots ? 0 : number + 1;
      if (launch_.carries && ++in_registers == kCarrySteps) {
        carry(!carried);
        carried = true;
        in_registers = 0;
      }
    }
    ptx::cp_async_wait<0>();
    ptx::sync_threads();
    if (carried) bring_back();
  }

  FLASHATTN_DEVICE void multiply_tiles(int number) {
    const ReaderOfA<TileOfA, AlongA> a(tile_of_a(number), warp_row_, lane_);
    const ReaderOfB<TileOfB, AlongB> b(tile_of_b(number), warp_column_, lane_);
    infinite_ |= add_products<Tiles::kWarpInner>(sums_, a, b, inner_warp_ * Tiles::kWarpInner);
  }

  /** f(place in shared memory, four sums) for all sums of this lane. */
  template <class F>
  FLASHATTN_DEVICE void for_carried(F f) {
    const uint32_t base = ptx::shared_base() + Tiles::kTilesBytes + static_cast<uint32_t>(ptx::thread() * kChunkBytes);
#pragma unroll
    for (int m = 0; m < Tiles::kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < Tiles::kColumnTiles; ++n)
        f(base + static_cast<uint32_t>((m * Tiles::kColumnTiles + n) * Tiles::kThreads * kChunkBytes), sums_.s[m][n]);
  }
  /** What is in shared memory and what is in registers becomes one sum there, and registers start again. */
  FLASHATTN_DEVICE void carry(bool first) {
    for_carried([&](uint32_t place, float(&sum)[4]) {
      const float4 before = first ? float4{} : ptx::load_shared<float4>(place);
      ptx::store_shared(place, float4{before.x + sum[0], before.y + sum[1], before.z + sum[2], before.w + sum[3]});
      sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
    });
  }
  FLASHATTN_DEVICE void bring_back() {
    for_carried([](uint32_t place, float(&sum)[4]) {
      const float4 before = ptx::load_shared<float4>(place);
      sum[0] += before.x, sum[1] += before.y, sum[2] += before.z, sum[3] += before.w;
    });
  }

  // From sums to C: 16 rows of a warp at a time through shared memory, so that a lane has neighbouring columns. --------

  FLASHATTN_DEVICE static SumTile sum_tile(int warp) {
    return {ptx::shared_base() + static_cast<uint32_t>(warp * SumTile::kBytes)};
  }

  /** Of a warp: whether its sums may be NaN where they should be infinite. */
  FLASHATTN_DEVICE static uint32_t infinite_of(int warp) {
    return ptx::shared_base() + static_cast<uint32_t>(Tiles::kWarps * SumTile::kBytes + warp * 4);
  }

  FLASHATTN_DEVICE void finish(const MatmulPlace& place) {
    const Matrix c(p_.c, place.entry), bias(p_.bias, place.entry);
    if constexpr (kSplits) {
      const uint32_t infinite = ptx::ballot(infinite_);
      if (lane_.index == 0) ptx::store_shared(infinite_of(ptx::thread() / kWarpSize), infinite);
    }
#pragma unroll 1  // all that follows the sums is compiled once
    for (int strip = 0; strip < Tiles::kRowTiles; ++strip) {
      stage(strip);
      sync_sharers();
      write(place, strip, c, bias);
      sync_sharers();
    }
  }
  /** The warps that have parts of the same sums. */
  FLASHATTN_DEVICE static void sync_sharers() {
    if constexpr (Tiles::kInnerWarps > 1)
      ptx::sync_threads();
    else
      ptx::sync_warp();
  }

  FLASHATTN_DEVICE void stage(int strip) const {
    const SumTile tile = sum_tile(ptx::thread() / kWarpSize);
#pragma unroll
    for (int m = 0; m < Tiles::kRowTiles; ++m)
      if (m == strip)
#pragma unroll
        for (int n = 0; n < Tiles::kColumnTiles; ++n)
#pragma unroll
          for (int lower = 0; lower < 2; ++lower)
            store_pair(tile, lower * 8 + lane_.group, n * 8 + lane_.quad * 2, sums_.s[m][n][lower * 2],
                       sums_.s[m][n][lower * 2 + 1]);
  }

  FLASHATTN_DEVICE void write(const MatmulPlace& place, int strip, const Matrix& c, const Matrix& bias) const {
    constexpr int kVectors = Tiles::kWarpColumns / kVector, kStep = kWarpSize * Tiles::kInnerWarps;
#pragma unroll 1
    for (int index = inner_warp_ * kWarpSize + lane_.index; index < 16 * kVectors; index += kStep) {
      const int r = index / kVectors, v = index % kVectors;
      const int i = place.row + warp_row_ + strip * 16 + r, j = place.column + warp_column_ + v * kVector;
      const int count = p_.columns - j, first_warp = ptx::thread() / kWarpSize - inner_warp_;
      float x[kVector] = {}, other[kVector];
#pragma unroll
      for (int part = 0; part < Tiles::kInnerWarps; ++part) {
        load_sums(other, sum_tile(first_warp + part), r, v);
        add(x, other);
      }
      if (i >= p_.rows || count <= 0) continue;
      if constexpr (kSplits) repair(x, place.entry, i, j, count, first_warp);
#pragma unroll
      for (float& sum : x) sum *= p_.alpha;
      if (bias.data) {
        bias.load(other, i, j, count);
        add(x, other);
      }
      activate(p_.activation, x);
      if (p_.accumulate) {
        c.load(other, i, j, count);
        add(x, other);
      }
      c.store(i, j, x, count);
    }
  }

  /** Two chunks. Eight lanes at a time have four even ones and four odd ones, of one row or of two. */
  FLASHATTN_DEVICE static void load_sums(float (&x)[kVector], SumTile tile, int row, int vector) {
    const int swap = (vector / 4 + row) & 1;
    const float4 first = ptx::load_shared<float4>(tile.chunk(row, 2 * vector + swap));
    const float4 second = ptx::load_shared<float4>(tile.chunk(row, 2 * vector + 1 - swap));
    const float4 left = swap ? second : first, right = swap ? first : second;
    x[0] = left.x, x[1] = left.y, x[2] = left.z, x[3] = left.w;
    x[4] = right.x, x[5] = right.y, x[6] = right.z, x[7] = right.w;
  }

  /** Where an infinity was split, sums that are NaN are made again, pair by pair: some of them are infinite. */
  FLASHATTN_DEVICE void repair(float (&x)[kVector], const BatchEntry& entry, int i, int j, int count,
                               int first_warp) const {
    uint32_t infinite = 0;
#pragma unroll
    for (int part = 0; part < Tiles::kInnerWarps; ++part)
      infinite |= ptx::load_shared<uint32_t>(infinite_of(first_warp + part));
    if (!infinite) return;
    const Matrix a(p_.a, entry), b(p_.b, entry);
    for (int e = 0; e < kVector; ++e)
      if (e < count && x[e] != x[e]) {
        x[e] = 0.0f;
#pragma unroll 1
        for (int k = 0; k < p_.inner; ++k) x[e] += a.get<Element>(i, k) * b.get<Element>(k, j + e);
      }
  }

  FLASHATTN_DEVICE static void add(float (&x)[kVector], const float (&other)[kVector]) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) x[e] += other[e];
  }

  const MatmulLaunch& launch_;
  const MatmulParams& p_;
  Lane lane_;
  int first_row_, first_column_, warp_row_, warp_column_, inner_warp_;
  Factor a_, b_;
  Sums<Tiles::kRowTiles, Tiles::kColumnTiles> sums_;
  bool infinite_ = false;
};

template <class Element, MatmulTile Kind, Along AlongA, Along AlongB>
FLASHATTN_KERNEL((MatmulTiles<Element, Kind, AlongA, AlongB>::kThreads),
                 (MatmulTiles<Element, Kind, AlongA, AlongB>::kLeastBlocks))
matmul_kernel(const FLASHATTN_CONSTANT MatmulLaunch launch) {
  using Block = MatmulBlock<Element, Kind, AlongA, AlongB>;
  const auto place = MatmulPlace::of<typename Block::Tiles>(launch, static_cast<int>(ptx::block().x));
  Block block(launch, place);
  block.run(place);
}

template <class Element, MatmulTile Kind, Along AlongA, Along AlongB>
cudaError_t launch_matmul_kernel(const MatmulParams& p, bool carries, cudaStream_t stream) {
  using Tiles = MatmulTiles<Element, Kind, AlongA, AlongB>;
  const MatmulLaunch launch{p, divide_up(p.rows, Tiles::kRows), divide_up(p.columns, Tiles::kColumns), carries, 0};
  const int64_t blocks = p.batch[0] * p.batch[1] * p.batch[2] * p.batch[3] * launch.row_tiles * launch.column_tiles;
  if (blocks == 0) return cudaSuccess;
  const int shared_bytes = matmul_shared_bytes(Tiles::kElementBytes, Kind, carries);
  return launched(
      "matmul", ptx::launch(matmul_kernel<Element, Kind, AlongA, AlongB>, "matmul", dim3(static_cast<unsigned>(blocks)),
                            Tiles::kThreads, shared_bytes, stream, launch));
}

/** Of thin tiles A lies along the inner dim: 16 rows are too few for the other way. */
template <class Element, Along AlongA, Along AlongB>
cudaError_t launch_matmul_layout(const MatmulParams& p, MatmulTile kind, bool carries, cudaStream_t stream) {
  if (kind == MatmulTile::Large)
    return launch_matmul_kernel<Element, MatmulTile::Large, AlongA, AlongB>(p, carries, stream);
  if constexpr (AlongA == Along::Inner)
    if (kind == MatmulTile::Thin)
      return launch_matmul_kernel<Element, MatmulTile::Thin, AlongA, AlongB>(p, carries, stream);
  return launch_matmul_kernel<Element, MatmulTile::Small, AlongA, AlongB>(p, carries, stream);
}

}  // namespace flashattn
