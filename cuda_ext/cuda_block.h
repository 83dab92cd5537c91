// Blocks of threads, all of one size and in one dimension.
#pragma once

namespace acorn {

constexpr int THREADS = 128;

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ long long thread_number() { return static_cast<long long>(blockIdx.x) * THREADS + thread(); }
__device__ __forceinline__ long long all_threads() { return static_cast<long long>(gridDim.x) * THREADS; }

}  // namespace acorn
