#include "cpu.h"

#include "kernels.h"

namespace acorn::cpu {

void identity(const float* input, float* output, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) output[i] = identity_body(input[i]);
}

}  // namespace acorn::cpu
