// A library that stands in for NVIDIA's cuBLASLt on the emulated device: the functions that are asked of it, written from
// their documentation and not from the code that calls them. It computes in float64 and complains of everything that the
// real one would not take, or that would read or write what it must not.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <string_view>

#include "addon/cuda/emulated/stand_in.h"

namespace {

enum Status {
  kSuccess = 0,
  kNotInitialized = 1,
  kAllocFailed = 3,
  kInvalidValue = 7,
  kExecutionFailed = 13,
  kNotSupported = 15
};
enum DataType { kR32F = 0, kR16F = 2, kR16BF = 14 };
enum Operation { kN = 0, kT = 1 };
enum Epilogue { kDefault = 1, kBias = 4 };
constexpr int kCompute32F = 68;
constexpr uint32_t kReduceInComputeType = 2;

const flashattn::emulated::Device* device = nullptr;

template <class... Values>
Status complain(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof(text), format, values...);
  device->complain(text);
  return kInvalidValue;
}

Status complain(const char* text) { return complain("%s", text); }

bool behaves(std::string_view behaviour) { return device->behaviour() == behaviour; }

/** What has been created and not destroyed. */
template <class Object>
class Alive {
 public:
  void add(Object* object) {
    const std::scoped_lock lock(mutex_);
    objects_.insert(object);
    device->count("cublasLtHandles", 1);
  }
  Status remove(Object* object) {
    const std::scoped_lock lock(mutex_);
    if (objects_.erase(object) == 0) return complain("destroyed what is not alive");
    device->count("cublasLtHandles", -1);
    delete object;
    return kSuccess;
  }
  bool has(Object* object) {
    const std::scoped_lock lock(mutex_);
    return objects_.count(object) == 1;
  }

 private:
  std::mutex mutex_;
  std::set<Object*> objects_;
};

template <class Object>
Alive<Object>& alive() {
  static Alive<Object>& objects = *new Alive<Object>;  // contexts may end after this library's statics
  return objects;
}

/** Reads a value whose size has to be that of its type. */
template <class Value>
bool read(const void* from, size_t bytes, Value* to) {
  if (from == nullptr || bytes != sizeof(Value)) return false;
  std::memcpy(to, from, bytes);
  return true;
}

struct Context {};

struct Desc {
  int32_t trans_a = kN, trans_b = kN;
  uint32_t epilogue = kDefault;
  const void* bias = nullptr;
  int64_t bias_batch_stride = 0;
};

struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t ld;
  int32_t batch = 1;
  int64_t batch_stride = 0;

  bool operator==(const Layout&) const = default;
};

struct Preference {
  uint64_t workspace = 0;
  uint32_t schemes = 7;
  uint32_t alignment[4] = {256, 256, 256, 256};
};

/** What an algorithm was chosen for. Fits into the 64 bytes of its struct. */
struct Algorithm {
  uint64_t signature;
  uint32_t alignment[4], bias_alignment;
  uint32_t workspace;
  uint64_t unused[4];
};
static_assert(sizeof(Algorithm) == 64);

struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

class Hash {
 public:
  template <class Value>
  void add(Value value) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(&value);
    for (size_t i = 0; i < sizeof(value); ++i) hash_ = (hash_ ^ bytes[i]) * 1099511628211u;
  }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 14695981039346656037u;
};

uint64_t signature_of(const Desc& desc, const Layout* const (&layouts)[4]) {
  Hash hash;
  hash.add(desc.trans_a), hash.add(desc.trans_b), hash.add(desc.epilogue), hash.add(desc.bias_batch_stride);
  for (const Layout* l : layouts)
    hash.add(l->type), hash.add(l->rows), hash.add(l->columns), hash.add(l->ld), hash.add(l->batch),
        hash.add(l->batch_stride);
  return hash.value();
}

uint32_t alignment_of(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data) | 256;
  return static_cast<uint32_t>(address & (~address + 1));
}

size_t element_bytes(int type) { return type == kR32F ? 4 : 2; }

struct Sizes {
  uint64_t rows, columns, inner;
};

