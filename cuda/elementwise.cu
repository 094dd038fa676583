// Programs of arithmetic on elements. A thread runs all instructions on eight elements; the value that the last instruction
// made is in registers, what is read again later has a column of the thread in shared memory.
#include "flat.cuh"
#include "functions.cuh"
#include "launch.h"
#include "vector.cuh"

namespace flashattn {

namespace {

constexpr int kInner = kProgramDims - 1;
constexpr int kMostThreads = 128;
constexpr int kColumnBytes = kVector * static_cast<int>(sizeof(float)), kUncheckedShared = 48 * 1024;

// Where an operand of an instruction is. Below kConstant: in a row of shared memory.
constexpr uint32_t kConstant = 64, kAtHand = 255;
/** In the place of the row of a value that nobody reads later. */
constexpr uint32_t kNoRow = 255;

/** An instruction whose operands have been found. */
struct alignas(8) Step {
  uint8_t opcode, row, a, b, c, operands, reserved[2];
};

struct ElementwiseLaunch {
  ElementwiseParams params;
  Step steps[kProgramInstructions];
  int64_t chunks, items;       // groups of lanes along the innermost dim; of all
  int32_t lane_bits, threads;  // of a group; of a block
  int32_t load_count;
  uint8_t loads[kProgramOperands];          // the inputs that are read, in this order
  uint8_t input_rows[kProgramOperands];     // by input
  uint8_t result_places[kProgramOperands];  // by output
  bool whole[kProgramOperands];             // by array: its eight elements are one access, or two
};

/** Eight elements of each row of shared memory, of this thread. */
struct Columns {
  uint32_t first, stride;

  FLASHATTN_DEVICE void load(float (&x)[kVector], uint32_t row) const {
    const uint32_t at = first + 2 * row * stride;
    detail::unpack<Float32>(x, ptx::load_shared<uint4>(at));
    detail::unpack<Float32>(x + kVector / 2, ptx::load_shared<uint4>(at + stride));
  }
  FLASHATTN_DEVICE void store(uint32_t row, const float (&x)[kVector]) const {
    const uint32_t at = first + 2 * row * stride;
    ptx::store_shared(at, detail::pack<Float32>(x));
    ptx::store_shared(at + stride, detail::pack<Float32>(x + kVector / 2));
  }
};

/** x = what lies at `place`. */
FLASHATTN_DEVICE void fetch(float (&x)[kVector], uint32_t place, const float (&at_hand)[kVector],
                            const Columns& columns, const ElementwiseParams& p) {
  if (place == kAtHand) {
    for (int e = 0; e < kVector; ++e) x[e] = at_hand[e];
  } else if (place >= kConstant) {
    const float constant = p.constants[place - kConstant];
    for (int e = 0; e < kVector; ++e) x[e] = constant;
  } else {
    columns.load(x, place);
  }
}

/** Which elements a thread has: `count` of them, every `step`th of the innermost dim from `inner` on. */
struct ThreadPlace {
  int64_t outer[kInner], inner, index;  // index: of the first one in the result, row by row
  int32_t step, count;

