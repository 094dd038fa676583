#include "arena.h"

#include <algorithm>
#if defined(_WIN32)
#include <windows.h>
#else
#include <sys/mman.h>
#endif

namespace cpu_host {

namespace {

constexpr size_t kSmallest = size_t{16} << 20;  // an arena of less is of no use
constexpr size_t kStep = size_t{64} << 20;      // memory is made usable in steps of this many bytes
constexpr size_t kPage = size_t{64} << 10;      // a multiple of the pages of every system

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

#if defined(_WIN32)
void* reserve_addresses(size_t bytes) { return VirtualAlloc(nullptr, bytes, MEM_RESERVE, PAGE_NOACCESS); }
bool make_usable(void* begin, size_t bytes) {
  return VirtualAlloc(begin, bytes, MEM_COMMIT, PAGE_READWRITE) != nullptr;
}
void give_back(void* begin, size_t) { VirtualFree(begin, 0, MEM_RELEASE); }
void discard_pages(void* begin, size_t bytes) { VirtualAlloc(begin, bytes, MEM_RESET, PAGE_READWRITE); }
#else
void* reserve_addresses(size_t bytes) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
  flags |= MAP_NORESERVE;
#endif
  void* begin = mmap(nullptr, bytes, PROT_NONE, flags, -1, 0);
  return begin == MAP_FAILED ? nullptr : begin;
}
bool make_usable(void* begin, size_t bytes) {
  if (mprotect(begin, bytes, PROT_READ | PROT_WRITE) != 0) return false;
#if defined(MADV_HUGEPAGE)
  madvise(begin, bytes, MADV_HUGEPAGE);  // a tile's rows lie in many pages
#endif
  return true;
}
void give_back(void* begin, size_t bytes) { munmap(begin, bytes); }
void discard_pages(void* begin, size_t bytes) {
#if defined(__linux__)
  madvise(begin, bytes, MADV_DONTNEED);
#else
  madvise(begin, bytes, MADV_FREE);
#endif
}
#endif

}  // namespace

Arena::~Arena() {
  if (begin_ != nullptr) give_back(begin_, limit_);
}

bool Arena::reserve(size_t bytes) {
  for (size_t wanted = round_up(bytes, kPage); wanted >= kSmallest; wanted = round_up(wanted / 2, kPage)) {
    begin_ = static_cast<uint8_t*>(reserve_addresses(wanted));
    if (begin_ == nullptr) continue;
    limit_ = wanted;
    return true;
  }
  return false;
}

bool Arena::grow(size_t end) {
  if (end > limit_) return false;
  const size_t wanted = std::min(limit_, round_up(end, kStep));
  for (const size_t to : {wanted, round_up(end, kPage)}) {
    if (to > limit_ || !make_usable(begin_ + usable_, to - usable_)) continue;
    usable_ = to;
    return true;
  }
  return false;
}

void Arena::discard(size_t begin, size_t end) {
  const size_t first = round_up(begin, kPage), last = std::min(end, usable_) / kPage * kPage;
  if (first < last) discard_pages(begin_ + first, last - first);
}

}  // namespace cpu_host
