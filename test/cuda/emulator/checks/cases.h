// A program of cases runs every case under several schedules and prints what the emulator reported, a line each:
// "case schedule copies: report", or "none". Which reports a case must give stands beside the lines that cause them:
// "// reported: race in missing_barrier".
#pragma once
#include <cstdio>
#include <initializer_list>

#include "emulator/emulator.h"
#include "ptx.cuh"

struct Case {
  const char* name;
  void (*run)();
};

inline void run_case(const Case& c, int schedule, bool eager) {
  emulator::config().schedule = schedule;
  emulator::config().eager_copies = eager;
  emulator::clear_reports();
  c.run();
  const auto reports = emulator::reports();
  const auto print = [&](const char* text) {
    std::printf("%s %d %s: %s\n", c.name, schedule, eager ? "eager" : "late", text);
  };
  for (const auto& report : reports) print(report.c_str());
  if (reports.empty()) print("none");
  cudaGetLastError();
}

inline void run_cases(std::initializer_list<Case> cases) {
  for (const Case& c : cases)
    for (int schedule = 0; schedule < 6; ++schedule)
      for (const bool eager : {false, true}) run_case(c, schedule, eager);
}

/** A block of `threads` threads. */
template <class Params>
void launch_block(void (*kernel)(Params), const char* name, int threads, int shared_bytes, const Params& params) {
  ptx::launch(kernel, name, dim3(1), threads, shared_bytes, nullptr, params);
}