  FLASHATTN_DEVICE int64_t offset(const ProgramOperand& array) const {
    int64_t result = inner * array.strides[kInner];
#pragma unroll
    for (int axis = 0; axis < kInner; ++axis) result += outer[axis] * array.strides[axis];
    return result;
  }
};

FLASHATTN_DEVICE ThreadPlace place_of(const ElementwiseLaunch& launch, int64_t item, int lane) {
  const ElementwiseParams& p = launch.params;
  ThreadPlace place;
  place.step = 1 << launch.lane_bits;
  int64_t row = launch.items == launch.chunks ? 0 : item / launch.chunks;
  place.inner = (item - row * launch.chunks) * kVector * place.step + lane;
  place.index = row * p.sizes[kInner] + place.inner;
  const int64_t left = (p.sizes[kInner] - place.inner + place.step - 1) >> launch.lane_bits;
  place.count = static_cast<int32_t>(left < kVector ? left : kVector);
#pragma unroll
  for (int axis = kInner - 1; axis >= 0; --axis) {
    const int64_t size = p.sizes[axis], above = size == 1 ? row : axis == 0 ? 0 : row / size;
    place.outer[axis] = row - above * size;
    row = above;
  }
  return place;
}

struct Int32Rest {
  using Storage = int32_t;
  static FLASHATTN_DEVICE float load(Storage x) {
    return static_cast<float>(int64_t{x} - static_cast<int64_t>(static_cast<float>(x)));
  }
};

FLASHATTN_DEVICE void load_elements(float (&x)[kVector], const ProgramOperand& array, bool whole,
                                    const ThreadPlace& place) {
  const int64_t stride = array.strides[kInner] * place.step;
  const auto load = [&](auto element) {
    using Element = decltype(element);
    using Storage = typename Element::Storage;
    const Storage* from = static_cast<const Storage*>(static_cast<const void*>(array.data)) + place.offset(array);
    if (whole) {
      load_vector<Element>(x, from, place.count, true);
    } else if (stride == 0) {
      const float value = Element::load(ptx::load_global(from));
      for (int e = 0; e < kVector; ++e) x[e] = value;
    } else {
#pragma unroll
      for (int e = 0; e < kVector; ++e)
        x[e] = e < place.count ? Element::load(ptx::load_global(from + e * stride)) : 0.0f;
    }
  };
  if (array.dtype == kInt32Rest)
    load(Int32Rest{});
  else
    with_any_element(array.dtype, load);
}

FLASHATTN_DEVICE void store_elements(const ProgramOperand& array, bool whole, const ThreadPlace& place,
                                     const float (&x)[kVector]) {
  const int64_t stride = array.strides[kInner] * place.step;
  with_any_element(array.dtype, [&](auto element) {
    using Element = decltype(element);
    using Storage = typename Element::Storage;
    Storage* to = static_cast<Storage*>(static_cast<void*>(array.data)) + place.offset(array);
    if (whole) {
      store_vector<Element>(to, x, place.count, true);
    } else {
#pragma unroll
      for (int e = 0; e < kVector; ++e)
        if (e < place.count) ptx::store_global(to + e * stride, Element::store(x[e]));
    }
  });
}

FLASHATTN_KERNEL(kMostThreads) elementwise_kernel(const FLASHATTN_CONSTANT ElementwiseLaunch launch) {
  const ElementwiseParams& p = launch.params;
  const int64_t thread = static_cast<int64_t>(ptx::block().x) * launch.threads + ptx::thread();
  const int64_t item = thread >> launch.lane_bits;
  if (item >= launch.items) return;
  const ThreadPlace place = place_of(launch, item, static_cast<int>(thread) & ((1 << launch.lane_bits) - 1));
  if (place.count <= 0) return;
  const Columns columns{ptx::shared_base() + static_cast<uint32_t>(ptx::thread() * kAccessBytes),
                        static_cast<uint32_t>(launch.threads * kAccessBytes)};

  float at_hand[kVector] = {};
#pragma unroll 1
  for (int i = 0; i < launch.load_count; ++i) {
    const int k = launch.loads[i];
    load_elements(at_hand, p.operands[k], launch.whole[k], place);
    if (launch.input_rows[k] != kNoRow) columns.store(launch.input_rows[k], at_hand);
  }
#pragma unroll 1
  for (int i = 0; i < p.instruction_count; ++i) {
    const Step step = launch.steps[i];
    const Opcode opcode = static_cast<Opcode>(step.opcode);
    if (step.operands == 0) {
      uint64_t index = static_cast<uint64_t>(place.index);
      const Seed seed = seed_of(p);
#pragma unroll 1
      for (int e = 0; e < kVector; ++e) {
        shift(at_hand, random_of(opcode, index, step.b, seed));
        index += static_cast<uint64_t>(place.step);
      }
    } else {
      float x[kVector], y[kVector] = {}, z[kVector] = {};
      fetch(x, step.a, at_hand, columns, p);
      if (step.operands > 1) fetch(y, step.b, at_hand, columns, p);
      if (step.operands > 2) fetch(z, step.c, at_hand, columns, p);
      run_instruction(opcode, at_hand, x, y, z);
    }
    if (step.row != kNoRow) columns.store(step.row, at_hand);
  }
#pragma unroll 1
  for (int k = 0; k < p.output_count; ++k) {
    const ProgramOperand& array = p.operands[p.input_count + k];
    float x[kVector];
    fetch(x, launch.result_places[k], at_hand, columns, p);
    store_elements(array, launch.whole[p.input_count + k], place, x);
  }
}

// On the host ---------------------------------------------------------------------------------------------------------

/** Finds where each operand is; returns the number of rows of shared memory. */
class Placement {
 public:
  explicit Placement(ElementwiseLaunch& launch) : launch_(launch), p_(launch.params) {
    for (int& maker : maker_) maker = kNobody;
    find_uses();
    order_inputs();
    assign();
  }