/** Whether the matrices fit each other, and are of types that go together. */
Status check_shapes(const Desc& desc, const Layout* const (&layouts)[4], Sizes* sizes) {
  const auto& [a, b, c, d] = layouts;
  *sizes = {desc.trans_a == kN ? a->rows : a->columns, desc.trans_b == kN ? b->columns : b->rows,
            desc.trans_a == kN ? a->columns : a->rows};
  const uint64_t inner_of_b = desc.trans_b == kN ? b->rows : b->columns;
  if (inner_of_b != sizes->inner) return complain("the inner dims of A and B differ");
  if (d->rows != sizes->rows || d->columns != sizes->columns) return complain("D is not as large as op(A) op(B)");
  if (c->rows != d->rows || c->columns != d->columns) return complain("C is not as large as D");
  for (const Layout* l : layouts)
    if (l->batch != d->batch) return complain("the batches differ: %d and %d", l->batch, d->batch);
  if (d->batch > 1 && d->batch_stride == 0) return complain("the matrices of D lie at one place");
  if (a->type != b->type || c->type != d->type) return complain("the types of A and B, or of C and D, differ");
  const bool types_fit = d->type == a->type || (d->type == kR32F && a->type != kR32F);
  return types_fit ? kSuccess : complain("no such types: A %d, D %d", a->type, d->type);
}

// A product on its way ------------------------------------------------------------------------------------------------

struct Call {
  Desc desc;
  Layout a, b, c, d;
  Sizes sizes;
  const void *data_a, *data_b, *data_c;
  void* data_d;
  float alpha, beta;
  void* workspace;
  size_t workspace_bytes;
};

double get(const void* data, int type, int64_t at) {
  if (type == kR32F) return static_cast<const float*>(data)[at];
  if (type == kR16F) return static_cast<const _Float16*>(data)[at];
  const uint32_t bits = uint32_t{static_cast<const uint16_t*>(data)[at]} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void set(void* data, int type, int64_t at, double value) {
  if (type == kR32F)
    static_cast<float*>(data)[at] = static_cast<float>(value);
  else if (type == kR16F)
    static_cast<_Float16*>(data)[at] = static_cast<_Float16>(value);
  else
    static_cast<uint16_t*>(data)[at] = to_bfloat16(static_cast<float>(value));
}

double element(const void* data, const Layout& layout, int64_t entry, uint64_t row, uint64_t column) {
  const int64_t at = entry * layout.batch_stride + static_cast<int64_t>(column) * layout.ld + static_cast<int64_t>(row);
  return get(data, layout.type, at);
}

void run(const void* from) {
  Call call;
  std::memcpy(&call, from, sizeof(call));
  // Whoever reads what is left there gets NaN.
  if (call.workspace_bytes > 0 && !device->is_memory(call.workspace, call.workspace_bytes)) {
    complain("the workspace has been freed");
    return;
  }
  std::memset(call.workspace, 0xff, call.workspace_bytes < 4096 ? call.workspace_bytes : 4096);
  const auto& [desc, a, b, c, d, sizes, data_a, data_b, data_c, data_d, alpha, beta, workspace, bytes] = call;
  for (int64_t entry = 0; entry < d.batch; ++entry)
    for (uint64_t j = 0; j < sizes.columns; ++j)
      for (uint64_t i = 0; i < sizes.rows; ++i) {
        double sum = 0;
        for (uint64_t k = 0; k < sizes.inner; ++k)
          sum += (desc.trans_a == kN ? element(data_a, a, entry, i, k) : element(data_a, a, entry, k, i)) *
                 (desc.trans_b == kN ? element(data_b, b, entry, k, j) : element(data_b, b, entry, j, k));
        sum *= alpha;
        if (beta != 0) sum += beta * element(data_c, c, entry, i, j);
        if (desc.epilogue == kBias)
          sum += get(desc.bias, d.type, entry * desc.bias_batch_stride + static_cast<int64_t>(i));
        set(data_d, d.type, entry * d.batch_stride + static_cast<int64_t>(j) * d.ld + static_cast<int64_t>(i), sum);
      }
}

/** Whether all elements of a matrix lie in memory of the device. */
bool is_inside(const void* data, const Layout& l) {
  const auto last =
      static_cast<size_t>((l.batch - 1) * l.batch_stride + static_cast<int64_t>(l.columns - 1) * l.ld) + l.rows;
  return device->is_memory(data, last * element_bytes(l.type));
}

Status check_memory(const Call& call, const Algorithm& algorithm) {
  const void* const data[] = {call.data_a, call.data_b, call.data_c, call.data_d};
  const Layout* const layouts[] = {&call.a, &call.b, &call.c, &call.d};
  for (int i = 0; i < 4; ++i) {
    if (i == 2 && call.beta == 0) continue;
    if (!is_inside(data[i], *layouts[i])) return complain("matrix %c leaves the memory of the device", "ABCD"[i]);
    if (alignment_of(data[i]) < algorithm.alignment[i])
      return complain("matrix %c is less aligned than promised", "ABCD"[i]);
    const auto stride_bytes = static_cast<uint64_t>(layouts[i]->batch_stride) * element_bytes(layouts[i]->type);
    if (layouts[i]->batch > 1 && stride_bytes % algorithm.alignment[i] != 0)
      return complain("an entry of matrix %c is less aligned than promised", "ABCD"[i]);
  }
  if (call.data_c == call.data_d && call.c != call.d) return complain("C and D are one matrix with two layouts");
  if (call.desc.epilogue == kBias) {
    const Layout bias{call.d.type, call.sizes.rows, 1, 1, call.d.batch, call.desc.bias_batch_stride};
    if (!is_inside(call.desc.bias, bias)) return complain("the bias leaves the memory of the device");
    if (alignment_of(call.desc.bias) < algorithm.bias_alignment)
      return complain("the bias is less aligned than promised");
  }
  if (call.workspace_bytes < algorithm.workspace) return complain("the workspace is too small");
  if (!device->is_memory(call.workspace, call.workspace_bytes))
    return complain("the workspace is no memory of the device");
  return alignment_of(call.workspace) < 256 ? complain("the workspace is not aligned") : kSuccess;
}

}  // namespace

