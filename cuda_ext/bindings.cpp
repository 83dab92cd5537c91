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
#include "isosurface.h"

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

// What learns, and the memory of its optimisers: everything that a training step needs but what it learns from.
cpu::Training read_training(nb::handle geometry, const nb::dict& parameters, const nb::dict& first, const nb::dict& second,
                            const Array<float>& last, const Array<float>& gradient, const Array<float>& encoder_steps,
                            const Array<float>& decoder_steps, const Array<Index>& drawn, const Array<double>& errors) {
    constexpr const char* FEATURES = "encoder.features";
    const auto features = exactly<float>(parameters[FEATURES], FEATURES);
    cpu::Training training{};
    training.view = read_view(geometry, Array<const float>(features), 0, nb::none());
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
    require(1 <= inputs && inputs <= 4, "a decoder gives 1 to 4 channels");
    require(drawn.size() == count && decoder_steps.size() == count && encoder_steps.size() == 1, "a counter has another shape");
    require(errors.size() == 2 * static_cast<std::size_t>(training.view.geometry.nodes), "errors must be [2, nodes]");
    training.drawn = drawn.data();
    training.encoder_steps = encoder_steps.data();
    training.decoder_steps = decoder_steps.data();
    training.errors = errors.data();
    return training;
}

int outputs_of(const cpu::Training& training) { return training.decoder[training.layers - 1].outputs; }

// How many are drawn for a step, in an order of this seed.
void set_sampling(cpu::Training& training, int count, int coarse_count, Index seed) {
    require(count > 0 && coarse_count > 0, "a step needs something to learn from");
    training.patches = count;
    training.coarse_patches = coarse_count;
    training.seed = static_cast<unsigned long long>(seed);
}

cpu::Schedule read_schedule(const Array<const int>& scales, const Array<const float>& encoder_rates,
                            const Array<const float>& decoder_rates, std::size_t most) {
    const int steps = static_cast<int>(scales.size());
    require(encoder_rates.size() == scales.size() && decoder_rates.size() == scales.size(), "scales and rates must be of one length");
    for (int i = 0; i < steps; ++i) {
        require(0 <= scales.data()[i] && static_cast<std::size_t>(scales.data()[i]) < most, "there is nothing to learn from at that scale");
    }
    return {scales.data(), encoder_rates.data(), decoder_rates.data(), steps};
}

// See acorn_svc.field.ops.reference.train.
void train(nb::handle geometry, nb::dict parameters, nb::dict first, nb::dict second, Array<float> last,
           Array<float> gradient, Array<float> encoder_steps, Array<float> decoder_steps, Array<Index> drawn,
           nb::list pyramid, int patches, int coarse_patches, Index seed, Array<const int> scales,
           Array<const float> encoder_rates, Array<const float> decoder_rates, Array<double> errors,
           const std::string& lanes, int threads) {
    cpu::Training training = read_training(geometry, parameters, first, second, last, gradient, encoder_steps, decoder_steps, drawn, errors);
    require(training.view.dimension == 2, "only pictures are trained by patches of a pyramid");
    std::vector<cpu::Image> images;
    for (nb::handle image : pyramid) {
        images.push_back(read_image<ToRead>(image));
        require(images.back().channels == outputs_of(training), "the decoder gives another number of channels than the picture has");
    }
    training.pyramid = images.data();
    set_sampling(training, patches, coarse_patches, seed);
    const cpu::Schedule schedule = read_schedule(scales, encoder_rates, decoder_rates, std::min(images.size(), drawn.size()));
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    cpu::train(training, schedule, kernels, threads);
}

cpu::Loss read_loss(const std::string& name) {
    require(name == "distance" || name == "occupancy", "the loss is distance or occupancy");
    return name == "distance" ? cpu::Loss::DISTANCE : cpu::Loss::OCCUPANCY;
}

