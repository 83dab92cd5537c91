// The CPU kernels for one width of vector registers. Included by cpu_*.cpp, each of which defines
//
//     ACORN_LANES       floats in a vector
//     ACORN_NAMESPACE   a name for this width
//
// Samples are the lanes: a tile holds one row of TILE samples for each input, hidden unit and output. The
// decoder's products are blocked in registers; features are read patch by patch, a row of channels at once.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "cpu.h"

namespace acorn::cpu::ACORN_NAMESPACE {
namespace {

constexpr int LANES = ACORN_LANES;
constexpr int STEP = 2 * 4 * 16;  // samples are computed in multiples of this

typedef float V __attribute__((vector_size(4 * LANES), may_alias));
typedef float Quad __attribute__((vector_size(16), may_alias));
typedef int Mask __attribute__((vector_size(4 * LANES), may_alias));

#define ACORN_INLINE static inline __attribute__((always_inline))

ACORN_INLINE V load(const float* at) { return *reinterpret_cast<const V*>(at); }
ACORN_INLINE void store(float* at, V value) { *reinterpret_cast<V*>(at) = value; }
ACORN_INLINE V splat(float value) { return value - V{}; }  // not V{} + value, which would cost an addition

// The four quarters (or fewer, or more) of a vector, added.
ACORN_INLINE Quad fold_to_quad(const V& value) {
    Quad parts[LANES / 4];
    std::memcpy(parts, &value, sizeof(V));
    Quad total = parts[0];
    for (int i = 1; i < LANES / 4; ++i) total += parts[i];
    return total;
}

ACORN_INLINE float sum(const V& value) {
    const Quad quad = fold_to_quad(value);
    return (quad[0] + quad[2]) + (quad[1] + quad[3]);
}

ACORN_INLINE Quad sums_of_four(const V& a, const V& b, const V& c, const V& d) {
    const Quad p = fold_to_quad(a), q = fold_to_quad(b), r = fold_to_quad(c), s = fold_to_quad(d);
    const Quad pq = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
    const Quad rs = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
    return __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
}

// --- the decoder, on tiles ---

enum class After { NOTHING, RELU, WHERE_ACTIVE };

// A register block of a product: at most ROWS rows, of VECTORS vectors; few rows take twice as many vectors, for
// enough independent sums must be under way to hide the latency of an addition.
constexpr int VECTORS = LANES == 16 ? 4 : 2;
constexpr int ROWS = 6;
constexpr int FEW = 3;

// out[n] = bias[n] + sum over k of weight(k, n) * in[k]; WHERE_ACTIVE: zero where out was not positive.
template <int N, int M, After AFTER>
ACORN_INLINE void product_block(const float* in, int count, const float* weight, int k_step, int n_step,
                                const float* bias, float* out) {
    V total[N][M];
    for (int n = 0; n < N; ++n) {
        for (int m = 0; m < M; ++m) total[n][m] = splat(bias ? bias[n] : 0.0f);
    }
    for (int k = 0; k < count; ++k) {
        V x[M];
        for (int m = 0; m < M; ++m) x[m] = load(in + k * PITCH + m * LANES);
        for (int n = 0; n < N; ++n) {
            const V w = splat(weight[k * k_step + n * n_step]);
            for (int m = 0; m < M; ++m) total[n][m] += w * x[m];
        }
    }
    for (int n = 0; n < N; ++n) {
        for (int m = 0; m < M; ++m) {
            float* at = out + n * PITCH + m * LANES;
            if constexpr (AFTER == After::NOTHING) {
                store(at, total[n][m]);
            } else {
                const V gate = AFTER == After::RELU ? total[n][m] : load(at);
                const Mask kept = (gate > 0.0f) & reinterpret_cast<const Mask&>(total[n][m]);
                store(at, reinterpret_cast<const V&>(kept));
            }
        }
    }
}

struct Product {
    const float* in;
    int inputs;
    const float* weight;
    int k_step, n_step;
    const float* bias;  // or null
    float* out;
    int outputs;
};

template <int N, int M, After AFTER>
ACORN_INLINE void product_rows(const Product& p, int first, int s) {
    product_block<N, M, AFTER>(p.in + s, p.inputs, p.weight + first * p.n_step, p.k_step, p.n_step,
                               p.bias ? p.bias + first : nullptr, p.out + first * PITCH + s);
}

template <After AFTER>
void product(const Product& p, int samples) {
    if (p.outputs <= FEW) {
        for (int s = 0; s < samples; s += 2 * VECTORS * LANES) {
            switch (p.outputs) {
                case 1: product_rows<1, 2 * VECTORS, AFTER>(p, 0, s); break;
                case 2: product_rows<2, 2 * VECTORS, AFTER>(p, 0, s); break;
                case 3: product_rows<3, 2 * VECTORS, AFTER>(p, 0, s); break;
            }
        }
        return;
    }
    const int blocks = (p.outputs + ROWS - 1) / ROWS;
    for (int s = 0; s < samples; s += VECTORS * LANES) {
        for (int block = 0, first = 0; block < blocks; ++block) {
            const int rows = (p.outputs - first) / (blocks - block);  // evenly, the larger ones last
            switch (rows) {
                case 2: product_rows<2, VECTORS, AFTER>(p, first, s); break;
                case 3: product_rows<3, VECTORS, AFTER>(p, first, s); break;
                case 4: product_rows<4, VECTORS, AFTER>(p, first, s); break;
                case 5: product_rows<5, VECTORS, AFTER>(p, first, s); break;
                case 6: product_rows<6, VECTORS, AFTER>(p, first, s); break;
            }
            first += rows;
        }
    }
}

// out[k][n] = sum over samples of a[k] * b[n], for A rows of a and B (4 or 1) of b.
template <int A, int B>
ACORN_INLINE void dot_block(const float* a, const float* b, int samples, float* out, int pitch) {
    V total[A][B] = {};
    for (int s = 0; s < samples; s += LANES) {
        V y[B];
        for (int j = 0; j < B; ++j) y[j] = load(b + j * PITCH + s);
        for (int i = 0; i < A; ++i) {
            const V x = load(a + i * PITCH + s);
            for (int j = 0; j < B; ++j) total[i][j] += x * y[j];
        }
    }
    for (int i = 0; i < A; ++i) {
        if constexpr (B == 4) {
            const Quad quad = sums_of_four(total[i][0], total[i][1], total[i][2], total[i][3]);
            std::memcpy(out + i * pitch, &quad, sizeof(quad));
        } else {
            for (int j = 0; j < B; ++j) out[i * pitch + j] = sum(total[i][j]);
        }
    }
}

template <int A, int B>
ACORN_INLINE void dot_rows(const float* a, int rows, const float* b, int samples, float* out, int pitch) {
    int i = 0;
    for (; i + A <= rows; i += A) {
        dot_block<A, B>(a + i * PITCH, b, samples, out + i * pitch, pitch);
    }
    if constexpr (A > 1) dot_rows<A - 1, B>(a + i * PITCH, rows - i, b, samples, out + i * pitch, pitch);
}

constexpr int DOT_ROWS = LANES == 16 ? 5 : 3;

void dots(const float* a, int rows, const float* b, int columns, int samples, float* out) {
    int j = 0;
    for (; j + 4 <= columns; j += 4) dot_rows<DOT_ROWS, 4>(a, rows, b + j * PITCH, samples, out + j, columns);
    if (columns - j == 3) {
        dot_rows<DOT_ROWS, 3>(a, rows, b + j * PITCH, samples, out + j, columns);
    } else if (columns - j == 2) {
        dot_rows<DOT_ROWS, 2>(a, rows, b + j * PITCH, samples, out + j, columns);
    } else if (columns - j == 1) {
        dot_rows<DOT_ROWS, 1>(a, rows, b + j * PITCH, samples, out + j, columns);
    }
}

void row_sums(const float* a, int rows, int samples, float* out) {
    for (int i = 0; i < rows; ++i) {
        V total[4] = {};
        for (int s = 0; s < samples; s += 4 * LANES) {
            for (int j = 0; j < 4; ++j) total[j] += load(a + i * PITCH + s + j * LANES);
        }
        out[i] = sum((total[0] + total[1]) + (total[2] + total[3]));
    }
}

int rounded(Index samples) { return static_cast<int>((samples + STEP - 1) / STEP * STEP); }

// Rows of one tile: inputs, every layer's outputs, and their gradients.
class Tile {
   public:
    explicit Tile(const Decoder& decoder) : decoder_(decoder) {
        int rows = 2 * decoder.inputs() + decoder.outputs();
        for (int i = 0; i < decoder.count; ++i) rows += decoder.layers[i].outputs;
        float* next = memory(rows);
        const auto take = [&next](int count) { return std::exchange(next, next + count * PITCH); };
        values_[0] = take(decoder.inputs());
        for (int i = 0; i < decoder.count; ++i) values_[i + 1] = take(decoder.layers[i].outputs);
        inputs_gradient_ = take(decoder.inputs());
        outputs_gradient_ = take(decoder.outputs());
    }

