#include "reference.h"

#include <cmath>

namespace flashattn::test {

namespace {

/** The random word of element (i, j): Philox4x32-10 (Salmon et al. 2011). */
uint32_t random_word(const DropoutParams& dropout, int stream, int i, int j) {
  uint32_t counter[4] = {uint32_t(j) / 4, uint32_t(i), uint32_t(stream), 0};
  uint32_t key[2] = {dropout.seed_low, dropout.seed_high};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(counter[0]) * 0xd2511f53u, b = uint64_t(counter[2]) * 0xcd9e8d57u;
    const uint32_t next[4] = {uint32_t(b >> 32) ^ counter[1] ^ key[0], uint32_t(b),
                              uint32_t(a >> 32) ^ counter[3] ^ key[1], uint32_t(a)};
    memcpy(counter, next, sizeof next);
    key[0] += 0x9e3779b9u;
    key[1] += 0xbb67ae85u;
  }
  return counter[j % 4];
}

/** A tensor as double. */
class Widened {
 public:
  explicit Widened(const Tensor& t) : heads_(t.heads), rows_(t.rows), dim_(t.dim) {
    for (int b = 0; b < t.batch; ++b)
      for (int h = 0; h < t.heads; ++h)
        for (int i = 0; i < t.rows; ++i)
          for (int d = 0; d < t.dim; ++d) values_.push_back(t.get(b, i, h, d));
  }

  const double* row(int b, int h, int i) const { return &values_[((size_t(b) * heads_ + h) * rows_ + i) * dim_]; }

 private:
  int heads_, rows_, dim_;
  std::vector<double> values_;  // [batch, heads, rows, dim]
};

struct Inputs {
  explicit Inputs(const Problem& problem)
      : p(problem),
        query(p.query),
        key(p.key),
        value(p.value),
        d_out(p.d_out),
        out(p.out) {}

  const Problem& p;
  Widened query, key, value, d_out, out;
};

double dot(const double* a, const double* b, int count) {
  double sum = 0;
  for (int at = 0; at < count; ++at) sum += a[at] * b[at];
  return sum;
}

/** A query that sees a key; i and j are local to the sequence. */
struct Pair {
  Pair(const Inputs& inputs, int b, int h, int i, int j)
      : p(inputs.p),
        b(b),
        h(h),
        i(i),
        j(j),
        kv_head(h / (p.heads / p.kv_heads)),
        key_row(p.sequence(b).key_begin + j),
        query(inputs.query.row(p.entry(b), h, p.sequence(b).query_begin + i)),
        d_out(inputs.d_out.row(p.entry(b), h, p.sequence(b).query_begin + i)),
        key(inputs.key.row(p.entry(b), kv_head, key_row)),
        value(inputs.value.row(p.entry(b), kv_head, key_row)) {
    const double product = p.scale * dot(query, key, p.head_dim);
    const double capped = p.softcap > 0 ? std::tanh(product / p.softcap) : 0;
    softcap_slope = 1 - capped * capped;
    logit = (p.softcap > 0 ? p.softcap * capped : product) + p.bias_at(b, h, i, j);
    if (p.bucket_count) logit += p.table[bucket() * p.heads + h];
    const int diagonal = p.top_left ? 0 : p.sequence(b).key_length - p.sequence(b).query_length;
    if (p.alibi.size()) logit -= p.alibi[(p.alibi_batched ? b : 0) * p.heads + h] * std::abs(i + diagonal - j);
    if (p.mod.size()) {
      const double bounded = std::tanh(logit);
      mod_slope = 3 * (1 - bounded * bounded);
      logit = 3 * bounded + p.mod_table_at(j);
    }
    const bool kept = !p.dropout.threshold || random_word(p.dropout, b * p.heads + h, i, j) >= p.dropout.threshold;
    dropout_factor = kept ? p.dropout.keep_scale : 0;
  }

  int bucket() const {
    const int from = p.query_position.size() ? p.query_position[i] : i;
    const int to = p.key_position.size() ? p.key_position[j] : j;
    return p.buckets[to - from + p.origin];
  }

