// The scans on memory of exactly its size: results against plain loops in double, and gradients against differences of these
// in a random direction of each input.
#include "cases.h"
#include "linear/diagonal_scan.h"
#include "linear/linear_scan.h"
#include "linear/selective_scan.h"
#include "linear/wkv.h"
#include "sequences.h"

namespace flashattn::test {

namespace {

struct Shape {
  explicit Shape(Random& random)
      : batch(random.integer(1, 2)),
        length(random.chance(20) ? random.integer(0, 2) : random.integer(3, 100)),
        channels(random.chance(40) ? random.integer(1, 8) : random.integer(9, 70)),
        dtype(static_cast<DType>(random.integer(0, 2))) {}

  Sequences sequences(Random& random, float factor, float shift, int rows = 1, int dim = 0) const {
    Sequences made(random, batch, length, rows, dim == 0 ? channels : dim, dtype);
    made.set(random, factor, shift);
    return made;
  }
  size_t states(int each) const { return static_cast<size_t>(batch * channels * each); }
  size_t kept(int each) const { return static_cast<size_t>(batch * scan_blocks(length) * channels * each); }

  int batch, length, channels;
  DType dtype;
};

}  // namespace

bool linear_scan_case(uint64_t seed) {
  Random random(seed);
  Check check({"linear_scan", seed});
  const Shape s(random);
  const Sequences x = s.sequences(random, 1, 0), d_out = s.sequences(random, 1, 0);
  Sequences gate = s.sequences(random, 0.5f, -0.8f);
  if (random.chance(20)) gate.set(random, 30, -45);
  const Sequences out = s.sequences(random, 0, 0), d_x = s.sequences(random, 0, 0), d_gate = s.sequences(random, 0, 0);
  const Array<float> initial = random_array(s.states(1), random), d_final = random_array(s.states(1), random);
  const Array<float> final_state(s.states(1)), d_initial(s.states(1)), kept(s.kept(1));

  LinearScanParams p{};
  p.x = x.ref(), p.gate = gate.ref(), p.out = out.ref();
  p.d_out = d_out.ref(), p.d_x = d_x.ref(), p.d_gate = d_gate.ref();
  p.initial = initial.data(), p.final_state = final_state.data(), p.kept = kept.data();
  p.d_final = d_final.data(), p.d_initial = d_initial.data();
  p.batch = s.batch, p.length = s.length, p.channels = s.channels;
  run(p, linear_scan_items, linear_scan_item);
  run(p, linear_scan_items, linear_scan_backward_item);

  const Forward forward = [&](const Named& in) {
    const Numbers &in_gate = in.at("gate"), &in_x = in.at("x");
    Named results{{"out", Numbers(in.at("x").size())}, {"final", in.at("initial")}};
    Numbers& out_numbers = results["out"];
    Numbers& h = results["final"];
    for (int b = 0; b < s.batch; ++b)
      for (int t = 0; t < s.length; ++t)
        for (int c = 0; c < s.channels; ++c) {
          const size_t i = static_cast<size_t>((b * s.length + t) * s.channels + c);
          double& state = h[static_cast<size_t>(b * s.channels + c)];
          out_numbers[i] = state = exp(in_gate[i]) * state + in_x[i];
        }
    return results;
  };
  const Named inputs{{"x", x.get()}, {"gate", gate.get()}, {"initial", numbers_of(initial)}};
  check_forward(check, forward(inputs), {{"out", out.get()}, {"final", numbers_of(final_state)}}, s.dtype);
  check_gradients(check, random, forward, inputs, {{"out", d_out.get()}, {"final", numbers_of(d_final)}},
                  {{"x", d_x.get()}, {"gate", d_gate.get()}, {"initial", numbers_of(d_initial)}}, s.dtype);
  return check.passed();
}

bool selective_scan_case(uint64_t seed) {
  Random random(seed);
  Check check({"selective_scan", seed});
  Shape s(random);
  const int groups = random.integer(1, 3), state = random.chance(20) ? random.integer(30, 40) : random.integer(1, 18);
  s.channels = groups * max(1, s.channels / groups);
  const bool gated = random.chance(50), softplus = random.chance(60);
  const Sequences u = s.sequences(random, 1, 0), z = s.sequences(random, 1, 0), d_out = s.sequences(random, 1, 0);
  const Sequences dt = softplus ? s.sequences(random, 1, 0) : s.sequences(random, 0.25f, 0.5f);
  const Sequences b = s.sequences(random, 0.5f, 0, groups, state), c = s.sequences(random, 0.5f, 0, groups, state);
  const Sequences out = s.sequences(random, 0, 0), d_u = s.sequences(random, 0, 0), d_dt = s.sequences(random, 0, 0);
  const Sequences d_z = s.sequences(random, 0, 0);
  const Sequences d_b = s.sequences(random, 0, 0, groups, state), d_c = s.sequences(random, 0, 0, groups, state);
  const auto channels = static_cast<size_t>(s.channels);
  const Array<float> a = floats(random, channels * state, 0.5f, -1), skip = random_array(channels, random);
  const Array<float> dt_bias = floats(random, channels, 0.25f, 0), d_a(channels * state), d_skip(channels);
  const Array<float> d_dt_bias(channels);
  const Array<float> initial = random_array(s.states(state), random), d_final = random_array(s.states(state), random);
  const Array<float> final_state(s.states(state)), d_initial(s.states(state)), kept(s.kept(state));
  const Array<float> of_sequences(s.states(state + 2));
  const int parts = divide_up(s.channels / groups, kScanChannels);
  const Array<float> of_channels(static_cast<size_t>(2 * parts * s.batch * s.length * groups * state));

  SelectiveScanParams p{};
  p.u = u.ref(), p.dt = dt.ref(), p.out = out.ref(), p.b = b.ref(), p.c = c.ref();
  p.d_out = d_out.ref(), p.d_u = d_u.ref(), p.d_dt = d_dt.ref(), p.d_b = d_b.ref(), p.d_c = d_c.ref();
  if (gated) p.z = z.ref(), p.d_z = d_z.ref();
  p.a = a.data(), p.skip = skip.data(), p.dt_bias = dt_bias.data();
  p.initial = initial.data(), p.final_state = final_state.data(), p.kept = kept.data();
  p.d_final = d_final.data(), p.d_initial = d_initial.data();
  p.d_a = d_a.data(), p.d_skip = d_skip.data(), p.d_dt_bias = d_dt_bias.data();
  p.of_sequences = of_sequences.data(), p.of_channels = of_channels.data();
  p.batch = s.batch, p.length = s.length, p.channels = s.channels, p.groups = groups, p.state = state;
  p.softplus = softplus;
  run(p, selective_scan_items, selective_scan_item);
  run(p, selective_scan_items, selective_scan_backward_item);
  run(p, finish_selective_items, finish_selective_item);

  const Forward forward = [&](const Named& in) {
    const Numbers &in_a = in.at("a"), &in_b = in.at("b"), &in_c = in.at("c"), &in_dt = in.at("dt"),
                  &in_dt_bias = in.at("dt_bias"), &in_skip = in.at("skip"), &in_u = in.at("u"), &in_z = in.at("z");
    Named results{{"out", Numbers(in.at("u").size())}, {"final", in.at("initial")}};
    Numbers& out_numbers = results["out"];
    Numbers& h = results["final"];
    for (int q = 0; q < s.batch; ++q)
      for (int t = 0; t < s.length; ++t)
        for (int e = 0; e < s.channels; ++e) {
          const auto ch = static_cast<size_t>(e);
          const size_t i = static_cast<size_t>((q * s.length + t) * s.channels + e);
          double step = in_dt[i] + in_dt_bias[ch], y = in_skip[ch] * in_u[i];
          if (softplus) step = fmax(step, 0) + ::log1p(exp(-fabs(step)));
          for (int n = 0; n < state; ++n) {
            const auto of = static_cast<size_t>(((q * s.length + t) * groups + e / (s.channels / groups)) * state + n);
            double& x = h[static_cast<size_t>((q * s.channels + e) * state + n)];
            x = exp(step * in_a[ch * state + n]) * x + step * in_b[of] * in_u[i];
            y += in_c[of] * x;
          }
          const double gate = in_z[i];
          out_numbers[i] = gated ? y * gate / (1 + exp(-gate)) : y;
        }
    return results;
  };
  const Named inputs{{"u", u.get()},
                     {"dt", dt.get()},
                     {"z", z.get()},
                     {"b", b.get()},
                     {"c", c.get()},
                     {"a", numbers_of(a)},
                     {"skip", numbers_of(skip)},
                     {"dt_bias", numbers_of(dt_bias)},
                     {"initial", numbers_of(initial)}};
  check_forward(check, forward(inputs), {{"out", out.get()}, {"final", numbers_of(final_state)}}, s.dtype);
  Named gradients{{"u", d_u.get()},
                  {"dt", d_dt.get()},
                  {"b", d_b.get()},
                  {"c", d_c.get()},
                  {"a", numbers_of(d_a)},
                  {"skip", numbers_of(d_skip)},
                  {"dt_bias", numbers_of(d_dt_bias)},
                  {"initial", numbers_of(d_initial)}};
  if (gated) gradients["z"] = d_z.get();
  check_gradients(check, random, forward, inputs, {{"out", d_out.get()}, {"final", numbers_of(d_final)}}, gradients,
                  s.dtype);
  return check.passed();
}

bool diagonal_scan_case(uint64_t seed) {
  Random random(seed);
  Check check({"diagonal_scan", seed});
  const Shape s(random);
  const int state = random.integer(1, 10);
  const Sequences u = s.sequences(random, 1, 0), d_out = s.sequences(random, 1, 0);
  const Sequences out = s.sequences(random, 0, 0), d_u = s.sequences(random, 0, 0);
  const size_t factors = static_cast<size_t>(s.channels * state * 2);
  const Array<float> a = floats(random, factors, 0.375f, 0), w = random_array(factors, random);
  const Array<float> initial = random_array(s.states(2 * state), random);
  const Array<float> d_final = random_array(s.states(2 * state), random), d_a(factors), d_w(factors);
  const Array<float> final_state(s.states(2 * state)), d_initial(s.states(2 * state)), kept(s.kept(2 * state));
  const Array<float> of_sequences(s.states(4 * state));

  DiagonalScanParams p{};
  p.u = u.ref(), p.out = out.ref(), p.d_out = d_out.ref(), p.d_u = d_u.ref();
  p.a = a.data(), p.w = w.data(), p.initial = initial.data(), p.final_state = final_state.data();
  p.kept = kept.data(), p.d_final = d_final.data(), p.d_initial = d_initial.data();
  p.d_a = d_a.data(), p.d_w = d_w.data(), p.of_sequences = of_sequences.data();
  p.batch = s.batch, p.length = s.length, p.channels = s.channels, p.state = state;
  run(p, diagonal_scan_items, diagonal_scan_item);
  run(p, diagonal_scan_items, diagonal_scan_backward_item);
  run(p, finish_diagonal_items, finish_diagonal_item);

  const Forward forward = [&](const Named& in) {
    const Numbers &in_a = in.at("a"), &in_u = in.at("u"), &in_w = in.at("w");
    Named results{{"out", Numbers(in.at("u").size())}, {"final", in.at("initial")}};
    Numbers& out_numbers = results["out"];
    Numbers& h = results["final"];
    for (int b = 0; b < s.batch; ++b)
      for (int t = 0; t < s.length; ++t)
        for (int c = 0; c < s.channels; ++c) {
          const size_t i = static_cast<size_t>((b * s.length + t) * s.channels + c);
          double y = 0;
          for (int n = 0; n < state; ++n) {
            const auto of = static_cast<size_t>((c * state + n) * 2);
            const auto at = static_cast<size_t>(((b * s.channels + c) * state + n) * 2);
            const double re = h[at], im = h[at + 1], r = in_a[of], q = in_a[of + 1];
            h[at] = r * re - q * im + in_u[i];
            h[at + 1] = r * im + q * re;
            y += in_w[of] * h[at] - in_w[of + 1] * h[at + 1];
          }
          out_numbers[i] = y;
        }
    return results;
  };
  const Named inputs{{"u", u.get()}, {"a", numbers_of(a)}, {"w", numbers_of(w)}, {"initial", numbers_of(initial)}};
  check_forward(check, forward(inputs), {{"out", out.get()}, {"final", numbers_of(final_state)}}, s.dtype);
  check_gradients(
      check, random, forward, inputs, {{"out", d_out.get()}, {"final", numbers_of(d_final)}},
      {{"u", d_u.get()}, {"a", numbers_of(d_a)}, {"w", numbers_of(d_w)}, {"initial", numbers_of(d_initial)}}, s.dtype);
  return check.passed();
}

bool wkv_case(uint64_t seed) {
  Random random(seed);
  Check check({"wkv", seed});
  const Shape s(random);
  const bool continued = random.chance(60);
  const Sequences k = s.sequences(random, random.chance(20) ? 40 : 1, 0), v = s.sequences(random, 1, 0);
  const Sequences d_out = s.sequences(random, 1, 0), out = s.sequences(random, 0, 0);
  const Sequences d_k = s.sequences(random, 0, 0), d_v = s.sequences(random, 0, 0);
  const auto channels = static_cast<size_t>(s.channels);
  const Array<float> decay = floats(random, channels, 0.5f, -0.8f), bonus = random_array(channels, random);
  const Array<float> d_decay(channels), d_bonus(channels), of_sequences(s.states(2));
  const Array<float> initial = random_array(s.states(3), random), d_final = random_array(s.states(3), random);
  const Array<float> final_state(s.states(3)), d_initial(s.states(3)), kept(s.kept(3));
  for (int i = 0; i < s.batch * 3 * s.channels; ++i)
    if (i / s.channels % 3 == 1) initial[static_cast<size_t>(i)] = 1 + fabsf(initial[static_cast<size_t>(i)]);

  WkvParams p{};
  p.k = k.ref(), p.v = v.ref(), p.out = out.ref(), p.d_out = d_out.ref(), p.d_k = d_k.ref(), p.d_v = d_v.ref();
  p.decay = decay.data(), p.bonus = bonus.data(), p.final_state = final_state.data(), p.kept = kept.data();
  if (continued) p.initial = initial.data(), p.d_final = d_final.data(), p.d_initial = d_initial.data();
  p.d_decay = d_decay.data(), p.d_bonus = d_bonus.data(), p.of_sequences = of_sequences.data();
  p.batch = s.batch, p.length = s.length, p.channels = s.channels;
  run(p, wkv_items, wkv_item);
  run(p, wkv_items, wkv_backward_item);
  run(p, finish_wkv_items, finish_wkv_item);

  const Forward forward = [&](const Named& in) {
    const Numbers &in_bonus = in.at("bonus"), &in_decay = in.at("decay"), &in_initial = in.at("initial"),
                  &in_k = in.at("k"), &in_v = in.at("v");
    Named results{{"out", Numbers(in.at("k").size())}, {"final", in.at("initial")}};
    Numbers& out_numbers = results["out"];
    Numbers& final_numbers = results["final"];
    for (int b = 0; b < s.batch; ++b)
      for (int c = 0; c < s.channels; ++c) {
        const auto state = static_cast<size_t>(b * 3 * s.channels + c), ch = static_cast<size_t>(c);
        double num = in_initial[state], den = in_initial[state + channels];
        double peak = in_initial[state + 2 * channels];
        for (int t = 0; t < s.length; ++t) {
          const size_t i = static_cast<size_t>((b * s.length + t) * s.channels + c);
          const double key = in_k[i], value = in_v[i], now = key + in_bonus[ch];
          double most = fmax(peak, now);
          out_numbers[i] =
              (exp(peak - most) * num + exp(now - most) * value) / (exp(peak - most) * den + exp(now - most));
          peak += in_decay[ch];
          most = fmax(peak, key);
          num = exp(peak - most) * num + exp(key - most) * value;
          den = exp(peak - most) * den + exp(key - most);
          peak = most;
        }
        final_numbers[state] = num;
        final_numbers[state + channels] = den;
        final_numbers[state + 2 * channels] = peak;
      }
    return results;
  };
  Named inputs{{"k", k.get()},
               {"v", v.get()},
               {"decay", numbers_of(decay)},
               {"bonus", numbers_of(bonus)},
               {"initial", numbers_of(initial)}};
  if (!continued)
    for (size_t i = 0; i < initial.size(); ++i)
      inputs["initial"][i] = i / channels % 3 == 2 ? static_cast<double>(kNoPeak) : 0;
  check_forward(check, forward(inputs), {{"out", out.get()}, {"final", numbers_of(final_state)}}, s.dtype);
  Named cotangents{{"out", d_out.get()}};
  Named gradients{{"k", d_k.get()}, {"v", d_v.get()}, {"decay", numbers_of(d_decay)}, {"bonus", numbers_of(d_bonus)}};
  if (continued) cotangents["final"] = numbers_of(d_final), gradients["initial"] = numbers_of(d_initial);
  check_gradients(check, random, forward, inputs, cotangents, gradients, s.dtype);
  return check.passed();
}

}  // namespace flashattn::test
