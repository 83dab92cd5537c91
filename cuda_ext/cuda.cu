// CUDA kernels. Compiled at first use by NVRTC, or by nvcc: no host code, no host headers, C names.
//
// One source, four programs, specialised for a network by macros:
//
//     ACORN_DIMENSION                                  locate
//     ACORN_DIMENSION, ACORN_CHANNELS                  encode_*
//     ACORN_SIZES                                      decode, decode_backward, sum_parts
//     ACORN_DIMENSION, ACORN_CHANNELS, ACORN_SIZES     render_*, learn, train, update_*, sum_parts
//
// where ACORN_SIZES are the decoder's layers, as "20,64,3". The caller (acorn_svc/field/ops/cuda.py) checks the
// arguments, allocates what is written and launches blocks of THREADS threads in one dimension. No sum depends on
// the order in which blocks run.
#include "cuda_block.h"
#include "kernels.h"

#if defined(ACORN_SIZES)
#include "cuda_decoder.h"
#endif
#if defined(ACORN_CHANNELS)
#include "cuda_reading.h"
#endif

using namespace acorn;

// Of so many blocks that one multiprocessor can hold, for which the compiler saves registers.
#define ACORN_KERNEL(BLOCKS) extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
#define ACORN_LIGHT ACORN_KERNEL(8)
#define ACORN_HEAVY ACORN_KERNEL(OUTPUTS <= FEW ? 5 : 4)
#define ACORN_LEARNING ACORN_KERNEL(LAYERS <= 2 && LEARNING_ROWS * PITCH <= SHARED_FLOATS ? 4 : 3)

namespace {

#if defined(ACORN_DIMENSION)
constexpr int D = ACORN_DIMENSION;
#endif
#if defined(ACORN_CHANNELS)
constexpr int CHANNELS = ACORN_CHANNELS;
constexpr int PIXELS = patch_pixels(D);
#endif

}  // namespace

// --- where a point lies ---

#if !defined(ACORN_CHANNELS) && !defined(ACORN_SIZES)

ACORN_LIGHT locate(Geometry geometry, const double* positions, long long count, int* out) {
    const long long i = thread_number();
    if (i < count) out[i] = leaf_under<D>(geometry, positions + i * D);
}

#endif

// --- reading features ---

#if defined(ACORN_CHANNELS) && !defined(ACORN_SIZES)

namespace {

__device__ __forceinline__ void write_slots(const View& view, const Sample<D>& sample, float* out) {
    read_slots<D, CHANNELS>(view, sample, [&](int slot, const Row<CHANNELS>& row) {
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) out[slot * CHANNELS + c] = row.channel[c];
    });
}

// A power of two, so much smaller than the largest gradient that rounding to it costs nothing.
__device__ __forceinline__ float unit_for(float peak) {
    const int exponent = __float_as_int(peak) >> 23 & 255;
    return __int_as_float((exponent < 72 ? 40 : exponent - 32) << 23);
}

}  // namespace

ACORN_LIGHT encode_points(View view, const double* positions, long long count, float* out) {
    const long long i = thread_number();
    if (i >= count) return;
    write_slots(view, point_sample<D>(view, positions + i * D), out + i * (SLOTS * CHANNELS));
}

ACORN_LIGHT encode_patches(View view, const long long* corners, long long count, float* out) {
    const long long i = thread_number();
    if (i >= count * PIXELS) return;
    const Sample<D> sample = patch_sample<D>(view, corners + i / PIXELS * D, static_cast<int>(i % PIXELS));
    write_slots(view, sample, out + i * (SLOTS * CHANNELS));
}

// `peak` [1] is the largest absolute gradient.
ACORN_LIGHT encode_points_backward(View view, const double* positions, long long count, const float* gradient,
                                    const float* peak, double* total) {
    const long long i = thread_number();
    if (i >= count) return;
    const float unit = unit_for(*peak);
    const Sample<D> sample = point_sample<D>(view, positions + i * D);
    for (int up = 0; up <= view.level(); ++up) {
        const int node = node_at<D>(view, sample, up);
        if (node == view.geometry.nodes) continue;
        const Row<CHANNELS> part = load_row<CHANNELS>(gradient, i * SLOTS + (up < DIRECT_SLOTS ? up : DIRECT_SLOTS));
        visit_cell<D>(view, sample, node, up, [&](long long index, float weight) {
            Row<CHANNELS> value;
            add(value, part, weight);
            const int row = view.geometry.table[index];
            if (row) add_exactly(total, row, value, unit);
        });
    }
}

