// Checks of programs that compute rather than provoke reports.
#pragma once
#include <cstdio>
#include <string>

#include "emulator/emulator.h"

inline int failures = 0;

inline void expect_at(bool holds, const char* condition, int line) {
  if (holds || ++failures > 20) return;
  std::printf("line %d: %s does not hold\n", line, condition);
}
#define EXPECT(...) expect_at((__VA_ARGS__), #__VA_ARGS__, __LINE__)

/** Ends a program: reports of the emulator are failures too. */
inline int finish() {
  for (const std::string& report : emulator::reports()) {
    ++failures;
    std::printf("%s\n", report.c_str());
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
