// Attention across heads and its gradients, on memory of exactly its size, against loops in double.
#include "attention/head_mixing_backward.h"

#include <algorithm>

#include "cases.h"
#include "sequences.h"

namespace flashattn::test {

namespace {

/** What lib/kernels/headMixing.ts reserves for a walker. */
int64_t walker_floats(const HeadMixingParams& p, bool backward) {
  const int64_t heads = p.heads, softmax = p.softmax_heads, values = p.value_heads, tile = 64 * 32 + 16;
  const auto padded = [](int64_t n) { return (n + 15) / 16 * 16; };
  const auto parts = [](int64_t dim) { return (dim + 255) / 256 * 272; };
  const int64_t dim = padded(p.head_dim), value_dim = padded(p.value_dim);
  const int64_t pre = p.logits.own ? softmax * heads * 32 : 0, post = p.weights.own ? values * softmax * 32 : 0;
  if (!backward)
    return 2 * (pre + post + 32 * (heads * dim + values * value_dim) + tile * (heads + softmax + values) +
                softmax * 160 + p.kept_tiles * softmax * (32 + tile));
  const auto key_elements = [](const HeadMix& m, int64_t in, int64_t out) {
    return m.rank * (in + out) + (m.diagonal ? out : 0);
  };
  const int64_t tiles = tile * (heads + 2 * softmax + values);
  const int64_t deltas =
      2 * (pre + post + 32 * (heads * dim + values * value_dim) + tiles + 32 * values * (softmax + 1));
  const int64_t keys = pre + post + 96 * (heads * parts(p.head_dim) + values * parts(p.value_dim)) +
                       32 * std::max(dim, value_dim) + 64 * (heads * dim + values * value_dim) + tiles +
                       softmax * heads * 32 +
                       1024 * (key_elements(p.logits, heads, softmax) + key_elements(p.weights, softmax, values));
  return std::max(deltas, keys);
}

/** One of the two mixtures of a case. */
struct Mix {
  bool exists, own, keys, biased;
  int in, out, rank;
  Array<float> matrix, bias, down, up, diagonal, d_matrix, d_bias, d_down, d_up, d_diagonal, sums;

  Mix(Random& random, bool exists, bool own, bool keys, int in, int out)
      : exists(exists),
        own(exists && own),
        keys(exists && keys),
        biased(exists && random.chance(50)),
        in(in),
        out(out) {
    rank = this->keys ? random.integer(in == out ? 0 : 1, 3) : 0;
  }

  bool diagonal_too() const { return keys && in == out; }
  int elements() const { return in * out; }

  HeadMix ref(Random& random, int batch, int queries, int key_count, int splits, int walkers, bool weights) {
    HeadMix m{};
    if (!exists) return m;
    const auto make = [&](Array<float>& values, Array<float>& gradient, size_t count) {
      values = floats(random, count, 0.5f, 0);
      gradient = Array<float>(count);
    };
    make(matrix, d_matrix, size_t(own ? batch * queries : 1) * elements());
    m.matrix = matrix.data();
    m.d_matrix = d_matrix.data();
    if (biased) {
      make(bias, d_bias, size_t(out));
      m.bias = bias.data();
      if (weights) m.d_bias = d_bias.data();
    }
    const size_t rows = size_t(batch) * key_count;
    if (rank) {
      make(down, d_down, rows * rank * in);
      make(up, d_up, rows * rank * out);
      m.down = down.data(), m.up = up.data(), m.d_down = d_down.data(), m.d_up = d_up.data();
    }
    if (diagonal_too()) {
      make(diagonal, d_diagonal, rows * out);
      m.diagonal = diagonal.data(), m.d_diagonal = d_diagonal.data();
    }
    const size_t ofQueries = size_t(batch) * splits * ((queries + 31) / 32 * 32) * elements();
    const size_t shared = size_t(walkers) * (elements() + out);
    sums = Array<float>(own && !weights ? ofQueries : shared);
    m.sums = sums.data();
    m.own = own;
    m.rank = rank;
    return m;
  }

