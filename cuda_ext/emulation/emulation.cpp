// Runs cuda.cu on the host, for tests: the same source with the same macros, threads as fibers.
//
// One block after the other, one thread at a time, from one __syncthreads() to the next. `backwards` turns the order
// of blocks and threads around: results that differ then depend on an order that a GPU does not promise.
#include <math.h>
#include <string.h>
#include <ucontext.h>

#include <memory>
#include <utility>
#include <vector>

// --- what the kernels use of CUDA ---

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct Index3 {
    unsigned x, y, z;
};

namespace {

Index3 threadIdx, blockIdx, gridDim;

void __syncthreads();

template <class T>
T __ldg(const T* at) {
    return *at;
}

template <class T>
T atomicAdd(T* at, T value) {
    return std::exchange(*at, *at + value);
}

template <class T>
T atomicExch(T* at, T value) {
    return std::exchange(*at, value);
}

int __float_as_int(float value) {
    int bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

float __int_as_float(int bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

}  // namespace

#include "../cuda.cu"

// --- threads ---

namespace {

constexpr std::size_t STACK = 64 * 1024;

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool done = false;
};

struct Call {
    void (*run)(void** arguments);
    void** arguments;
};

ucontext_t scheduler;
Fiber* current = nullptr;
Call call;

void __syncthreads() { swapcontext(&current->context, &scheduler); }

void run_fiber() {
    call.run(call.arguments);
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

void start(Fiber& fiber) {
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
}

// False if some threads ended where others wait.
bool run_block(std::vector<Fiber>& fibers, bool backwards) {
    const int count = static_cast<int>(fibers.size());
    for (Fiber& fiber : fibers) start(fiber);
    for (int ended = 0; ended == 0;) {
        for (int i = 0; i < count; ++i) {
            threadIdx.x = backwards ? count - 1 - i : i;
            current = &fibers[threadIdx.x];
            swapcontext(&scheduler, &current->context);
            ended += current->done;
        }
        if (ended != 0 && ended != count) return false;
    }
    return true;
}

// Unpacks arguments as a launch does: pointers to each of them.
template <class... T, std::size_t... I>
void unpack(void (*kernel)(T...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<T*>(arguments[I])...);
}

template <auto KERNEL>
struct Unpacked;
template <class... T, void (*KERNEL)(T...)>
struct Unpacked<KERNEL> {
    static void run(void** arguments) { unpack(KERNEL, arguments, std::index_sequence_for<T...>{}); }
};

#define ACORN_ENTRY(NAME) {#NAME, Unpacked<&NAME>::run}

const struct {
    const char* name;
    void (*run)(void**);
} ENTRIES[] = {
#if !defined(ACORN_SIZES) && !defined(ACORN_CHANNELS)
    ACORN_ENTRY(locate),
#endif
#if !defined(ACORN_SIZES) && defined(ACORN_CHANNELS)
    ACORN_ENTRY(encode_points),
    ACORN_ENTRY(encode_patches),
    ACORN_ENTRY(encode_points_backward),
    ACORN_ENTRY(encode_patches_backward),
#endif
#if defined(ACORN_SIZES)
    ACORN_ENTRY(sum_parts),
#endif
#if defined(ACORN_SIZES) && !defined(ACORN_CHANNELS)
    ACORN_ENTRY(decode),
    ACORN_ENTRY(decode_backward),
#endif
#if defined(ACORN_SIZES) && defined(ACORN_CHANNELS)
    ACORN_ENTRY(render_points),
    ACORN_ENTRY(learn),
#if ACORN_DIMENSION == 2
    ACORN_ENTRY(render_image),
    ACORN_ENTRY(train),
    ACORN_ENTRY(update_rows),
    ACORN_ENTRY(update_decoder),
#endif
#endif
};

}  // namespace

// Returns 0, or 1 if there is no such kernel, or 2 if its threads did not all meet.
extern "C" int emulate(const char* name, int blocks, bool backwards, void** arguments) {
    std::vector<Fiber> fibers(THREADS);
    gridDim.x = blocks;
    for (const auto& entry : ENTRIES) {
        if (strcmp(entry.name, name) != 0) continue;
        call = {entry.run, arguments};
        for (int i = 0; i < blocks; ++i) {
            blockIdx.x = backwards ? blocks - 1 - i : i;
            if (!run_block(fibers, backwards)) return 2;
        }
        return 0;
    }
    return 1;
}
