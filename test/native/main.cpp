// native/cpu under the sanitizers of the compiler: `program` runs a spread of cases of every kind, `program <kind>` those
// of one, `program <kind> <seed>` one case.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

namespace {

struct Kind {
  const char* name;
  bool (*run)(uint64_t seed);
  int cases;
};

constexpr Kind kKinds[] = {
    {"attention", flashattn::test::attention_case, 240},
    {"selected", flashattn::test::selected_case, 120},
    {"merge", flashattn::test::merge_case, 60},
    {"gather", flashattn::test::gather_case, 60},
    {"matmul", flashattn::test::matmul_case, 80},
    {"quantise", flashattn::test::quantise_case, 80},
    {"code_matmul", flashattn::test::code_matmul_case, 80},
    {"rows_by_index", flashattn::test::rows_by_index_case, 60},
    {"cross_entropy", flashattn::test::cross_entropy_case, 80},
    {"lines", flashattn::test::lines_case, 60},
    {"copy", flashattn::test::copy_case, 40},
    {"softmax", flashattn::test::softmax_case, 80},
    {"norm", flashattn::test::norm_case, 80},
    {"svd", flashattn::test::svd_case, 60},
    {"activation", flashattn::test::activation_case, 80},
    {"elementwise", flashattn::test::elementwise_case, 60},
    {"reduce", flashattn::test::reduce_case, 60},
    {"recurrence", flashattn::test::recurrence_case, 60},
    {"linear_scan", flashattn::test::linear_scan_case, 60},
    {"selective_scan", flashattn::test::selective_scan_case, 60},
    {"diagonal_scan", flashattn::test::diagonal_scan_case, 60},
    {"wkv", flashattn::test::wkv_case, 60},
    {"head_mixing", flashattn::test::head_mixing_case, 60},
};

}  // namespace

int main(int count, char** arguments) {
  int failed = 0;
  for (const Kind& kind : kKinds) {
    if (count > 1 && strcmp(arguments[1], kind.name) != 0) continue;
    if (count > 2) return kind.run(strtoull(arguments[2], nullptr, 10)) ? 0 : 1;
    int passed = 0;
    for (int seed = 1; seed <= kind.cases; ++seed) passed += kind.run(seed);
    failed += kind.cases - passed;
    printf("%s: %d of %d cases passed\n", kind.name, passed, kind.cases);
  }
  return failed ? 1 : 0;
}