ACORN_LIGHT encode_patches_backward(View view, const long long* corners, long long count, const float* gradient,
                                     const float* peak, double* total) {
    const long long i = thread_number();
    const int vertices = patch_vertices<D>(view.level());
    if (i >= count * vertices) return;
    const long long patch = i / vertices;
    const PatchVertex<D> vertex = patch_vertex<D>(view, corners + patch * D, static_cast<int>(i % vertices));
    if (!vertex.row) return;
    const Row<CHANNELS> value = vertex_gradient<D, CHANNELS>(vertex, [&](int pixel) {
        return load_row<CHANNELS>(gradient, (patch * PIXELS + pixel) * SLOTS + vertex.slot);
    });
    add_exactly(total, vertex.row, value, unit_for(*peak));
}

#endif

// --- the decoder ---

#if defined(ACORN_SIZES)

ACORN_LIGHT sum_parts(const float* parts, int blocks, float factor, float* out) {
    const int i = blockIdx.x * SUMMED_TOGETHER + thread();
    const float total = sum_of_parts(parts, blocks);
    if (thread() < SUMMED_TOGETHER && i < PARAMETERS) out[i] = total * factor;
}

#endif

#if defined(ACORN_SIZES) && !defined(ACORN_CHANNELS)

namespace {

__device__ __forceinline__ int tile_samples(long long first, long long count) {
    return static_cast<int>(count - first < THREADS ? count - first : THREADS);
}

}  // namespace

ACORN_HEAVY decode(Decoder decoder, const float* inputs, long long count, float* out, float* scratch) {
    float* tape = tape_of_block<READING_ROWS>(scratch);
    for (long long first = thread_number() - thread(); first < count; first += all_threads()) {
        const int samples = tile_samples(first, count);
        to_rows<INPUTS>(inputs + first * INPUTS, samples, tape);
        __syncthreads();
        float outputs[OUTPUTS];
        forward<false>(tape + thread(), decoder, outputs);
        if (thread() < samples) {
#pragma unroll
            for (int c = 0; c < OUTPUTS; ++c) out[(first + thread()) * OUTPUTS + c] = outputs[c];
        }
        __syncthreads();
    }
}

// `parts` [blocks, PARAMETERS] takes what each block has to say about the parameters.
ACORN_LEARNING decode_backward(Decoder decoder, const float* inputs, const float* gradient, long long count,
                             float* inputs_gradient, float* parts, float* scratch) {
    float* tape = tape_of_block<LEARNING_ROWS>(scratch);
    parts += static_cast<long long>(blockIdx.x) * PARAMETERS;
    bool again = false;
    for (long long first = thread_number() - thread(); first < count; first += all_threads()) {
        const int samples = tile_samples(first, count);
        to_rows<INPUTS>(inputs + first * INPUTS, samples, tape);
        to_rows<OUTPUTS>(gradient + first * OUTPUTS, samples, tape + OUTPUT_ROW * PITCH);
        __syncthreads();
        float outputs[OUTPUTS];
        forward<true>(tape + thread(), decoder, outputs);
        __syncthreads();
        backward(tape, decoder, parts, again);
        from_rows<INPUTS>(tape, samples, inputs_gradient + first * INPUTS);
        __syncthreads();
        again = true;
    }
}

#endif

#if defined(ACORN_SIZES) && defined(ACORN_CHANNELS)

static_assert(INPUTS == SLOTS * CHANNELS, "the decoder takes other features");

namespace {

__device__ __forceinline__ void read_inputs(const View& view, const Sample<D>& sample, float* column) {
    read_slots<D, CHANNELS>(view, sample, [&](int slot, const Row<CHANNELS>& row) {
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) column[(slot * CHANNELS + c) * PITCH] = row.channel[c];
    });
}

enum Kind { UINT8, UINT16, FLOAT32 };

}  // namespace

// --- looking ---

ACORN_HEAVY render_points(View view, Decoder decoder, const double* positions, long long count, float* out,
                           float* scratch) {
    float* column = tape_of_block<READING_ROWS>(scratch) + thread();
    for (long long i = thread_number(); i < count; i += all_threads()) {
        read_inputs(view, point_sample<D>(view, positions + i * D), column);
        float outputs[OUTPUTS];
        forward<false>(column, decoder, outputs);
#pragma unroll
        for (int c = 0; c < OUTPUTS; ++c) out[i * OUTPUTS + c] = outputs[c];
    }
}

#if ACORN_DIMENSION == 2