  void add(Named& inputs, Named& gradients, const std::string& name, bool weights) const {
    const auto put = [&](const char* part, const Array<float>& values, const Array<float>& gradient, bool has) {
      if (!has) return;
      inputs[name + part] = numbers_of(values);
      if (gradient.size()) gradients[name + part] = numbers_of(gradient);
    };
    put("matrix", matrix, d_matrix, exists);
    if (biased) inputs[name + "bias"] = numbers_of(bias);
    if (biased && weights) gradients[name + "bias"] = numbers_of(d_bias);
    put("down", down, d_down, rank > 0);
    put("up", up, d_up, rank > 0);
    put("diagonal", diagonal, d_diagonal, diagonal_too());
  }

  Numbers apply(const Named& inputs, const std::string& name, const Numbers& pair, size_t query, size_t key) const {
    if (!exists) return pair;
    Numbers result(static_cast<size_t>(out));
    const auto part = [&](const char* of) {
      const auto found = inputs.find(name + of);
      return found == inputs.end() ? nullptr : found->second.data();
    };
    const double *const a = part("matrix"), *const b = part("bias"), *const reads = part("down"),
                        *const writes = part("up");
    const double* const own_head = part("diagonal");
    for (int g = 0; g < out; ++g) {
      double sum = biased ? b[g] : 0;
      for (int h = 0; h < in; ++h) {
        double factor = a[((own ? query : 0) * out + g) * in + h];
        for (int r = 0; r < rank; ++r) factor += writes[(key * rank + r) * out + g] * reads[(key * rank + r) * in + h];
        if (g == h && own_head) factor += own_head[key * out + g];
        sum += factor * pair[size_t(h)];
      }
      result[size_t(g)] = sum;
    }
    return result;
  }
};

}  // namespace

bool head_mixing_case(uint64_t seed) {
  Random random(seed);
  Check check({"head_mixing", seed});
  const int batch = random.integer(1, 2), queries = random.integer(1, 40), keys = random.integer(1, 140);
  const bool square = random.chance(40);
  const bool pre = square || random.chance(80), post = square || random.chance(80);
  const int heads = random.integer(1, 5);
  const int softmax = square || !pre ? heads : random.integer(1, 5);
  const int values = square || !post ? softmax : random.integer(1, 5);
  const int dim = random.chance(5) ? 260 : random.integer(1, 20);
  const int value_dim = random.chance(5) ? 270 : random.integer(1, 20);
  const DType dtype = static_cast<DType>(random.chance(60) ? 0 : random.integer(1, 2));
  Mix logits(random, pre, random.chance(50), random.chance(50), heads, softmax);
  Mix weights(random, post, random.chance(50), random.chance(50), softmax, values);

  Sequences q(random, batch, queries, heads, dim, dtype), k(random, batch, keys, heads, dim, dtype);
  Sequences v(random, batch, keys, values, value_dim, dtype), out(random, batch, queries, values, value_dim, dtype);
  Sequences d_out(random, batch, queries, values, value_dim, dtype), dq(random, batch, queries, heads, dim, dtype);
  Sequences dk(random, batch, keys, heads, dim, dtype), dv(random, batch, keys, values, value_dim, dtype);
  for (const Sequences* t : {&q, &k, &v, &d_out}) t->set(random, 1, 0);

  HeadMixingParams p{};
  p.batch = batch, p.queries = queries, p.keys = keys;
  p.heads = heads, p.softmax_heads = softmax, p.value_heads = values;
  p.head_dim = dim, p.value_dim = value_dim;
  p.window_left = random.chance(60) ? kUnbounded : random.integer(0, 70);
  p.window_right = random.chance(40) ? kUnbounded : random.integer(0, 3);
  p.walkers = random.integer(1, 4);
  p.key_splits = random.integer(1, divide_up(keys, kMixedKeys));
  p.kept_tiles = random.chance(50) ? divide_up(keys, kMixedKeys) : 0;
  p.scale = random.chance(30) ? 1.25f : 0.3f;
  p.query = q.ref(), p.key = k.ref(), p.value = v.ref(), p.out = out.ref();
  p.d_out = d_out.ref(), p.d_query = dq.ref(), p.d_key = dk.ref(), p.d_value = dv.ref();
  p.logits = logits.ref(random, batch, queries, keys, p.key_splits, p.walkers, false);
  p.weights = weights.ref(random, batch, queries, keys, p.key_splits, p.walkers, true);
  const size_t row_count = size_t(batch) * softmax * p.padded_queries();
  Array<float> rows(2 * row_count), deltas(row_count);
  p.rows = rows.data();
  p.deltas = deltas.data();
  p.walker_floats = walker_floats(p, false);
  Array<float> memory(size_t(p.walkers) * p.walker_floats);
  memset(memory.data(), 0xff, memory.size() * sizeof(float));
  p.memory = memory.data();

  Named inputs{{"q", q.get()}, {"k", k.get()}, {"v", v.get()}}, gradients;
  run(p, head_mixing_items, head_mixing_item);
  const auto sees = [&](int i, int j) {
    const int distance = j - i - (keys - queries);
    return (p.window_left == kUnbounded || distance >= -p.window_left) &&
           (p.window_right == kUnbounded || distance <= p.window_right);
  };
  const Forward forward = [&](const Named& given) {
    const Numbers &query_rows = given.at("q"), &key_rows = given.at("k"), &value_rows = given.at("v");
    Numbers result(static_cast<size_t>(out.size()));
    for (int b = 0; b < batch; ++b)
      for (int i = 0; i < queries; ++i) {
        const size_t query = size_t(b) * queries + i;
        std::vector<Numbers> pairs(static_cast<size_t>(keys));
        Numbers most(size_t(softmax), -1e300), sum(static_cast<size_t>(softmax));
        for (int j = 0; j < keys; ++j) {
          if (!sees(i, j)) continue;
          const size_t key = size_t(b) * keys + j;
          Numbers products(static_cast<size_t>(heads));
          for (int h = 0; h < heads; ++h)
            for (int d = 0; d < dim; ++d)
              products[size_t(h)] +=
                  p.scale * query_rows[(query * heads + h) * dim + d] * key_rows[(key * heads + h) * dim + d];
          pairs[size_t(j)] = logits.apply(given, "logits ", products, query, key);
          for (size_t h = 0; h < size_t(softmax); ++h) most[h] = std::max(most[h], pairs[size_t(j)][h]);
        }
        for (int j = 0; j < keys; ++j)
          for (size_t h = 0; h < pairs[size_t(j)].size(); ++h)
            sum[h] += pairs[size_t(j)][h] = exp(pairs[size_t(j)][h] - most[h]);
        for (int j = 0; j < keys; ++j) {
          if (!sees(i, j)) continue;
          const size_t key = size_t(b) * keys + j;
          Numbers shares = pairs[size_t(j)];
          for (size_t h = 0; h < shares.size(); ++h) shares[h] /= sum[h];
          const Numbers mixed = weights.apply(given, "weights ", shares, query, key);
          for (int g = 0; g < values; ++g)
            for (int d = 0; d < value_dim; ++d)
              result[(query * values + g) * value_dim + d] +=
                  mixed[size_t(g)] * value_rows[(key * values + g) * value_dim + d];
        }
      }
    return Named{{"out", result}};
  };
  logits.add(inputs, gradients, "logits ", false);
  weights.add(inputs, gradients, "weights ", true);
  check_forward(check, forward(inputs), {{"out", out.get()}}, dtype);
  if (!check.passed()) return false;

  p.walker_floats = walker_floats(p, true);
  memory = Array<float>(size_t(p.walkers) * p.walker_floats);
  memset(memory.data(), 0xff, memory.size() * sizeof(float));
  p.memory = memory.data();
  Array<float> d_query_sum(size_t(batch) * p.key_splits * p.padded_queries() * heads * round_up(dim, 16));
  p.d_query_sum = d_query_sum.data();
  run(p, head_mixing_items, head_mixing_deltas);
  run(p, head_mixing_key_items, head_mixing_keys);
  run(p, finish_head_mixing_items, finish_head_mixing);
  gradients.clear();
  logits.add(inputs, gradients, "logits ", false);
  weights.add(inputs, gradients, "weights ", true);
  gradients["q"] = dq.get(), gradients["k"] = dk.get(), gradients["v"] = dv.get();
  check_gradients(check, random, forward, inputs, {{"out", d_out.get()}}, gradients, dtype);
  return check.passed();
}

}  // namespace flashattn::test
