// Runs every CPU kernel of every instruction set over odd sizes, under whatever sanitizer it was built with.
//
// Arrays have exactly the size that the kernels are promised, so that a sanitizer sees a read or write beside them;
// results are filled with NaN first, and none may be left. Lattices are random numbers in the permitted ranges:
// what is read is no matter here (tests/laws/test_ops.py), where it is read is.
//
//     driver          everything; exit status 0 and nothing on stderr
//     driver threads  only what runs on several threads
//     driver overrun  writes beside an array
//     driver race     two threads write one number
//     driver shift    shifts by too much
//
// The last three prove that the sanitizer would have spoken.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu.h"
#include "isosurface.h"
#include "threads.h"
#include "triangles.h"

namespace acorn::cpu {
// Stand for the instruction sets that were not linked.
namespace avx512 {
extern const Kernels KERNELS __attribute__((weak));
const Kernels KERNELS{};
}  // namespace avx512
namespace avx2 {
extern const Kernels KERNELS __attribute__((weak));
const Kernels KERNELS{};
}  // namespace avx2
}  // namespace acorn::cpu

namespace acorn::triangles::avx2 {
extern const Kernels KERNELS __attribute__((weak));
const Kernels KERNELS{};
}  // namespace acorn::triangles::avx2

namespace {

using namespace acorn;
using cpu::Index;

constexpr float NOTHING = std::numeric_limits<float>::quiet_NaN();
std::mt19937 generator(1);

int below(int limit) { return static_cast<int>(generator() % static_cast<unsigned>(limit)); }

void require(bool holds, const std::string& what) {
    if (holds) return;
    std::fprintf(stderr, "driver: %s\n", what.c_str());
    std::exit(2);
}

std::vector<float> random_floats(Index count) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    std::vector<float> values(count);
    for (float& value : values) value = uniform(generator);
    return values;
}

std::vector<float> unwritten(Index count) { return std::vector<float>(count, NOTHING); }

template <class T>
void require_written(const std::vector<T>& values, const char* what) {
    for (T value : values) require(std::isfinite(value), std::string(what) + " left a number unwritten");
}

// A lattice and its features.
struct Field {
    int dimension, channels, depth, nodes, vertices;
    std::vector<int> leaf_map, ancestors, table;
    std::vector<float> features, folded;
    Geometry geometry{};

    Field(std::vector<int> extent, int cell_shift, int depth, int channels)
        : dimension(static_cast<int>(extent.size())), channels(channels), depth(depth), nodes(7), vertices(50) {
        geometry.depth = depth;
        geometry.cell_shift = cell_shift;
        geometry.nodes = nodes;
        std::copy(extent.begin(), extent.end(), geometry.extent);
        int blocks = 1;
        for (int side : extent) blocks *= side;
        const int row = dimension == 2 ? row_size<2>(geometry) : row_size<3>(geometry);
        for (int i = 0; i < blocks; ++i) leaf_map.push_back(below(nodes));
        for (int node = 0; node < nodes; ++node) {
            const int own = node == 0 ? depth : below(depth + 1);  // one leaf at the finest level
            for (int level = 0; level <= depth; ++level) ancestors.push_back(level <= own ? below(nodes) : nodes);
        }
        ancestors.resize((nodes + 1) * (depth + 1), nodes);
        for (int i = 0; i < nodes * row; ++i) table.push_back(below(vertices + 1));
        table.resize((nodes + 1) * row, 0);
        table[below(nodes) * row + row - 1] = vertices;
        features = random_floats((vertices + 1) * channels);
        folded = random_floats(static_cast<Index>(nodes + 1) * row * channels);
        geometry.leaf_map = leaf_map.data();
        geometry.ancestors = ancestors.data();
        geometry.table = table.data();
    }

    cpu::View view(int scale, bool fold) const {
        return {geometry, dimension, channels, scale, features.data(), fold ? folded.data() : nullptr};
    }

    std::vector<double> positions(Index count) const {
        std::uniform_real_distribution<double> uniform(-0.1, 1.1);
        std::vector<double> values;
        for (Index i = 0; i < count * dimension; ++i) {
            values.push_back(uniform(generator) * (geometry.extent[i % dimension] << geometry.cell_shift));
        }
        if (count > 2) {
            values[0] = -1e300;
            values[1] = 1e300;
            values[dimension] = std::numeric_limits<double>::quiet_NaN();
            values[dimension + 1] = std::nextafter(geometry.extent[1] << geometry.cell_shift, 0.0);
        }
        return values;
    }