namespace {

constexpr int TILE_WIDTH = 16;
constexpr int TILE_HEIGHT = THREADS / TILE_WIDTH;
constexpr float LEAST_ALPHA = 1e-4f;

// A rectangle of a picture: pixels of the view's scale.
struct Canvas {
    void* pixels;  // [height, width, OUTPUTS]
    int kind;      // integers are clipped, rounded and of straight alpha; floats are as the decoder gives them
    int width, height;
    long long x, y;
};

__device__ __forceinline__ float clipped(float value) { return fminf(fmaxf(value, 0.0f), 1.0f); }

// Values from 0 to 1, of straight alpha.
__device__ __forceinline__ void finish(float (&values)[OUTPUTS]) {
#pragma unroll
    for (int c = 0; c < OUTPUTS; ++c) values[c] = clipped(values[c]);
    if constexpr (OUTPUTS == 2 || OUTPUTS == 4) {
        const float alpha = values[OUTPUTS - 1];
#pragma unroll
        for (int c = 0; c < OUTPUTS - 1; ++c) values[c] = alpha > LEAST_ALPHA ? clipped(values[c] / alpha) : 0.0f;
    }
}

template <class T>
__device__ __forceinline__ void paint(const float (&values)[OUTPUTS], float top, void* pixels, long long pixel) {
#pragma unroll
    for (int c = 0; c < OUTPUTS; ++c) {
        static_cast<T*>(pixels)[pixel * OUTPUTS + c] = static_cast<T>(rintf(values[c] * top));
    }
}

}  // namespace

ACORN_HEAVY render_image(View view, Decoder decoder, Canvas canvas, float* scratch) {
    float* column = tape_of_block<READING_ROWS>(scratch) + thread();
    const long long across = (canvas.width + TILE_WIDTH - 1) / TILE_WIDTH;
    const long long tiles = across * ((canvas.height + TILE_HEIGHT - 1) / TILE_HEIGHT);
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const long long x = tile % across * TILE_WIDTH + thread() % TILE_WIDTH;
        const long long y = tile / across * TILE_HEIGHT + thread() / TILE_WIDTH;
        if (x >= canvas.width || y >= canvas.height) continue;
        const long long pixel[2] = {canvas.x + x, canvas.y + y};
        read_inputs(view, pixel_sample<2>(view, pixel), column);
        float outputs[OUTPUTS];
        forward<false>(column, decoder, outputs);
        const long long at = y * canvas.width + x;
        if (canvas.kind == FLOAT32) {
#pragma unroll
            for (int c = 0; c < OUTPUTS; ++c) static_cast<float*>(canvas.pixels)[at * OUTPUTS + c] = outputs[c];
            continue;
        }
        finish(outputs);
        if (canvas.kind == UINT8) {
            paint<unsigned char>(outputs, 255.0f, canvas.pixels, at);
        } else {
            paint<unsigned short>(outputs, 65535.0f, canvas.pixels, at);
        }
    }
}

#endif

// --- learning ---

namespace {

constexpr int TILE_PATCHES = THREADS / PIXELS;
constexpr float GRADIENT_UNIT = 1.0f / (1LL << 40);  // of values between 0 and 1, see add_exactly

// What the patches of a tile teach: squares, gradients of the features' rows without the factor of the loss, and of
// the parameters. `truth(patch, pixel, channel)` and `weight(patch, pixel)` are of patches of all tiles.
template <class Lesson>
__device__ __forceinline__ void learn_tile(const View& view, const Decoder& decoder, const Lesson& lesson,
                                           const long long* corners, long long first, int count, float* tape,
                                           double* features, float* parameters, bool add_parameters) {
    float* column = tape + thread();
    const int pixel = thread() % PIXELS;
    const long long patch = first + thread() / PIXELS;
    const bool active = thread() < count * PIXELS;
    if (active) {
        read_inputs(view, patch_sample<D>(view, corners + patch * D, pixel), column);
    } else {
        for (int k = 0; k < INPUTS; ++k) column[k * PITCH] = 0.0f;
    }
    float outputs[OUTPUTS];
    forward<true>(column, decoder, outputs);
    const float weight = active ? lesson.weight(patch, pixel) : 0.0f;
    float square = 0.0f;
#pragma unroll
    for (int c = 0; c < OUTPUTS; ++c) {
        const float difference = active ? outputs[c] - lesson.truth(patch, pixel, c) : 0.0f;
        column[(OUTPUT_ROW + c) * PITCH] = weight * difference;
        square += weight * difference * difference;
    }
    column[LOSS_ROW * PITCH] = square;
    __syncthreads();
    if (thread() < count) {
        double total = 0;
        for (int i = 0; i < PIXELS; ++i) total += tape[LOSS_ROW * PITCH + thread() * PIXELS + i];
        lesson.record(first + thread(), total);
    }
    backward(tape, decoder, parameters, add_parameters);
    const int vertices = patch_vertices<D>(view.level());
    for (int i = thread(); i < count * vertices; i += THREADS) {
        const int own = i / vertices;
        const PatchVertex<D> vertex = patch_vertex<D>(view, corners + (first + own) * D, i % vertices);
        if (!vertex.row) continue;
        const float* gradient = tape + vertex.slot * CHANNELS * PITCH + own * PIXELS;
        const Row<CHANNELS> value = vertex_gradient<D, CHANNELS>(vertex, [&](int at) {
            Row<CHANNELS> row;
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) row.channel[c] = gradient[c * PITCH + at];
            return row;
        });
        add_exactly(features, vertex.row, value, GRADIENT_UNIT);
    }
    __syncthreads();
}

