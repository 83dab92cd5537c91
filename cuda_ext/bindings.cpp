// Python bindings: check the arguments, release the GIL, call the kernel.
//
// No array is ever converted: a float64 or strided one would cost time that nobody sees, and is refused. The
// caller allocates the outputs, so no kernel owns memory. The functions of acorn_svc/field/ops/cpu.py call these.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cpu.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace acorn;

namespace {

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Index = cpu::Index;

void require(bool holds, const char* message) {
    if (!holds) throw std::invalid_argument(message);
}

// An array that is given as it is or not at all.
template <class T>
Array<T> exactly(nb::handle object, const char* name) {
    Array<T> array;
    if (!nb::try_cast(object, array, false)) {
        throw nb::type_error((std::string(name) + " has another dtype, is not contiguous, read-only or not on the CPU").c_str());
    }
    return array;
}

template <class T>
T number(nb::handle object, const char* name) {
    return nb::cast<T>(object.attr(name));
}

int log2_of(int value) {
    int shift = 0;
    while (1 << shift < value) ++shift;
    require(value >= PATCH_SIDE && 1 << shift == value, "cells must be a power of two, at least 4");
    return shift;
}

// acorn_svc.field.geometry.Geometry
Geometry read_geometry(nb::handle object, int& dimension) {
    Geometry geometry{};
    const auto extent = nb::cast<std::vector<int>>(object.attr("extent"));
    dimension = static_cast<int>(extent.size());
    require(dimension == 2 || dimension == 3, "the dimension must be 2 or 3");
    std::copy(extent.begin(), extent.end(), geometry.extent);
    geometry.depth = number<int>(object, "depth");
    geometry.cell_shift = log2_of(number<int>(object, "cells"));
    const auto leaf_map = exactly<const int>(object.attr("leaf_map"), "leaf_map");
    const auto ancestors = exactly<const int>(object.attr("ancestors"), "ancestors");
    const auto table = exactly<const int>(object.attr("table"), "table");
    geometry.nodes = static_cast<int>(ancestors.shape(0)) - 1;
    const Index row = dimension == 2 ? row_size<2>(geometry) : row_size<3>(geometry);
    Index blocks = 1;
    for (int side : extent) blocks *= side;
    require(static_cast<Index>(leaf_map.size()) == blocks, "leaf_map does not cover the extent");
    require(ancestors.ndim() == 2 && static_cast<int>(ancestors.shape(1)) == geometry.depth + 1, "ancestors must be [nodes + 1, depth + 1]");
    require(static_cast<Index>(table.size()) == (geometry.nodes + 1) * row, "table must be [nodes + 1, (cells + 1)**dimension]");
    geometry.leaf_map = leaf_map.data();
    geometry.ancestors = ancestors.data();
    geometry.table = table.data();
    return geometry;
}

int checked_channels(std::size_t channels) {
    require(channels == 1 || channels == 2 || channels == 4 || channels == 8, "features must have 1, 2, 4 or 8 channels");
    return static_cast<int>(channels);
}

cpu::View read_view(nb::handle geometry, const Array<const float>& features, int scale, nb::handle folded) {
    cpu::View view{};
    view.geometry = read_geometry(geometry, view.dimension);
    const Index vertices = number<Index>(geometry, "vertices"), foldable = number<Index>(geometry, "foldable");
    require(features.ndim() == 2, "features must be [vertices + 1, channels]");
    view.channels = checked_channels(features.shape(1));
    require(static_cast<Index>(features.shape(0)) == vertices + 1, "features must be [vertices + 1, channels]");
    require(0 <= scale && scale <= view.geometry.depth, "the scale must lie between 0 and the depth");
    view.scale = scale;
    view.features = features.data();
    if (!folded.is_none()) {
        const auto sums = exactly<const float>(folded, "folded");
        const Index row = view.dimension == 2 ? row_size<2>(view.geometry) : row_size<3>(view.geometry);
        require(static_cast<Index>(sums.size()) == (foldable + 1) * row * view.channels, "folded has another shape");
        view.folded = sums.data();
    }
    return view;
}

cpu::Decoder read_decoder(const nb::list& layers, int inputs) {
    cpu::Decoder decoder{};
    decoder.count = static_cast<int>(layers.size());
    require(1 <= decoder.count && decoder.count <= cpu::MAX_LAYERS, "a decoder has 1 to 8 layers");
    for (int i = 0; i < decoder.count; ++i) {
        const nb::object pair = layers[i];
        const auto weight = exactly<const float>(pair[0], "weight");
        const auto bias = exactly<const float>(pair[1], "bias");
        require(weight.ndim() == 2 && bias.ndim() == 1 && weight.shape(1) == bias.shape(0) && bias.shape(0) > 0, "a layer is a weight [inputs, outputs] and a bias [outputs]");
        require(static_cast<int>(weight.shape(0)) == inputs, "a layer does not take what comes before it");
        inputs = static_cast<int>(weight.shape(1));
        decoder.layers[i] = {weight.data(), bias.data(), static_cast<int>(weight.shape(0)), inputs};
    }
    return decoder;
}

const cpu::Kernels& chosen(const std::string& name) {
    for (const cpu::Kernels* kernels : cpu::every()) {
        if (name.empty() || name == kernels->name) return *kernels;
    }
    throw std::invalid_argument("this processor does not run " + name);
}

std::vector<std::string> names() {
    std::vector<std::string> found;
    for (const cpu::Kernels* kernels : cpu::every()) found.emplace_back(kernels->name);
    return found;
}

template <class T>
void require_columns(const Array<T>& array, std::size_t columns, const char* message) {
    require(array.ndim() == 2 && array.shape(1) == columns, message);
}

constexpr const char* POSITIONS = "positions and corners must be [n, dimension]";
constexpr const char* RESULT = "the result has another shape";

void locate(nb::handle geometry_object, Array<const double> positions, Array<int> out) {
    int dimension;
    const Geometry geometry = read_geometry(geometry_object, dimension);
    require_columns(positions, dimension, POSITIONS);
    require(out.size() == positions.shape(0), RESULT);
    const Index count = positions.shape(0);
    nb::gil_scoped_release release;
    for (Index i = 0; i < count; ++i) {
        const double* position = positions.data() + i * dimension;
        out.data()[i] = dimension == 2 ? leaf_under<2>(geometry, position) : leaf_under<3>(geometry, position);
    }
}

void encode_points(nb::handle geometry, Array<const float> features, Array<const double> positions, int scale,
                   nb::handle folded, Array<float> out, const std::string& lanes, int threads) {
    const cpu::View view = read_view(geometry, features, scale, folded);
    require_columns(positions, view.dimension, POSITIONS);
    const Index count = positions.shape(0);
    require(static_cast<Index>(out.size()) == count * SLOTS * view.channels, RESULT);
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    cpu::share(count, cpu::TILE, threads, [&](Index begin, Index end) {
        kernels.encode_points(view, positions.data(), begin, end, out.data());
    });
}

void encode_points_backward(nb::handle geometry, Array<float> gradient_of_features, Array<const double> positions,
                            int scale, Array<const float> gradient, const std::string& lanes) {
    const cpu::View view = read_view(geometry, Array<const float>(gradient_of_features), scale, nb::none());
    require_columns(positions, view.dimension, POSITIONS);
    const Index count = positions.shape(0);
    require(static_cast<Index>(gradient.size()) == count * SLOTS * view.channels, "the gradient has another shape");
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    kernels.encode_points_backward(view, positions.data(), gradient.data(), count, gradient_of_features.data());
}

void encode_patches(nb::handle geometry, Array<const float> features, Array<const Index> corners, int scale,
                    nb::handle folded, Array<float> out, const std::string& lanes, int threads) {
    const cpu::View view = read_view(geometry, features, scale, folded);
    require_columns(corners, view.dimension, POSITIONS);
    const Index count = corners.shape(0), pixels = patch_pixels(view.dimension);
    require(static_cast<Index>(out.size()) == count * pixels * SLOTS * view.channels, RESULT);
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    cpu::share(count, static_cast<int>(cpu::TILE / pixels), threads, [&](Index begin, Index end) {
        kernels.encode_patches(view, corners.data(), begin, end, out.data());
    });
}

void encode_patches_backward(nb::handle geometry, Array<float> gradient_of_features, Array<const Index> corners,
                             int scale, Array<const float> gradient, const std::string& lanes) {
    const cpu::View view = read_view(geometry, Array<const float>(gradient_of_features), scale, nb::none());
    require_columns(corners, view.dimension, POSITIONS);
    const Index count = corners.shape(0);
    require(static_cast<Index>(gradient.size()) == count * patch_pixels(view.dimension) * SLOTS * view.channels, "the gradient has another shape");
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    kernels.encode_patches_backward(view, corners.data(), gradient.data(), count, gradient_of_features.data());
}

void decode(Array<const float> inputs, nb::list layers, Array<float> out, const std::string& lanes, int threads) {
    require(inputs.ndim() == 2, "inputs must be [n, inputs]");
    const cpu::Decoder decoder = read_decoder(layers, static_cast<int>(inputs.shape(1)));
    const Index count = inputs.shape(0);
    require(static_cast<Index>(out.size()) == count * decoder.outputs(), RESULT);
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    cpu::share(count, cpu::TILE, threads, [&](Index begin, Index end) {
        kernels.decode(decoder, inputs.data(), begin, end, out.data());
    });
}

void decode_backward(Array<const float> inputs, nb::list layers, Array<const float> gradient,
                     Array<float> inputs_gradient, Array<float> parameters_gradient, const std::string& lanes) {
    require(inputs.ndim() == 2, "inputs must be [n, inputs]");
    const cpu::Decoder decoder = read_decoder(layers, static_cast<int>(inputs.shape(1)));
    const Index count = inputs.shape(0);
    require(static_cast<Index>(gradient.size()) == count * decoder.outputs() && inputs_gradient.size() == inputs.size() &&
                static_cast<int>(parameters_gradient.size()) == decoder.parameters(),
            "a gradient has another shape");
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    kernels.decode_backward(decoder, inputs.data(), gradient.data(), 0, count, inputs_gradient.data(), parameters_gradient.data());
}

void render_points(nb::handle geometry, Array<const float> features, nb::handle folded, nb::list layers,
                   Array<const double> positions, int scale, Array<float> out, const std::string& lanes, int threads) {
    const cpu::View view = read_view(geometry, features, scale, folded);
    const cpu::Decoder decoder = read_decoder(layers, SLOTS * view.channels);
    require_columns(positions, view.dimension, POSITIONS);
    const Index count = positions.shape(0);
    require(static_cast<Index>(out.size()) == count * decoder.outputs(), RESULT);
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    cpu::share(count, cpu::TILE, threads, [&](Index begin, Index end) {
        kernels.render_points(view, decoder, positions.data(), begin, end, out.data());
    });
}

template <class T>
using ToRead = const T;
template <class T>
using ToWrite = T;

// The pixels of an array that holds whole numbers of 8 or 16 bits or floats.
template <template <class> class Of, class Use>
void with_pixels(nb::handle object, const Use& use) {
    Array<Of<std::uint8_t>> bytes;
    Array<Of<std::uint16_t>> words;
    if (nb::try_cast(object, bytes, false)) {
        use(bytes, cpu::Kind::UINT8);
    } else if (nb::try_cast(object, words, false)) {
        use(words, cpu::Kind::UINT16);
    } else {
        use(exactly<Of<float>>(object, "pixels"), cpu::Kind::FLOAT32);
    }
}

template <template <class> class Of>
cpu::Image read_image(nb::handle object) {
    cpu::Image image{};
    with_pixels<Of>(object, [&](const auto& array, cpu::Kind kind) {
        require(array.ndim() == 3 && array.size() > 0, "a picture must be [height, width, channels]");
        image = {array.data(), kind, static_cast<int>(array.shape(1)), static_cast<int>(array.shape(0)), static_cast<int>(array.shape(2))};
    });
    return image;
}

constexpr Index SQUARE = 16;  // pixels per side of a tile of a picture

void render_image(nb::handle geometry, Array<const float> features, nb::handle folded, nb::list layers, int scale,
                  Index x, Index y, nb::handle out, const std::string& lanes, int threads) {
    const cpu::View view = read_view(geometry, features, scale, folded);
    require(view.dimension == 2, "only pictures are rendered whole");
    const cpu::Decoder decoder = read_decoder(layers, SLOTS * view.channels);
    const cpu::Image image = read_image<ToWrite>(out);
    require(image.channels == decoder.outputs() && image.channels <= 4, RESULT);
    require(x >= 0 && y >= 0, "a region starts at 0 or above");
    cpu::Canvas canvas{const_cast<void*>(image.pixels), image.kind, x, y, image.width, image.height, image.channels};
    const cpu::Kernels& kernels = chosen(lanes);
    const Index left = x / SQUARE, top = y / SQUARE;
    const Index across = (x + image.width - 1) / SQUARE - left + 1, down = (y + image.height - 1) / SQUARE - top + 1;
    nb::gil_scoped_release release;
    cpu::share(across * down, static_cast<int>(std::min<Index>(across, 64)), threads, [&](Index begin, Index end) {
        for (Index i = begin; i < end; ++i) {
            kernels.render_tile(view, decoder, canvas, (left + i % across) * SQUARE, (top + i / across) * SQUARE);
        }
    });
}

// Loss and gradients of some patches. Returns nothing: the sums go into the given arrays.
void learn(nb::handle geometry, Array<const float> features, nb::list layers, Array<const Index> corners, int scale,
           Array<const float> truth, Array<const float> weights, float factor, Array<float> features_gradient,
           Array<float> parameters_gradient, Array<double> squares, const std::string& lanes, int threads) {
    const cpu::View view = read_view(geometry, features, scale, nb::none());
    const cpu::Decoder decoder = read_decoder(layers, SLOTS * view.channels);
    require_columns(corners, view.dimension, POSITIONS);
    const Index count = corners.shape(0), pixels = patch_pixels(view.dimension);
    require(static_cast<Index>(truth.size()) == count * pixels * decoder.outputs(), "truth must be [n, pixels, outputs]");
    require(static_cast<Index>(weights.size()) == count * pixels, "weights must be [n, pixels]");
    require(static_cast<Index>(squares.size()) == count && features_gradient.size() == features.size() &&
                static_cast<int>(parameters_gradient.size()) == decoder.parameters(),
            RESULT);
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    cpu::learn(view, decoder, corners.data(), count, truth.data(), weights.data(), factor, features_gradient.data(),
               parameters_gradient.data(), squares.data(), kernels, threads);
}

float* moment(nb::handle table, const std::string& name, std::size_t size) {
    const auto array = exactly<float>(table[name.c_str()], name.c_str());
    require(array.size() == size, "a moment has another shape than its parameter");
    return array.data();
}

// See acorn_svc.field.ops.reference.train.
void train(nb::handle geometry, nb::dict parameters, nb::dict first, nb::dict second, Array<float> last,
           Array<float> gradient, Array<float> encoder_steps, Array<float> decoder_steps, Array<Index> drawn,
           nb::list pyramid, int patches, int coarse_patches, Index seed, Array<const int> scales,
           Array<const float> encoder_rates, Array<const float> decoder_rates, Array<double> errors,
           const std::string& lanes, int threads) {
    constexpr const char* FEATURES = "encoder.features";
    const auto features = exactly<float>(parameters[FEATURES], FEATURES);
    cpu::Training training{};
    training.view = read_view(geometry, Array<const float>(features), 0, nb::none());
    require(training.view.dimension == 2, "only pictures are trained by patches of a pyramid");
    training.table = {features.data(), moment(second, FEATURES, features.size()), last.data(), gradient.data(), training.view.channels};
    require(last.size() == features.shape(0) && gradient.size() == features.size(), "last or gradient has another shape");
    const std::size_t count = training.view.geometry.depth + 1;
    int inputs = SLOTS * training.view.channels;
    for (training.layers = 0; training.layers < cpu::MAX_LAYERS; ++training.layers) {
        const std::string name = "decoder." + std::to_string(training.layers);
        const std::string names[2] = {name + ".weight", name + ".bias"};
        if (!parameters.contains(names[0].c_str())) break;
        const auto weight = exactly<float>(parameters[names[0].c_str()], names[0].c_str());
        const auto bias = exactly<float>(parameters[names[1].c_str()], names[1].c_str());
        require(weight.ndim() == 3 && bias.ndim() == 2 && weight.shape(0) == count && bias.shape(0) == count && weight.shape(2) == bias.shape(1) && static_cast<int>(weight.shape(1)) == inputs, "a decoder's layers do not fit together");
        inputs = static_cast<int>(weight.shape(2));
        training.decoder[training.layers] = {
            {weight.data(), moment(first, names[0], weight.size()), moment(second, names[0], weight.size())},
            {bias.data(), moment(first, names[1], bias.size()), moment(second, names[1], bias.size())},
            static_cast<int>(weight.shape(1)), inputs};
    }
    require(training.layers > 0, "there is no decoder");
    std::vector<cpu::Image> images;
    for (nb::handle image : pyramid) {
        images.push_back(read_image<ToRead>(image));
        require(images.back().channels == inputs, "the decoder gives another number of channels than the picture has");
    }
    require(drawn.size() == count && decoder_steps.size() == count && encoder_steps.size() == 1, "a counter has another shape");
    require(errors.size() == 2 * static_cast<std::size_t>(training.view.geometry.nodes), "errors must be [2, nodes]");
    const int steps = static_cast<int>(scales.size());
    require(encoder_rates.size() == scales.size() && decoder_rates.size() == scales.size(), "scales and rates must be of one length");
    for (int i = 0; i < steps; ++i) {
        require(0 <= scales.data()[i] && static_cast<std::size_t>(scales.data()[i]) < std::min(images.size(), count), "there is no picture of that scale");
    }
    require(patches > 0 && coarse_patches > 0, "a step needs patches");
    require(1 <= inputs && inputs <= 4, "a picture has 1 to 4 channels");
    training.pyramid = images.data();
    training.patches = patches;
    training.coarse_patches = coarse_patches;
    training.seed = static_cast<unsigned long long>(seed);
    training.drawn = drawn.data();
    training.encoder_steps = encoder_steps.data();
    training.decoder_steps = decoder_steps.data();
    training.errors = errors.data();
    const cpu::Schedule schedule{scales.data(), encoder_rates.data(), decoder_rates.data(), steps};
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    cpu::train(training, schedule, kernels, threads);
}

Index multiply_adds(const std::string& lanes, Index rounds, int threads) {
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    return cpu::multiply_adds(kernels, rounds, threads);
}

void copy(Array<const float> values, Array<float> out, int threads) {
    require(values.size() == out.size(), RESULT);
    const Index count = values.size();
    nb::gil_scoped_release release;
    cpu::copy(values.data(), out.data(), count, threads);
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "CPU kernels of Acorn. Use them through acorn_svc.field.ops.";
    module.def("lanes", &names, "Instruction sets that this processor runs, the widest first.");
    module.def("locate", &locate, "geometry"_a, "positions"_a.noconvert(), "out"_a.noconvert());
    module.def("encode_points", &encode_points, "geometry"_a, "features"_a.noconvert(), "positions"_a.noconvert(),
               "scale"_a, "folded"_a.none(), "out"_a.noconvert(), "lanes"_a, "threads"_a);
    module.def("encode_points_backward", &encode_points_backward, "geometry"_a, "features_gradient"_a.noconvert(),
               "positions"_a.noconvert(), "scale"_a, "gradient"_a.noconvert(), "lanes"_a);
    module.def("encode_patches", &encode_patches, "geometry"_a, "features"_a.noconvert(), "corners"_a.noconvert(),
               "scale"_a, "folded"_a.none(), "out"_a.noconvert(), "lanes"_a, "threads"_a);
    module.def("encode_patches_backward", &encode_patches_backward, "geometry"_a, "features_gradient"_a.noconvert(),
               "corners"_a.noconvert(), "scale"_a, "gradient"_a.noconvert(), "lanes"_a);
    module.def("decode", &decode, "inputs"_a.noconvert(), "layers"_a, "out"_a.noconvert(), "lanes"_a, "threads"_a);
    module.def("decode_backward", &decode_backward, "inputs"_a.noconvert(), "layers"_a, "gradient"_a.noconvert(),
               "inputs_gradient"_a.noconvert(), "parameters_gradient"_a.noconvert(), "lanes"_a);
    module.def("render_points", &render_points, "geometry"_a, "features"_a.noconvert(), "folded"_a.none(), "layers"_a,
               "positions"_a.noconvert(), "scale"_a, "out"_a.noconvert(), "lanes"_a, "threads"_a);
    module.def("render_image", &render_image, "geometry"_a, "features"_a.noconvert(), "folded"_a.none(), "layers"_a,
               "scale"_a, "x"_a, "y"_a, "out"_a, "lanes"_a, "threads"_a);
    module.def("learn", &learn, "geometry"_a, "features"_a.noconvert(), "layers"_a, "corners"_a.noconvert(), "scale"_a,
               "truth"_a.noconvert(), "weights"_a.noconvert(), "factor"_a, "features_gradient"_a.noconvert(),
               "parameters_gradient"_a.noconvert(), "squares"_a.noconvert(), "lanes"_a, "threads"_a);
    module.def("train", &train, "geometry"_a, "parameters"_a, "first"_a, "second"_a, "last"_a.noconvert(),
               "gradient"_a.noconvert(), "encoder_steps"_a.noconvert(), "decoder_steps"_a.noconvert(),
               "drawn"_a.noconvert(), "pyramid"_a, "patches"_a, "coarse_patches"_a, "seed"_a, "scales"_a.noconvert(),
               "encoder_rates"_a.noconvert(), "decoder_rates"_a.noconvert(), "errors"_a.noconvert(), "lanes"_a,
               "threads"_a);
    module.def("multiply_adds", &multiply_adds, "lanes"_a, "rounds"_a, "threads"_a,
               "Does nothing but multiply-adds, for benchmarks; returns how many.");
    module.def("copy", &copy, "values"_a.noconvert(), "out"_a.noconvert(), "threads"_a,
               "Copies, for benchmarks of the memory.");
}
