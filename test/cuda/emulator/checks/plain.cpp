// Loads and stores that go past ptx::, in a translation unit compiled with the hooks.
#include "cases.h"

namespace {

constexpr int kThreads = 32;

struct Memory {
  float* data;  // [kThreads]
};

FLASHATTN_KERNEL(kThreads) local_memory(const Memory m) {
  float local[4] = {1, 2, 3, 4};
  for (int i = 0; i < 4; ++i) local[i] += local[(ptx::thread() + i) % 4];
  ptx::store_global(m.data + ptx::thread(), local[ptx::thread() % 4]);
}

FLASHATTN_KERNEL(kThreads) plain_load(const Memory m) {
  const float x = m.data[ptx::thread()];  // reported: unwrapped-access in plain_load_forbidden
  ptx::store_global(m.data + ptx::thread(), x);
}

FLASHATTN_KERNEL(kThreads) plain_store(const Memory m) {
  m.data[ptx::thread()] = 1;  // reported: unwrapped-access in plain_store_forbidden
}

FLASHATTN_KERNEL(kThreads) plain_beyond(const Memory m) {
  const float x = m.data[ptx::thread() + 1];  // reported: global-out-of-bounds in plain_beyond
  ptx::sync_threads();
  ptx::store_global(m.data + ptx::thread(), x);
}

FLASHATTN_KERNEL(kThreads) plain_after_free(const Memory m) {
  m.data[ptx::thread()] += 1;  // reported: use-after-free in plain_after_free
}

FLASHATTN_KERNEL(kThreads) plain_race(const Memory m) {
  m.data[0] = static_cast<float>(ptx::thread());  // reported: global-race in plain_race
}

void run(void (*kernel)(Memory), const char* name, emulator::PlainAccesses plain) {
  emulator::config().plain_accesses = plain;
  emulator::Buffer<float> data(kThreads, "data");
  for (float& x : data) x = 0;  // by the host: not an access of a kernel
  launch_block(kernel, name, kThreads, 0, Memory{data.data()});
}

void run_after_free() {
  emulator::config().plain_accesses = emulator::PlainAccesses::Check;
  float* data = static_cast<float*>(emulator::allocate(kThreads * sizeof(float), "data"));
  emulator::release(data);
  launch_block(plain_after_free, "plain_after_free", kThreads, 0, Memory{data});
}

}  // namespace

int main() {
  using enum emulator::PlainAccesses;
  run_cases({{"local_memory", [] { run(local_memory, "local_memory", Forbid); }},
             {"plain_load", [] { run(plain_load, "plain_load", Check); }},
             {"plain_load_forbidden", [] { run(plain_load, "plain_load", Forbid); }},
             {"plain_store", [] { run(plain_store, "plain_store", Check); }},
             {"plain_store_forbidden", [] { run(plain_store, "plain_store", Forbid); }},
             {"plain_beyond", [] { run(plain_beyond, "plain_beyond", Check); }},
             {"plain_race", [] { run(plain_race, "plain_race", Check); }},
             {"plain_after_free", run_after_free}});
}