// Patches whose truth is given.
struct GivenLesson {
    const float* values;   // [patches, PIXELS, OUTPUTS]
    const float* weights;  // [patches, PIXELS]
    double* squares;       // [patches]

    __device__ __forceinline__ float truth(long long patch, int pixel, int channel) const {
        return values[(patch * PIXELS + pixel) * OUTPUTS + channel];
    }
    __device__ __forceinline__ float weight(long long patch, int pixel) const {
        return weights[patch * PIXELS + pixel];
    }
    __device__ __forceinline__ void record(long long patch, double square) const { squares[patch] = square; }
};

}  // namespace

// `features` [vertices + 1, channels] takes gradients without the loss's factor, `parts` [blocks, PARAMETERS] also.
ACORN_LEARNING learn(View view, Decoder decoder, GivenLesson lesson, const long long* corners, long long patches,
                   double* features, float* parts, float* scratch) {
    float* tape = tape_of_block<LEARNING_ROWS>(scratch);
    parts += static_cast<long long>(blockIdx.x) * PARAMETERS;
    bool again = false;
    for (long long first = blockIdx.x * TILE_PATCHES; first < patches; first += gridDim.x * TILE_PATCHES) {
        const int count = static_cast<int>(patches - first < TILE_PATCHES ? patches - first : TILE_PATCHES);
        learn_tile(view, decoder, lesson, corners, first, count, tape, features, parts, again);
        again = true;
    }
}

#if ACORN_DIMENSION == 2

namespace {

constexpr double ERROR_UNIT = 1.0 / (1 << 30);

// Patches of a picture, in a random order.
struct DrawnLesson {
    const void* pixels;  // [height, width, OUTPUTS]
    int kind, width, height;
    unsigned long long seed;
    long long drawn;     // patches before this step
    double* errors;      // [2, nodes] of the leaves, or null
    Geometry geometry;
    const long long* corners;

    __device__ __forceinline__ void draw(int scale, long long patch, long long* corner) const {
        const long long across = (width + PATCH_SIDE - 1) / PATCH_SIDE;
        const long long available = across * ((height + PATCH_SIDE - 1) / PATCH_SIDE);
        const long long number = drawn + patch;
        const unsigned long long key = mix(mix(mix(seed) + scale) + number / available);
        const long long place = static_cast<long long>(shuffled(number % available, available, key));
        corner[0] = place % across * PATCH_SIDE;
        corner[1] = place / across * PATCH_SIDE;
    }

    __device__ __forceinline__ float truth(long long patch, int pixel, int channel) const {
        const long long x = corners[2 * patch] + pixel % PATCH_SIDE, y = corners[2 * patch + 1] + pixel / PATCH_SIDE;
        const long long at = ((y < height ? y : height - 1) * width + (x < width ? x : width - 1)) * OUTPUTS + channel;
        if (kind == UINT8) return static_cast<const unsigned char*>(pixels)[at] / 255.0f;
        if (kind == UINT16) return static_cast<const unsigned short*>(pixels)[at] / 65535.0f;
        return static_cast<const float*>(pixels)[at];
    }

    __device__ __forceinline__ float weight(long long patch, int pixel) const {
        const long long x = corners[2 * patch] + pixel % PATCH_SIDE, y = corners[2 * patch + 1] + pixel / PATCH_SIDE;
        return x < width && y < height ? 1.0f : 0.0f;
    }

