// The library in this process: found and loaded when a product first needs it, once, and never unloaded.
#pragma once
#include <string>

#include "api.h"

namespace flashattn::cublaslt {

struct Library {
  std::string path;
  size_t version = 0;  // 130101 is 13.1.1
  Functions functions{};
};

/** The one that something else has loaded under this name, or null where nothing has or it will not do. */
const Library* find_loaded(const std::string& name);

/** The one at a path, or of a name that the system's loader looks for. Null where there is none: `why` says it. */
const Library* load(const std::string& path, std::string* why);

/** "CUBLAS_STATUS_NOT_SUPPORTED" */
std::string name_of(const Library&, Status);

}  // namespace flashattn::cublaslt