    // Patches inside the extent, and one beyond it on every side.
    std::vector<Index> corners(Index count, int scale) const {
        std::vector<Index> values;
        for (Index i = 0; i < count * dimension; ++i) {
            const int pixels = std::max(1, (geometry.extent[i % dimension] << geometry.cell_shift) >> scale);
            values.push_back(below(pixels / PATCH_SIDE + 2) * PATCH_SIDE);
        }
        return values;
    }
};

// A decoder and its arrays, each of its own.
struct Layers {
    std::vector<std::vector<float>> arrays;
    cpu::Decoder decoder{};

    explicit Layers(const std::vector<int>& widths) {
        for (std::size_t i = 0; i + 1 < widths.size(); ++i) {
            arrays.push_back(random_floats(widths[i] * widths[i + 1]));
            arrays.push_back(random_floats(widths[i + 1]));
        }
        for (std::size_t i = 0; i + 1 < widths.size(); ++i) {
            decoder.layers[i] = {arrays[2 * i].data(), arrays[2 * i + 1].data(), widths[i], widths[i + 1]};
        }
        decoder.count = static_cast<int>(widths.size()) - 1;
    }
};

std::vector<Layers> decoders(int inputs) {
    std::vector<Layers> list;
    for (const std::vector<int>& hidden : std::vector<std::vector<int>>{{1}, {3, 2}, {7, 13, 3}, {64, 5, 9, 4}}) {
        std::vector<int> widths{inputs};
        widths.insert(widths.end(), hidden.begin(), hidden.end());
        list.emplace_back(widths);
    }
    return list;
}

Index patches_of_tile(int dimension) { return cpu::TILE / patch_pixels(dimension); }

const std::vector<Index> COUNTS{0, 1, 3, 255, 256, 257, 300};

void run_decoder(const cpu::Kernels& kernels) {
    for (int inputs : {1, 5, 20, 41}) {
        for (const Layers& layers : decoders(inputs)) {
            const cpu::Decoder& decoder = layers.decoder;
            for (Index count : COUNTS) {
                const std::vector<float> in = random_floats(count * inputs);
                std::vector<float> out = unwritten(count * decoder.outputs());
                kernels.decode(decoder, in.data(), 0, count, out.data());
                require_written(out, "decode");
                std::vector<float> in_gradient = unwritten(count * inputs), gradient(decoder.parameters());
                kernels.decode_backward(decoder, in.data(), out.data(), 0, count, in_gradient.data(), gradient.data());
                require_written(in_gradient, "decode_backward");
                require_written(gradient, "decode_backward");
            }
        }
    }
}

void run_points(const cpu::Kernels& kernels, const cpu::View& view, const Field& field, const cpu::Decoder& decoder) {
    const int inputs = SLOTS * field.channels;
    for (Index count : COUNTS) {
        const std::vector<double> positions = field.positions(count);
        std::vector<float> encoded = unwritten(count * inputs), values = unwritten(count * decoder.outputs());
        kernels.encode_points(view, positions.data(), 0, count, encoded.data());
        kernels.render_points(view, decoder, positions.data(), 0, count, values.data());
        require_written(encoded, "encode_points");
        require_written(values, "render_points");
        if (view.folded) continue;
        std::vector<float> gradient(field.features.size());
        kernels.encode_points_backward(view, positions.data(), encoded.data(), count, gradient.data());
        require_written(gradient, "encode_points_backward");
    }
}

void run_patches(const cpu::Kernels& kernels, const cpu::View& view, const Field& field) {
    const int pixels = patch_pixels(field.dimension), inputs = SLOTS * field.channels;
    for (Index count : {Index{0}, Index{1}, patches_of_tile(field.dimension) + 1}) {
        const std::vector<Index> corners = field.corners(count, view.scale);
        std::vector<float> encoded = unwritten(count * pixels * inputs);
        kernels.encode_patches(view, corners.data(), 0, count, encoded.data());
        require_written(encoded, "encode_patches");
        if (view.folded) continue;
        std::vector<float> gradient(field.features.size());
        kernels.encode_patches_backward(view, corners.data(), encoded.data(), count, gradient.data());
        require_written(gradient, "encode_patches_backward");
    }
}

