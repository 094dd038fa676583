#include "library.h"

#include <map>
#include <memory>
#include <mutex>
#include <type_traits>

#include "../faults.h"
#include "../shared_library.h"

namespace flashattn::cublaslt {

namespace {

constexpr size_t kLeastVersion = 120000;

/** 130101 as "13.1.1" */
std::string format_version(size_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

/** The first function that it lacks; null where it has all of them. */
const char* find_functions(const SharedLibrary& from, Functions* f) {
  const char* missing = nullptr;
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(from.find(name));
    if (function == nullptr && missing == nullptr) missing = name;
  };
  find("cublasLtGetVersion", f->get_version);
  find("cublasLtGetStatusName", f->get_status_name);
  find("cublasLtCreate", f->create);
  find("cublasLtDestroy", f->destroy);
  find("cublasLtMatmulDescCreate", f->desc_create);
  find("cublasLtMatmulDescDestroy", f->desc_destroy);
  find("cublasLtMatmulDescSetAttribute", f->desc_set);
  find("cublasLtMatrixLayoutCreate", f->layout_create);
  find("cublasLtMatrixLayoutDestroy", f->layout_destroy);
  find("cublasLtMatrixLayoutSetAttribute", f->layout_set);
  find("cublasLtMatmulPreferenceCreate", f->preference_create);
  find("cublasLtMatmulPreferenceDestroy", f->preference_destroy);
  find("cublasLtMatmulPreferenceSetAttribute", f->preference_set);
  find("cublasLtMatmulAlgoGetHeuristic", f->get_heuristic);
  find("cublasLtMatmul", f->matmul);
  return missing;
}

/** Why a library will not do; empty where it does. */
std::string read_library(const SharedLibrary& from, Library* library) {
  const char* missing = find_functions(from, &library->functions);
  if (missing != nullptr) return std::string("it has no function ") + missing;
  library->path = from.path_of(reinterpret_cast<void*>(library->functions.create));
  library->version = library->functions.get_version();
  if (library->version < kLeastVersion)
    return "it is of version " + format_version(library->version) + "; 12 or later is needed";
  return admit_library(from);
}

/** Those that will do, by the first of their functions that is called. */
struct Libraries {
  std::mutex mutex;
  std::map<decltype(Functions::create), std::unique_ptr<Library>> known;
};

Libraries& libraries() {
  static Libraries& libraries = *new Libraries;  // other threads may outlive main
  return libraries;
}

const Library* admit(const SharedLibrary& from, std::string* why) {
  auto library = std::make_unique<Library>();
  *why = read_library(from, library.get());
  if (!why->empty()) return nullptr;
  auto& known = libraries().known[library->functions.create];
  if (known == nullptr) known = std::move(library);
  return known.get();
}

}  // namespace

const Library* find_loaded(const std::string& name) {
  const std::scoped_lock lock(libraries().mutex);
  const SharedLibrary found = SharedLibrary::loaded(name);
  std::string why;
  return found ? admit(found, &why) : nullptr;
}

const Library* load(const std::string& path, std::string* why) {
  const std::scoped_lock lock(libraries().mutex);
  const SharedLibrary found = SharedLibrary::load(path, why);
  return found ? admit(found, why) : nullptr;
}

std::string name_of(const Library& library, Status status) {
  const char* name = library.functions.get_status_name(status);
  return name == nullptr ? "status " + std::to_string(static_cast<int>(status)) : name;
}

}  // namespace flashattn::cublaslt
