// Comparing with a reference, and counting what differs.
#pragma once
#include <stdio.h>
#include <cmath>

#include <vector>

#include "memory.h"

namespace flashattn::test {

/** What is compared, for messages: "attention 17", "merge 3". */
struct Subject {
  const char* kind;
  uint64_t seed;
};

/** Whether all elements compared so far were near enough; says which was not, once for each name. */
class Check {
 public:
  explicit Check(Subject subject) : subject_(subject) {}

  bool passed() const { return passed_; }

  /** `absolute` grows with the largest reference; `relative` is of the element itself. */
  void near(const char* name, double got, double wanted, double absolute, double relative) {
    if (got == wanted || fabs(got - wanted) <= absolute + relative * fabs(wanted)) return;
    fail(name, got, wanted);
  }

  void equal(const char* name, double got, double wanted) { near(name, got, wanted, 0, 0); }

  void fail(const char* name, double got, double wanted) {
    if (name != failed_)
      printf("%s %llu: %s is %.9g, not %.9g\n", subject_.kind, static_cast<unsigned long long>(subject_.seed), name,
             got, wanted);
    failed_ = name;
    passed_ = false;
  }

 private:
  Subject subject_;
  const char* failed_ = nullptr;
  bool passed_ = true;
};

inline double largest(const std::vector<double>& values) {
  double most = 1;
  for (const double value : values) most = fmax(most, fabs(value));
  return most;
}

}  // namespace flashattn::test
