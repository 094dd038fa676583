// Kinds of cases; each follows from its seed alone and tells whether it passed.
#pragma once
#include <stdint.h>

namespace flashattn::test {

bool attention_case(uint64_t seed);
bool merge_case(uint64_t seed);
bool gather_case(uint64_t seed);
bool matmul_case(uint64_t seed);
bool copy_case(uint64_t seed);

}  // namespace flashattn::test