    float* inputs() const { return values_[0]; }
    float* outputs() const { return values_[decoder_.count]; }
    float* inputs_gradient() const { return inputs_gradient_; }
    float* outputs_gradient() const { return outputs_gradient_; }

    // Computes samples in multiples of STEP: those above `samples` are of no account.
    void forward(int samples) const {
        for (int k = 0; k < decoder_.inputs(); ++k) {
            std::fill(values_[0] + k * PITCH + samples, values_[0] + k * PITCH + rounded(samples), 0.0f);
        }
        samples = rounded(samples);
        for (int i = 0; i < decoder_.count; ++i) {
            const Layer& layer = decoder_.layers[i];
            const auto compute = i + 1 < decoder_.count ? product<After::RELU> : product<After::NOTHING>;
            compute({values_[i], layer.inputs, layer.weight, layer.outputs, 1, layer.bias, values_[i + 1], layer.outputs},
                    samples);
        }
    }

    // From the gradient of the outputs to those of the inputs and, in their order, of all parameters. The
    // hidden units' values are lost.
    void backward(int samples, float* parameters_gradient) const {
        for (int c = 0; c < decoder_.outputs(); ++c) {
            std::fill(outputs_gradient_ + c * PITCH + samples, outputs_gradient_ + c * PITCH + rounded(samples), 0.0f);
        }
        samples = rounded(samples);
        const float* gradient = outputs_gradient_;
        float* end = parameters_gradient + decoder_.parameters();
        for (int i = decoder_.count - 1; i >= 0; --i) {
            const Layer& layer = decoder_.layers[i];
            end -= (layer.inputs + 1) * layer.outputs;
            dots(values_[i], layer.inputs, gradient, layer.outputs, samples, end);
            row_sums(gradient, layer.outputs, samples, end + layer.inputs * layer.outputs);
            float* below = i ? values_[i] : inputs_gradient_;
            const auto compute = i ? product<After::WHERE_ACTIVE> : product<After::NOTHING>;
            compute({gradient, layer.outputs, layer.weight, 1, layer.outputs, nullptr, below, layer.inputs}, samples);
            gradient = below;
        }
    }

   private:
    // Room for so many rows, kept by each thread for its next tile.
    static float* memory(std::size_t rows) {
        struct Free {
            void operator()(float* memory) const { std::free(memory); }
        };
        thread_local std::unique_ptr<float, Free> kept;
        thread_local std::size_t size = 0;
        if (size < rows) {
            kept.reset(static_cast<float*>(std::aligned_alloc(64, sizeof(float) * rows * PITCH)));
            size = kept ? rows : 0;
            if (!kept) throw std::bad_alloc();
        }
        return kept.get();
    }