void run_learn(const cpu::Kernels& kernels, const cpu::View& view, const Field& field, const cpu::Decoder& decoder) {
    const int pixels = patch_pixels(field.dimension);
    for (Index count : {Index{0}, Index{1}, 2 * patches_of_tile(field.dimension) + 1}) {
        const std::vector<Index> corners = field.corners(count, view.scale);
        const std::vector<float> truth = random_floats(count * pixels * decoder.outputs());
        const std::vector<float> weights = random_floats(count * pixels);
        std::vector<float> features(field.features.size()), parameters(decoder.parameters());
        std::vector<double> squares(count, NOTHING);
        cpu::learn(view, decoder, corners.data(), count, truth.data(), weights.data(), 0.5f, features.data(),
                   parameters.data(), squares.data(), kernels, 3);
        require_written(features, "learn");
        require_written(parameters, "learn");
        require_written(squares, "learn");
    }
}

// A part of a picture, one tile after the other.
template <class T>
std::vector<T> render(const cpu::Kernels& kernels, const cpu::View& view, const cpu::Decoder& decoder, cpu::Kind kind,
                      Index x, Index y, int width, int height, T blank) {
    constexpr Index SQUARE = 16;
    std::vector<T> pixels(static_cast<Index>(width) * height * decoder.outputs(), blank);
    const cpu::Canvas canvas{pixels.data(), kind, x, y, width, height, decoder.outputs()};
    for (Index top = y / SQUARE * SQUARE; top < y + height; top += SQUARE) {
        for (Index left = x / SQUARE * SQUARE; left < x + width; left += SQUARE) {
            kernels.render_tile(view, decoder, canvas, left, top);
        }
    }
    return pixels;
}

void run_picture(const cpu::Kernels& kernels, const cpu::View& view, const cpu::Decoder& decoder) {
    const std::vector<std::array<int, 4>> regions{{0, 0, 16, 16}, {3, 5, 1, 1}, {15, 1, 19, 34}};
    for (const auto& [x, y, width, height] : regions) {
        const auto floats = render(kernels, view, decoder, cpu::Kind::FLOAT32, x, y, width, height, NOTHING);
        require_written(floats, "render_tile");
        render<std::uint8_t>(kernels, view, decoder, cpu::Kind::UINT8, x, y, width, height, 0);
        render<std::uint16_t>(kernels, view, decoder, cpu::Kind::UINT16, x, y, width, height, 0);
    }
}

void run_reading(const cpu::Kernels& kernels, const Field& field) {
    const std::vector<Layers> list = decoders(SLOTS * field.channels);
    for (int scale = 0; scale <= field.depth; ++scale) {
        const cpu::Decoder& decoder = list[scale % list.size()].decoder;
        for (bool fold : {false, true}) {
            const cpu::View view = field.view(scale, fold);
            run_points(kernels, view, field, decoder);
            run_patches(kernels, view, field);
            if (field.dimension == 2) run_picture(kernels, view, decoder);
        }
        run_learn(kernels, field.view(scale, false), field, decoder);
    }
}

// What `train` and `train_points` work on: three scales of a picture whose sides are no multiples of a patch's, or of
// points, as many as fill no tile, one tile, and several.
struct Trained {
    static constexpr int SCALES = 3;
    Field& field;
    std::vector<std::vector<float>> arrays;
    std::vector<std::uint8_t> bytes;
    std::vector<std::uint16_t> words;
    std::vector<float> floats, second, last, gradient, encoder_steps, decoder_steps;
    std::vector<long long> drawn;
    std::vector<double> errors;
    std::vector<cpu::Image> pyramid;
    std::vector<std::vector<float>> positions, truth;
    std::vector<cpu::Samples> samples;
    cpu::Training training{};