  int rows() const { return rows_; }

 private:
  // Values are told apart by who makes them: an instruction by its index, an input by kInput + its index.
  static constexpr int kInput = kProgramInstructions, kMakers = kInput + kProgramOperands, kNobody = -1;
  static constexpr int kRegisters = 64;

  bool is_constant(int reg) const { return reg >= p_.input_count && reg < p_.input_count + p_.constant_count; }

  /** visit(instruction, which of its operands, register); then the outputs, which are read after the last instruction. */
  template <class Visit, class Made>
  void walk(Visit visit, Made made) {
    for (int k = 0; k < p_.input_count; ++k) maker_[k] = kInput + k;
    for (int i = 0; i < p_.instruction_count; ++i) {
      const Instruction in(p_.instructions[i]);
      const int registers[] = {in.a, in.b, in.c};
      for (int n = 0; n < operands_of(in.opcode); ++n) visit(i, n, registers[n]);
      maker_[in.to] = i;
      made(i, in);
    }
    for (int k = 0; k < p_.output_count; ++k) visit(p_.instruction_count, k, p_.operands[p_.input_count + k].result);
  }

  void find_uses() {
    walk(
        [&](int user, int, int reg) {
          if (is_constant(reg)) return;
          Uses& uses = uses_[maker_[reg]];
          if (uses.first == kNobody) uses.first = user;
          uses.last = user;
        },
        [](int, const Instruction&) {});
  }

  /** What only the first instruction reads is loaded last, and so is at hand. */
  void order_inputs() {
    const auto is_for_first = [&](int k) { return uses_[kInput + k].last == 0; };
    int last = kNobody;
    for (int k = 0; k < p_.input_count; ++k)
      if (uses_[kInput + k].first != kNobody && (last == kNobody || is_for_first(k) || !is_for_first(last))) last = k;
    for (int k = 0; k < p_.input_count; ++k)
      if (uses_[kInput + k].first != kNobody && k != last) load(k);
    if (last != kNobody) load(last);
    last_input_ = last;
  }

  void load(int k) { launch_.loads[launch_.load_count++] = static_cast<uint8_t>(k); }

  /** Whether the value is still in registers when `user` reads it. */
  bool is_at_hand(int maker, int user) const {
    return maker < kInput ? user == maker + 1 : maker - kInput == last_input_ && user == 0;
  }

  uint8_t row_for(int maker, int reg) {
    const Uses& uses = uses_[maker];
    if (uses.first == kNobody || is_at_hand(maker, uses.last)) return kNoRow;
    if (row_[reg] == 0) row_[reg] = ++rows_;
    return static_cast<uint8_t>(row_[reg] - 1);
  }

