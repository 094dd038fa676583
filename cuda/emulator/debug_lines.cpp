#include "debug_lines.h"

#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <map>

#include "report.h"

namespace emulator {

namespace {

/** A program or library, and where the address lies in its file. */
struct Module {
  std::string file;
  uintptr_t address;
};

Module module_of(uintptr_t pc) {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(pc), &info)) return {"", pc};
  const auto* header = static_cast<const Elf64_Ehdr*>(info.dli_fbase);
  const uintptr_t base = header->e_type == ET_DYN ? reinterpret_cast<uintptr_t>(info.dli_fbase) : 0;
  const bool found = info.dli_fname && access(info.dli_fname, R_OK) == 0;
  return {found ? info.dli_fname : "/proc/" + std::to_string(getpid()) + "/exe", pc - base};
}

std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

/** The first line that a command prints, without the newline. */
std::string first_line(const std::string& command) {
  std::FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) return "";
  char line[1024];
  std::string result = std::fgets(line, sizeof line, pipe) ? line : "";
  pclose(pipe);
  while (!result.empty() && result.back() == '\n') result.pop_back();
  return result;
}

std::string look_up(const void* return_address) {
  const uintptr_t pc = reinterpret_cast<uintptr_t>(return_address) - 1;  // within the call
  const Module module = module_of(pc);
  char address[32];
  std::snprintf(address, sizeof address, "0x%zx", static_cast<size_t>(module.address));
  const std::string line = first_line("addr2line -e " + quoted(module.file) + " " + address + " 2>/dev/null");
  if (line.empty() || line[0] == '?') return shorten(module.file) + ":" + address;
  return shorten(line.substr(0, line.find(' ')));  // without "(discriminator 2)"
}

}  // namespace

std::string place_of_code(const void* return_address) {
  static std::map<const void*, std::string> known;
  const auto [entry, is_new] = known.emplace(return_address, "");
  if (is_new) entry->second = look_up(return_address);
  return entry->second;
}

}  // namespace emulator
