// What libraries on the emulated device have said and counted.
#pragma once
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace flashattn::emulated {

struct StandInState {
  std::mutex mutex;
  std::vector<std::string> complaints;
  std::map<std::string, int64_t> counts;
  std::string behaviour;
};

StandInState& stand_in_state();

}  // namespace flashattn::emulated
