// What the machine can do at most: measured by benchmarks, used by no kernel.
#include <atomic>
#include <cstring>

#include "cpu.h"
#include "threads.h"

namespace acorn::cpu {

#if defined(__x86_64__)
namespace avx512 {
Index multiply_adds(Index rounds);
}
namespace avx2 {
Index multiply_adds(Index rounds);
}
#endif
namespace portable {
Index multiply_adds(Index rounds);
}

namespace {

Index multiply_adds_of(const Kernels& kernels, Index rounds) {
#if defined(__x86_64__)
    if (kernels.lanes == 16) return avx512::multiply_adds(rounds);
    if (kernels.lanes == 8) return avx2::multiply_adds(rounds);
#endif
    (void)kernels;
    return portable::multiply_adds(rounds);
}

}  // namespace

Index multiply_adds(const Kernels& kernels, Index rounds, int threads) {
    std::atomic<Index> done{0};
    together(threads, [&](int, Meeting&) { done += multiply_adds_of(kernels, rounds); });
    return done;
}

void copy(const float* from, float* to, Index count, int threads) {
    together(threads, [&](int thread, const Meeting& meeting) {
        const Index begin = count * thread / meeting.count(), end = count * (thread + 1) / meeting.count();
        std::memcpy(to + begin, from + begin, (end - begin) * sizeof(float));
    });
}

}  // namespace acorn::cpu
