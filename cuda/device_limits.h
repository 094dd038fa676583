// What the choice of tiles depends on.
#pragma once

namespace flashattn {

struct DeviceLimits {
  int major, minor;   // compute capability
  int shared_memory;  // bytes a block may opt in to
  int multiprocessors;
};

}  // namespace flashattn
