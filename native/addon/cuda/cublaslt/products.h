// Products of matrices by cuBLASLt on one device.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "library.h"
#include "product.h"

namespace flashattn::cublaslt {

/** Something of the library's that is destroyed with its owner. */
template <class Handle>
class Owned {
 public:
  using Destroy = Status (*)(Handle);

  Owned() = default;
  ~Owned() {
    if (handle_ != nullptr) destroy_(handle_);
  }
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)), destroy_(other.destroy_) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(destroy_, other.destroy_);
    return *this;
  }

  template <class... Arguments>
  Status create(Status (*create)(Handle*, Arguments...), Destroy destroy, Arguments... arguments) {
    destroy_ = destroy;
    const Status status = create(&handle_, arguments...);
    if (status != Status::Success) handle_ = nullptr;
    return status;
  }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
  Destroy destroy_ = nullptr;
};

enum class Outcome {
  Queued,
  NotTaken,  // nothing has been queued: our own kernel does it
  Failed,
};

/**
 * A handle of the library and the algorithms that it has chosen, for one device and one thread at a time. All that it
 * queues shares one workspace, so it has to be queued in one order.
 */
class Products {
 public:
  /** 32 MiB is what NVIDIA advises from compute capability 9.0 on, 4 MiB before. */
  static size_t workspace_bytes(int major) { return size_t{major >= 9 ? 32u : 4u} << 20; }

  /** The device is current. Null where the library cannot be used on it: `why` says it. */
  static std::unique_ptr<Products> open(const Library&, std::string* why);

  const Library& library() const { return library_; }
  /** [bytes] of the device, 256-byte aligned; a captured graph uses it too, so it stays as long as this object. */
  void use_workspace(void* workspace, size_t bytes) {
    workspace_ = workspace;
    workspace_bytes_ = bytes;
  }

  /** `why` says what has failed. */
  Outcome run(const MatmulParams&, cudaStream_t, std::string* why);

  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

 private:
  static constexpr size_t kMostPlans = 256;

  /** What the library has of a shape, made once. */
  struct Plan {
    Owned<MatmulDesc> desc;
    Owned<MatrixLayout> a, b, c, d;
    HeuristicResult chosen{};
    bool usable = false;
  };

  explicit Products(const Library& library) : library_(library) {}

  /** Shared: what has been asked for many others since may still be in use. */
  std::shared_ptr<Plan> plan_of(const Shape&);
  Status describe(const Shape&, Plan*) const;
  Status choose(const Shape&, Plan*) const;
  Status create_layout(const Layout&, int32_t batch, Owned<MatrixLayout>*) const;
  Status queue(const Product&, const Plan&, cudaStream_t) const;

  const Library& library_;
  Owned<Handle> handle_;
  void* workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
  std::map<Shape, std::shared_ptr<Plan>> plans_;
};

}  // namespace flashattn::cublaslt