// What is asked for by name -------------------------------------------------------------------------------------------

extern "C" {

void flashattn_use_device(const flashattn::emulated::Device* given) { device = given; }

// Asked before a device is given.
size_t cublasLtGetVersion() { return VERSION; }  // of the compiler's command line

const char* cublasLtGetStatusName(Status status) {
  switch (status) {
    case kSuccess: return "CUBLAS_STATUS_SUCCESS";
    case kNotInitialized: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case kAllocFailed: return "CUBLAS_STATUS_ALLOC_FAILED";
    case kInvalidValue: return "CUBLAS_STATUS_INVALID_VALUE";
    case kExecutionFailed: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case kNotSupported: return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "CUBLAS_STATUS_UNKNOWN";
}

Status cublasLtCreate(Context** context) {
  if (behaves("create fails")) return kNotInitialized;
  alive<Context>().add(*context = new Context);
  return kSuccess;
}
Status cublasLtDestroy(Context* context) { return alive<Context>().remove(context); }

Status cublasLtMatmulDescCreate(Desc** desc, int compute_type, int scale_type) {
  if (behaves("descriptions fail")) return kAllocFailed;
  if (compute_type != kCompute32F || scale_type != kR32F) return complain("sums of type %d", compute_type);
  alive<Desc>().add(*desc = new Desc);
  return kSuccess;
}
Status cublasLtMatmulDescDestroy(Desc* desc) { return alive<Desc>().remove(desc); }
Status cublasLtMatmulDescSetAttribute(Desc* desc, int attribute, const void* value, size_t bytes) {
  if (!alive<Desc>().has(desc)) return complain("no description of a product");
  bool valid = false;
  switch (attribute) {
    case 3: valid = read(value, bytes, &desc->trans_a) && (desc->trans_a == kN || desc->trans_a == kT); break;
    case 4: valid = read(value, bytes, &desc->trans_b) && (desc->trans_b == kN || desc->trans_b == kT); break;
    case 7:
      valid = read(value, bytes, &desc->epilogue) && (desc->epilogue == kDefault || desc->epilogue == kBias);
      break;
    case 8: valid = read(value, bytes, &desc->bias) && desc->bias != nullptr; break;
    case 10: valid = read(value, bytes, &desc->bias_batch_stride) && desc->bias_batch_stride >= 0; break;
    default: break;
  }
  return valid ? kSuccess : complain("attribute %d of a product with %zu bytes", attribute, bytes);
}

Status cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t ld) {
  if (behaves("layouts fail")) return kAllocFailed;
  if (type != kR32F && type != kR16F && type != kR16BF) return complain("a matrix of type %d", type);
  if (rows == 0 || columns == 0 || rows > INT32_MAX || columns > INT32_MAX)
    return complain("a matrix without elements");
  if (ld < static_cast<int64_t>(rows)) return complain("columns of %d rows overlap", static_cast<int>(rows));
  alive<Layout>().add(*layout = new Layout{type, rows, columns, ld});
  return kSuccess;
}
Status cublasLtMatrixLayoutDestroy(Layout* layout) { return alive<Layout>().remove(layout); }
Status cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t bytes) {
  if (!alive<Layout>().has(layout)) return complain("no layout of a matrix");
  bool valid = false;
  if (attribute == 5) valid = read(value, bytes, &layout->batch) && layout->batch >= 1;
  if (attribute == 6) valid = read(value, bytes, &layout->batch_stride) && layout->batch_stride >= 0;
  return valid ? kSuccess : complain("attribute %d of a matrix with %zu bytes", attribute, bytes);
}

