// The arithmetic of mma: products of 16-bit or tf32 numbers, added in float32, and of bytes, added in int32.
#pragma once
#include "machine.h"

namespace emulator {

/** exchange.sum += a b of the fragments in exchange.in: registers 0-3 are a, 4 and 5 are b. */
void add_product(Format, Exchange&);

}  // namespace emulator
