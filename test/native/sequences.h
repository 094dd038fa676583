// Sequences in memory of exactly their size, and their results against loops in double: values, and gradients against
// differences of these in a random direction of each input.
#pragma once
#include <math.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "check.h"
#include "structs/types.h"

namespace flashattn::test {

using Numbers = std::vector<double>;
/** The inputs of a case, or its results, by their names. */
using Named = std::map<std::string, Numbers>;

/** [batch, length, rows, channels] with the last dim contiguous. */
struct Sequences {
  Sequences(Random& random, int batch, int length, int rows, int channels, DType dtype)
      : batch(batch),
        length(length),
        rows(rows),
        channels(channels),
        dtype(dtype) {
    head = channels + (random.chance(40) ? random.integer(1, 5) : 0);
    seq = rows * head + (random.chance(40) ? random.integer(1, 5) : 0);
    const int64_t places = size() == 0 ? 0
                                       : int64_t{batch - 1} * length * seq + int64_t{length - 1} * seq +
                                             int64_t{rows - 1} * head + channels;
    bytes = Array<uint8_t>(static_cast<size_t>(places) * element_size(dtype));
  }

  int size() const { return batch * length * rows * channels; }
  uint8_t* at(int i) const {
    const int c = i % channels, h = i / channels % rows, t = i / channels / rows % length;
    const int b = i / channels / rows / length;
    return bytes.data() + (int64_t{b} * length * seq + int64_t{t} * seq + int64_t{h} * head + c) * element_size(dtype);
  }
  Numbers get() const {
    Numbers values(static_cast<size_t>(size()));
    for (int i = 0; i < size(); ++i) values[static_cast<size_t>(i)] = decode(at(i), dtype);
    return values;
  }
  void set(Random& random, float factor, float shift) const {
    for (int i = 0; i < size(); ++i) encode(at(i), dtype, factor * random.number() + shift);
  }
  TensorRef ref() const {
    TensorRef result{};
    result.data = bytes.data();
    result.batch = length * seq;
    result.seq = seq;
    result.head = head;
    result.dtype = dtype;
    return result;
  }

  int batch, length, rows, channels;
  DType dtype;
  int64_t head = 0, seq = 0;
  Array<uint8_t> bytes;
};

inline Numbers numbers_of(const Array<float>& array) { return Numbers(array.data(), array.data() + array.size()); }

inline Array<float> floats(Random& random, size_t count, float factor, float shift) {
  Array<float> array(count);
  for (size_t i = 0; i < count; ++i) array[i] = factor * random.number() + shift;
  return array;
}

inline void check_forward(Check& check, const Named& wanted, const Named& got, DType dtype) {
  for (const auto& [name, values] : got) {
    const Numbers& exact = wanted.at(name);
    const double rounded = name == "out" ? rounding(dtype) : 0, absolute = 2e-5 * largest(exact);
    for (size_t i = 0; i < values.size(); ++i) check.near(name.c_str(), values[i], exact[i], absolute, rounded);
  }
}

using Forward = std::function<Named(const Named&)>;

/** The sum of all results, each weighted by its cotangent. */
inline double objective(const Forward& forward, const Named& inputs, const Named& cotangents) {
  const Named results = forward(inputs);
  double sum = 0;
  for (const auto& [name, weights] : cotangents)
    for (size_t i = 0; i < weights.size(); ++i) sum += results.at(name)[i] * weights[i];
  return sum;
}

/** `gradients`: by the name of the input. */
inline void check_gradients(Check& check, Random& random, const Forward& forward, const Named& inputs,
                            const Named& cotangents, const Named& gradients, DType dtype) {
  for (const auto& [name, gradient] : gradients) {
    constexpr double kStep = 1e-5;
    Named there = inputs, back = inputs;
    double slope = 0, size = 1;
    for (size_t i = 0; i < gradient.size(); ++i) {
      const double direction = random.number();
      there[name][i] += kStep * direction;
      back[name][i] -= kStep * direction;
      slope += gradient[i] * direction;
      size += fabs(gradient[i] * direction);
    }
    const double wanted = (objective(forward, there, cotangents) - objective(forward, back, cotangents)) / (2 * kStep);
    check.near(name.c_str(), slope, wanted, (1e-4 + rounding(dtype)) * size, 0);
  }
}

template <class P, class W>
void run(const P& p, int (*items)(const P&), void (*item)(const P&, int, W&)) {
  const auto workspace = poisoned_workspace<W>();
  for (int i = items(p) - 1; i >= 0; --i) item(p, i, *workspace);
}

template <class P>
void run(const P& p, int (*items)(const P&), void (*item)(const P&, int)) {
  for (int i = items(p) - 1; i >= 0; --i) item(p, i);
}

}  // namespace flashattn::test
