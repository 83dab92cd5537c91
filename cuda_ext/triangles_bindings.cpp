// Python bindings of triangles.h, as bindings.cpp has those of cpu.h.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "triangles.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace acorn::triangles;

namespace {

template <class T, class... Shape>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu, Shape...>;
using Points = Array<const double, nb::shape<-1, 3>>;
using Faces = Array<const std::int32_t, nb::shape<-1, 3>>;
using Vector = Array<float, nb::shape<-1>>;

void require(bool holds, const char* message) {
    if (!holds) throw std::invalid_argument(message);
}

constexpr const char* RESULT = "the result has another shape";

void require_finite(const Points& points) {
    double total = 0;
    for (std::size_t i = 0; i < points.size(); ++i) total += points.data()[i] * 0.0;
    require(total == 0.0, "a point is not finite");
}

// A surface and the arrays that it was made from.
class Triangles {
   public:
    Triangles(Points vertices, Faces faces, int threads) : vertices_(vertices), faces_(faces) {
        nb::gil_scoped_release release;
        surface_ = build(vertices.data(), static_cast<Index>(vertices.shape(0)), faces.data(),
                         static_cast<Index>(faces.shape(0)), threads);
    }

    bool closed() const { return surface_.closed; }

    void closest(Points points, double most, Vector distances, Array<std::int32_t, nb::shape<-1>> nearest,
                 Array<float, nb::shape<-1, 3>> barycentric, const std::string& lanes, int threads) const {
        const std::size_t count = points.shape(0);
        require(distances.shape(0) == count && nearest.shape(0) == count && barycentric.shape(0) == count, RESULT);
        require(most >= 0, "distances saturate at 0 or above");
        const Kernels& kernels = chosen(lanes.c_str());
        nb::gil_scoped_release release;
        require_finite(points);
        acorn::triangles::closest(surface_, kernels, points.data(), static_cast<Index>(count), most, distances.data(),
                                  nearest.data(), barycentric.data(), threads);
    }

    void winding(Points points, float accuracy, Vector windings, const std::string& lanes, int threads) const {
        require(windings.shape(0) == points.shape(0), RESULT);
        require(accuracy >= 1, "an accuracy is 1 or above");
        const Kernels& kernels = chosen(lanes.c_str());
        nb::gil_scoped_release release;
        require_finite(points);
        acorn::triangles::winding(surface_, kernels, points.data(), static_cast<Index>(points.shape(0)), accuracy,
                                  windings.data(), threads);
    }

    void inside(Points points, float accuracy, Array<bool, nb::shape<-1>> answers, const std::string& lanes,
                int threads) const {
        require(answers.shape(0) == points.shape(0), RESULT);
        require(accuracy >= 1, "an accuracy is 1 or above");
        const Kernels& kernels = chosen(lanes.c_str());
        nb::gil_scoped_release release;
        require_finite(points);
        acorn::triangles::inside(surface_, kernels, points.data(), static_cast<Index>(points.shape(0)), accuracy,
                                 answers.data(), threads);
    }

    void signed_distance(Points points, double most, float accuracy, Vector distances, const std::string& lanes,
                         int threads) const {
        require(distances.shape(0) == points.shape(0), RESULT);
        require(most >= 0, "distances saturate at 0 or above");
        require(accuracy >= 1, "an accuracy is 1 or above");
        const Kernels& kernels = chosen(lanes.c_str());
        nb::gil_scoped_release release;
        require_finite(points);
        acorn::triangles::signed_distance(surface_, kernels, points.data(), static_cast<Index>(points.shape(0)), most,
                                          accuracy, distances.data(), threads);
    }

    nb::object occupied(double x, double y, double z, double side, std::int64_t nx, std::int64_t ny, std::int64_t nz,
                        int threads) const {
        constexpr std::int64_t LARGEST = std::int64_t(1) << 20;
        require(std::isfinite(x + y + z) && side > 0 && std::isfinite(side), "a grid has a finite origin and side");
        require(0 < nx && nx <= LARGEST && 0 < ny && ny <= LARGEST && 0 < nz && nz <= LARGEST,
                "a grid has 1 to 2**20 cells along each axis");
        const double origin[3] = {x, y, z};
        const std::int64_t counts[3] = {nx, ny, nz};
        auto* cells = new std::vector<std::int64_t>;
        nb::capsule owner(cells, [](void* at) noexcept { delete static_cast<std::vector<std::int64_t>*>(at); });
        {
            nb::gil_scoped_release release;
            *cells = acorn::triangles::occupied(surface_, origin, side, counts, threads);
        }
        return nb::cast(nb::ndarray<nb::numpy, std::int64_t, nb::ndim<1>>(cells->data(), {cells->size()}, owner));
    }

   private:
    Points vertices_;
    Faces faces_;
    Surface surface_;
};

}  // namespace

void register_triangles(nb::module_& module) {
    nb::class_<Triangles>(module, "Triangles", "Use it through acorn_svc.training.distance.")
        .def(nb::init<Points, Faces, int>(), "vertices"_a.noconvert(), "faces"_a.noconvert(), "threads"_a)
        .def_prop_ro("closed", &Triangles::closed)
        .def("closest", &Triangles::closest, "points"_a.noconvert(), "most"_a, "distances"_a.noconvert(),
             "nearest"_a.noconvert(), "barycentric"_a.noconvert(), "lanes"_a, "threads"_a)
        .def("winding", &Triangles::winding, "points"_a.noconvert(), "accuracy"_a, "windings"_a.noconvert(), "lanes"_a,
             "threads"_a)
        .def("inside", &Triangles::inside, "points"_a.noconvert(), "accuracy"_a, "answers"_a.noconvert(), "lanes"_a,
             "threads"_a)
        .def("signed_distance", &Triangles::signed_distance, "points"_a.noconvert(), "most"_a, "accuracy"_a,
             "distances"_a.noconvert(), "lanes"_a, "threads"_a)
        .def("occupied", &Triangles::occupied, "x"_a, "y"_a, "z"_a, "side"_a, "nx"_a, "ny"_a, "nz"_a, "threads"_a);
}
