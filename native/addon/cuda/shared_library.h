// Shared libraries as the system's loader has them.
#pragma once
#include <string>

namespace flashattn {

/** A library of this process. It is never given back. */
class SharedLibrary {
 public:
  /** The one of this name that is loaded already; none otherwise. */
  static SharedLibrary loaded(const std::string& name);
  /** Loads a path, or a name that the loader looks for. `why` says what went wrong. */
  static SharedLibrary load(const std::string& path, std::string* why);

  explicit operator bool() const { return handle_ != nullptr; }
  /** Null where there is no such function or variable. */
  void* find(const char* symbol) const;
  /** The file; `symbol` is one of its functions. Empty where that is not known. */
  std::string path_of(void* symbol) const;

 private:
  explicit SharedLibrary(void* handle) : handle_(handle) {}

  void* handle_;
};

}  // namespace flashattn
