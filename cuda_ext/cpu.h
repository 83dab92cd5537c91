// CPU kernels: raw pointers and counts in, raw pointers out. Arguments are checked in bindings.cpp.
#pragma once

#include <cstddef>

namespace acorn::cpu {

// output[i] = input[i] for i in [0, count). The arrays do not overlap.
void identity(const float* input, float* output, std::size_t count);

}  // namespace acorn::cpu
