// The launches over flat memory: gathering rows, copying, filling, the arithmetic peak; and the name of a failure.
#include "device_tensor.h"
#include "launch.h"
#include "launch_error.h"

namespace flashattn::test {

namespace {

/** Some of float32, in bits: every exponent, both signs, ties between fp16 or bf16 neighbours, infinities and NaN. */
std::vector<uint32_t> interesting_floats(Random& random) {
  std::vector<uint32_t> bits;
  for (uint32_t exponent = 0; exponent < 256; ++exponent)
    for (const uint32_t mantissa : {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x3000u, 0x7fffu, 0x8000u, 0x8001u, 0x18000u,
                                    0x7fe000u, 0x7ff000u, 0x7f8000u, 0x7fffffu, random.bits() & 0x7fffffu})
      for (const uint32_t sign : {0u, 0x80000000u}) bits.push_back(sign | exponent << 23 | mantissa);
  return bits;
}

std::vector<uint32_t> every_pattern(DType dtype, Random& random) {
  if (dtype == DType::Float32) return interesting_floats(random);
  std::vector<uint32_t> bits;
  for (uint32_t pattern = 0; pattern < 65536; pattern += 3) bits.push_back(pattern);  // 3 divides no power of 2
  return bits;
}

bool same_number(DType dtype, uint32_t a, uint32_t b) {
  return a == b || (std::isnan(decode(dtype, a)) && std::isnan(decode(dtype, b)));
}

/** Elements [begin, begin + count) of arrays that are aligned where begin is 0. */
void check_cast(DType from, DType to, const std::vector<uint32_t>& patterns, int64_t begin, int64_t count) {
  const int from_bytes = format_of(from).bytes, to_bytes = format_of(to).bytes;
  DeviceArray<uint8_t> source((begin + count) * from_bytes, 0), target((begin + count + 9) * to_bytes, 0xee);
  const auto pattern = [&](int64_t i) { return patterns[static_cast<size_t>(i) % patterns.size()]; };
  for (int64_t i = 0; i < count; ++i) write_bits(from, source.host.data(), begin + i, pattern(i));
  source.upload();
  const uint8_t* first = source.data() + begin * from_bytes;
  const CopyParams p{first,
                     target.data() + begin * to_bytes,
                     {1, 1, 1, 1, 1, count},
                     {0, 0, 0, 0, 0, 1},
                     {0, 0, 0, 0, 0, 1},
                     from,
                     to,
                     0,
                     0};
  check(launch_copy(p, {}, nullptr));
  target.download();
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t expected = encode(to, decode(from, pattern(i))), got = read_bits(to, target.host.data(), begin + i);
    expect(same_number(to, got, expected), "%s %x to %s: %x, not %x", name_of(from), pattern(i), name_of(to), got,
           expected);
    write_bits(to, target.host.data(), begin + i, 0xeeeeeeeeu);
  }
  expect(std::all_of(target.host.begin(), target.host.end(), [](uint8_t byte) { return byte == 0xee; }),
         "copy of %d from %d writes beyond", static_cast<int>(count), static_cast<int>(begin));
}

void check_casts(Random& random) {
  for (const DType from : kDTypes)
    for (const DType to : kDTypes) {
      const std::vector<uint32_t> patterns = every_pattern(from, random);
      check_cast(from, to, patterns, 0, static_cast<int64_t>(patterns.size()));
      for (const int begin : {0, 1, 4})
        for (const int count : {0, 1, 7, 8, 300, 2051}) check_cast(from, to, patterns, begin, count);
    }
}

void check_fill() {
  for (const int begin : {0, 1, 2, 4})
    for (const int count : {0, 1, 3, 4, 5, 1023, 5000}) {
      DeviceArray<uint32_t> data(begin + count + 5, 7u);
      check(launch_fill({data.data() + begin, count, 0xdeadbeefu, 0}, {}, nullptr));
      data.download();
      for (int i = 0; i < begin + count + 5; ++i) {
        const bool inside = i >= begin && i < begin + count;
        expect(data.host[i] == (inside ? 0xdeadbeefu : 7u), "fill of %d from %d: word %d is %x", count, begin, i,
               data.host[i]);
      }
    }
}

/** A strided copy of [3, 5, inner] in [outer, inner, middle] order, into or onto every second row. */
void check_strided_copy(DType from, DType to, int inner, bool accumulate, Random& random) {
  constexpr int kOuter = 3, kMiddle = 5;
  const int64_t from_strides[6] = {0, 0, 0, int64_t{kMiddle} * inner, 1, kMiddle};
  const int64_t to_strides[6] = {0, 0, 0, int64_t{2} * kMiddle * inner, int64_t{2} * inner, 1};
  DeviceArray<uint8_t> source(static_cast<size_t>(kOuter) * kMiddle * inner * format_of(from).bytes, 0);
  DeviceArray<uint8_t> target(static_cast<size_t>(2) * kOuter * kMiddle * inner * format_of(to).bytes, 0);
  for (int i = 0; i < kOuter * kMiddle * inner; ++i)
    write_bits(from, source.host.data(), i, encode(from, random.uniform(-1, 1)));
  for (int i = 0; i < 2 * kOuter * kMiddle * inner; ++i)
    write_bits(to, target.host.data(), i, encode(to, random.uniform(-1, 1)));
  source.upload();
  target.upload();
  const std::vector<uint8_t> before = target.host;
  CopyParams p{source.data(), target.data(), {1, 1, 1, kOuter, kMiddle, inner}, {}, {}, from, to, accumulate, 0};
  std::copy(from_strides, from_strides + 6, p.from_strides);
  std::copy(to_strides, to_strides + 6, p.to_strides);
  check(launch_copy(p, {}, nullptr));
  target.download();
  for (int row = 0; row < 2 * kOuter * kMiddle; ++row)
    for (int c = 0; c < inner; ++c) {
      const int64_t at = int64_t{row} * inner + c;
      const int outer = row / 2 / kMiddle, middle = row / 2 % kMiddle;
      const int64_t source_at = (int64_t{outer} * inner + c) * kMiddle + middle;
      const uint32_t old = read_bits(to, before.data(), at), got = read_bits(to, target.host.data(), at);
      const double copied = decode(from, read_bits(from, source.host.data(), source_at));
      const uint32_t added = encode(to, static_cast<float>(accumulate ? decode(to, old) + copied : copied));
      expect(got == (row % 2 == 0 ? added : old), "strided copy of %s to %s, inner %d: %x, not %x", name_of(from),
             name_of(to), inner, got, row % 2 == 0 ? added : old);
    }
}

void check_gather(int batch, int rows, int elements, DType dtype, Layout layout, Random& random) {
  constexpr int kSourceRows = 11;
  Tensor source(batch, kSourceRows, 1, elements, dtype, layout);
  Tensor result(batch, rows, 1, elements, dtype, Layout::SeqFirst);
  source.randomize(random);
  std::vector<int32_t> offsets{0}, indices;
  for (int row = 0; row < rows; ++row) {  // an empty list first
    for (int at = 0; at < row % 4; ++at) indices.push_back(random.below(kSourceRows));
    std::sort(indices.begin() + offsets.back(), indices.end());
    offsets.push_back(static_cast<int32_t>(indices.size()));
  }
  DeviceArray<int32_t> device_offsets(offsets), device_indices(indices);
  const TensorRef from = source.ref();
  const float scale = 0.3f;
  const BlockLists lists{device_offsets.data(), device_indices.data()};
  const GatherParams p{from.data, result.ref().data, from.batch, from.seq, lists, dtype, batch,
                       rows,      elements,          scale,      0};
  check(launch_gather(p, {}, nullptr));
  result.download();
  result.for_each([&](int b, int row, int, int e) {
    double expected = 0;
    for (int at = offsets[row]; at < offsets[row + 1]; ++at) expected += source.get(b, indices[at], 0, e);
    expected *= scale;
    const double got = result.get(b, row, 0, e);
    expect(close(dtype, got, expected), "gather [%d, %d, %d] of %d %s, layout %d: %g, not %g", b, row, e, elements,
           name_of(dtype), static_cast<int>(layout), got, expected);
  });
}

void check_peak() {
  DeviceArray<float> sink(1, -1.0f);
  check(launch_peak({sink.data(), 2, 3}, {}, nullptr));
  sink.download();
  const float thrice = sink.host[0];
  check(launch_peak({sink.data(), 1, 6}, {}, nullptr));
  sink.download();
  expect(std::isfinite(thrice) && thrice != 0 && thrice != -1, "peak: %g", thrice);
  const double doubled = 2.0 * thrice;
  expect(close(DType::Float32, sink.host[0], doubled, 10), "peak: %g, not %g", sink.host[0], doubled);
}

void check_last_kernel() {
  expect(launched("good", cudaSuccess) == cudaSuccess, "launched changes a success");
  expect(std::strcmp(last_kernel(), "") == 0, "no launch has failed, last_kernel says %s", last_kernel());
  expect(launched("bad", cudaErrorInvalidValue) == cudaErrorInvalidValue, "launched changes an error");
  launched("good", cudaSuccess);
  expect(std::strcmp(last_kernel(), "bad") == 0, "last_kernel says %s", last_kernel());
}

}  // namespace

}  // namespace flashattn::test

int main() {
  using namespace flashattn::test;
  start();
  Random random(3);
  check_last_kernel();
  check_casts(random);
  for (const flashattn::DType from : kDTypes)
    for (const flashattn::DType to : kDTypes)
      for (const int inner : {1, 7, 16})
        for (const bool accumulate : {false, true}) check_strided_copy(from, to, inner, accumulate, random);
  check_fill();
  for (const int elements : {1, 5, 8, 64, 100, 1032})
    for (const flashattn::DType dtype : kDTypes)
      for (const Layout layout : kLayouts) check_gather(2, 7, elements, dtype, layout, random);
  check_gather(3, 0, 8, flashattn::DType::Float16, Layout::SeqFirst, random);
  check_peak();
  return finish();
}
