#include "products.h"

#include <vector>

namespace flashattn::cublaslt {

namespace {

/** The first that is no success; what stands after it is not done. */
template <class... Steps>
Status in_order(Steps... steps) {
  Status status = Status::Success;
  ((status = status == Status::Success ? steps() : status), ...);
  return status;
}

/** Refused before anything was queued: our own kernel can do it instead. */
bool is_refusal(Status status) {
  return status == Status::NotInitialized || status == Status::AllocFailed || status == Status::InvalidValue ||
         status == Status::ArchMismatch || status == Status::NotSupported;
}

/** The address by which the library is told how a bias is aligned, whose own is not known yet: it is never read. */
const void* aligned_address(uint32_t alignment) { return reinterpret_cast<const void*>(uintptr_t{4096} + alignment); }

}  // namespace

std::unique_ptr<Products> Products::open(const Library& library, std::string* why) {
  std::unique_ptr<Products> products(new Products(library));
  const Status status = products->handle_.create(library.functions.create, library.functions.destroy);
  if (status == Status::Success) return products;
  *why = "cublasLtCreate gives " + name_of(library, status);
  return nullptr;
}

Status Products::create_layout(const Layout& layout, int32_t batch, Owned<MatrixLayout>* result) const {
  const Functions& f = library_.functions;
  const auto set = [&](LayoutAttribute attribute, const auto& value) {
    return batch == 1 ? Status::Success : f.layout_set(result->get(), attribute, &value, sizeof(value));
  };
  return in_order(
      [&] {
        return result->create(f.layout_create, f.layout_destroy, layout.dtype, static_cast<uint64_t>(layout.rows),
                              static_cast<uint64_t>(layout.columns), layout.column_stride);
      },
      [&] { return set(LayoutAttribute::BatchCount, batch); },
      [&] { return set(LayoutAttribute::BatchStride, layout.batch_stride); });
}

Status Products::describe(const Shape& shape, Plan* plan) const {
  const Functions& f = library_.functions;
  const auto set = [&](DescAttribute attribute, const auto& value) {
    return f.desc_set(plan->desc.get(), attribute, &value, sizeof(value));
  };
  const bool has_bias = shape.epilogue == Epilogue::Bias;
  return in_order(
      [&] { return plan->desc.create(f.desc_create, f.desc_destroy, ComputeType::Float32, DataType::Float32); },
      [&] { return set(DescAttribute::TransA, shape.transform_a); },
      [&] { return set(DescAttribute::TransB, shape.transform_b); },
      [&] { return set(DescAttribute::Epilogue, shape.epilogue); },
      [&] {
        return has_bias ? set(DescAttribute::BiasPointer, aligned_address(shape.bias_alignment)) : Status::Success;
      },
      [&] {
        const bool moves = has_bias && shape.bias_batch_stride != 0;
        return moves ? set(DescAttribute::BiasBatchStride, shape.bias_batch_stride) : Status::Success;
      },
      [&] { return create_layout(shape.a, shape.batch, &plan->a); },
      [&] { return create_layout(shape.b, shape.batch, &plan->b); },
      [&] { return create_layout(shape.c, shape.batch, &plan->c); },
      [&] { return create_layout(shape.d, shape.batch, &plan->d); });
}

/** By shapes, strides and alignment alone, so that the same product has the same bits wherever its memory lies. */
Status Products::choose(const Shape& shape, Plan* plan) const {
  const Functions& f = library_.functions;
  Owned<Preference> preference;
  const auto set = [&](PreferenceAttribute attribute, const auto& value) {
    return f.preference_set(preference.get(), attribute, &value, sizeof(value));
  };
  int found = 0;
  const Status status =
      in_order([&] { return preference.create(f.preference_create, f.preference_destroy); },
               [&] { return set(PreferenceAttribute::MaxWorkspaceBytes, uint64_t{workspace_bytes_}); },
               [&] { return set(PreferenceAttribute::ReductionSchemes, kReducedInFloat32); },
               [&] { return set(PreferenceAttribute::MinAlignmentA, shape.a.alignment); },
               [&] { return set(PreferenceAttribute::MinAlignmentB, shape.b.alignment); },
               [&] { return set(PreferenceAttribute::MinAlignmentC, shape.c.alignment); },
               [&] { return set(PreferenceAttribute::MinAlignmentD, shape.d.alignment); },
               [&] {
                 return f.get_heuristic(handle_.get(), plan->desc.get(), plan->a.get(), plan->b.get(), plan->c.get(),
                                        plan->d.get(), preference.get(), 1, &plan->chosen, &found);
               });
  if (status != Status::Success) return status;
  const bool fits = found > 0 && plan->chosen.workspace_bytes <= workspace_bytes_;
  return fits ? plan->chosen.state : Status::NotSupported;
}

std::shared_ptr<Products::Plan> Products::plan_of(const Shape& shape) {
  const auto known = plans_.find(shape);
  if (known != plans_.end()) return known->second;
  // The library chooses the same again.
  if (plans_.size() >= kMostPlans) plans_.clear();
  const auto plan = std::make_shared<Plan>();
  const Status status =
      in_order([&] { return describe(shape, plan.get()); }, [&] { return choose(shape, plan.get()); });
  if (status == Status::Success)
    plan->usable = true;
  else
    *plan = Plan();  // what has been made of it is not needed
  plans_.emplace(shape, plan);
  return plan;
}

Status Products::queue(const Product& product, const Plan& plan, cudaStream_t stream) const {
  const Functions& f = library_.functions;
  return in_order(
      [&] {
        if (product.shape.epilogue != Epilogue::Bias) return Status::Success;
        return f.desc_set(plan.desc.get(), DescAttribute::BiasPointer, &product.bias, sizeof(product.bias));
      },
      [&] {
        return f.matmul(handle_.get(), plan.desc.get(), &product.alpha, product.a, plan.a.get(), product.b,
                        plan.b.get(), &product.beta, product.c, plan.c.get(), product.d, plan.d.get(),
                        &plan.chosen.algorithm, workspace_, workspace_bytes_, stream);
      });
}

Outcome Products::run(const MatmulParams& params, cudaStream_t stream, std::string* why) {
  const std::optional<Product> product = product_of(params);
  if (!product) return Outcome::NotTaken;
  const int64_t parts = parts_of(*product);
  std::vector<std::pair<Product, std::shared_ptr<Plan>>> steps;
  steps.reserve(static_cast<size_t>(parts));
  for (int64_t index = 0; index < parts; ++index) {
    const Product part = part_of(*product, index, parts);
    steps.emplace_back(part, plan_of(part.shape));
    if (!steps.back().second->usable) return Outcome::NotTaken;
  }
  bool queued = false;
  for (const auto& [part, plan] : steps) {
    const Status status = queue(part, *plan, stream);
    if (status != Status::Success) {
      *why = "cublasLtMatmul gives " + name_of(library_, status);
      // What is refused now will be again.
      if (is_refusal(status)) plan->usable = false;
      return queued || !is_refusal(status) ? Outcome::Failed : Outcome::NotTaken;
    }
    queued = true;
  }
  return Outcome::Queued;
}

}  // namespace flashattn::cublaslt
