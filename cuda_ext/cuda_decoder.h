// The decoder on a GPU, for the layer sizes ACORN_SIZES: a block of THREADS threads works on as many samples.
//
// A tape holds one row of samples for each input and hidden unit, in shared memory where it fits. A thread runs
// its own sample through the layers, CHUNK units at a time in registers; every weight is the same for all threads
// of a warp, one load from the cache. Gradients of the weights are products of rows of the tape.
#pragma once

#include "cuda_block.h"
#include "kernels.h"

namespace acorn {

constexpr int PITCH = THREADS + 4;  // floats between rows: quads of neighbouring rows lie in different banks
constexpr int SHARED_FLOATS = 48 * 1024 / 4;
constexpr int CHUNK = 16;
constexpr int BACK_CHUNK = 16;
constexpr int FEW = 4;

constexpr int SIZES[] = {ACORN_SIZES};
constexpr int LAYERS = sizeof(SIZES) / sizeof(SIZES[0]) - 1;
constexpr int INPUTS = SIZES[0];
constexpr int OUTPUTS = SIZES[LAYERS];
static_assert(1 <= LAYERS && LAYERS <= 8 && OUTPUTS <= 16, "layers that the decoder is not made for");

struct Decoder {
    const float* weight[LAYERS];  // [inputs, outputs]
    const float* bias[LAYERS];
};

constexpr ACORN_BODY int parameters_before(int layer) {
    int total = 0;
    for (int i = 0; i < layer; ++i) total += (SIZES[i] + 1) * SIZES[i + 1];
    return total;
}

constexpr int PARAMETERS = parameters_before(LAYERS);

// --- the tape ---

// A last hidden layer goes straight from the registers to few outputs, and is stored only where it is kept.
constexpr bool STRAIGHT = OUTPUTS <= FEW;
constexpr int STORED = LAYERS - (STRAIGHT ? 2 : 1);  // hidden layers that are stored even where none is kept

constexpr ACORN_BODY int widest_stored() {
    int widest = 0;
    for (int i = 1; i <= STORED; ++i) widest = SIZES[i] > widest ? SIZES[i] : widest;
    return widest;
}

// First row of a layer's inputs. Where they are not kept, two sets of rows take turns.
template <bool KEEP>
constexpr ACORN_BODY int first_row(int layer) {
    if (!KEEP) return layer == 0 ? 0 : INPUTS + (layer - 1) % 2 * widest_stored();
    int row = 0;
    for (int i = 0; i < layer; ++i) row += SIZES[i];
    return row;
}

constexpr int OUTPUT_ROW = first_row<true>(LAYERS);  // gradients of the outputs
constexpr int LOSS_ROW = OUTPUT_ROW + OUTPUTS;       // squared error of each sample
constexpr int LEARNING_ROWS = LOSS_ROW + 1;
constexpr int READING_ROWS = INPUTS + (STORED < 1 ? 0 : STORED < 2 ? 1 : 2) * widest_stored();
static_assert(LEARNING_ROWS == ACORN_LEARNING_ROWS && READING_ROWS == ACORN_READING_ROWS,
              "acorn_svc/field/ops/cuda.py makes room for another tape");

// The tape of this block; `scratch` has room for one of every block where it does not fit into shared memory.
template <int ROWS>
__device__ __forceinline__ float* tape_of_block(float* scratch) {
    if constexpr (ROWS * PITCH <= SHARED_FLOATS) {
        __shared__ float4 memory[ROWS * PITCH / 4];
        return reinterpret_cast<float*>(memory);
    } else {
        return scratch + static_cast<long long>(blockIdx.x) * (ROWS * PITCH);
    }
}

// Between `count` samples [count, WIDTH] and WIDTH rows of a tape; samples after them are zero.
template <int WIDTH>
__device__ __forceinline__ void to_rows(const float* samples, int count, float* rows) {
    for (int i = thread(); i < THREADS * WIDTH; i += THREADS) {
        rows[i % WIDTH * PITCH + i / WIDTH] = i < count * WIDTH ? samples[i] : 0.0f;
    }
}

template <int WIDTH>
__device__ __forceinline__ void from_rows(const float* rows, int count, float* samples) {
    for (int i = thread(); i < count * WIDTH; i += THREADS) samples[i] = rows[i % WIDTH * PITCH + i / WIDTH];
}

// --- products ---

// COUNT consecutive weights, in loads of 16 bytes where they lie so.
template <int COUNT, bool ALIGNED>
__device__ __forceinline__ void load_weights(const float* at, float (&weights)[COUNT]) {
    if constexpr (ALIGNED && COUNT % 4 == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            const float4 quad = __ldg(reinterpret_cast<const float4*>(at + i));
            weights[i] = quad.x, weights[i + 1] = quad.y, weights[i + 2] = quad.z, weights[i + 3] = quad.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) weights[i] = __ldg(at + i);
    }
}

