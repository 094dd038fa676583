#include "shared_library.h"

#if defined(_WIN32)
#include <windows.h>

#include <vector>
#else
#include <dlfcn.h>
#endif

namespace flashattn {

#if defined(_WIN32)

namespace {

std::wstring to_wide(const std::string& text) {
  const int count = MultiByteToWideChar(CP_UTF8, 0, text.c_str(), -1, nullptr, 0);
  std::wstring wide(static_cast<size_t>(count), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, text.c_str(), -1, wide.data(), count);
  wide.resize(wide.empty() ? 0 : wide.size() - 1);
  return wide;
}

std::string to_narrow(const std::wstring& wide) {
  const int count = WideCharToMultiByte(CP_UTF8, 0, wide.c_str(), -1, nullptr, 0, nullptr, nullptr);
  std::string text(static_cast<size_t>(count), '\0');
  WideCharToMultiByte(CP_UTF8, 0, wide.c_str(), -1, text.data(), count, nullptr, nullptr);
  text.resize(text.empty() ? 0 : text.size() - 1);
  return text;
}

HMODULE module_of(void* handle) { return static_cast<HMODULE>(handle); }

}  // namespace

SharedLibrary SharedLibrary::loaded(const std::string& name) {
  HMODULE module = nullptr;
  GetModuleHandleExW(0, to_wide(name).c_str(), &module);  // from here on it stays
  return SharedLibrary(module);
}

SharedLibrary SharedLibrary::load(const std::string& path, std::string* why) {
  // What it needs may lie beside it, not beside node.exe.
  const bool is_path = path.find_first_of("\\/") != std::string::npos;
  HMODULE module = LoadLibraryExW(to_wide(path).c_str(), nullptr, is_path ? LOAD_WITH_ALTERED_SEARCH_PATH : 0);
  if (module == nullptr) *why = "it does not load: error " + std::to_string(GetLastError()) + " of Windows";
  return SharedLibrary(module);
}

void* SharedLibrary::find(const char* symbol) const {
  return reinterpret_cast<void*>(GetProcAddress(module_of(handle_), symbol));
}

std::string SharedLibrary::path_of(void*) const {
  std::vector<wchar_t> path(32768);
  const DWORD length = GetModuleFileNameW(module_of(handle_), path.data(), static_cast<DWORD>(path.size()));
  return to_narrow(std::wstring(path.data(), length));
}

#else

SharedLibrary SharedLibrary::loaded(const std::string& name) {
  return SharedLibrary(dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD));
}

SharedLibrary SharedLibrary::load(const std::string& path, std::string* why) {
  void* handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* said = dlerror();
    *why = std::string("it does not load: ") + (said == nullptr ? "the loader does not say why" : said);
  }
  return SharedLibrary(handle);
}

void* SharedLibrary::find(const char* symbol) const { return dlsym(handle_, symbol); }

std::string SharedLibrary::path_of(void* symbol) const {
  Dl_info info{};
  return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

#endif

}  // namespace flashattn
