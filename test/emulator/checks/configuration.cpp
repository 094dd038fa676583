// What the environment sets.
#include <cstdio>

#include "emulator/emulator.h"

int main() {
  const emulator::Config& config = emulator::config();
  const char* copies = config.eager_copies ? "eager" : "late";
  std::printf("schedule %d, %s copies, races %d\n", config.schedule, copies, config.races);
}
