// The recurrence on memory of exactly its size: results against a loop over positions in double, and gradients against
// differences of these.
#include "cases.h"
#include "linear/recurrence_backward.h"
#include "sequences.h"

namespace flashattn::test {

namespace {

/** A problem whose tensors all have the heads of the states; sharing and packing are up to the tests in TypeScript. */
struct Problem {
  explicit Problem(Random& random)
      : batch(random.integer(1, 2)),
        length(random.chance(20) ? random.integer(0, 2) : random.integer(3, 100)),
        heads(random.integer(1, 2)),
        key_dim(random.chance(60) ? random.integer(1, 8) : random.integer(9, 40)),
        value_dim(random.chance(60) ? random.integer(1, 8) : random.integer(9, 40)),
        decay(static_cast<Decay>(random.integer(0, 3))),
        update(Update::Add),
        dtype(static_cast<DType>(random.integer(0, 2))) {
    if (decay == Decay::Channel)
      update = random.chance(30) ? Update::LowRank : Update::Add;
    else if (random.chance(40))
      update = Update::Delta;
    bonus = decay == Decay::Channel && update == Update::Add && random.chance(40);
    normalizes = update == Update::Add && !bonus && random.chance(40);
  }

  int columns() const { return value_dim + normalizes; }
  size_t rows() const { return static_cast<size_t>(batch * length * heads); }
  size_t states() const { return static_cast<size_t>(batch * heads * key_dim * columns()); }
  Sequences sequences(Random& random, int dim, float factor, float shift = 0) const {
    Sequences made(random, batch, length, heads, dim, dtype);
    made.set(random, factor, shift);
    return made;
  }
  /** Of which decay position `row` [batch, seq, heads] reads channel d. */
  size_t gate(size_t row, int d) const {
    if (decay == Decay::Head) return row % static_cast<size_t>(heads);
    return decay == Decay::Position ? row : row * static_cast<size_t>(key_dim) + static_cast<size_t>(d);
  }