    Trained(Field& field, const std::vector<int>& widths, int width, int height)
        : field(field), second(field.features.size()), last(field.vertices + 1), gradient(field.features.size()),
          encoder_steps(1), decoder_steps(field.depth + 1), drawn(field.depth + 1), errors(2 * field.nodes) {
        const int channels = widths.back();
        bytes.resize(width * height * channels, 200);
        words.resize(((width + 1) / 2) * ((height + 1) / 2) * channels, 60000);
        floats.resize(((width + 3) / 4) * ((height + 3) / 4) * channels, 0.5f);
        pyramid = {{bytes.data(), cpu::Kind::UINT8, width, height, channels},
                   {words.data(), cpu::Kind::UINT16, (width + 1) / 2, (height + 1) / 2, channels},
                   {floats.data(), cpu::Kind::FLOAT32, (width + 3) / 4, (height + 3) / 4, channels}};
        training.layers = static_cast<int>(widths.size()) - 1;
        for (int i = 0; i < training.layers; ++i) {
            cpu::TrainedLayer& layer = training.decoder[i];
            layer.inputs = widths[i];
            layer.outputs = widths[i + 1];
            for (int moment = 0; moment < 3; ++moment) {
                layer.weight[moment] = scales_of(layer.inputs * layer.outputs, moment == 0);
                layer.bias[moment] = scales_of(layer.outputs, moment == 0);
            }
        }
        for (int runs : {21, 1, 8}) add_samples(runs * RUN, channels);
        training.samples = samples.data();
        training.view = field.view(0, false);
        training.table = {field.features.data(), second.data(), last.data(), gradient.data(), field.channels};
        training.pyramid = pyramid.data();
        training.patches = 37;
        training.coarse_patches = 5;
        training.seed = 3;
        training.drawn = drawn.data();
        training.encoder_steps = encoder_steps.data();
        training.decoder_steps = decoder_steps.data();
        training.errors = errors.data();
    }

    float* scales_of(int size, bool random) {
        const Index count = static_cast<Index>(field.depth + 1) * size;
        arrays.push_back(random ? random_floats(count) : std::vector<float>(count));
        return arrays.back().data();
    }

    // Some in runs that stay in a cell, some anywhere, also outside.
    void add_samples(Index count, int channels) {
        std::vector<float> places;
        for (double value : field.positions(count)) places.push_back(static_cast<float>(value));
        for (Index row = 2; row + 1 < count; row += 2) {
            for (int axis = 0; axis < field.dimension; ++axis) places[(row + 1) * field.dimension + axis] = places[row * field.dimension + axis];
        }
        positions.push_back(places);
        truth.push_back(random_floats(count * channels));
        for (Index row = 0; row < count; row += 3) truth.back()[row * channels] = row % 2 ? 1.0f : -1.0f;
        samples.push_back({positions.back().data(), truth.back().data(), count});
    }

    using Train = void(const cpu::Training&, const cpu::Schedule&, const cpu::Kernels&, int);

    void run(Train train, const cpu::Kernels& kernels, int threads) {
        const std::vector<int> scales{0, 2, 1, 0, 1};
        const std::vector<float> rates(scales.size(), 0.01f);
        const int steps = static_cast<int>(scales.size());
        train(training, {scales.data(), rates.data(), rates.data(), steps}, kernels, threads);
        require(encoder_steps[0] == steps, "train took another number of steps");
        require_written(field.features, "train");
        for (const std::vector<float>& array : arrays) require_written(array, "train");
        for (float value : gradient) require(value == 0, "train left a gradient");
    }
};

void run_training(const cpu::Kernels& kernels, int channels) {
    for (const auto& [width, height] : std::vector<std::array<int, 2>>{{61, 35}, {3, 2}}) {
        for (int threads : {1, 3}) {
            Field field({16, 9}, 2, 4, channels);
            Trained(field, {SLOTS * channels, 7, 3}, width, height).run(cpu::train, kernels, threads);
        }
    }
}

void run_training_from_points(const cpu::Kernels& kernels, int channels) {
    for (const std::vector<int>& extent : std::vector<std::vector<int>>{{16, 9}, {3, 2, 5}}) {
        for (int threads : {1, 2, 3}) {
            const cpu::Loss loss = threads == 2 ? cpu::Loss::OCCUPANCY : cpu::Loss::DISTANCE;
            for (int outputs : {1, 4}) {
                Field field(extent, 2, 4, channels);
                Trained trained(field, {SLOTS * channels, 7, outputs}, 3, 2);
                trained.training.loss = loss;
                trained.run(cpu::train_points, kernels, threads);
            }
        }
    }
}