  void assign() {
    for (int k = 0; k < p_.input_count; ++k) launch_.input_rows[k] = row_for(kInput + k, k);
    walk(
        [&](int user, int n, int reg) {
          const uint32_t place = is_constant(reg) ? kConstant + static_cast<uint32_t>(reg - p_.input_count)
                                 : is_at_hand(maker_[reg], user) ? kAtHand
                                                                 : static_cast<uint32_t>(row_[reg] - 1);
          if (user == p_.instruction_count)
            launch_.result_places[n] = static_cast<uint8_t>(place);
          else
            operand(launch_.steps[user], n) = static_cast<uint8_t>(place);
        },
        [&](int i, const Instruction& in) {
          Step& step = launch_.steps[i];
          step.opcode = static_cast<uint8_t>(in.opcode);
          step.operands = static_cast<uint8_t>(operands_of(in.opcode));
          if (step.operands == 0) step.b = static_cast<uint8_t>(in.b);
          step.row = row_for(i, in.to);
        });
  }

  static uint8_t& operand(Step& step, int n) { return n == 0 ? step.a : n == 1 ? step.b : step.c; }

  struct Uses {
    int first = kNobody, last = kNobody;
  };

  ElementwiseLaunch& launch_;
  const ElementwiseParams& p_;
  int maker_[kRegisters];  // of what is in a register
  Uses uses_[kMakers];
  int row_[kRegisters] = {};  // plus 1; 0: none yet
  int rows_ = 0, last_input_ = kNobody;
};

/** Whether every eight neighbours of the innermost dim, counted from its begin, are aligned to the accesses of them. */
bool is_whole(const ElementwiseParams& p, const ProgramOperand& array) {
  const int64_t size = element_size(array.dtype), alignment = size == 1 ? kVector : kAccessBytes;
  int64_t outer = 0;
  for (int axis = 0; axis < kInner; ++axis)
    if (p.sizes[axis] > 1) outer |= array.strides[axis];
  return array.strides[kInner] == 1 && reinterpret_cast<uintptr_t>(static_cast<void*>(array.data)) % alignment == 0 &&
         outer * size % alignment == 0;
}

/** Threads take eight neighbours each, or, where an array needs an access an element, groups of threads take them in turn. */
void spread(ElementwiseLaunch& launch) {
  const ElementwiseParams& p = launch.params;
  const int arrays = p.input_count + p.output_count;
  const int64_t inner = p.sizes[kInner];
  bool in_turn = false;
  for (int k = 0; k < arrays; ++k)
    if (p.operands[k].strides[kInner] != 0 && !is_whole(p, p.operands[k])) in_turn = true;
  if (in_turn)
    while (launch.lane_bits < 5 && (2 * kVector << launch.lane_bits) <= inner) ++launch.lane_bits;
  for (int k = 0; k < arrays; ++k) launch.whole[k] = launch.lane_bits == 0 && is_whole(p, p.operands[k]);
  const int64_t group = int64_t{kVector} << launch.lane_bits;
  launch.chunks = (inner + group - 1) / group;
  launch.items = launch.chunks * p.sizes[0] * p.sizes[1] * p.sizes[2];
}

}  // namespace

cudaError_t launch_elementwise(const ElementwiseParams& p, const DeviceLimits&, cudaStream_t stream) {
  ElementwiseLaunch launch{};
  launch.params = p;
  const Placement placement(launch);
  spread(launch);
  if (launch.items == 0) return cudaSuccess;
  const int row_bytes = placement.rows() * kColumnBytes;  // of a thread
  launch.threads = row_bytes * kMostThreads <= kUncheckedShared ? kMostThreads : kMostThreads / 2;
  const int64_t threads = launch.items << launch.lane_bits;
  const dim3 grid(static_cast<uint32_t>((threads + launch.threads - 1) / launch.threads));
  return launched("elementwise", ptx::launch(elementwise_kernel, "elementwise", grid, launch.threads,
                                             row_bytes * launch.threads, stream, launch));
}

}  // namespace flashattn