Status cublasLtMatmulPreferenceCreate(Preference** preference) {
  alive<Preference>().add(*preference = new Preference);
  return kSuccess;
}
Status cublasLtMatmulPreferenceDestroy(Preference* preference) { return alive<Preference>().remove(preference); }
Status cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t bytes) {
  if (!alive<Preference>().has(preference)) return complain("no preference");
  bool valid = false;
  if (attribute == 1) valid = read(value, bytes, &preference->workspace);
  if (attribute == 3) valid = read(value, bytes, &preference->schemes) && preference->schemes <= 7;
  if (attribute >= 5 && attribute <= 8) {
    uint32_t& alignment = preference->alignment[attribute - 5];
    valid = read(value, bytes, &alignment) && alignment > 0 && (alignment & (alignment - 1)) == 0;
  }
  return valid ? kSuccess : complain("attribute %d of a preference with %zu bytes", attribute, bytes);
}

Status cublasLtMatmulAlgoGetHeuristic(Context* context, Desc* desc, Layout* a, Layout* b, Layout* c, Layout* d,
                                      Preference* preference, int most, HeuristicResult* results, int* found) {
  device->count("cublasLtHeuristics", 1);
  *found = 0;
  if (behaves("nothing found")) return kSuccess;
  if (behaves("nothing supported")) return kNotSupported;
  const Layout* const layouts[] = {a, b, c, d};
  bool known = alive<Context>().has(context) && alive<Desc>().has(desc) && alive<Preference>().has(preference);
  for (Layout* l : {a, b, c, d}) known = known && alive<Layout>().has(l);
  if (!known || most < 1 || results == nullptr) return complain("no such handles");
  Sizes sizes;
  if (const Status status = check_shapes(*desc, layouts, &sizes); status != kSuccess) return status;
  if (preference->schemes != kReduceInComputeType) return complain("sums that are not added up in float32");
  if (desc->epilogue == kBias && desc->bias == nullptr) return complain("no bias");
  // Some of it is always needed.
  constexpr uint32_t kNeeded = 4096;
  if (preference->workspace < kNeeded) return kNotSupported;
  HeuristicResult result{};
  result.algorithm.signature = signature_of(*desc, layouts);
  std::memcpy(result.algorithm.alignment, preference->alignment, sizeof(preference->alignment));
  result.algorithm.bias_alignment = desc->epilogue == kBias ? alignment_of(desc->bias) : 0;
  result.algorithm.workspace = kNeeded;
  result.workspace = behaves("too large a workspace") ? preference->workspace + 1 : kNeeded;
  result.state = behaves("no valid result") ? kNotSupported : kSuccess;
  result.waves = 1;
  *results = result;
  *found = 1;
  return kSuccess;
}

Status cublasLtMatmul(Context* context, Desc* desc, const void* alpha, const void* data_a, Layout* a,
                      const void* data_b, Layout* b, const void* beta, const void* data_c, Layout* c, void* data_d,
                      Layout* d, const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
  if (behaves("products are refused")) return kNotSupported;
  if (behaves("products fail")) return kExecutionFailed;
  const Layout* const layouts[] = {a, b, c, d};
  bool known = alive<Context>().has(context) && alive<Desc>().has(desc) && algorithm != nullptr;
  for (Layout* l : {a, b, c, d}) known = known && alive<Layout>().has(l);
  if (!known || alpha == nullptr || beta == nullptr) return complain("no such handles");
  Call call{*desc, *a, *b, *c, *d, {}, data_a, data_b, data_c, data_d, 0, 0, workspace, workspace_bytes};
  std::memcpy(&call.alpha, alpha, sizeof(float));
  std::memcpy(&call.beta, beta, sizeof(float));
  if (call.beta != 0 && behaves("what is added is refused")) return kNotSupported;
  if (const Status status = check_shapes(*desc, layouts, &call.sizes); status != kSuccess) return status;
  if (algorithm->signature != signature_of(*desc, layouts)) return complain("an algorithm for another product");
  if (const Status status = check_memory(call, *algorithm); status != kSuccess) return status;
  device->count("cublasLtMatmul", 1);
  return device->launch(stream, "cublasLtMatmul", run, &call, sizeof(call)) == 0 ? kSuccess : kExecutionFailed;
}

}  // extern "C"
