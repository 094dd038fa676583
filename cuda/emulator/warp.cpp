#include "warp.h"

#include <cstring>
#include <string>

#include "product.h"
#include "report.h"
#include "shared_memory.h"

namespace emulator {

namespace {

constexpr int kMatrices = 4, kMatrixRows = 8, kRowBytes = 16;

/** The rows that the lanes named, one matrix of 8 x 8 elements after the other: already the fragments' layout. */
void read_matrices(Exchange& exchange, const Warp& warp, Site site) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Thread& thread = warp.threads[lane];
    const uint32_t row = exchange.in[0][lane];
    uint32_t* to = &exchange.out[lane / kMatrixRows][lane % kMatrixRows * (kRowBytes / 4)];
    if (check_shared(thread, row, kRowBytes, "ldmatrix", site)) {
      note_shared_read(thread, row, kRowBytes, "ldmatrix", site);
      std::memcpy(to, shared_bytes(thread, row), kRowBytes);
    } else {
      std::memset(to, 0xff, kRowBytes);
    }
  }
}

void transpose(uint32_t (&matrix)[kWarpSize]) {
  uint16_t from[kMatrixRows][kMatrixRows], to[kMatrixRows][kMatrixRows];
  std::memcpy(from, matrix, sizeof from);
  for (int r = 0; r < kMatrixRows; ++r)
    for (int c = 0; c < kMatrixRows; ++c) to[c][r] = from[r][c];
  std::memcpy(matrix, to, sizeof to);
}

}  // namespace

bool same_place(const Site& a, const Site& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

void report_divergence(const Exchange& exchange, const char* what, Site site) {
  if (std::strcmp(exchange.what, what) == 0 && same_place(exchange.site, site)) return;
  report(site, "divergent-collective", [&] {
    return std::string(what) + " while other lanes of the warp are in " + exchange.what + " at " +
           place_of(exchange.site);
  });
}

void ldmatrix(uint32_t (&r)[4], uint32_t row, bool trans, Site site) {
  const Exchange& exchange = meet(
      trans ? "ldmatrix_x4_trans" : "ldmatrix_x4", site, [=](Exchange& e, int lane) { e.in[0][lane] = row; },
      [=](Exchange& e, Warp& warp) {
        ++machine.statistics.ldmatrix;
        read_matrices(e, warp, site);
        count_ldmatrix_conflicts(e.in[0], site);
        if (!trans) return;
        for (auto& matrix : e.out) transpose(matrix);
      });
  const int lane = machine.current->lane;
  for (int m = 0; m < kMatrices; ++m) r[m] = exchange.out[m][lane];
}

void mma(Format format, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site) {
  constexpr const char* kNames[] = {"mma_f16", "mma_bf16", "mma_tf32", "mma_s8"};
  const char* what = kNames[static_cast<int>(format)];
  const Exchange& exchange = meet(
      what, site,
      [&](Exchange& e, int lane) {
        for (int i = 0; i < 4; ++i) e.in[i][lane] = a[i];
        e.in[4][lane] = b0;
        e.in[5][lane] = b1;
        for (int i = 0; i < 4; ++i) e.sum[i / 2][lane][i % 2] = c[i];
      },
      [=](Exchange& e, Warp&) {
        ++machine.statistics.mma;
        add_product(format, e);
      });
  const int lane = machine.current->lane;
  for (int i = 0; i < 4; ++i) c[i] = exchange.sum[i / 2][lane][i % 2];
}

uint32_t shuffle_xor(uint32_t value, int mask, Site site) {
  const Exchange& exchange = meet(
      "shuffle_xor", site, [=](Exchange& e, int lane) { e.in[0][lane] = value; }, [](Exchange&, Warp&) {});
  return exchange.in[0][(machine.current->lane ^ mask) % kWarpSize];
}

uint32_t shuffle(uint32_t value, int lane, Site site) {
  const Exchange& exchange = meet(
      "shuffle", site, [=](Exchange& e, int self) { e.in[0][self] = value; }, [](Exchange&, Warp&) {});
  return exchange.in[0][lane & (kWarpSize - 1)];
}

uint32_t ballot(bool predicate, Site site) {
  const Exchange& exchange = meet(
      "ballot", site, [=](Exchange& e, int lane) { e.in[0][lane] = predicate; },
      [](Exchange& e, Warp&) {
        uint32_t votes = 0;
        for (int lane = 0; lane < kWarpSize; ++lane) votes |= e.in[0][lane] << lane;
        e.out[0][0] = votes;
      });
  return exchange.out[0][0];
}

}  // namespace emulator