// See acorn_svc.field.ops.reference.train_points.
void train_points(nb::handle geometry, nb::dict parameters, nb::dict first, nb::dict second, Array<float> last,
                  Array<float> gradient, Array<float> encoder_steps, Array<float> decoder_steps, Array<Index> drawn,
                  nb::list samples, int runs, int coarse_runs, Index seed, const std::string& loss,
                  Array<const int> scales, Array<const float> encoder_rates, Array<const float> decoder_rates,
                  Array<double> errors, const std::string& lanes, int threads) {
    cpu::Training training = read_training(geometry, parameters, first, second, last, gradient, encoder_steps, decoder_steps, drawn, errors);
    std::vector<cpu::Samples> sets;
    for (nb::handle pair : samples) {
        const auto positions = exactly<const float>(pair[0], "positions");
        const auto truth = exactly<const float>(pair[1], "truth");
        require_columns(positions, training.view.dimension, POSITIONS);
        require_columns(truth, outputs_of(training), "truth must be [n, outputs]");
        require(positions.shape(0) == truth.shape(0) && positions.shape(0) > 0 && positions.shape(0) % RUN == 0, "samples come in whole runs");
        sets.push_back({positions.data(), truth.data(), static_cast<Index>(positions.shape(0))});
    }
    training.samples = sets.data();
    training.loss = read_loss(loss);
    set_sampling(training, runs, coarse_runs, seed);
    const cpu::Schedule schedule = read_schedule(scales, encoder_rates, decoder_rates, std::min(sets.size(), drawn.size()));
    const cpu::Kernels& kernels = chosen(lanes);
    nb::gil_scoped_release release;
    cpu::train_points(training, schedule, kernels, threads);
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

// --- isosurfaces ---

isosurface::Blocks read_blocks(const Array<const float>& values, const Array<const int>& neighbours) {
    const Index count = static_cast<Index>(values.size()) / isosurface::POINTS;
    require(static_cast<Index>(values.size()) == count * isosurface::POINTS, "values must be [blocks, 8, 8, 8]");
    require(static_cast<Index>(neighbours.size()) == count * isosurface::NEIGHBOURS, "neighbours must be [blocks, 27]");
    require(count <= 0x7fffffff / (3 * isosurface::POINTS), "there are too many blocks");
    for (std::size_t i = 0; i < neighbours.size(); ++i) {
        const int other = neighbours.data()[i];
        require(-1 <= other && other < count, "neighbours must be -1 to blocks - 1");
    }
    return {values.data(), neighbours.data(), count};
}

isosurface::Range read_range(const isosurface::Blocks& blocks, Index carried, Index whole) {
    require(0 <= carried && carried <= blocks.count && 0 <= whole && whole <= blocks.count, "carried and whole must be 0 to blocks");
    return {carried, whole};
}

isosurface::Table read_table(const Array<const signed char>& table, const Array<const int>& starts) {
    require(table.ndim() == 3 && table.shape(0) == isosurface::CASES && table.shape(2) == 3, "the table must be [256, most, 3]");
    require(starts.ndim() == 2 && starts.shape(0) == 2 && starts.shape(1) == 12, "starts must be [2, 12]");
    for (std::size_t i = 0; i < table.size(); ++i) require(table.data()[i] < 12, "a cell has 12 edges");
    for (int i = 0; i < 12; ++i) {
        require(0 <= starts.data()[i] && starts.data()[i] < 8, "a cell has 8 corners");
        require(0 <= starts.data()[12 + i] && starts.data()[12 + i] < 3, "a cell has 3 axes");
    }
    return {table.data(), static_cast<int>(table.shape(1)), starts.data(), starts.data() + 12};
}

// Offsets are the running sums of what was counted, from zero to `total`.
void require_offsets(const Array<const Index>& offsets, Index blocks, Index total) {
    const Index* sums = offsets.data();
    const bool fits = static_cast<Index>(offsets.size()) == blocks + 1 && sums[0] == 0 && sums[blocks] == total;
    require(fits && std::is_sorted(sums, sums + blocks + 1), "offsets must be running sums up to the result's length");
}

void count_crossings(Array<const float> values, Array<const int> neighbours, Index carried, Index whole, Array<int> counts, int threads) {
    const auto blocks = read_blocks(values, neighbours);
    const auto range = read_range(blocks, carried, whole);
    require(static_cast<Index>(counts.size()) == blocks.count, RESULT);
    nb::gil_scoped_release release;
    isosurface::count_crossings(blocks, range, counts.data(), threads);
}

void cross_edges(Array<const float> values, Array<const int> neighbours, Array<const int> corners, double spacing,
                 double closest, double farthest, Index carried, Index whole, Array<const Index> offsets, Array<float> vertices,
                 Array<float> normals, Array<int> edges, Array<float> spans, int threads) {
    const auto blocks = read_blocks(values, neighbours);
    const auto range = read_range(blocks, carried, whole);
    require(static_cast<Index>(corners.size()) == 3 * blocks.count, "corners must be [blocks, 3]");
    require_offsets(offsets, blocks.count, edges.size());
    require(vertices.size() == 3 * edges.size() && normals.size() == vertices.size() && spans.size() == edges.size(), RESULT);
    const isosurface::Crossings out{vertices.data(), normals.data(), edges.data(), spans.data()};
    nb::gil_scoped_release release;
    isosurface::cross_edges(blocks, range, corners.data(), spacing, closest, farthest, offsets.data(), out, threads);
}

void count_triangles(Array<const float> values, Array<const int> neighbours, Index whole, Array<const signed char> table,
                     Array<const int> starts, Array<int> counts, int threads) {
    const auto blocks = read_blocks(values, neighbours);
    read_range(blocks, 0, whole);
    const auto cases = read_table(table, starts);
    require(static_cast<Index>(counts.size()) == whole, RESULT);
    nb::gil_scoped_release release;
    isosurface::count_triangles(blocks, whole, cases, counts.data(), threads);
}

void triangles(Array<const float> values, Array<const int> neighbours, Array<const int> numbers, Index whole,
               Array<const signed char> table, Array<const int> starts, Array<const Index> offsets, Array<int> faces,
               int threads) {
    const auto blocks = read_blocks(values, neighbours);
    read_range(blocks, 0, whole);
    const auto cases = read_table(table, starts);
    require(static_cast<Index>(numbers.size()) == 3 * static_cast<Index>(values.size()), "numbers must be [blocks, 8, 8, 8, 3]");
    require_offsets(offsets, whole, faces.size() / 3);
    nb::gil_scoped_release release;
    isosurface::triangles(blocks, whole, numbers.data(), cases, offsets.data(), faces.data(), threads);
}

}  // namespace