// total[n] = bias[n] + sum over k of column[k] * weight[k, n], for COUNT of OUT outputs of one sample.
template <int IN, int OUT, int COUNT>
__device__ __forceinline__ void product(const float* column, const float* weight, const float* bias,
                                        float (&total)[COUNT]) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n) total[n] = __ldg(bias + n);
#pragma unroll 2
    for (int k = 0; k < IN; ++k) {
        float weights[COUNT];
        load_weights<COUNT, OUT % 4 == 0>(weight + k * OUT, weights);
        const float value = column[k * PITCH];
#pragma unroll
        for (int n = 0; n < COUNT; ++n) total[n] += value * weights[n];
    }
}

// Calls use(first, values) for each chunk of a hidden layer's outputs.
template <int IN, int OUT, class Use>
__device__ __forceinline__ void hidden_layer(const float* column, const float* weight, const float* bias,
                                             const Use& use) {
    constexpr int WHOLE = OUT / CHUNK * CHUNK;
#pragma unroll 1
    for (int first = 0; first < WHOLE; first += CHUNK) {
        float total[CHUNK];
        product<IN, OUT>(column, weight + first, bias + first, total);
#pragma unroll
        for (int n = 0; n < CHUNK; ++n) total[n] = fmaxf(total[n], 0.0f);
        use(first, total);
    }
    if constexpr (WHOLE < OUT) {
        float total[OUT - WHOLE];
        product<IN, OUT>(column, weight + WHOLE, bias + WHOLE, total);
#pragma unroll
        for (int n = 0; n < OUT - WHOLE; ++n) total[n] = fmaxf(total[n], 0.0f);
        use(WHOLE, total);
    }
}

template <int COUNT>
__device__ __forceinline__ void store_rows(const float (&values)[COUNT], float* column) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n) column[n * PITCH] = values[n];
}

// Adds to the outputs what COUNT units of the last hidden layer say; `weight` is [COUNT, OUTPUTS].
template <int COUNT>
__device__ __forceinline__ void add_outputs(const float (&values)[COUNT], const float* weight,
                                            float (&outputs)[OUTPUTS]) {
    constexpr bool ALIGNED = SIZES[LAYERS - 1] * OUTPUTS % 4 == 0;
    constexpr int STEP = COUNT % 4 == 0 ? 4 : 1;  // rows of weights that are one run
#pragma unroll
    for (int first = 0; first < COUNT; first += STEP) {
        float weights[STEP * OUTPUTS];
        load_weights<STEP * OUTPUTS, ALIGNED>(weight + first * OUTPUTS, weights);
#pragma unroll
        for (int n = 0; n < STEP; ++n) {
#pragma unroll
            for (int c = 0; c < OUTPUTS; ++c) outputs[c] += values[first + n] * weights[n * OUTPUTS + c];
        }
    }
}

