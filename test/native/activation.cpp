// Activations against their definitions, from one end of float32 to the other.
#include "simd/activation.h"

#include "activated.h"
#include "cases.h"
#include "check.h"

namespace flashattn::test {

namespace {

/** Of a function of one float. */
template <class F>
float of_first(F f, float x) {
  float lanes[kLanes] = {};
  lanes[0] = x;
  store(lanes, f(load(lanes)));
  return lanes[0];
}

}  // namespace

/** One part of 80 of the numbers from -12 to 12, their thousandths, and what is special. */
bool activation_case(uint64_t seed) {
  Check check({"activation", seed});
  const auto near = [&](const char* name, float x, double got, double wanted, double relative) {
    // Below 2^-80 results may be 0.
    check.near(name, got, wanted, relative * std::fabs(wanted) + std::fabs(x) * 0x1p-78, 0);
  };
  for (int part = 0; part < 240; ++part)
    for (const double unit : {1.0, 1e-3}) {
      const float x = static_cast<float>(unit * 0.1 * (part + static_cast<double>(seed % 80) / 80 - 120));
      near("erf", x, of_first([](Vec v) { return erf(v); }, x), std::erf(x), 4e-7);
      near("gelu", x, of_first([](Vec v) { return gelu(v); }, x), activated(Activation::Gelu, x), 1e-5);
      // tanh of the definition loses what is far below 1.
      const double u = 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * double(x) * x * x);
      near("gelu_tanh", x, of_first([](Vec v) { return gelu_tanh(v); }, x), x / (1 + std::exp(-u)), 2e-5);
      near("silu", x, of_first([](Vec v) { return silu(v); }, x), activated(Activation::Silu, x), 1e-5);
    }
  const auto erf_of = [](float x) { return of_first([](Vec v) { return erf(v); }, x); };
  check.equal("erf far out", erf_of(5), 1);
  check.equal("erf(-Infinity)", erf_of(-kInfinity), -1);
  check.equal("the sign of erf(-0)", std::signbit(erf_of(-0.0f)), 1);
  check.equal("erf(NaN) is NaN", std::isnan(erf_of(NAN)), 1);
  for (const Activation kind : {Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Relu}) {
    float row[kLanes] = {};
    const auto apply = [&](float x) {
      row[0] = x;
      activate(kind, row, 1);
      return row[0];
    };
    check.equal("NaN stays one", std::isnan(apply(NAN)), 1);
    check.equal("Infinity", apply(kInfinity), kInfinity);
    check.equal("-Infinity", apply(-kInfinity), 0);
    check.equal("the largest number", apply(kLargest), kLargest);
    check.equal("the lowest number", apply(-kLargest), 0);
  }
  return check.passed();
}

}  // namespace flashattn::test