  int batch, length, heads, key_dim, value_dim;
  Decay decay;
  Update update;
  DType dtype;
  bool bonus = false, normalizes = false;
};

constexpr float kScale = 0.7f;

Named positions(const Problem& s, const Named& in) {
  const Numbers &q = in.at("q"), &k = in.at("k"), &v = in.at("v"), &log = in.at("decay"), &beta = in.at("beta");
  const Numbers &read = in.at("read"), &write = in.at("write"), &bonus = in.at("bonus");
  Named results{{"out", Numbers(s.rows() * static_cast<size_t>(s.value_dim))}, {"final", in.at("initial")}};
  if (s.normalizes) results["normalizer"] = Numbers(s.rows());
  for (int b = 0; b < s.batch; ++b)
    for (int t = 0; t < s.length; ++t)
      for (int h = 0; h < s.heads; ++h) {
        const auto row = static_cast<size_t>((b * s.length + t) * s.heads + h);
        double* const state =
            results["final"].data() + static_cast<size_t>((b * s.heads + h) * s.key_dim * s.columns());
        for (int c = 0; c < s.columns(); ++c) {
          const auto at = [&](int d) -> double& { return state[d * s.columns() + c]; };
          const auto key = [&](const Numbers& x, int d) {
            return x[row * static_cast<size_t>(s.key_dim) + static_cast<size_t>(d)];
          };
          const double value = c < s.value_dim ? v[row * static_cast<size_t>(s.value_dim) + static_cast<size_t>(c)] : 1;
          double seen = 0, before = 0, own = 0;
          for (int d = 0; d < s.key_dim; ++d) {
            if (s.update == Update::LowRank) seen += key(read, d) * at(d);
            before += key(q, d) * at(d);
            if (s.bonus) own += key(q, d) * bonus[static_cast<size_t>(h * s.key_dim + d)] * key(k, d);
          }
          double held = 0;
          for (int d = 0; d < s.key_dim; ++d) {
            if (s.decay != Decay::None) at(d) *= exp(log[s.gate(row, d)]);
            held += key(k, d) * at(d);
          }
          const double update = s.update == Update::Delta ? beta[row] * (value - held) : value;
          double after = 0;
          for (int d = 0; d < s.key_dim; ++d) {
            at(d) += key(k, d) * update;
            if (s.update == Update::LowRank) at(d) += key(write, d) * seen;
            after += key(q, d) * at(d);
          }
          const double out = kScale * (s.bonus ? before + own * value : after);
          if (c < s.value_dim)
            results["out"][row * static_cast<size_t>(s.value_dim) + static_cast<size_t>(c)] = out;
          else
            results["normalizer"][row] = out;
        }
      }
  return results;
}

}  // namespace

bool recurrence_case(uint64_t seed) {
  Random random(seed);
  Check check({"recurrence", seed});
  const Problem s(random);
  const float size = 0.5f / sqrtf(static_cast<float>(s.key_dim));
  const Sequences q = s.sequences(random, s.key_dim, 1), k = s.sequences(random, s.key_dim, size);
  const Sequences v = s.sequences(random, s.value_dim, 1), d_out = s.sequences(random, s.value_dim, 1);
  const Sequences read = s.sequences(random, s.key_dim, size), write = s.sequences(random, s.key_dim, 0.5f * size);
  const Sequences out = s.sequences(random, s.value_dim, 0), d_v = s.sequences(random, s.value_dim, 0);
  const Sequences d_q = s.sequences(random, s.key_dim, 0), d_k = s.sequences(random, s.key_dim, 0);
  const Sequences d_read = s.sequences(random, s.key_dim, 0), d_write = s.sequences(random, s.key_dim, 0);
  const size_t gates = s.decay == Decay::Head      ? static_cast<size_t>(s.heads)
                       : s.decay == Decay::Channel ? s.rows() * static_cast<size_t>(s.key_dim)
                                                   : s.rows();
  const Array<float> log = random.chance(20) ? floats(random, gates, 30, -45) : floats(random, gates, 0.5f, -0.8f);
  const Array<float> beta = floats(random, s.rows(), 0.5f, 0.5f);
  const Array<float> bonus = random_array(static_cast<size_t>(s.heads * s.key_dim), random);
  const Array<float> initial = random_array(s.states(), random), d_final = random_array(s.states(), random);
  const Array<float> final_state(s.states()), d_initial(s.states()), d_beta(s.rows());
  const Array<float> normalizer(s.rows()), d_normalizer = random_array(s.rows(), random);
  const Array<float> d_log(s.decay == Decay::Head ? static_cast<size_t>(s.batch * s.heads) : gates);
  const Array<float> d_bonus(static_cast<size_t>(s.batch * s.heads * s.key_dim));

  RecurrenceParams p{};
  p.query = q.ref(), p.key = k.ref(), p.value = v.ref(), p.out = out.ref(), p.d_out = d_out.ref();
  p.d_query = d_q.ref(), p.d_key = d_k.ref(), p.d_value = d_v.ref();
  p.read = read.ref(), p.write = write.ref(), p.d_read = d_read.ref(), p.d_write = d_write.ref();
  const auto gate_ref = [&](float* data, int dim, bool by_head) {
    TensorRef ref{};
    ref.data = data;
    ref.head = dim;
    ref.seq = by_head ? 0 : s.heads * dim;
    ref.batch = by_head ? 0 : int64_t{s.length} * s.heads * dim;
    return ref;
  };
  const int gate_dim = s.decay == Decay::Channel ? s.key_dim : 1;
  p.decay = gate_ref(log.data(), gate_dim, s.decay == Decay::Head);
  p.d_decay = gate_ref(d_log.data(), gate_dim, false);
  if (s.decay == Decay::Head) p.d_decay.batch = s.heads, p.d_decay.seq = 0;
  p.beta = gate_ref(beta.data(), 1, false), p.d_beta = gate_ref(d_beta.data(), 1, false);
  if (s.bonus) p.bonus = bonus.data(), p.d_bonus = d_bonus.data();
  if (s.normalizes) p.normalizer = normalizer.data(), p.d_normalizer = d_normalizer.data();
  p.initial = initial.data(), p.final_state = final_state.data();
  p.d_final_state = d_final.data(), p.d_initial = d_initial.data();
  p.batch = s.batch, p.length = s.length, p.heads = s.heads;
  p.query_heads = p.key_heads = p.value_heads = p.decay_heads = p.beta_heads = p.read_heads = p.write_heads = s.heads;
  p.key_dim = s.key_dim, p.value_dim = s.value_dim, p.decay_kind = s.decay, p.update = s.update;
  p.scale = kScale, p.normalizes = s.normalizes;
  p.chunk_rows = int64_t{s.batch} * divide_up(s.length, kLinearChunk);
  const Array<float> kept(static_cast<size_t>(s.heads * p.chunk_rows * s.key_dim * p.padded_columns()));
  p.chunk_states = kept.data();
  run(p, recurrence_items, recurrence_item);
  run(p, recurrence_items, recurrence_backward_item);

  const Named inputs{{"q", q.get()},
                     {"k", k.get()},
                     {"v", v.get()},
                     {"read", read.get()},
                     {"write", write.get()},
                     {"decay", numbers_of(log)},
                     {"beta", numbers_of(beta)},
                     {"bonus", numbers_of(bonus)},
                     {"initial", numbers_of(initial)}};
  const Forward forward = [&](const Named& in) { return positions(s, in); };
  Named got{{"out", out.get()}, {"final", numbers_of(final_state)}};
  Named cotangents{{"out", d_out.get()}, {"final", numbers_of(d_final)}};
  Named gradients{{"q", d_q.get()}, {"k", d_k.get()}, {"v", d_v.get()}, {"initial", numbers_of(d_initial)}};
  if (s.normalizes) got["normalizer"] = numbers_of(normalizer), cotangents["normalizer"] = numbers_of(d_normalizer);
  const auto over_sequences = [&](const Array<float>& sums, size_t each) {
    Numbers total(each);
    for (size_t i = 0; i < sums.size(); ++i) total[i % each] += sums[i];
    return total;
  };
  if (s.decay == Decay::Head)
    gradients["decay"] = over_sequences(d_log, gates);
  else if (s.decay != Decay::None)
    gradients["decay"] = numbers_of(d_log);
  if (s.update == Update::Delta) gradients["beta"] = numbers_of(d_beta);
  if (s.update == Update::LowRank) gradients["read"] = d_read.get(), gradients["write"] = d_write.get();
  if (s.bonus) gradients["bonus"] = over_sequences(d_bonus, bonus.size());
  check_forward(check, forward(inputs), got, s.dtype);
  check_gradients(check, random, forward, inputs, cotangents, gradients, s.dtype);
  return check.passed();
}

}  // namespace flashattn::test