    __device__ __forceinline__ void record(long long patch, double square) const {
        if (errors == nullptr) return;
        const long long x = corners[2 * patch], y = corners[2 * patch + 1];
        const long long block[2] = {x >> geometry.cell_shift, y >> geometry.cell_shift};
        const int leaf = leaf_at<2>(geometry, block);
        const long long across = width - x < PATCH_SIDE ? width - x : PATCH_SIDE;
        const long long down = height - y < PATCH_SIDE ? height - y : PATCH_SIDE;
        atomicAdd(errors + leaf, rint(square * (1.0 / ERROR_UNIT)) * ERROR_UNIT);  // see add_exactly
        atomicAdd(errors + geometry.nodes + leaf, static_cast<double>(across * down));
    }
};

}  // namespace

// The first half of a step of training: draws `patches`, whose corners it writes, and learns from them.
ACORN_LEARNING train(View view, Decoder decoder, DrawnLesson lesson, long long* corners, long long patches,
                   double* features, float* parts, float* scratch) {
    float* tape = tape_of_block<LEARNING_ROWS>(scratch);
    parts += static_cast<long long>(blockIdx.x) * PARAMETERS;
    bool again = false;
    for (long long first = blockIdx.x * TILE_PATCHES; first < patches; first += gridDim.x * TILE_PATCHES) {
        const int count = static_cast<int>(patches - first < TILE_PATCHES ? patches - first : TILE_PATCHES);
        if (thread() < count) lesson.draw(view.scale, first + thread(), corners + (first + thread()) * D);
        __syncthreads();
        learn_tile(view, decoder, lesson, corners, first, count, tape, features, parts, again);
        again = true;
    }
}

// The rows that patches read take a step and their gradients are cleared: whoever comes first to a row does it.
ACORN_LIGHT update_rows(View view, const long long* corners, long long patches, float* values, float* second,
                         float* last, double* gradients, float factor, float step, float unbias, float rate) {
    const long long i = thread_number();
    const int vertices = patch_vertices<D>(view.level());
    if (i >= patches * vertices) return;
    const int row = patch_vertex<D>(view, corners + i / vertices * D, static_cast<int>(i % vertices)).row;
    if (!row) return;
    const float before = atomicExch(last + row, step);
    if (before == step) return;
    float kept = 1.0f;
    for (int gap = 0; gap < LONGEST_GAP && gap < step - before; ++gap) kept *= DECAY;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        const long long at = static_cast<long long>(row) * CHANNELS + c;
        const float gradient = static_cast<float>(gradients[at]) * factor;
        const float moment = decayed(second[at], gradient, kept);
        values[at] -= rate * gradient / (sqrtf(moment * unbias) + EPSILON);
        second[at] = moment;
        gradients[at] = 0;
    }
}

namespace {

// Value, first and second moment of each layer's weight and bias.
struct Moments {
    float* value[2 * LAYERS];
    float* first[2 * LAYERS];
    float* second[2 * LAYERS];
};

// A step of Adam (Kingma and Ba 2015) for one parameter, if it is of tensor I or a later one.
template <int I = 0>
__device__ __forceinline__ void update_parameter(const Moments& moments, int parameter, float gradient, float rate,
                                                 float unbias) {
    constexpr int INPUTS_OF = SIZES[I / 2], OUTPUTS_OF = SIZES[I / 2 + 1];
    constexpr int START = parameters_before(I / 2) + (I % 2 ? INPUTS_OF * OUTPUTS_OF : 0);
    constexpr int SIZE = (I % 2 ? 1 : INPUTS_OF) * OUTPUTS_OF;
    const int at = parameter - START;
    if (0 <= at && at < SIZE) {
        const float first = MOMENTUM * moments.first[I][at] + (1.0f - MOMENTUM) * gradient;
        const float second = DECAY * moments.second[I][at] + (1.0f - DECAY) * gradient * gradient;
        moments.first[I][at] = first;
        moments.second[I][at] = second;
        moments.value[I][at] -= rate * first / (sqrtf(second) * unbias + EPSILON);
    }
    if constexpr (I + 1 < 2 * LAYERS) update_parameter<I + 1>(moments, parameter, gradient, rate, unbias);
}

}  // namespace

// The decoder takes a step, from what all blocks have found.
ACORN_LIGHT update_decoder(Moments moments, const float* parts, int blocks, float factor, float rate, float unbias) {
    const int parameter = blockIdx.x * SUMMED_TOGETHER + thread();
    const float gradient = sum_of_parts(parts, blocks) * factor;
    if (thread() < SUMMED_TOGETHER) update_parameter(moments, parameter, gradient, rate, unbias);
}

#endif
#endif
