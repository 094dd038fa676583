#pragma once
#include <mutex>

namespace emulator {

/** Launches and changes of device memory are made by one host thread at a time. */
class LaunchLock {
 public:
  LaunchLock() : lock_(mutex()) {}

 private:
  static std::recursive_mutex& mutex() {
    static std::recursive_mutex mutex;
    return mutex;
  }

  std::lock_guard<std::recursive_mutex> lock_;
};

}  // namespace emulator