// One sample from its inputs, in its column of the tape, to its outputs.
template <bool KEEP, int LAYER = 0>
__device__ __forceinline__ void forward(float* column, const Decoder& decoder, float (&outputs)[OUTPUTS]) {
    constexpr int IN = SIZES[LAYER], OUT = SIZES[LAYER + 1];
    const float* inputs = column + first_row<KEEP>(LAYER) * PITCH;
    if constexpr (LAYER == LAYERS - 1) {
        product<IN, OUT>(inputs, decoder.weight[LAYER], decoder.bias[LAYER], outputs);
    } else {
        constexpr bool TO_OUTPUTS = STRAIGHT && LAYER == LAYERS - 2;
        float* hidden = column + first_row<KEEP>(LAYER + 1) * PITCH;
        if constexpr (TO_OUTPUTS) {
#pragma unroll
            for (int c = 0; c < OUTPUTS; ++c) outputs[c] = __ldg(decoder.bias[LAYERS - 1] + c);
        }
        hidden_layer<IN, OUT>(inputs, decoder.weight[LAYER], decoder.bias[LAYER], [&](int first, const auto& values) {
            if constexpr (KEEP || !TO_OUTPUTS) store_rows(values, hidden + first * PITCH);
            if constexpr (TO_OUTPUTS) add_outputs(values, decoder.weight[LAYERS - 1] + first * OUTPUTS, outputs);
        });
        if constexpr (!TO_OUTPUTS) forward<KEEP, LAYER + 1>(column, decoder, outputs);
    }
}

// COUNT inputs of a layer take, in place, the gradient for them; only where they were positive if GATED.
template <int OUT, int COUNT, bool ALIGNED, bool GATED>
__device__ __forceinline__ void product_back(const float* gradient, const float* weight, float* column) {
    float total[COUNT] = {};
    if constexpr (OUT <= FEW) {  // the rows of weights are one run
        float weights[COUNT * OUT];
        load_weights<COUNT * OUT, ALIGNED>(weight, weights);
#pragma unroll
        for (int n = 0; n < OUT; ++n) {
            const float value = gradient[n * PITCH];
#pragma unroll
            for (int k = 0; k < COUNT; ++k) total[k] += value * weights[k * OUT + n];
        }
    } else {
        constexpr int STEP = OUT % 4 == 0 ? 4 : 1;
#pragma unroll 1
        for (int first = 0; first < OUT; first += STEP) {
            float values[STEP];
#pragma unroll
            for (int n = 0; n < STEP; ++n) values[n] = gradient[(first + n) * PITCH];
#pragma unroll
            for (int k = 0; k < COUNT; ++k) {
                float weights[STEP];
                load_weights<STEP, true>(weight + k * OUT + first, weights);
#pragma unroll
                for (int n = 0; n < STEP; ++n) total[k] += values[n] * weights[n];
            }
        }
    }
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
        column[k * PITCH] = GATED && !(column[k * PITCH] > 0.0f) ? 0.0f : total[k];
    }
}

template <int IN, int OUT, bool GATED>
__device__ __forceinline__ void layer_back(const float* gradient, const float* weight, float* column) {
    constexpr int WHOLE = IN / BACK_CHUNK * BACK_CHUNK;
    constexpr bool ALIGNED = IN * OUT % 4 == 0;
#pragma unroll 1
    for (int first = 0; first < WHOLE; first += BACK_CHUNK) {
        product_back<OUT, BACK_CHUNK, ALIGNED, GATED>(gradient, weight + first * OUT, column + first * PITCH);
    }
    if constexpr (WHOLE < IN) {
        product_back<OUT, IN - WHOLE, ALIGNED, GATED>(gradient, weight + WHOLE * OUT, column + WHOLE * PITCH);
    }
}

__device__ __forceinline__ float4 quad_at(const float* row, int sample) {
    return *reinterpret_cast<const float4*>(row + sample);
}

