// CPU kernels: plain structs of raw pointers in and out. Arguments are checked in bindings.cpp.
//
// Each kernel is compiled several times, for other widths of vector registers (cpu_lanes.h), and the widest
// that the processor has is chosen at run time. Work is shared over threads tile by tile; what a result holds
// does not depend on how many threads there are.
#pragma once

#include <functional>
#include <vector>

#include "kernels.h"

namespace acorn::cpu {

using Index = long long;

constexpr int MAX_LAYERS = 8;
constexpr int TILE = 256;           // samples that are worked on together
constexpr int PITCH = TILE + 16;    // floats between rows of a tile: no power of two, which would share cache sets

struct Layer {
    const float* weight;  // [inputs, outputs]
    const float* bias;    // [outputs]
    int inputs, outputs;
};

struct Decoder {
    int count;
    Layer layers[MAX_LAYERS];

    int inputs() const { return layers[0].inputs; }
    int outputs() const { return layers[count - 1].outputs; }
    int parameters() const {
        int total = 0;
        for (int i = 0; i < count; ++i) total += (layers[i].inputs + 1) * layers[i].outputs;
        return total;
    }
};

// What is read: the features of one lattice at one scale.
struct View {
    Geometry geometry;
    int dimension;
    int channels;           // of a feature row: 1, 2, 4 or 8
    int scale;
    const float* features;  // [vertices + 1, channels]
    const float* folded;    // or null: then the coarser levels are summed one by one
};

enum class Kind { UINT8, UINT16, FLOAT32 };

// A picture [height, width, channels].
struct Image {
    const void* pixels;
    Kind kind;
    int width, height, channels;
};

// What points are learned by; see acorn_svc/field/ops/points.py.
enum class Loss { DISTANCE, OCCUPANCY };

// Points with the truth about them.
struct Samples {
    const float* positions;  // [count, dimension]
    const float* truth;      // [count, outputs]
    Index count;
};

// A rectangle of a picture that is rendered: pixels of the view's scale.
struct Canvas {
    void* pixels;  // [height, width, channels]
    Kind kind;     // integers are clipped, rounded and of straight alpha; floats are as the decoder gives them
    Index x, y;
    int width, height, channels;
};

// Rows of the features and what a tile of samples has to say about them, with repeats.
struct Entries {
    std::vector<int> rows;
    std::vector<float> gradients;  // [rows, channels]
    int count = 0;
};

// A table of features in training.
struct Table {
    float* values;    // [rows, channels]
    float* second;    // mean squared gradients
    float* last;      // [rows], the step that touched each row last
    float* gradient;  // [rows, channels], zero between steps
    int channels;
};

struct Kernels {
    const char* name;
    int lanes;
    void (*encode_points)(const View&, const double* positions, Index begin, Index end, float* out);
    void (*encode_points_backward)(const View&, const double* positions, const float* gradient, Index count,
                                   float* features);
    void (*encode_patches)(const View&, const Index* corners, Index begin, Index end, float* out);
    void (*encode_patches_backward)(const View&, const Index* corners, const float* gradient, Index count,
                                    float* features);
    void (*decode)(const Decoder&, const float* inputs, Index begin, Index end, float* out);
    void (*decode_backward)(const Decoder&, const float* inputs, const float* gradient, Index begin, Index end,
                            float* inputs_gradient, float* parameters_gradient);
    void (*render_points)(const View&, const Decoder&, const double* positions, Index begin, Index end, float* out);
    void (*render_tile)(const View&, const Decoder&, const Canvas&, Index x, Index y);
    // Loss and gradients of the patches of one tile: `truth` [patches, pixels, outputs], `weights` [patches, pixels],
    // `squares` [patches].
    void (*learn_tile)(const View&, const Decoder&, const Index* corners, Index patches, const float* truth,
                       const float* weights, float factor, Entries&, float* parameters_gradient, double* squares);
    // The same for points that lie near each other: `truth` [count, outputs]; `errors` and `leaves` [count].
    void (*learn_points_tile)(const View&, const Decoder&, const float* positions, int count, const float* truth, Loss,
                              float factor, Entries&, float* parameters_gradient, double* errors, int* leaves);
    void (*update_rows)(const View&, const Table&, const Entries*, int tiles, int part, int parts, float step, float rate);
};

const std::vector<const Kernels*>& every();  // all that this processor runs, widest first

// Calls work(begin, end) for pieces of [0, count), on so many threads.
void share(Index count, int at_once, int threads, const std::function<void(Index, Index)>& work);

// Loss and gradients of patches: `truth` [patches, pixels, outputs], `weights` [patches, pixels]; adds to the
// gradients of the features [vertices + 1, channels] and of the decoder's parameters; `squares` [patches].
void learn(const View&, const Decoder&, const Index* corners, Index patches, const float* truth, const float* weights,
           float factor, float* features_gradient, float* parameters_gradient, double* squares, const Kernels&,
           int threads);

// A layer of the decoders of all scales: [scales, ...], each as value, first and second moment.
struct TrainedLayer {
    float* weight[3];
    float* bias[3];
    int inputs, outputs;
};

struct Training {
    View view;
    Table table;
    TrainedLayer decoder[MAX_LAYERS];
    int layers;
    const Image* pyramid;    // of each scale, when pictures are learned
    const Samples* samples;  // of each scale, when points are learned
    Loss loss;
    int patches, coarse_patches;  // or runs of points, for a step
    unsigned long long seed;
    long long* drawn;       // [scales], patches or runs so far
    float* encoder_steps;   // [1]
    float* decoder_steps;   // [scales]
    double* errors;         // [2, nodes]: error and count of what was seen of each leaf, at full size
};

struct Schedule {
    const int* scales;
    const float* encoder_rates;
    const float* decoder_rates;
    int steps;
};

// The fused training step, so many times: from patches of a picture, or from points.
void train(const Training&, const Schedule&, const Kernels&, int threads);
void train_points(const Training&, const Schedule&, const Kernels&, int threads);

// For benchmarks: so many rounds of multiply-adds on each thread, and a copy. Returns the multiply-adds done.
Index multiply_adds(const Kernels&, Index rounds, int threads);
void copy(const float* from, float* to, Index count, int threads);

}  // namespace acorn::cpu
