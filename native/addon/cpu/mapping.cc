#include "mapping.h"

#include <limits>
#if defined(_WIN32)
#include <windows.h>
#else
#include <sys/mman.h>
#include <sys/stat.h>
#endif

namespace cpu_host {

namespace {

#if defined(_WIN32)
/** File descriptors are those of Node's C library, not of this one's: libuv, within the process, knows their handles. */
HANDLE handle_of(int file) {
  using HandleOf = HANDLE (*)(int);
  const FARPROC function = GetProcAddress(GetModuleHandleW(nullptr), "uv_get_osfhandle");
  if (function == nullptr) return INVALID_HANDLE_VALUE;
  return reinterpret_cast<HandleOf>(reinterpret_cast<void*>(function))(file);
}

void* map_pages(int file, size_t bytes) {
  const HANDLE handle = handle_of(file);
  LARGE_INTEGER size;
  if (handle == INVALID_HANDLE_VALUE || !GetFileSizeEx(handle, &size)) return nullptr;
  if (static_cast<uint64_t>(size.QuadPart) < bytes) return nullptr;
  const HANDLE section = CreateFileMappingW(handle, nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (section == nullptr) return nullptr;
  void* begin = MapViewOfFile(section, FILE_MAP_READ, 0, 0, bytes);
  CloseHandle(section);  // the view keeps it
  return begin;
}
void give_back(void* begin, size_t) { UnmapViewOfFile(begin); }
#else
void* map_pages(int file, size_t bytes) {
  struct stat found;
  // Pages that begin after the end of the file cannot be read.
  if (fstat(file, &found) != 0 || !S_ISREG(found.st_mode) || static_cast<uint64_t>(found.st_size) < bytes)
    return nullptr;
  void* begin = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
  return begin == MAP_FAILED ? nullptr : begin;
}
void give_back(void* begin, size_t bytes) { munmap(begin, bytes); }
#endif

}  // namespace

Mapping::~Mapping() {
  if (begin_ != nullptr) give_back(begin_, bytes_);
}

bool Mapping::open(int file, uint64_t bytes) {
  if (begin_ != nullptr || bytes == 0 || bytes > std::numeric_limits<size_t>::max()) return false;
  begin_ = map_pages(file, static_cast<size_t>(bytes));
  if (begin_ == nullptr) return false;
  bytes_ = static_cast<size_t>(bytes);
  return true;
}

}  // namespace cpu_host
