// What the environment sets.
#include <cstdio>

#include "emulator/emulator.h"

int main() {
  const emulator::Config& config = emulator::config();
  const char* copies = config.eager_copies ? "eager" : "late";
  const char* sums = config.cut_sums ? "cut" : "rounded";
  std::printf("schedule %d, %s copies, %s sums, races %d\n", config.schedule, copies, sums, config.races);
}
