#pragma once
#include <string>

namespace emulator {

/** "folder/file:line" of a return address, by addr2line; the address itself where that does not know. */
std::string place_of_code(const void* return_address);

}  // namespace emulator
