// Device-neutral kernel bodies: what one lane does, written once for every machine.
//
// A body is a template over a value type V (one float per thread on a GPU, a vector of floats on a
// CPU) and knows nothing of torch, CUDA headers, threads or memory management. cpu.cpp and cuda.cu
// instantiate it. The plain PyTorch reference of the same name in acorn_svc/field/ops/reference.py
// is the specification.
#pragma once

#if defined(__CUDACC__)
#define ACORN_BODY __host__ __device__ __forceinline__
#else
#define ACORN_BODY inline
#endif

namespace acorn {

// The do-nothing op: the pattern for every op to come.
template <typename V>
ACORN_BODY V identity_body(V value) {
    return value;
}

}  // namespace acorn
