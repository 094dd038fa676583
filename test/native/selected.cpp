// Attention with lists of blocks and its gradients, on memory of exactly its size, against plain loops over the pairs that
// are seen: what is NaN elsewhere must not show.
#include <set>

#include "attention/selected_backward.h"

#include "cases.h"
#include "sequences.h"

namespace flashattn::test {

namespace {

struct Shape {
  int batch, seq, heads, kv_heads, head_dim, value_dim, slots, block_size;
};

struct Pairs {
  const Shape& shape;
  const Array<int32_t>& blocks;

  std::vector<int> keys(int b, int kv, int i) const {
    const int32_t* list = blocks.data() + ((size_t(b) * shape.seq + i) * shape.kv_heads + kv) * shape.slots;
    const std::set<int> named(list, list + shape.slots);
    std::vector<int> result;
    for (int j = 0; j <= i; ++j)
      if (named.count(j / shape.block_size)) result.push_back(j);
    return result;
  }
};

Named exact(const Shape& shape, const Pairs& pairs, const Named& in, double scale) {
  const int group = shape.heads / shape.kv_heads, n = shape.seq;
  const Numbers &q = in.at("q"), &k = in.at("k"), &v = in.at("v"), &d_out = in.at("d_out"), &d_lse = in.at("d_lse");
  Named to{{"out", Numbers(d_out.size())},
           {"lse", Numbers(d_lse.size())},
           {"dq", Numbers(q.size())},
           {"dk", Numbers(k.size())},
           {"dv", Numbers(v.size())}};
  Numbers &out = to["out"], &lse = to["lse"], &dq = to["dq"], &dk = to["dk"], &dv = to["dv"];
  for (int b = 0; b < shape.batch; ++b)
    for (int h = 0; h < shape.heads; ++h)
      for (int i = 0; i < n; ++i) {
        const int kv = h / group;
        const auto query = (size_t(b) * n + i) * shape.heads + h;
        const auto key = [&](int j) { return (size_t(b) * n + j) * shape.kv_heads + kv; };
        const std::vector<int> keys = pairs.keys(b, kv, i);
        Numbers p(keys.size());
        double top = -INFINITY, sum = 0;
        for (size_t x = 0; x < keys.size(); ++x) {
          for (int d = 0; d < shape.head_dim; ++d)
            p[x] += scale * q[query * shape.head_dim + d] * k[key(keys[x]) * shape.head_dim + d];
          top = fmax(top, p[x]);
        }
        for (double& each : p) sum += each = exp(each - top);
        const size_t row = (size_t(b) * shape.heads + h) * n + i;
        lse[row] = keys.empty() ? -INFINITY : top + std::log(sum);
        double delta = -d_lse[row];
        for (int d = 0; d < shape.value_dim; ++d) {
          double& mean = out[query * shape.value_dim + d];
          for (size_t x = 0; x < keys.size(); ++x) mean += p[x] / sum * v[key(keys[x]) * shape.value_dim + d];
          delta += mean * d_out[query * shape.value_dim + d];
        }
        for (size_t x = 0; x < keys.size(); ++x) {
          double slope = -delta;
          for (int d = 0; d < shape.value_dim; ++d) {
            slope += d_out[query * shape.value_dim + d] * v[key(keys[x]) * shape.value_dim + d];
            dv[key(keys[x]) * shape.value_dim + d] += p[x] / sum * d_out[query * shape.value_dim + d];
          }
          slope *= p[x] / sum * scale;
          for (int d = 0; d < shape.head_dim; ++d) {
            dq[query * shape.head_dim + d] += slope * k[key(keys[x]) * shape.head_dim + d];
            dk[key(keys[x]) * shape.head_dim + d] += slope * q[query * shape.head_dim + d];
          }
        }
      }
  return to;
}

double largest_number(const Numbers& values) {
  double most = 1;
  for (const double value : values)
    if (value - value == 0) most = fmax(most, fabs(value));
  return most;
}

void compare(Check& check, const char* name, const Numbers& got, const Numbers& wanted, double rounded) {
  const double absolute = (3e-5 + rounded) * largest_number(wanted);
  for (size_t i = 0; i < got.size(); ++i)
    if (wanted[i] == wanted[i] || got[i] == got[i]) check.near(name, got[i], wanted[i], absolute, rounded);
}

}  // namespace

bool selected_case(uint64_t seed) {
  Random random(seed);
  Check check({"selected", seed});
  const bool large = random.chance(10);
  const int groups[] = {1, 1, 2, 3, 4, 5, 8, 16, 33}, sizes[] = {1, 3, 8, 16, 64, 150};
  const int group = groups[random.integer(0, 8)], kv_heads = random.integer(1, 2);
  const Shape shape{random.integer(1, 2),
                    large ? random.integer(130, 260) : random.integer(1, 70),
                    group * kv_heads,
                    kv_heads,
                    random.integer(1, random.chance(20) ? 70 : 20),
                    random.integer(1, random.chance(20) ? 70 : 20),
                    random.integer(1, 5),
                    sizes[random.integer(0, 5)]};
  const auto dtype = static_cast<DType>(random.integer(0, 2));
  const auto make = [&](int heads, int dim) { return Sequences(random, shape.batch, shape.seq, heads, dim, dtype); };
  const Sequences q = make(shape.heads, shape.head_dim), k = make(kv_heads, shape.head_dim);
  const Sequences v = make(kv_heads, shape.value_dim), out = make(shape.heads, shape.value_dim);
  const Sequences d_out = make(shape.heads, shape.value_dim), dq = make(shape.heads, shape.head_dim);
  const Sequences dk = make(kv_heads, shape.head_dim), dv = make(kv_heads, shape.value_dim);
  for (const Sequences* each : {&q, &k, &v, &d_out}) each->set(random, 1, 0);
  if (random.chance(40))
    for (int n = random.integer(1, 3); n > 0; --n) {
      const Sequences& of = random.chance(50) ? k : v;
      encode(of.at(random.integer(0, of.size() - 1)), dtype, __builtin_nanf(""));
    }

  const int count = divide_up(shape.seq, shape.block_size);
  Array<int32_t> blocks(size_t(shape.batch) * shape.seq * kv_heads * shape.slots);
  for (size_t at = 0; at < blocks.size(); ++at)
    blocks[at] =
        random.chance(30) ? int(at / shape.slots / kv_heads % shape.seq) / shape.block_size : random.integer(-2, count);
  const size_t rows = size_t(shape.batch) * shape.heads * shape.seq;
  Array<float> lse(rows), row_terms(2 * rows), d_lse = floats(random, rows, 1, 0);

  SelectedAttentionParams p{};
  p.query = q.ref(), p.key = k.ref(), p.value = v.ref(), p.out = out.ref();
  p.blocks = blocks.data();
  p.lse = lse.data();
  p.row_terms = row_terms.data();
  p.batch = shape.batch, p.seq = shape.seq, p.heads = shape.heads, p.kv_heads = kv_heads;
  p.head_dim = shape.head_dim, p.value_dim = shape.value_dim;
  p.slots = shape.slots, p.block_size = shape.block_size;
  p.scale = random.chance(50) ? 0.3f : 1.5f;
  run(p, selected_items, selected_item);

  p.d_out = d_out.ref(), p.d_query = dq.ref(), p.d_key = dk.ref(), p.d_value = dv.ref();
  p.d_lse = d_lse.data();
  p.split_positions = 64 * random.integer(1, 3);
  p.planes = random.integer(1, 2);
  const size_t sums = size_t(p.splits()) * p.planes * shape.batch * kv_heads * shape.seq;
  const Array<float> d_key_sum(sums * round_up(shape.head_dim, kLanes));
  const Array<float> d_value_sum(sums * round_up(shape.value_dim, kLanes));
  p.d_key_sum = d_key_sum.data();
  p.d_value_sum = d_value_sum.data();
  run(p, selected_backward_items, selected_backward_item);
  run(p, finish_selected_items, finish_selected_item);

  const Named wanted = exact(
      shape, {shape, blocks},
      {{"q", q.get()}, {"k", k.get()}, {"v", v.get()}, {"d_out", d_out.get()}, {"d_lse", numbers_of(d_lse)}}, p.scale);
  compare(check, "lse", numbers_of(lse), wanted.at("lse"), 0);
  compare(check, "out", out.get(), wanted.at("out"), rounding(dtype));
  // Backward reads out as it was rounded.
  const double rounded = 4 * rounding(dtype);
  compare(check, "dq", dq.get(), wanted.at("dq"), rounded);
  compare(check, "dk", dk.get(), wanted.at("dk"), rounded);
  compare(check, "dv", dv.get(), wanted.at("dv"), rounding(dtype));
  return check.passed();
}

}  // namespace flashattn::test
