// Forward and backward on memory of exactly their size, against plain loops.
#include "attention/backward_extras.h"
#include "attention/decode.h"
#include "cases.h"
#include "check.h"
#include "reference.h"

namespace flashattn::test {

namespace {

constexpr double kForwardTolerance = 2e-5, kBackwardTolerance = 1e-4;

/** Runs items in falling order: no item may rely on an earlier one. */
template <class Workspace, class Run>
void run_items(int items, Run run) {
  const auto workspace = poisoned_workspace<Workspace>();
  for (int item = items - 1; item >= 0; --item) run(item, *workspace);
}

void run_forward(const AttentionParams& p) {
  run_items<ForwardWorkspace>(attention_items(p), [&](int item, ForwardWorkspace& ws) { attention_item(p, item, ws); });
  if (!p.decode_states) return;
  run_items<ForwardWorkspace>(finish_decode_items(p),
                              [&](int item, ForwardWorkspace& ws) { finish_decode_item(p, item, ws); });
}

void run_backward(const AttentionParams& p) {
  const auto launch = [&](int items, auto kernel) {
    run_items<BackwardWorkspace>(items, [&](int item, BackwardWorkspace& ws) { kernel(p, item, ws); });
  };
  launch(row_items(p), backward_rows);
  launch(backward_items(p), backward_item);
  launch(row_items(p), finish_query_gradients);
  if (p.bias.data) launch(bias_items(p), backward_bias_item);
  for (int h = 0; h < relative_items(p); ++h) backward_relative_item(p, h);
  for (int h = 0; h < sink_items(p); ++h) backward_sink_item(p, h);
}

/** Rows of a tensor that belong to a sequence. */
std::vector<bool> covered_rows(const Problem& p, const Tensor& t, bool keys, int entry) {
  std::vector<bool> covered(t.rows);
  for (int b = 0; b < p.batch; ++b) {
    if (p.entry(b) != entry) continue;
    const Sequence s = p.sequence(b);
    const int begin = keys ? s.key_begin : s.query_begin, length = keys ? s.key_length : s.query_length;
    for (int i = begin; i < begin + length; ++i) covered[i] = true;
  }
  return covered;
}

/** Of `out`, beside that of float32: what rounding probabilities to pairs changes of their mean. */
double forward_tolerance(const Problem& p) {
  const bool pairs = kHasPairs && p.out.dtype == DType::BFloat16;
  return kForwardTolerance + (pairs ? 2 * rounding(DType::BFloat16) : 0);
}

/** `wanted` is [tensor batch, heads, rows, dim]; rows outside of all sequences must be as they were. */
void compare_tensor(Check& check, const char* name, const Problem& p, const Tensor& got,
                    const std::vector<double>& wanted, bool keys, double tolerance) {
  const double absolute = tolerance * largest(wanted), relative = rounding(got.dtype);
  for (int e = 0; e < got.batch; ++e) {
    const std::vector<bool> covered = covered_rows(p, got, keys, e);
    for (int i = 0; i < got.rows; ++i)
      for (int h = 0; h < got.heads; ++h) {
        if (!covered[i] && !got.is_untouched(e, i, h)) check.fail(name, got.get(e, i, h, 0), NAN);
        if (!covered[i]) continue;
        const size_t row = ((size_t(e) * got.heads + h) * got.rows + i) * got.dim;
        for (int d = 0; d < got.dim; ++d) check.near(name, got.get(e, i, h, d), wanted[row + d], absolute, relative);
      }
  }
}

void compare_array(Check& check, const char* name, const Array<float>& got, const std::vector<double>& wanted) {
  const double absolute = kBackwardTolerance * largest(wanted);
  for (size_t at = 0; at < got.size(); ++at) check.near(name, got[at], wanted[at], absolute, 0);
}

void compare_lse(Check& check, const Problem& p, const std::vector<double>& wanted) {
  for (int b = 0; b < p.batch; ++b)
    for (int h = 0; h < p.heads; ++h)
      for (int i = 0; i < p.sequence(b).query_length; ++i) {
        const size_t row = p.lse_row(b, h, i);
        check.near("lse", p.lse[row], wanted[row], kForwardTolerance, 0);
      }
}

}  // namespace

bool attention_case(uint64_t seed) {
  const Problem p(seed);
  const AttentionParams params = p.params();
  Check check({"attention", seed});

  run_forward(params);
  const ForwardReference forward = forward_reference(p);
  compare_tensor(check, "out", p, p.out, forward.out, false, forward_tolerance(p));
  compare_lse(check, p, forward.lse);
  if (!check.passed()) return false;

  run_backward(params);
  const BackwardReference backward = backward_reference(p);
  compare_tensor(check, "d_query", p, p.d_query, backward.d_query, false, kBackwardTolerance);
  compare_tensor(check, "d_key", p, p.d_key, backward.d_key, true, kBackwardTolerance);
  compare_tensor(check, "d_value", p, p.d_value, backward.d_value, true, kBackwardTolerance);
  compare_array(check, "d_bias", p.d_bias, backward.d_bias);
  compare_array(check, "d_relative", p.d_relative, backward.d_relative);
  compare_array(check, "d_sink", p.d_sink, backward.d_sink);
  return check.passed();
}

}  // namespace flashattn::test