// Surfaces through blocks of random numbers, some of them unknown. The cells of this table make triangles of any
// edges, which is as good: what they are made of is no matter here.
void run_isosurface() {
    constexpr int COUNT = 20, MOST = 5;
    std::vector<float> values = random_floats(Index{COUNT} * isosurface::POINTS);
    for (float& value : values) {
        if (below(50) == 0) value = NOTHING;
    }
    std::vector<int> neighbours(COUNT * isosurface::NEIGHBOURS), corners(COUNT * 3, 8);
    for (int i = 0; i < COUNT; ++i) {
        for (int other = 0; other < isosurface::NEIGHBOURS; ++other) {
            neighbours[i * isosurface::NEIGHBOURS + other] = below(8) ? below(COUNT) : -1;
        }
        neighbours[i * isosurface::NEIGHBOURS + isosurface::NEIGHBOURS / 2] = i;
    }
    std::vector<signed char> edges(isosurface::CASES * MOST * 3);
    for (signed char& edge : edges) edge = static_cast<signed char>(below(13) - 1);
    std::vector<int> starts, axes;
    for (int axis = 0; axis < 3; ++axis) {
        for (int corner = 0; corner < 8; ++corner) {
            if (corner >> axis & 1) continue;
            starts.push_back(corner);
            axes.push_back(axis);
        }
    }
    const auto sums = [](const std::vector<int>& counts) {
        std::vector<Index> offsets(1);
        for (int count : counts) offsets.push_back(offsets.back() + count);
        return offsets;
    };
    const isosurface::Blocks blocks{values.data(), neighbours.data(), COUNT};
    const isosurface::Table table{edges.data(), MOST, starts.data(), axes.data()};
    for (int threads : {1, 3}) {
        for (const isosurface::Range& range : {isosurface::Range{0, COUNT}, isosurface::Range{3, 11}, isosurface::Range{0, 0}}) {
            std::vector<int> counts(COUNT, -1), face_counts(range.whole, -1);
            isosurface::count_crossings(blocks, range, counts.data(), threads);
            const std::vector<Index> offsets = sums(counts);
            std::vector<float> vertices = unwritten(3 * offsets.back()), normals = vertices, spans = unwritten(offsets.back());
            std::vector<int> crossed(offsets.back(), -1);
            isosurface::cross_edges(blocks, range, corners.data(), 0.5, 1e-3, 2, offsets.data(),
                                    {vertices.data(), normals.data(), crossed.data(), spans.data()}, threads);
            require_written(vertices, "cross_edges");
            require_written(spans, "cross_edges");
            for (int edge : crossed) require(0 <= edge, "cross_edges left an edge unwritten");
            isosurface::count_triangles(blocks, range.whole, table, face_counts.data(), threads);
            const std::vector<Index> face_offsets = sums(face_counts);
            const std::vector<int> numbers(3 * values.size(), 7);
            std::vector<int> faces(3 * face_offsets.back(), -1);
            isosurface::triangles(blocks, range.whole, numbers.data(), table, face_offsets.data(), faces.data(), threads);
        }
    }
}

// Two callers at once, and a job that fails while others wait for it.
void run_threads() {
    const auto count_all = [] {
        std::vector<int> seen(1000);
        cpu::share(1000, 7, 3, [&](Index begin, Index end) {
            for (Index i = begin; i < end; ++i) ++seen[i];
        });
        for (int times : seen) require(times == 1, "share did not do everything once");
    };
    std::thread other([&] {
        for (int i = 0; i < 50; ++i) count_all();
    });
    for (int i = 0; i < 50; ++i) count_all();
    other.join();
    for (int failing = 0; failing < 3; ++failing) {
        bool told = false;
        try {
            cpu::together(3, [&](int thread, cpu::Meeting& meeting) {
                meeting.wait();
                if (thread == failing % meeting.count()) throw std::runtime_error("a job failed");
                meeting.wait();
            });
        } catch (const std::runtime_error&) {
            told = true;
        }
        require(told, "a failure was not told");
    }
    count_all();
}

