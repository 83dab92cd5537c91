// CUDA kernels: the bodies of kernels.h, one float per thread.
//
// Compiled at first use by NVRTC, or by nvcc: no host code, no host headers, C names. The caller
// (acorn_svc/field/ops/cuda.py) checks the arguments, allocates the outputs and launches.
#include "kernels.h"

namespace {

__device__ __forceinline__ unsigned long long global_thread() {
    return blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x;
}

}  // namespace

extern "C" __global__ void identity(const float* __restrict__ input, float* __restrict__ output,
                                    unsigned long long count) {
    const unsigned long long i = global_thread();
    if (i < count) output[i] = acorn::identity_body(input[i]);
}