  const Problem& p;
  int b, h, i, j, kv_head, key_row;
  const double *query, *d_out;  // [head dim], [value dim]
  const double *key, *value;    // [head dim], [value dim]
  double logit, softcap_slope, mod_slope = 1, dropout_factor;
};

/** f(b, h, i, row of a [tensor batch, heads, query rows] array) */
template <class F>
void for_rows(const Problem& p, F f) {
  for (int b = 0; b < p.batch; ++b)
    for (int h = 0; h < p.heads; ++h)
      for (int i = 0; i < p.sequence(b).query_length; ++i) f(b, h, i, p.lse_row(b, h, i));
}

std::vector<Pair> visible_keys(const Inputs& inputs, int b, int h, int i) {
  std::vector<Pair> pairs;
  for (int j = 0; j < inputs.p.sequence(b).key_length; ++j)
    if (inputs.p.sees(b, h, i, j)) pairs.emplace_back(inputs, b, h, i, j);
  return pairs;
}

size_t bias_index(const Problem& p, const Pair& pair) {
  const int index[4] = {pair.b, pair.h, pair.i, pair.j};
  size_t at = 0;
  for (int axis = 0; axis < 4; ++axis) at = at * p.bias_shape[axis] + (p.bias_shape[axis] == 1 ? 0 : index[axis]);
  return at;
}

/** sum(d_out * out) - d_lse, from the out that was stored. */
double delta_of(const Inputs& inputs, int b, int h, int i, size_t row) {
  const Problem& p = inputs.p;
  const int entry = p.entry(b), at = p.sequence(b).query_begin + i;
  const double sum = dot(inputs.d_out.row(entry, h, at), inputs.out.row(entry, h, at), p.value_dim);
  return sum - (p.d_lse.size() ? p.d_lse[row] : 0);
}

void add_gradients(const Pair& pair, double lse, double delta, size_t row, BackwardReference& to) {
  const Problem& p = pair.p;
  const double probability = std::exp(pair.logit - lse);
  const double d_probability = pair.dropout_factor * dot(pair.d_out, pair.value, p.value_dim);
  const double d_logit = probability * (d_probability - delta) * pair.mod_slope;
  if (p.bias.size()) to.d_bias[bias_index(p, pair)] += d_logit;
  if (p.bucket_count) to.d_relative[pair.bucket() * p.heads + pair.h] += d_logit;
  const double d_product = d_logit * pair.softcap_slope * p.scale;
  const size_t key_row = (size_t(p.entry(pair.b)) * p.kv_heads + pair.kv_head) * p.key_rows + pair.key_row;
  for (int d = 0; d < p.head_dim; ++d) {
    to.d_query[row * p.head_dim + d] += d_product * pair.key[d];
    to.d_key[key_row * p.head_dim + d] += d_product * pair.query[d];
  }
  for (int d = 0; d < p.value_dim; ++d)
    to.d_value[key_row * p.value_dim + d] += probability * pair.dropout_factor * pair.d_out[d];
}

}  // namespace

ForwardReference forward_reference(const Problem& p) {
  const Inputs inputs(p);
  ForwardReference to{std::vector<double>(p.lse.size() * p.value_dim), std::vector<double>(p.lse.size(), -INFINITY)};
  for_rows(p, [&](int b, int h, int i, size_t row) {
    const std::vector<Pair> pairs = visible_keys(inputs, b, h, i);
    double maximum = p.sink.size() ? p.sink[h] : -INFINITY;
    for (const Pair& pair : pairs) maximum = std::fmax(maximum, pair.logit);
    if (maximum == -INFINITY) return;
    double sum = p.sink.size() ? std::exp(p.sink[h] - maximum) : 0;
    double* out = &to.out[row * p.value_dim];
    for (const Pair& pair : pairs) {
      const double weight = std::exp(pair.logit - maximum);
      sum += weight;
      for (int d = 0; d < p.value_dim; ++d) out[d] += weight * pair.dropout_factor * pair.value[d];
    }
    for (int d = 0; d < p.value_dim; ++d) out[d] /= sum;
    to.lse[row] = maximum + std::log(sum);
  });
  return to;
}

BackwardReference backward_reference(const Problem& p) {
  const Inputs inputs(p);
  const size_t key_rows = size_t(p.tensor_batch) * p.kv_heads * p.key_rows;
  BackwardReference to{std::vector<double>(p.lse.size() * p.head_dim),
                       std::vector<double>(key_rows * p.head_dim),
                       std::vector<double>(key_rows * p.value_dim),
                       std::vector<double>(p.bias.size()),
                       std::vector<double>(p.table.size()),
                       std::vector<double>(p.sink.size())};
  for_rows(p, [&](int b, int h, int i, size_t row) {
    const double lse = p.lse[row];
    if (lse == -INFINITY) return;
    const double delta = delta_of(inputs, b, h, i, row);
    if (p.sink.size()) to.d_sink[h] -= std::exp(p.sink[h] - lse) * delta;
    for (const Pair& pair : visible_keys(inputs, b, h, i)) add_gradients(pair, lse, delta, row, to);
  });
  return to;
}

}  // namespace flashattn::test