__device__ __forceinline__ float dot(const float4& a, const float4& b) {
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

__device__ __forceinline__ void put(float* at, float value, bool add) { *at = add ? *at + value : value; }

// out[k, n] = (or +=) the sum over the tile of values[k] * gradient[n]; each thread does K_STEP by N_STEP of them, from
// rows that lie apart, so that threads beside it read neighbouring ones.
template <int IN, int OUT>
__device__ __forceinline__ void weight_gradient(const float* values, const float* gradient, float* out, bool add) {
    constexpr int N_STEP = OUT < 4 ? OUT : 4, N_UNITS = (OUT + N_STEP - 1) / N_STEP;
    constexpr int K_STEP = (IN + 3) / 4 * N_UNITS >= THREADS / 2 ? 4 : 1, K_UNITS = (IN + K_STEP - 1) / K_STEP;
#pragma unroll 1
    for (int unit = thread(); unit < K_UNITS * N_UNITS; unit += THREADS) {
        const int k = unit / N_UNITS, n = unit % N_UNITS;
        float total[K_STEP][N_STEP] = {};
#pragma unroll 1
        for (int sample = 0; sample < THREADS; sample += 4) {
            float4 right[N_STEP];
#pragma unroll
            for (int j = 0; j < N_STEP; ++j) {
                const int row = n + j * N_UNITS;
                right[j] = quad_at(gradient + (row < OUT ? row : OUT - 1) * PITCH, sample);
            }
#pragma unroll
            for (int i = 0; i < K_STEP; ++i) {
                const int row = k + i * K_UNITS;
                const float4 left = quad_at(values + (row < IN ? row : IN - 1) * PITCH, sample);
#pragma unroll
                for (int j = 0; j < N_STEP; ++j) total[i][j] += dot(left, right[j]);
            }
        }
#pragma unroll
        for (int i = 0; i < K_STEP; ++i) {
#pragma unroll
            for (int j = 0; j < N_STEP; ++j) {
                const int row = k + i * K_UNITS, column = n + j * N_UNITS;
                if (row < IN && column < OUT) put(out + row * OUT + column, total[i][j], add);
            }
        }
    }
}

template <int OUT>
__device__ __forceinline__ void bias_gradient(const float* gradient, float* out, bool add) {
#pragma unroll 1
    for (int n = thread(); n < OUT; n += THREADS) {
        float total = 0.0f;
#pragma unroll 1
        for (int sample = 0; sample < THREADS; sample += 4) {
            total += dot(quad_at(gradient + n * PITCH, sample), float4{1.0f, 1.0f, 1.0f, 1.0f});
        }
        put(out + n, total, add);
    }
}

// From the gradients of a tile's outputs to those of its inputs, in their place, and to (or added to) those of all
// parameters. Starts and ends with threads that have met.
template <int LAYER = LAYERS - 1>
__device__ __forceinline__ void backward(float* tape, const Decoder& decoder, float* parameters, bool add) {
    constexpr int IN = SIZES[LAYER], OUT = SIZES[LAYER + 1];
    float* values = tape + first_row<true>(LAYER) * PITCH;
    const float* gradient = tape + first_row<true>(LAYER + 1) * PITCH;
    float* part = parameters + parameters_before(LAYER);
    weight_gradient<IN, OUT>(values, gradient, part, add);
    bias_gradient<OUT>(gradient, part + IN * OUT, add);
    __syncthreads();
    layer_back<IN, OUT, (LAYER > 0)>(gradient + thread(), decoder.weight[LAYER], values + thread());
    __syncthreads();
    if constexpr (LAYER > 0) backward<LAYER - 1>(tape, decoder, parameters, add);
}

// --- sums over blocks ---

constexpr int SUMMED_TOGETHER = 32;

// The sum over the blocks of parts[block, i], where this block of threads does SUMMED_TOGETHER of them: thread
// i's in the first as many threads. Always in the same order.
__device__ __forceinline__ float sum_of_parts(const float* parts, int blocks) {
    __shared__ float sums[THREADS];
    const int i = blockIdx.x * SUMMED_TOGETHER + thread() % SUMMED_TOGETHER;
    float total = 0.0f;
    if (i < PARAMETERS) {
#pragma unroll 4
        for (int block = thread() / SUMMED_TOGETHER; block < blocks; block += THREADS / SUMMED_TOGETHER) {
            total += parts[static_cast<long long>(block) * PARAMETERS + i];
        }
    }
    sums[thread()] = total;
    __syncthreads();
    if (thread() < SUMMED_TOGETHER) {
#pragma unroll
        for (int group = 1; group < THREADS / SUMMED_TOGETHER; ++group) {
            total += sums[thread() + group * SUMMED_TOGETHER];
        }
    }
    return total;
}

}  // namespace acorn
