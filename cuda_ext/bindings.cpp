// Python bindings: check the arguments, release the GIL, call the kernel.
//
// Every array argument is .noconvert(): without it a float64 or strided array would be converted
// silently, at a cost nobody sees. The caller allocates the outputs, so no kernel owns memory.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "cpu.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using ConstFloats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

void require_same_shape(const ConstFloats& a, const Floats& b) {
    bool same = a.ndim() == b.ndim();
    for (std::size_t i = 0; same && i < a.ndim(); ++i) same = a.shape(i) == b.shape(i);
    if (!same) throw std::invalid_argument("input and output differ in shape");
}

void identity(ConstFloats input, Floats output) {
    require_same_shape(input, output);
    nb::gil_scoped_release release;
    acorn::cpu::identity(input.data(), output.data(), input.size());
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "CPU kernels of Acorn. Use them through acorn_svc.field.ops.";
    module.def("identity", &identity, "input"_a.noconvert(), "output"_a.noconvert(),
               "Copy input to output: float32, C-contiguous, equal shapes.");
}
