// Prints the threads and the dynamic shared memory of a block of every kernel with tiles, as JSON: what
// scripts/kernel-resources.mjs sets beside what the compiler says.
#include <cstdio>
#include <initializer_list>
#include <string>

#include "element.cuh"
#include "sm80/matmul_tiles.cuh"
#include "sm80/recurrence_gradients.cuh"
#include "sm80/recurrence_walk.cuh"
#include "sm80/tiles.cuh"

using namespace flashattn;

namespace {

constexpr const char* kVariantNames[] = {"Large", "Small", "Extras"};

bool first = true;

void print(const std::string& kernel, const std::string& arguments, int threads, int shared_bytes) {
  const std::string name = kernel + "<" + arguments + ">";
  if (!first) std::printf(",\n");
  std::printf("  \"%s\": { \"threads\": %d, \"shared\": %d }", name.c_str(), threads, shared_bytes);
  first = false;
}

template <class Element, int HeadDim, Variant Kind>
void print_variant(const std::string& instance) {
  const std::string arguments = instance + ", " + kVariantNames[static_cast<int>(Kind)];
  using Forward = ForwardTiles<Element, HeadDim, Kind>;
  using Backward = BackwardTiles<Element, HeadDim, Kind>;
  print("forward_kernel", arguments, Forward::kThreads, Forward::kSharedBytes);
  print("backward_kernel", arguments, Backward::kThreads, Backward::kSharedBytes);
}

template <class Element, int HeadDim>
void print_head_dim(const std::string& element) {
  const std::string instance = element + ", " + std::to_string(HeadDim);
  if constexpr (sizeof(typename Element::Storage) == 2) print_variant<Element, HeadDim, Variant::Large>(instance);
  print_variant<Element, HeadDim, Variant::Small>(instance);
  print_variant<Element, HeadDim, Variant::Extras>(instance);
  using Gradient = GradientTiles<Element, HeadDim>;
  for (const char* kernel : {"backward_bias_kernel", "backward_relative_kernel"})
    print(kernel, instance, Gradient::kThreads, Gradient::kSharedBytes);
  for (const char* has_mod : {"false", "true"})
    print("row_weights_kernel", instance + ", " + has_mod, Gradient::kThreads, Gradient::kSharedBytes);
}

template <class Element, MatmulTile Kind, Along AlongA, Along AlongB>
void print_matmul_tile(const std::string& arguments) {
  using Tiles = MatmulTiles<Element, Kind, AlongA, AlongB>;
  print("matmul_kernel", arguments, Tiles::kThreads, Tiles::kTilesBytes);
}

template <class Element, Along AlongA, Along AlongB>
void print_matmul(const std::string& element) {
  const char* const names[] = {"Inner", "Outer"};
  const std::string along = std::string(names[static_cast<int>(AlongA)]) + ", " + names[static_cast<int>(AlongB)];
  print_matmul_tile<Element, MatmulTile::Large, AlongA, AlongB>(element + ", Large, " + along);
  print_matmul_tile<Element, MatmulTile::Small, AlongA, AlongB>(element + ", Small, " + along);
  if constexpr (AlongA == Along::Inner)
    print_matmul_tile<Element, MatmulTile::Thin, AlongA, AlongB>(element + ", Thin, " + along);
}

template <class Element>
void print_element(const std::string& element) {
  print_head_dim<Element, 32>(element);
  print_head_dim<Element, 64>(element);
  print_head_dim<Element, 96>(element);
  print_head_dim<Element, 128>(element);
  print_head_dim<Element, 192>(element);
  print_head_dim<Element, 256>(element);
  print_matmul<Element, Along::Inner, Along::Inner>(element);
  print_matmul<Element, Along::Inner, Along::Outer>(element);
  print_matmul<Element, Along::Outer, Along::Inner>(element);
  print_matmul<Element, Along::Outer, Along::Outer>(element);
}

/** With as wide keys as there are. */
template <int kValueTile, bool kLowRank>
void print_walks(const std::string& kind, int key_dim) {
  for (const char* kernel : {"recurrence_kernel", "recurrence_states_kernel", "recurrence_d_states_kernel"})
    print(kernel, std::to_string(kValueTile) + ", " + kind, kRecurrenceThreads,
          RecurrenceWalkTiles<kValueTile, kLowRank>::shared_bytes(key_dim));
}

template <bool kLowRank = false>
void print_recurrence(const std::string& kind) {
  print_walks<kWideValueTile, kLowRank>(kind, most_wide_key_dim(kLowRank));
  print_walks<kNarrowValueTile, kLowRank>(kind, kMostKeyDim);
  print("recurrence_gradients_kernel", kind, kRecurrenceThreads, RecurrenceGradientTiles<kLowRank>::kSharedBytes);
}

}  // namespace

int main() {
  std::printf("{\n");
  print_element<Float16>("Float16");
  print_element<BFloat16>("BFloat16");
  print_element<Float32>("Float32");
  for (const char* kind : {"Channels", "Positions", "NarrowPositions", "Delta", "NarrowDelta"}) print_recurrence(kind);
  print_recurrence<true>("LowRank");
  std::printf("\n}\n");
}