void register_triangles(nb::module_& module);  // triangles_bindings.cpp

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
    module.def("train_points", &train_points, "geometry"_a, "parameters"_a, "first"_a, "second"_a, "last"_a.noconvert(),
               "gradient"_a.noconvert(), "encoder_steps"_a.noconvert(), "decoder_steps"_a.noconvert(),
               "drawn"_a.noconvert(), "samples"_a, "runs"_a, "coarse_runs"_a, "seed"_a, "loss"_a, "scales"_a.noconvert(),
               "encoder_rates"_a.noconvert(), "decoder_rates"_a.noconvert(), "errors"_a.noconvert(), "lanes"_a,
               "threads"_a);
    module.def("multiply_adds", &multiply_adds, "lanes"_a, "rounds"_a, "threads"_a,
               "Does nothing but multiply-adds, for benchmarks; returns how many.");
    module.def("copy", &copy, "values"_a.noconvert(), "out"_a.noconvert(), "threads"_a,
               "Copies, for benchmarks of the memory.");
    register_triangles(module);

    module.def("count_crossings", &count_crossings, "values"_a.noconvert(), "neighbours"_a.noconvert(), "carried"_a,
               "whole"_a, "counts"_a.noconvert(), "threads"_a);
    module.def("cross_edges", &cross_edges, "values"_a.noconvert(), "neighbours"_a.noconvert(), "corners"_a.noconvert(),
               "spacing"_a, "closest"_a, "farthest"_a, "carried"_a, "whole"_a, "offsets"_a.noconvert(),
               "vertices"_a.noconvert(), "normals"_a.noconvert(), "edges"_a.noconvert(), "spans"_a.noconvert(), "threads"_a);
    module.def("count_triangles", &count_triangles, "values"_a.noconvert(), "neighbours"_a.noconvert(), "whole"_a,
               "table"_a.noconvert(), "starts"_a.noconvert(), "counts"_a.noconvert(), "threads"_a);
    module.def("triangles", &triangles, "values"_a.noconvert(), "neighbours"_a.noconvert(), "numbers"_a.noconvert(),
               "whole"_a, "table"_a.noconvert(), "starts"_a.noconvert(), "offsets"_a.noconvert(), "faces"_a.noconvert(),
               "threads"_a);
}
