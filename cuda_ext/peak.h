// Multiply-adds and nothing else, for one width of vector registers: the limit that no kernel can beat. Included by
// cpu_*.cpp, so that it is compiled as the kernels are.
#include "cpu.h"

namespace acorn::cpu::ACORN_NAMESPACE {

// Sums that do not wait for each other: enough to hide the latency, few enough to stay in registers.
#if defined(__aarch64__) || defined(__AVX512F__)
constexpr int CHAINS = 16;
#else
constexpr int CHAINS = 12;
#endif

Index multiply_adds(Index rounds) {
    typedef float Vector __attribute__((vector_size(4 * ACORN_LANES)));
    Vector sums[CHAINS];
    for (int i = 0; i < CHAINS; ++i) sums[i] = Vector{} + static_cast<float>(i);  // all different: none can be shared
    const Vector factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
    for (Index round = 0; round < rounds; ++round) {
        for (int i = 0; i < CHAINS; ++i) sums[i] = sums[i] * factor + term;
    }
    for (int i = 1; i < CHAINS; ++i) sums[0] += sums[i];
    volatile float used = sums[0][0];
    (void)used;
    return rounds * CHAINS * ACORN_LANES;
}

}  // namespace acorn::cpu::ACORN_NAMESPACE