// A soup of triangles, some without area, of sizes that fill packets and trees of triangles oddly.
void run_triangles(const triangles::Kernels& kernels, int faces, int threads) {
    std::uniform_real_distribution<double> uniform(-1, 1);
    std::vector<double> vertices(9 * faces), points(3 * 1500);
    std::vector<std::int32_t> corners(3 * faces);
    for (double& value : vertices) value = uniform(generator);
    for (double& value : points) value = 2 * uniform(generator);
    for (int i = 0; i < 3 * faces; ++i) corners[i] = i % 11 ? i : 0;
    const auto surface = triangles::build(vertices.data(), 3 * faces, corners.data(), faces, threads);
    for (int count : {0, 1, 1025, 1500}) {
        std::vector<float> distances = unwritten(count), barycentric = unwritten(3 * count), signs = unwritten(count), windings = unwritten(count);
        std::vector<std::int32_t> nearest(count, -2);
        auto answers = std::make_unique<bool[]>(count);
        triangles::closest(surface, kernels, points.data(), count, 0.5, distances.data(), nearest.data(), barycentric.data(), threads);
        triangles::winding(surface, kernels, points.data(), count, 2, windings.data(), threads);
        triangles::inside(surface, kernels, points.data(), count, 2, answers.get(), threads);
        triangles::signed_distance(surface, kernels, points.data(), count, 0.5, 2, signs.data(), threads);
        require_written(distances, "closest");
        require_written(barycentric, "closest");
        require_written(windings, "winding");
        require_written(signs, "signed_distance");
        for (std::int32_t face : nearest) require(-1 <= face && face < faces, "closest names no face");
    }
    const double origin[3] = {-0.9, -1.5, -0.5};
    for (std::int64_t cells : {3, 40, 1100}) {  // the last has too many cells for a bit each
        const std::int64_t counts[3] = {cells, cells, cells + 1};
        const auto found = triangles::occupied(surface, origin, 0.01, counts, threads);
        for (std::int64_t cell : found) require(0 <= cell && cell < counts[0] * counts[1] * counts[2], "no such cell");
    }
}

void run_all_triangles(int threads) {
    for (const char* name : {"portable", "avx2"}) {
        const triangles::Kernels* kernels = nullptr;
        try {
            kernels = &triangles::chosen(name);
        } catch (const std::invalid_argument&) {
            continue;  // not of this processor
        }
        if (!kernels->name) continue;  // not linked
        for (int faces : {1, 8, 9, 65, 300}) run_triangles(*kernels, faces, threads);
    }
}

void overrun() {
    const Layers layers({5, 3});
    const std::vector<float> in = random_floats(5 * 257);
    std::vector<float> out(3 * 257 - 1);
    cpu::every().back()->decode(layers.decoder, in.data(), 0, 257, out.data());
}

void race() {
    int number = 0;
    cpu::together(2, [&](int, cpu::Meeting& meeting) {
        meeting.wait();
        ++number;
    });
}

void shift() {
    const Index corner[2] = {4, 4};
    Field field({3, 3}, 2, 4, 1);
    std::vector<float> out(patch_pixels(2) * SLOTS);
    cpu::every().back()->encode_patches(field.view(70, false), corner, 0, 1, out.data());
}

void run_everything(const cpu::Kernels& kernels) {
    run_decoder(kernels);
    for (int channels : {1, 2, 4, 8}) {
        run_reading(kernels, Field({5, 3}, 2, 6, channels));
        run_reading(kernels, Field({3, 2, 5}, 2, 5, channels));
        run_training(kernels, channels);
        run_training_from_points(kernels, channels);
    }
}

// What several threads do at once.
void run_shared(const cpu::Kernels& kernels) {
    const Field field({5, 3}, 2, 6, 4);
    const std::vector<Layers> list = decoders(SLOTS * field.channels);
    for (const Layers& layers : list) run_learn(kernels, field.view(0, false), field, layers.decoder);
    run_training(kernels, 4);
    run_training_from_points(kernels, 4);
}

}  // namespace

int main(int count, char** arguments) {
    const std::string what = count > 1 ? arguments[1] : "";
    if (what == "overrun") return overrun(), 0;
    if (what == "race") return race(), 0;
    if (what == "shift") return shift(), 0;
    for (const cpu::Kernels* kernels : cpu::every()) {
        if (!kernels->name) continue;  // not linked
        std::printf("%s\n", kernels->name);
        what == "threads" ? run_shared(*kernels) : run_everything(*kernels);
    }
    run_all_triangles(what == "threads" ? 3 : 1);
    run_isosurface();
    run_threads();
}
