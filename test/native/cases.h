// Kinds of cases; each follows from its seed alone and tells whether it passed.
#pragma once
#include <stdint.h>

namespace flashattn::test {

bool attention_case(uint64_t seed);
bool selected_case(uint64_t seed);
bool merge_case(uint64_t seed);
bool gather_case(uint64_t seed);
bool matmul_case(uint64_t seed);
bool quantise_case(uint64_t seed);
bool code_matmul_case(uint64_t seed);
bool rows_by_index_case(uint64_t seed);
bool cross_entropy_case(uint64_t seed);
bool lines_case(uint64_t seed);
bool activation_case(uint64_t seed);
bool copy_case(uint64_t seed);
bool softmax_case(uint64_t seed);
bool norm_case(uint64_t seed);
bool elementwise_case(uint64_t seed);
bool reduce_case(uint64_t seed);
bool svd_case(uint64_t seed);
bool linear_scan_case(uint64_t seed);
bool selective_scan_case(uint64_t seed);
bool diagonal_scan_case(uint64_t seed);
bool wkv_case(uint64_t seed);
bool recurrence_case(uint64_t seed);
bool head_mixing_case(uint64_t seed);

}  // namespace flashattn::test