    const Decoder& decoder_;
    float* values_[MAX_LAYERS + 1] = {};
    float* inputs_gradient_ = nullptr;
    float* outputs_gradient_ = nullptr;
};

// --- reading features ---

template <int CH>
struct RowOf;
template <>
struct RowOf<1> {
    typedef float Type __attribute__((vector_size(4), may_alias));
};
template <>
struct RowOf<2> {
    typedef float Type __attribute__((vector_size(8), may_alias));
};
template <>
struct RowOf<4> {
    typedef float Type __attribute__((vector_size(16), may_alias));
};
template <>
struct RowOf<8> {
    typedef float Type __attribute__((vector_size(32), may_alias));
};

template <int CH>
using Row = typename RowOf<CH>::Type;

template <int CH>
ACORN_INLINE Row<CH> read_row(const float* table, Index row) {
    Row<CH> value;
    std::memcpy(&value, table + row * CH, sizeof(value));
    return value;
}

template <int CH>
ACORN_INLINE void write_row(float* table, Index row, const Row<CH>& value) {
    std::memcpy(table + row * CH, &value, sizeof(value));
}

// From VERTICES per axis over a patch to its pixels, axis by axis; x is fastest in both.
template <int D, int VERTICES, class R>
ACORN_INLINE void spread(const R* vertices, R* pixels) {
    if constexpr (D == 1) {
#pragma GCC unroll 4
        for (int i = 0; i < PATCH_SIDE; ++i) {
            const R low = vertices[spread_low<VERTICES>(i)];
            pixels[i] = low + (vertices[spread_low<VERTICES>(i) + 1] - low) * spread_fraction<VERTICES>(i);
        }
    } else {
        constexpr int INNER = patch_pixels(D - 1);
        R planes[VERTICES * INNER];
#pragma GCC unroll 5
        for (int i = 0; i < VERTICES; ++i) {
            spread<D - 1, VERTICES>(vertices + i * power(VERTICES, D - 1), planes + i * INNER);
        }
#pragma GCC unroll 4
        for (int i = 0; i < PATCH_SIDE; ++i) {
            const R* low = planes + spread_low<VERTICES>(i) * INNER;
            for (int j = 0; j < INNER; ++j) {
                pixels[i * INNER + j] = low[j] + (low[INNER + j] - low[j]) * spread_fraction<VERTICES>(i);
            }
        }
    }
}

// The adjoint of spread: what the pixels say to the vertices.
template <int D, int VERTICES, class R>
ACORN_INLINE void gather(const R* pixels, R* vertices) {
    if constexpr (D == 1) {
        for (int i = 0; i < VERTICES; ++i) vertices[i] = R{};
#pragma GCC unroll 4
        for (int i = 0; i < PATCH_SIDE; ++i) {
            const R high = pixels[i] * spread_fraction<VERTICES>(i);
            vertices[spread_low<VERTICES>(i)] += pixels[i] - high;
            vertices[spread_low<VERTICES>(i) + 1] += high;
        }
    } else {
        constexpr int INNER = patch_pixels(D - 1);
        R planes[VERTICES * INNER];
        for (int j = 0; j < VERTICES * INNER; ++j) planes[j] = R{};
#pragma GCC unroll 4
        for (int i = 0; i < PATCH_SIDE; ++i) {
            R* low = planes + spread_low<VERTICES>(i) * INNER;
            for (int j = 0; j < INNER; ++j) {
                const R high = pixels[i * INNER + j] * spread_fraction<VERTICES>(i);
                low[j] += pixels[i * INNER + j] - high;
                low[INNER + j] += high;
            }
        }
#pragma GCC unroll 5
        for (int i = 0; i < VERTICES; ++i) {
            gather<D - 1, VERTICES>(planes + i * INNER, vertices + i * power(VERTICES, D - 1));
        }
    }
}

// Values at the corners of a patch from those at the corners of the cell that holds it, one axis after the
// other; and the adjoint.
template <int D, class R>
ACORN_INLINE void narrow(const Ends (&ends)[D], R* corners) {
    for (int axis = 0; axis < D; ++axis) {
        for (int corner = 0; corner < 1 << D; ++corner) {
            if (corner >> axis & 1) continue;
            const R low = corners[corner], step = corners[corner | 1 << axis] - low;
            corners[corner] = low + step * ends[axis].low;
            corners[corner | 1 << axis] = low + step * ends[axis].high;
        }
    }
}

template <int D, class R>
ACORN_INLINE void widen(const Ends (&ends)[D], R* corners) {
    for (int axis = 0; axis < D; ++axis) {
        for (int corner = 0; corner < 1 << D; ++corner) {
            if (corner >> axis & 1) continue;
            const R low = corners[corner], high = corners[corner | 1 << axis];
            const R up = low * ends[axis].low + high * ends[axis].high;
            corners[corner] = low + high - up;
            corners[corner | 1 << axis] = up;
        }
    }
}

// Between the rows of a tile and the pixels of one patch.
template <int CH, int PIXELS>
ACORN_INLINE void to_tile(const Row<CH>* pixels, float* rows) {
    if constexpr (CH == 4) {
        for (int p = 0; p < PIXELS; p += 4) {
            const Row<CH> a = pixels[p], b = pixels[p + 1], c = pixels[p + 2], d = pixels[p + 3];
            const Row<CH> ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
            const Row<CH> ef = __builtin_shufflevector(a, b, 2, 6, 3, 7), gh = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            write_row<4>(rows + p, 0, __builtin_shufflevector(ab, cd, 0, 1, 4, 5));
            write_row<4>(rows + PITCH + p, 0, __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
            write_row<4>(rows + 2 * PITCH + p, 0, __builtin_shufflevector(ef, gh, 0, 1, 4, 5));
            write_row<4>(rows + 3 * PITCH + p, 0, __builtin_shufflevector(ef, gh, 2, 3, 6, 7));
        }
    } else {
        for (int p = 0; p < PIXELS; ++p) {
            for (int c = 0; c < CH; ++c) rows[c * PITCH + p] = pixels[p][c];
        }
    }
}

template <int CH, int PIXELS>
ACORN_INLINE void from_tile(const float* rows, Row<CH>* pixels) {
    if constexpr (CH == 4) {
        for (int p = 0; p < PIXELS; p += 4) {
            const Row<CH> a = read_row<4>(rows + p, 0), b = read_row<4>(rows + PITCH + p, 0);
            const Row<CH> c = read_row<4>(rows + 2 * PITCH + p, 0), d = read_row<4>(rows + 3 * PITCH + p, 0);
            const Row<CH> ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
            const Row<CH> ef = __builtin_shufflevector(a, b, 2, 6, 3, 7), gh = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            pixels[p] = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
            pixels[p + 1] = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
            pixels[p + 2] = __builtin_shufflevector(ef, gh, 0, 1, 4, 5);
            pixels[p + 3] = __builtin_shufflevector(ef, gh, 2, 3, 6, 7);
        }
    } else {
        for (int p = 0; p < PIXELS; ++p) {
            for (int c = 0; c < CH; ++c) pixels[p][c] = rows[c * PITCH + p];
        }
    }
}

template <int CH, int PIXELS>
ACORN_INLINE void clear_slot(float* rows) {
    for (int c = 0; c < CH; ++c) std::memset(rows + c * PITCH, 0, PIXELS * sizeof(float));
}

// Reads the features of whole patches: first which rows, so that their memory can be asked for, then their values.
template <int D, int CH>
class PatchReader {
   public:
    static constexpr int PIXELS = patch_pixels(D);
    static constexpr int CORNERS = 1 << D;
    static constexpr int MOST_ROWS = power(5, D) + power(3, D) + CORNERS * 32;

    PatchReader(const View& view, const Index* corner) : view_(view), geometry_(view.geometry) {
        Index block[D];
        for (int axis = 0; axis < D; ++axis) {
            corner_[axis] = corner[axis];
            block[axis] = (corner[axis] << view.scale) >> geometry_.cell_shift;
        }
        ancestors_ = ancestors_at<D>(geometry_, block);
        level_ = geometry_.depth - view.scale;
        levels_read_ = view.folded ? std::min(level_, DIRECT_SLOTS - 1) : level_;
    }

    // The rows of the features that are read, slot by slot; returns how many.
    int find(int* rows) const {
        int* next = rows;
        for (int up = 0; up <= levels_read_; ++up) {
            if (!present(up)) continue;
            const int* table = geometry_.table + vertex_index<D>(geometry_, node_at(up), cell_at(up).place);
            const int vertices = (PATCH_SIDE >> up > 1 ? PATCH_SIDE >> up : 1) + 1;
            const int side = geometry_.cells() + 1;
            for (int z = 0; z < (D == 3 ? vertices : 1); ++z) {
                for (int y = 0; y < vertices; ++y, next += vertices) {
                    std::copy_n(table + (z * side + y) * side, vertices, next);
                }
            }
        }
        return static_cast<int>(next - rows);
    }

    // Writes SLOTS * CH rows of `tile`, PIXELS samples of each, from the features of the rows found.
    void forward(const int* rows, float* tile) const {
        forward_fine<0>(rows, tile);
        forward_fine<1>(rows, tile + CH * PITCH);
        for (int up = 2; up < DIRECT_SLOTS; ++up) {
            Row<CH> corners[CORNERS] = {};
            add_corners(up, rows, corners);
            put_corners(corners, tile + up * CH * PITCH);
        }
        Row<CH> corners[CORNERS] = {};
        if (view_.folded && level_ >= DIRECT_SLOTS) read_folded(corners);
        for (int up = DIRECT_SLOTS; up <= levels_read_; ++up) add_corners(up, rows, corners);
        put_corners(corners, tile + DIRECT_SLOTS * CH * PITCH);
    }

    // The gradient of the features of the rows found, in their order.
    void backward(const float* tile, float* gradients) const {
        float* next = gradients;
        backward_fine<0>(tile, next);
        backward_fine<1>(tile + CH * PITCH, next);
        for (int up = 2; up < DIRECT_SLOTS; ++up) put_back(up, up, tile + up * CH * PITCH, next);
        put_back(DIRECT_SLOTS, level_, tile + DIRECT_SLOTS * CH * PITCH, next);
    }

   private:
    struct Cell {
        Index place[D];
    };

    int node_at(int up) const { return ancestors_[level_ - up]; }

    bool present(int up) const { return up <= level_ && node_at(up) != geometry_.nodes; }

    Cell cell_at(int up) const {
        Cell cell;
        for (int axis = 0; axis < D; ++axis) cell.place[axis] = corner_[axis] >> up;
        return cell;
    }

    template <int UP>
    void forward_fine(const int*& rows, float* tile) const {
        constexpr int VERTICES = power((PATCH_SIDE >> UP) + 1, D);
        if (!present(UP)) return clear_slot<CH, PIXELS>(tile);
        Row<CH> vertices[VERTICES], pixels[PIXELS];
        for (int i = 0; i < VERTICES; ++i) vertices[i] = read_row<CH>(view_.features, *rows++);
        spread<D, (PATCH_SIDE >> UP) + 1>(vertices, pixels);
        to_tile<CH, PIXELS>(pixels, tile);
    }

    template <int UP>
    void backward_fine(const float* tile, float*& next) const {
        constexpr int VERTICES = power((PATCH_SIDE >> UP) + 1, D);
        if (!present(UP)) return;
        Row<CH> vertices[VERTICES], pixels[PIXELS];
        from_tile<CH, PIXELS>(tile, pixels);
        gather<D, (PATCH_SIDE >> UP) + 1>(pixels, vertices);
        for (int i = 0; i < VERTICES; ++i, next += CH) write_row<CH>(next, 0, vertices[i]);
    }

    // Adds what one level has at the patch's corners.
    void add_corners(int up, const int*& rows, Row<CH>* corners) const {
        if (!present(up)) return;
        Row<CH> values[CORNERS];
        for (int c = 0; c < CORNERS; ++c) values[c] = read_row<CH>(view_.features, *rows++);
        Ends ends[D];
        ends_at(up, ends);
        narrow<D>(ends, values);
        for (int c = 0; c < CORNERS; ++c) corners[c] += values[c];
    }

    void read_folded(Row<CH>* corners) const {
        const Source source = folded_source<D>(geometry_, ancestors_, level_);
        const Index base = vertex_index<D>(geometry_, source.node, cell_at(source.up).place);
        for (int c = 0; c < CORNERS; ++c) corners[c] = read_row<CH>(view_.folded, base + vertex_offset<D>(geometry_, c));
        Ends ends[D];
        ends_at(source.up, ends);
        narrow<D>(ends, corners);
    }

    void put_corners(const Row<CH>* corners, float* tile) const {
        Row<CH> pixels[PIXELS];
        spread<D, 2>(corners, pixels);
        to_tile<CH, PIXELS>(pixels, tile);
    }

    // One slot's gradient, to the vertices of all levels that it sums.
    void put_back(int first, int last, const float* tile, float*& next) const {
        Row<CH> pixels[PIXELS], corners[CORNERS];
        from_tile<CH, PIXELS>(tile, pixels);
        gather<D, 2>(pixels, corners);
        for (int up = first; up <= last; ++up) {
            if (!present(up)) continue;
            Row<CH> values[CORNERS];
            std::copy(corners, corners + CORNERS, values);
            Ends ends[D];
            ends_at(up, ends);
            widen<D>(ends, values);
            for (int c = 0; c < CORNERS; ++c, next += CH) write_row<CH>(next, 0, values[c]);
        }
    }

    void ends_at(int up, Ends (&ends)[D]) const {
        for (int axis = 0; axis < D; ++axis) ends[axis] = patch_ends(corner_[axis], up);
    }

    const View& view_;
    const Geometry& geometry_;
    Index corner_[D];
    const int* ancestors_;
    int level_, levels_read_;
};

// Reads the features at one point.
template <int D, int CH>
class PointReader {
   public:
    static constexpr int CORNERS = 1 << D;

    PointReader(const View& view, const double* position) : view_(view), geometry_(view.geometry) {
        Index block[D];
        for (int axis = 0; axis < D; ++axis) {
            const double far = static_cast<double>(static_cast<Index>(geometry_.extent[axis]) << geometry_.cell_shift);
            position_[axis] = std::min(std::max(0.0, position[axis]), std::nextafter(far, 0.0));
            block[axis] = static_cast<Index>(position_[axis]) >> geometry_.cell_shift;
        }
        ancestors_ = ancestors_at<D>(geometry_, block);
        level_ = geometry_.depth - view.scale;
    }

    // Calls visit(slot, table index or row, weight) for every vertex that is read.
    template <class Visit>
    void vertices(const Visit& visit) const {
        for (int up = 0; up <= level_ && (up < DIRECT_SLOTS || !view_.folded); ++up) {
            const int node = ancestors_[level_ - up];
            if (node != geometry_.nodes) cell(node, up + view_.scale, std::min(up, DIRECT_SLOTS), visit);
        }
    }

    void forward(float* tile) const {
        Row<CH> slots[SLOTS] = {};
        vertices([&](int slot, Index index, float weight) {
            slots[slot] += read_row<CH>(view_.features, geometry_.table[index]) * weight;
        });
        if (view_.folded && level_ >= DIRECT_SLOTS) {
            const Source source = folded_source<D>(geometry_, ancestors_, level_);
            cell(source.node, source.up + view_.scale, DIRECT_SLOTS, [&](int slot, Index index, float weight) {
                slots[slot] += read_row<CH>(view_.folded, index) * weight;
            });
        }
        for (int slot = 0; slot < SLOTS; ++slot) {
            for (int c = 0; c < CH; ++c) tile[(slot * CH + c) * PITCH] = slots[slot][c];
        }
    }

   private:
    template <class Visit>
    void cell(int node, int shift, int slot, const Visit& visit) const {
        Index cell[D];
        float fraction[D];
        const double side = 1.0 / static_cast<double>(Index{1} << shift);
        for (int axis = 0; axis < D; ++axis) {
            const double place = position_[axis] * side;
            cell[axis] = static_cast<Index>(place);
            fraction[axis] = static_cast<float>(place - static_cast<double>(cell[axis]));
        }
        const Index base = vertex_index<D>(geometry_, node, cell);
        for (int c = 0; c < CORNERS; ++c) {
            float weight = 1.0f;
            for (int axis = 0; axis < D; ++axis) weight *= c >> axis & 1 ? fraction[axis] : 1.0f - fraction[axis];
            visit(slot, base + vertex_offset<D>(geometry_, c), weight);
        }
    }

    const View& view_;
    const Geometry& geometry_;
    double position_[D];
    const int* ancestors_;
    int level_;
};

// Reads the features of points that lie near each other: while they stay in a cell, it is read once.
template <int D, int CH>
class NearPoints {
   public:
    static constexpr int CORNERS = 1 << D;

    // Finds the rows of the features that `count` points read, CORNERS for each cell, and asks for their memory.
    void find(const View& view, const float* positions, int count, std::vector<int>& rows, int* leaves) {
        const Geometry& geometry = view.geometry;
        view_ = &view;
        count_ = count;
        level_ = geometry.depth - view.scale;
        cells_.resize(count * (level_ + 1));
        fractions_.resize(count * (level_ + 1) * D);
        rows.clear();
        int offsets[CORNERS];
        for (int c = 0; c < CORNERS; ++c) offsets[c] = vertex_offset<D>(geometry, c);
        Index latest[64];
        int number[64];
        std::fill(latest, latest + level_ + 1, -1);
        int* cell = cells_.data();
        float* fraction = fractions_.data();
        for (int s = 0; s < count; ++s) {
            double position[D];
            Index block[D];
            for (int axis = 0; axis < D; ++axis) {
                const double far = static_cast<double>(Index{geometry.extent[axis]} << geometry.cell_shift);
                position[axis] = std::min(std::max(0.0, static_cast<double>(positions[s * D + axis])), std::nextafter(far, 0.0));
                block[axis] = static_cast<Index>(position[axis]) >> geometry.cell_shift;
            }
            leaves[s] = leaf_at<D>(geometry, block);
            const int* ancestors = geometry.ancestors + Index{leaves[s]} * (geometry.depth + 1);
            for (int up = 0; up <= level_; ++up, ++cell, fraction += D) {
                const int node = ancestors[level_ - up];
                if (node == geometry.nodes) {
                    *cell = -1;
                    continue;
                }
                Index place[D];
                const double side = 1.0 / static_cast<double>(Index{1} << (up + view.scale));
                for (int axis = 0; axis < D; ++axis) {
                    const double at = position[axis] * side;
                    place[axis] = static_cast<Index>(at);
                    fraction[axis] = static_cast<float>(at - static_cast<double>(place[axis]));
                }
                const Index base = vertex_index<D>(geometry, node, place);
                if (base != latest[up]) {
                    latest[up] = base;
                    number[up] = static_cast<int>(rows.size()) / CORNERS;
                    for (int c = 0; c < CORNERS; ++c) {
                        rows.push_back(geometry.table[base + offsets[c]]);
                        __builtin_prefetch(view.features + Index{rows.back()} * CH);
                    }
                }
                *cell = number[up];
            }
        }
    }

    void forward(const std::vector<int>& rows, float* tile) {
        values_.resize(rows.size() * CH);
        for (std::size_t i = 0; i < rows.size(); ++i) std::memcpy(values_.data() + i * CH, view_->features + Index{rows[i]} * CH, sizeof(float) * CH);
        const int* cell = cells_.data();
        const float* fraction = fractions_.data();
        for (int s = 0; s < count_; ++s) {
            float slots[SLOTS][CH] = {};
            for (int up = 0; up <= level_; ++up, ++cell, fraction += D) {
                if (*cell >= 0) interpolate(values_.data() + *cell * CORNERS * CH, fraction, slots[std::min(up, DIRECT_SLOTS)]);
            }
            for (int k = 0; k < SLOTS * CH; ++k) tile[k * PITCH + s] = slots[k / CH][k % CH];
        }
    }

    // The gradient of the features of the rows found, in their order.
    void backward(const float* tile, std::size_t rows, std::vector<float>& gradients) const {
        gradients.assign(rows * CH, 0.0f);
        const int* cell = cells_.data();
        const float* fraction = fractions_.data();
        for (int s = 0; s < count_; ++s) {
            float slots[SLOTS][CH];
            for (int k = 0; k < SLOTS * CH; ++k) slots[k / CH][k % CH] = tile[k * PITCH + s];
            for (int up = 0; up <= level_; ++up, ++cell, fraction += D) {
                if (*cell >= 0) spread_to_corners(slots[std::min(up, DIRECT_SLOTS)], fraction, gradients.data() + *cell * CORNERS * CH);
            }
        }
    }

   private:
    // Axis by axis, the last one first: the corners of its two ends lie side by side.
    ACORN_INLINE void interpolate(const float* corners, const float* fraction, float* sum) {
        float line[CORNERS * CH];
        std::memcpy(line, corners, sizeof(line));
        for (int axis = D - 1; axis >= 0; --axis) {
            const int half = (1 << axis) * CH;
            for (int i = 0; i < half; ++i) line[i] += (line[half + i] - line[i]) * fraction[axis];
        }
        for (int c = 0; c < CH; ++c) sum[c] += line[c];
    }

    // The adjoint.
    ACORN_INLINE void spread_to_corners(const float* gradient, const float* fraction, float* corners) {
        float line[CORNERS * CH];
        for (int c = 0; c < CH; ++c) line[c] = gradient[c];
        for (int axis = 0; axis < D; ++axis) {
            const int half = (1 << axis) * CH;
            for (int i = 0; i < half; ++i) {
                line[half + i] = line[i] * fraction[axis];
                line[i] -= line[half + i];
            }
        }
        for (int i = 0; i < CORNERS * CH; ++i) corners[i] += line[i];
    }

    const View* view_ = nullptr;
    int count_ = 0, level_ = 0;
    std::vector<int> cells_;        // [count, levels], -1 where there is none
    std::vector<float> fractions_;  // [count, levels, D], place within the cell
    std::vector<float> values_;     // [rows, CH]
};

// What a point adds to the loss, and the gradient of one output.
struct PointError {
    float error, slope;
};

ACORN_INLINE PointError point_error(Loss loss, int channel, float output, float truth) {
    if (loss == Loss::OCCUPANCY && channel == 0) {
        const float side = truth < 0 ? -1.0f : 1.0f, margin = side * output;
        return {std::max(-margin, 0.0f) + std::log1p(std::exp(-std::fabs(margin))), -side / (1.0f + std::exp(margin))};
    }
    const float difference = output - truth;
    const bool saturated = channel == 0 && loss == Loss::DISTANCE && std::fabs(truth) >= 1.0f && difference * truth > 0.0f;
    if (saturated || difference == 0.0f) return {0.0f, 0.0f};
    return {std::fabs(difference), difference > 0.0f ? 1.0f : -1.0f};
}

// --- entry points ---

// The tile's rows as samples [count, rows], and the other way.
void from_rows(const float* tile, int rows, int count, float* out) {
    for (int s = 0; s < count; ++s) {
        for (int k = 0; k < rows; ++k) out[static_cast<Index>(s) * rows + k] = tile[k * PITCH + s];
    }
}

void to_rows(const float* in, int rows, int count, float* tile) {
    for (int s = 0; s < count; ++s) {
        for (int k = 0; k < rows; ++k) tile[k * PITCH + s] = in[static_cast<Index>(s) * rows + k];
    }
}

// A tile of inputs alone.
Decoder inputs_only(int rows) {
    Decoder decoder{};
    decoder.count = 1;
    decoder.layers[0] = {nullptr, nullptr, rows, 0};
    return decoder;
}

void prefetch(const void* at) { __builtin_prefetch(at, 1); }

constexpr int ROWS_AHEAD = 16;

// At most N things, in place.
template <class T, int N>
class Few {
   public:
    template <class... Arguments>
    void emplace_back(Arguments&&... arguments) {
        new (at(count_)) T(std::forward<Arguments>(arguments)...);
        ++count_;
    }

    const T& operator[](std::size_t i) const { return *const_cast<Few*>(this)->at(i); }
    std::size_t size() const { return count_; }

   private:
    static_assert(std::is_trivially_destructible<T>::value, "nothing is destroyed");
    T* at(std::size_t i) { return reinterpret_cast<T*>(memory_) + i; }

    alignas(T) unsigned char memory_[N * sizeof(T)];
    std::size_t count_ = 0;
};

// A row that a step touches, and how many steps before that it was touched last.
struct Touched {
    int row, gap;
};

// Rows of one cache line: threads that share a table must not share lines.
constexpr int ROWS_TOGETHER = 16;

// Whose a row is, of so many: lines are scattered evenly, by a product, which costs less than a remainder.
ACORN_INLINE int part_of(int row, int parts) {
    const std::uint32_t scattered = static_cast<std::uint32_t>(row / ROWS_TOGETHER) * 2654435769u;  // 2**32 / golden ratio
    return static_cast<int>(static_cast<std::uint64_t>(scattered) * static_cast<std::uint32_t>(parts) >> 32);
}

// Row of a tile that holds pixel (x, y) of a square of 16 pixels.
constexpr int pixel_row(int x, int y) { return (y / 4 * 4 + x / 4) * 16 + y % 4 * 4 + x % 4; }

// Straight alpha, clipped, as integers of up to `top`.
template <class T>
void quantise(const float* outputs, int channels, float top, int first, int count, int row, T* out) {
    const bool alpha = channels == 2 || channels == 4;
    for (int x = first; x < first + count; ++x, out += channels) {
        const float* value = outputs + pixel_row(x, row);
        const auto clipped = [](float v) { return std::min(std::max(0.0f, v), 1.0f); };
        const float opacity = alpha ? clipped(value[(channels - 1) * PITCH]) : 1.0f;
        for (int c = 0; c < channels; ++c) {
            float v = clipped(value[c * PITCH]);
            if (alpha && c < channels - 1) v = opacity > 1e-4f ? std::min(v / opacity, 1.0f) : 0.0f;
            out[c] = static_cast<T>(std::nearbyint(v * top));
        }
    }
}

// Copies what lies inside the canvas of a tile's square of 16 pixels at (x, y).
void paint(const float* outputs, const Canvas& canvas, Index x, Index y) {
    const int left = static_cast<int>(std::max<Index>(canvas.x - x, 0));
    const int right = static_cast<int>(std::min<Index>(canvas.x + canvas.width - x, 16));
    const int top = static_cast<int>(std::max<Index>(canvas.y - y, 0));
    const int bottom = static_cast<int>(std::min<Index>(canvas.y + canvas.height - y, 16));
    for (int row = top; row < bottom; ++row) {
        const Index at = ((y + row - canvas.y) * canvas.width + (x + left - canvas.x)) * canvas.channels;
        if (canvas.kind == Kind::UINT8) {
            quantise(outputs, canvas.channels, 255.0f, left, right - left, row, static_cast<std::uint8_t*>(canvas.pixels) + at);
        } else if (canvas.kind == Kind::UINT16) {
            quantise(outputs, canvas.channels, 65535.0f, left, right - left, row, static_cast<std::uint16_t*>(canvas.pixels) + at);
        } else {
            float* out = static_cast<float*>(canvas.pixels) + at;
            for (int i = left; i < right; ++i) {
                for (int c = 0; c < canvas.channels; ++c) *out++ = outputs[c * PITCH + pixel_row(i, row)];
            }
        }
    }
}

template <int D, int CH>
struct Reading {
    static constexpr int PIXELS = patch_pixels(D);
    static constexpr int PATCHES = TILE / PIXELS;
    using Reader = PatchReader<D, CH>;

    static int read_points(const View& view, const double* positions, Index begin, Index end, float* inputs) {
        const int count = static_cast<int>(std::min<Index>(TILE, end - begin));
        for (int s = 0; s < count; ++s) PointReader<D, CH>(view, positions + (begin + s) * D).forward(inputs + s);
        return count;
    }

    static void encode_points(const View& view, const double* positions, Index begin, Index end, float* out) {
        const Decoder decoder = inputs_only(SLOTS * CH);
        const Tile tile(decoder);
        for (; begin < end; begin += TILE) {
            const int count = read_points(view, positions, begin, end, tile.inputs());
            from_rows(tile.inputs(), SLOTS * CH, count, out + begin * SLOTS * CH);
        }
    }

    static void encode_points_backward(const View& view, const double* positions, const float* gradient, Index count,
                                       float* features) {
        for (Index i = 0; i < count; ++i) {
            PointReader<D, CH>(view, positions + i * D).vertices([&](int slot, Index index, float weight) {
                const int row = view.geometry.table[index];
                const Row<CH> part = read_row<CH>(gradient, i * SLOTS + slot) * weight;
                if (row) write_row<CH>(features, row, read_row<CH>(features, row) + part);
            });
        }
    }

    // The patches of one tile: all rows are asked for before the first is waited for.
    class Patches {
       public:
        Patches(const View& view, const Index* corners, int count, std::vector<int>& rows) : rows_(rows) {
            rows_.resize(count * Reader::MOST_ROWS);
            for (int p = 0; p < count; ++p) {
                readers_.emplace_back(view, corners + p * D);
                first_[p + 1] = first_[p] + readers_[p].find(rows_.data() + first_[p]);
                for (int i = first_[p]; i < first_[p + 1]; ++i) __builtin_prefetch(view.features + rows_[i] * Index{CH});
            }
        }

        int found() const { return first_[readers_.size()]; }

        void forward(float* tile) const {
            for (std::size_t p = 0; p < readers_.size(); ++p) readers_[p].forward(rows_.data() + first_[p], tile + p * PIXELS);
        }

        void backward(const float* tile, float* gradients) const {
            for (std::size_t p = 0; p < readers_.size(); ++p) readers_[p].backward(tile + p * PIXELS, gradients + first_[p] * CH);
        }

       private:
        std::vector<int>& rows_;
        Few<Reader, PATCHES> readers_;
        int first_[PATCHES + 1] = {};
    };

    static int read_patches(const View& view, const Index* corners, Index begin, Index end, float* inputs) {
        thread_local std::vector<int> rows;
        const int count = static_cast<int>(std::min<Index>(PATCHES, end - begin));
        Patches(view, corners + begin * D, count, rows).forward(inputs);
        return count * PIXELS;
    }

    static void encode_patches(const View& view, const Index* corners, Index begin, Index end, float* out) {
        const Decoder decoder = inputs_only(SLOTS * CH);
        const Tile tile(decoder);
        for (; begin < end; begin += PATCHES) {
            const int count = read_patches(view, corners, begin, end, tile.inputs());
            from_rows(tile.inputs(), SLOTS * CH, count, out + begin * PIXELS * SLOTS * CH);
        }
    }

    static void encode_patches_backward(const View& view, const Index* corners, const float* gradient, Index count,
                                        float* features) {
        const Decoder decoder = inputs_only(SLOTS * CH);
        const Tile tile(decoder);
        int rows[Reader::MOST_ROWS];
        float gradients[Reader::MOST_ROWS * CH];
        for (Index p = 0; p < count; ++p) {
            const Reader reader(view, corners + p * D);
            const int found = reader.find(rows);
            to_rows(gradient + p * PIXELS * SLOTS * CH, SLOTS * CH, PIXELS, tile.inputs());
            reader.backward(tile.inputs(), gradients);
            for (int i = 0; i < found; ++i) {
                if (!rows[i]) continue;
                write_row<CH>(features, rows[i], read_row<CH>(features, rows[i]) + read_row<CH>(gradients, i));
            }
        }
    }

    static void render_points(const View& view, const Decoder& decoder, const double* positions, Index begin,
                              Index end, float* out) {
        const Tile tile(decoder);
        for (; begin < end; begin += TILE) {
            const int count = read_points(view, positions, begin, end, tile.inputs());
            tile.forward(count);
            from_rows(tile.outputs(), decoder.outputs(), count, out + begin * decoder.outputs());
        }
    }

    static void learn_tile(const View& view, const Decoder& decoder, const Index* corners, Index patches,
                           const float* truth, const float* weights, float factor, Entries& entries,
                           float* parameters_gradient, double* squares) {
        const Tile tile(decoder);
        const int channels = decoder.outputs();
        const int samples = static_cast<int>(patches) * PIXELS;
        const Patches read(view, corners, static_cast<int>(patches), entries.rows);
        entries.count = read.found();
        entries.gradients.resize(entries.count * CH);
        read.forward(tile.inputs());
        tile.forward(samples);
        float* gradient = tile.outputs_gradient();
        for (int p = 0; p < patches; ++p) squares[p] = 0;
        for (int c = 0; c < channels; ++c) {
            for (int p = 0; p < patches; ++p) {
                const float* output = tile.outputs() + c * PITCH + p * PIXELS;
                float total = 0;
                for (int i = 0, s = p * PIXELS; i < PIXELS; ++i, ++s) {
                    const float difference = output[i] - truth[s * channels + c];
                    gradient[c * PITCH + s] = factor * weights[s] * difference;
                    total += weights[s] * difference * difference;
                }
                squares[p] += total;
            }
        }
        tile.backward(samples, parameters_gradient);
        read.backward(tile.inputs_gradient(), entries.gradients.data());
    }

    static void learn_points_tile(const View& view, const Decoder& decoder, const float* positions, int count,
                                  const float* truth, Loss loss, float factor, Entries& entries,
                                  float* parameters_gradient, double* errors, int* leaves) {
        thread_local NearPoints<D, CH> points;
        const Tile tile(decoder);
        const int channels = decoder.outputs();
        points.find(view, positions, count, entries.rows, leaves);
        entries.count = static_cast<int>(entries.rows.size());
        points.forward(entries.rows, tile.inputs());
        tile.forward(count);
        std::fill(errors, errors + count, 0.0);
        for (int c = 0; c < channels; ++c) {
            for (int s = 0; s < count; ++s) {
                const PointError found = point_error(loss, c, tile.outputs()[c * PITCH + s], truth[s * channels + c]);
                errors[s] += found.error;
                tile.outputs_gradient()[c * PITCH + s] = factor * found.slope;
            }
        }
        tile.backward(count, parameters_gradient);
        points.backward(tile.inputs_gradient(), entries.rows.size(), entries.gradients);
    }

    // The numbers of a tile's entries that concern `part` of `parts` of the rows, and the last one ROWS_AHEAD times
    // more; returns how many there are. Without branches: there is no telling whose the next one is.
    static int find_own(const int* rows, int count, int part, int parts, int* own) {
        int found = 0;
        const auto choose = [&](auto mine) {
            for (int i = 0; i < count; ++i) {
                own[found] = i;
                found += mine(rows[i]);
            }
        };
        if (parts == 1) {
            choose([](int row) { return row != 0; });
        } else {
            choose([=](int row) { return (row != 0) & (part_of(row, parts) == part); });
        }
        std::fill_n(own + found, ROWS_AHEAD, found ? own[found - 1] : 0);
        return found;
    }

    // Adds what a tile has to say about `part` of `parts` of the rows. Those that are new in this step are written to
    // `touched`; returns the end of them.
    static Touched* add_up(const Table& table, const Entries& entries, int part, int parts, float step, int* own,
                           Touched* touched) {
        const int* rows = entries.rows.data();
        const float* gradients = entries.gradients.data();
        const int found = find_own(rows, entries.count, part, parts, own);
        for (int i = 0; i < found; ++i) {
            const int ahead = own[i + ROWS_AHEAD];
            prefetch(table.gradient + Index{rows[ahead]} * CH);
            prefetch(table.last + rows[ahead]);
            if (parts > 1) __builtin_prefetch(gradients + ahead * CH);  // another thread may have written it
            const int row = rows[own[i]];
            const Row<CH> before = read_row<CH>(table.gradient, row);
            write_row<CH>(table.gradient, row, before + read_row<CH>(gradients, own[i]));
            const float gap = step - table.last[row];
            table.last[row] = step;
            *touched = {row, static_cast<int>(std::min(gap, float{LONGEST_GAP}))};
            touched += gap != 0;
        }
        return touched;
    }

    // Moves rows by the gradients that were added up.
    static void move(const Table& table, const Touched* begin, const Touched* end, float step, float rate) {
        float kept[LONGEST_GAP + 1] = {1.0f};
        for (int gap = 1; gap <= LONGEST_GAP; ++gap) kept[gap] = kept[gap - 1] * DECAY;
        const float unbias = 1.0f / (1.0f - std::pow(DECAY, step));
        for (const Touched* at = begin; at < end; ++at) {
            const Index ahead = at[std::min<Index>(ROWS_AHEAD, end - at - 1)].row;
            prefetch(table.second + ahead * CH);
            prefetch(table.values + ahead * CH);
            const auto [row, gap] = *at;
            const Row<CH> gradient = read_row<CH>(table.gradient, row);
            const Row<CH> second = decayed(read_row<CH>(table.second, row), gradient, kept[gap]);
            Row<CH> root;
            for (int c = 0; c < CH; ++c) root[c] = std::sqrt(second[c] * unbias);
            write_row<CH>(table.values, row, read_row<CH>(table.values, row) - rate * gradient / (root + EPSILON));
            write_row<CH>(table.second, row, second);
            write_row<CH>(table.gradient, row, Row<CH>{});
        }
    }

    // Moves `part` of `parts` of the rows by what all tiles of a step have to say about them.
    static void update_rows(const Table& table, const Entries* tiles, int count, int part, int parts, float step,
                            float rate) {
        thread_local std::vector<int> own;
        thread_local std::vector<Touched> touched;
        int most = 0, all = 0;
        for (int t = 0; t < count; ++t) {
            most = std::max(most, tiles[t].count);
            all += tiles[t].count;
        }
        own.resize(most + ROWS_AHEAD);
        touched.resize(all + 1);  // the last is written, but of no account
        Touched *const begin = touched.data(), *end = begin;
        for (int t = 0; t < count; ++t) end = add_up(table, tiles[t], part, parts, step, own.data(), end);
        move(table, begin, end, step, rate);
    }
};

template <int CH>
void render_tile(const View& view, const Decoder& decoder, const Canvas& canvas, Index x, Index y) {
    const Tile tile(decoder);
    Index corners[2 * TILE / 16];
    for (int p = 0; p < TILE / 16; ++p) {
        corners[2 * p] = x + p % 4 * PATCH_SIDE;
        corners[2 * p + 1] = y + p / 4 * PATCH_SIDE;
    }
    Reading<2, CH>::read_patches(view, corners, 0, TILE / 16, tile.inputs());
    tile.forward(TILE);
    paint(tile.outputs(), canvas, x, y);
}

void decode(const Decoder& decoder, const float* inputs, Index begin, Index end, float* out) {
    const Tile tile(decoder);
    for (; begin < end; begin += TILE) {
        const int count = static_cast<int>(std::min<Index>(TILE, end - begin));
        to_rows(inputs + begin * decoder.inputs(), decoder.inputs(), count, tile.inputs());
        tile.forward(count);
        from_rows(tile.outputs(), decoder.outputs(), count, out + begin * decoder.outputs());
    }
}

// Gradients of the parameters are those of [begin, end) alone.
void decode_backward(const Decoder& decoder, const float* inputs, const float* gradient, Index begin, Index end,
                     float* inputs_gradient, float* parameters_gradient) {
    const Tile tile(decoder);
    std::vector<float> part(decoder.parameters());
    for (; begin < end; begin += TILE) {
        const int count = static_cast<int>(std::min<Index>(TILE, end - begin));
        to_rows(inputs + begin * decoder.inputs(), decoder.inputs(), count, tile.inputs());
        tile.forward(count);
        to_rows(gradient + begin * decoder.outputs(), decoder.outputs(), count, tile.outputs_gradient());
        tile.backward(count, part.data());
        from_rows(tile.inputs_gradient(), decoder.inputs(), count, inputs_gradient + begin * decoder.inputs());
        for (std::size_t i = 0; i < part.size(); ++i) parameters_gradient[i] += part[i];
    }
}

// Picks the instance for a view's dimension and channels.
template <class Use>
void with_reading(const View& view, const Use& use) {
    switch (view.dimension * 16 + view.channels) {
        case 2 * 16 + 1: return use(Reading<2, 1>{});
        case 2 * 16 + 2: return use(Reading<2, 2>{});
        case 2 * 16 + 4: return use(Reading<2, 4>{});
        case 2 * 16 + 8: return use(Reading<2, 8>{});
        case 3 * 16 + 1: return use(Reading<3, 1>{});
        case 3 * 16 + 2: return use(Reading<3, 2>{});
        case 3 * 16 + 4: return use(Reading<3, 4>{});
        case 3 * 16 + 8: return use(Reading<3, 8>{});
    }
}

}  // namespace

extern const Kernels KERNELS;
const Kernels KERNELS = {
    ACORN_NAME,
    LANES,
    [](const View& view, const double* positions, Index begin, Index end, float* out) {
        with_reading(view, [&](auto reading) { reading.encode_points(view, positions, begin, end, out); });
    },
    [](const View& view, const double* positions, const float* gradient, Index count, float* features) {
        with_reading(view, [&](auto reading) { reading.encode_points_backward(view, positions, gradient, count, features); });
    },
    [](const View& view, const Index* corners, Index begin, Index end, float* out) {
        with_reading(view, [&](auto reading) { reading.encode_patches(view, corners, begin, end, out); });
    },
    [](const View& view, const Index* corners, const float* gradient, Index count, float* features) {
        with_reading(view, [&](auto reading) { reading.encode_patches_backward(view, corners, gradient, count, features); });
    },
    decode,
    decode_backward,
    [](const View& view, const Decoder& decoder, const double* positions, Index begin, Index end, float* out) {
        with_reading(view, [&](auto reading) { reading.render_points(view, decoder, positions, begin, end, out); });
    },
    [](const View& view, const Decoder& decoder, const Canvas& canvas, Index x, Index y) {
        switch (view.channels) {
            case 1: return render_tile<1>(view, decoder, canvas, x, y);
            case 2: return render_tile<2>(view, decoder, canvas, x, y);
            case 4: return render_tile<4>(view, decoder, canvas, x, y);
            case 8: return render_tile<8>(view, decoder, canvas, x, y);
        }
    },
    [](const View& view, const Decoder& decoder, const Index* corners, Index patches, const float* truth,
       const float* weights, float factor, Entries& entries, float* parameters_gradient, double* squares) {
        with_reading(view, [&](auto reading) {
            reading.learn_tile(view, decoder, corners, patches, truth, weights, factor, entries, parameters_gradient, squares);
        });
    },
    [](const View& view, const Decoder& decoder, const float* positions, int count, const float* truth, Loss loss,
       float factor, Entries& entries, float* parameters_gradient, double* errors, int* leaves) {
        with_reading(view, [&](auto reading) {
            reading.learn_points_tile(view, decoder, positions, count, truth, loss, factor, entries, parameters_gradient, errors, leaves);
        });
    },
    [](const View& view, const Table& table, const Entries* tiles, int count, int part, int parts, float step, float rate) {
        with_reading(view, [&](auto reading) { reading.update_rows(table, tiles, count, part, parts, step, rate); });
    },
};

}  // namespace acorn::cpu::ACORN_NAMESPACE
