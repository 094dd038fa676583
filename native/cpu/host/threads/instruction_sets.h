// Which instruction sets this build has, and which of them this machine runs.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace cpu_host {

/** Those that this machine runs, the fastest first. */
const std::vector<const KernelTable*>& supported_kernels();

/** Before kernels run for the first time. Returns whether the system lets this process use their registers. */
bool prepare(const KernelTable& kernels);

/** The names of those that this build has but this machine does not run. */
std::vector<std::string> unsupported_names();

}  // namespace cpu_host
