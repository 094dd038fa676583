// Reports: one line each, the same kind at the same place only once.
#pragma once
#include <cstdint>
#include <string>

#include "calls.h"
#include "machine.h"

namespace emulator {

/** "folder/file:line" */
std::string place_of(Site);
std::string shorten(const std::string& path);

/** Counts a report; whether its kind is new at this place, so that a message is wanted. */
bool is_news(Site, const char* kind);

inline constexpr int kNoThread = -1;
void add_report(const Block&, int thread, const std::string& place, const char* kind, const std::string& message);

/** `message()` gives the words. */
template <class Message>
void report_of(const Thread& thread, Site site, const char* kind, Message message) {
  if (is_news(site, kind)) add_report(*thread.warp->block, thread.index, place_of(site), kind, message());
}

/** Of the running thread. */
template <class Message>
void report(Site site, const char* kind, Message message) {
  report_of(*machine.current, site, kind, message);
}

/** How often anything was reported, repeated and dropped reports included. */
uint64_t report_count();
void count_report();

}  // namespace emulator
