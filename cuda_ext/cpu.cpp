#include "cpu.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <utility>

#include "threads.h"

namespace acorn::cpu {

#if defined(__x86_64__)
namespace avx512 {
extern const Kernels KERNELS;
}
namespace avx2 {
extern const Kernels KERNELS;
}
#endif
namespace portable {
extern const Kernels KERNELS;
}

const std::vector<const Kernels*>& every() {
    static const std::vector<const Kernels*> found = [] {
        std::vector<const Kernels*> list;
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
            list.push_back(&avx512::KERNELS);
        }
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list.push_back(&avx2::KERNELS);
#endif
        list.push_back(&portable::KERNELS);
        return list;
    }();
    return found;
}

void share(Index count, int at_once, int threads, const std::function<void(Index, Index)>& work) {
    const Index pieces = (count + at_once - 1) / at_once;
    std::atomic<Index> next{0};
    together(static_cast<int>(std::min<Index>(threads, pieces)), [&](int, Meeting&) {
        for (Index piece; (piece = next.fetch_add(1)) < pieces;) {
            work(piece * at_once, std::min(count, (piece + 1) * at_once));
        }
    });
}

void learn(const View& view, const Decoder& decoder, const Index* corners, Index patches, const float* truth,
           const float* weights, float factor, float* features_gradient, float* parameters_gradient, double* squares,
           const Kernels& kernels, int threads) {
    const int pixels = patch_pixels(view.dimension), at_once = TILE / pixels, parameters = decoder.parameters();
    const Index tiles = (patches + at_once - 1) / at_once;
    std::vector<Entries> entries(tiles);
    std::vector<float> gradients(tiles * parameters);
    share(patches, at_once, threads, [&](Index begin, Index end) {
        const Index tile = begin / at_once;
        kernels.learn_tile(view, decoder, corners + begin * view.dimension, end - begin,
                           truth + begin * pixels * decoder.outputs(), weights + begin * pixels, factor, entries[tile],
                           gradients.data() + tile * parameters, squares + begin);
    });
    for (Index tile = 0; tile < tiles; ++tile) {
        for (int i = 0; i < parameters; ++i) parameters_gradient[i] += gradients[tile * parameters + i];
        for (int i = 0; i < entries[tile].count; ++i) {
            float* row = features_gradient + static_cast<Index>(entries[tile].rows[i]) * view.channels;
            for (int c = 0; c < view.channels && entries[tile].rows[i]; ++c) {
                row[c] += entries[tile].gradients[i * view.channels + c];
            }
        }
    }
}

// --- the fused training step ---

namespace {

// Truth and weights of one patch of a picture; what lies outside has no weight.
template <class T>
void read_truth(const Image& image, float scale, Index left, Index top, float* truth, float* weights) {
    const T* pixels = static_cast<const T*>(image.pixels);
    for (int y = 0; y < PATCH_SIDE; ++y) {
        for (int x = 0; x < PATCH_SIDE; ++x) {
            const bool inside = left + x < image.width && top + y < image.height;
            const Index at = std::min<Index>(top + y, image.height - 1) * image.width + std::min<Index>(left + x, image.width - 1);
            *weights++ = inside ? 1.0f : 0.0f;
            for (int c = 0; c < image.channels; ++c) *truth++ = static_cast<float>(pixels[at * image.channels + c]) * scale;
        }
    }
}

int pixel_bytes(const Image& image) {
    return image.channels * (image.kind == Kind::UINT8 ? 1 : image.kind == Kind::UINT16 ? 2 : 4);
}

// Asks for the memory of a patch: patches lie anywhere, and all those of a tile are waited for at once.
void prefetch(const Image& image, const Index* corner) {
    const char* pixels = static_cast<const char*>(image.pixels);
    for (Index y = corner[1]; y < std::min<Index>(corner[1] + PATCH_SIDE, image.height); ++y) {
        const char* row = pixels + (y * image.width + corner[0]) * pixel_bytes(image);
        __builtin_prefetch(row);
        __builtin_prefetch(row + PATCH_SIDE * pixel_bytes(image) - 1);
    }
}

void read_truth(const Image& image, const Index* corner, float* truth, float* weights) {
    switch (image.kind) {
        case Kind::UINT8: return read_truth<std::uint8_t>(image, 1.0f / 255, corner[0], corner[1], truth, weights);
        case Kind::UINT16: return read_truth<std::uint16_t>(image, 1.0f / 65535, corner[0], corner[1], truth, weights);
        case Kind::FLOAT32: return read_truth<float>(image, 1.0f, corner[0], corner[1], truth, weights);
    }
}

// What tiles learn from: patches of a picture, drawn in a random order without repeats.
class PicturePatches {
    static constexpr int PIXELS = patch_pixels(2);
    static constexpr int PATCHES = TILE / PIXELS;

   public:
    PicturePatches(const Training& training, const Kernels& kernels) : training_(training), kernels_(kernels) {}

    // The samples of one tile.
    struct Batch {
        int first, count;
        Index corners[2 * PATCHES];
    };

    // Before a step: returns how many tiles it has.
    int begin(int scale) {
        scale_ = scale;
        const Image& image = training_.pyramid[scale];
        across_ = (image.width + PATCH_SIDE - 1) / PATCH_SIDE;
        available_ = across_ * ((image.height + PATCH_SIDE - 1) / PATCH_SIDE);
        const Index wanted = scale ? training_.coarse_patches : training_.patches;
        patches_ = static_cast<int>(std::min(wanted, 2 * available_));
        squares_.resize(patches_);
        pixel_counts_.resize(patches_);
        leaves_.resize(patches_);
        return (patches_ + PATCHES - 1) / PATCHES;
    }

    // Chooses the patches of a tile, and asks for their memory.
    void draw(int tile, Batch& batch) const {
        batch.first = tile * PATCHES;
        batch.count = std::min(PATCHES, patches_ - batch.first);
        for (int p = 0; p < batch.count; ++p) {
            place(batch.first + p, batch.corners + 2 * p);
            prefetch(training_.pyramid[scale_], batch.corners + 2 * p);
        }
    }

    void learn(const View& view, const Decoder& decoder, const Batch& batch, Entries& entries, float* parameters_gradient) {
        const int channels = decoder.outputs();
        float truth[TILE * 4], weights[TILE];
        for (int p = 0; p < batch.count; ++p) {
            const Index* corner = batch.corners + 2 * p;
            float* weight = weights + p * PIXELS;
            read_truth(training_.pyramid[scale_], corner, truth + p * PIXELS * channels, weight);
            const Index block[2] = {(corner[0] << scale_) >> view.geometry.cell_shift,
                                    (corner[1] << scale_) >> view.geometry.cell_shift};
            leaves_[batch.first + p] = leaf_at<2>(view.geometry, block);
            pixel_counts_[batch.first + p] = static_cast<int>(std::count(weight, weight + PIXELS, 1.0f));
        }
        const float factor = 2.0f / static_cast<float>(patches_ * PIXELS * channels);
        kernels_.learn_tile(view, decoder, batch.corners, batch.count, truth, weights, factor, entries,
                            parameters_gradient, squares_.data() + batch.first);
    }

    // After all tiles: the errors at full size, and how far the order has come.
    void finish() {
        training_.drawn[scale_] += patches_;
        if (scale_) return;
        const int nodes = training_.view.geometry.nodes;
        for (int p = 0; p < patches_; ++p) {
            training_.errors[leaves_[p]] += squares_[p];
            training_.errors[nodes + leaves_[p]] += pixel_counts_[p];
        }
    }

   private:
    void place(int number, Index* corner) const {
        const unsigned long long all = training_.drawn[scale_] + number;
        const unsigned long long key = mix(mix(mix(training_.seed) + scale_) + all / available_);
        const Index place = static_cast<Index>(shuffled(all % available_, available_, key));
        corner[0] = place % across_ * PATCH_SIDE;
        corner[1] = place / across_ * PATCH_SIDE;
    }

    const Training& training_;
    const Kernels& kernels_;
    int scale_ = 0, patches_ = 0;
    Index across_ = 1, available_ = 1;
    std::vector<double> squares_;
    std::vector<int> pixel_counts_, leaves_;
};

// What a tile learns from: 8 runs of points that lie near each other, drawn in a random order without repeats.
class PointRuns {
    static constexpr int RUNS = TILE / RUN;

   public:
    PointRuns(const Training& training, const Kernels& kernels) : training_(training), kernels_(kernels) {}

    struct Batch {
        int first, count;
        Index starts[RUNS];
    };

    int begin(int scale) {
        scale_ = scale;
        available_ = training_.samples[scale].count / RUN;
        const Index wanted = scale ? training_.coarse_patches : training_.patches;
        runs_ = static_cast<int>(std::min(wanted, 2 * available_));
        errors_.resize(Index{runs_} * RUN);
        leaves_.resize(Index{runs_} * RUN);
        return (runs_ + RUNS - 1) / RUNS;
    }

    void draw(int tile, Batch& batch) const {
        const Samples& samples = training_.samples[scale_];
        batch.first = tile * RUNS;
        batch.count = std::min(RUNS, runs_ - batch.first);
        for (int r = 0; r < batch.count; ++r) {
            const Index start = place(batch.first + r) * RUN;
            batch.starts[r] = start;
            prefetch(samples.positions + start * dimension(), dimension());
            prefetch(samples.truth + start * outputs(), outputs());
        }
    }

    void learn(const View& view, const Decoder& decoder, const Batch& batch, Entries& entries, float* parameters_gradient) {
        const Samples& samples = training_.samples[scale_];
        float positions[TILE * 3], truth[TILE * 4];
        for (int r = 0; r < batch.count; ++r) {
            gather(samples.positions, batch.starts[r], dimension(), positions + r * RUN * dimension());
            gather(samples.truth, batch.starts[r], outputs(), truth + r * RUN * outputs());
        }
        const Index first = Index{batch.first} * RUN;
        kernels_.learn_points_tile(view, decoder, positions, batch.count * RUN, truth, training_.loss,
                                   1.0f / static_cast<float>(runs_ * RUN), entries, parameters_gradient,
                                   errors_.data() + first, leaves_.data() + first);
    }

    void finish() {
        training_.drawn[scale_] += runs_;
        if (scale_) return;
        const int nodes = training_.view.geometry.nodes;
        for (std::size_t i = 0; i < errors_.size(); ++i) {
            training_.errors[leaves_[i]] += errors_[i];
            training_.errors[nodes + leaves_[i]] += 1;
        }
    }

   private:
    int dimension() const { return training_.view.dimension; }
    int outputs() const { return training_.decoder[training_.layers - 1].outputs; }

    Index place(int number) const {
        const unsigned long long all = training_.drawn[scale_] + number;
        const unsigned long long key = mix(mix(mix(training_.seed) + scale_) + all / available_);
        return static_cast<Index>(shuffled(all % available_, available_, key));
    }

    static void gather(const float* all, Index start, int columns, float* out) {
        std::copy_n(all + start * columns, RUN * columns, out);
    }

    // Asks for the memory of a run.
    static void prefetch(const float* rows, int columns) {
        for (int i = 0; i < RUN * columns; i += 16) __builtin_prefetch(rows + i);
    }

    const Training& training_;
    const Kernels& kernels_;
    int scale_ = 0, runs_ = 0;
    Index available_ = 1;
    std::vector<double> errors_;
    std::vector<int> leaves_;
};

// One step after the other: threads take a step's tiles in turns, then each moves a part of the features and of the
// decoder. What a tile learns from is the affair of Samples, as PicturePatches.
template <class Samples>
class Step {
   public:
    Step(const Training& training, const Schedule& schedule, const Kernels& kernels)
        : training_(training), schedule_(schedule), kernels_(kernels), samples_(training, kernels), view_(training.view) {}

    // By one thread, before all start on the next step, if there is one.
    void begin() {
        if (++number_ >= schedule_.steps) return;
        scale_ = schedule_.scales[number_];
        encoder_rate_ = schedule_.encoder_rates[number_];
        decoder_rate_ = schedule_.decoder_rates[number_];
        tiles_ = samples_.begin(scale_);
        decoder_ = decoder_at(scale_);
        view_.scale = scale_;
        if (static_cast<int>(entries_.size()) < tiles_) entries_.resize(tiles_);
        gradients_.resize(static_cast<std::size_t>(tiles_) * decoder_.parameters());
        *training_.encoder_steps += 1;
        training_.decoder_steps[scale_] += 1;
        next_ = 0;
    }

    void learn() {
        Batch batch, coming;
        int next = draw(coming);
        while (next < tiles_) {
            std::swap(batch, coming);
            const int tile = std::exchange(next, draw(coming));  // its samples arrive while this tile is worked on
            samples_.learn(view_, decoder_, batch, entries_[tile], gradient_of(tile));
        }
    }

    // Once all tiles are learned: what is the part of one of so many threads.
    void update(int part, int parts) {
        update_decoder(part, parts);
        kernels_.update_rows(view_, training_.table, entries_.data(), tiles_, part, parts, *training_.encoder_steps, encoder_rate_);
        if (part == parts - 1) samples_.finish();
    }

   private:
    using Batch = typename Samples::Batch;

    int draw(Batch& batch) {
        const int tile = next_.fetch_add(1);
        if (tile < tiles_) samples_.draw(tile, batch);
        return tile;
    }

    float* gradient_of(int tile) { return gradients_.data() + static_cast<std::size_t>(tile) * decoder_.parameters(); }

    Decoder decoder_at(int scale) const {
        Decoder decoder{};
        decoder.count = training_.layers;
        for (int i = 0; i < decoder.count; ++i) {
            const TrainedLayer& layer = training_.decoder[i];
            decoder.layers[i] = {layer.weight[0] + scale * weights_of(layer), layer.bias[0] + Index{scale} * layer.outputs, layer.inputs, layer.outputs};
        }
        return decoder;
    }

    static Index weights_of(const TrainedLayer& layer) { return Index{layer.inputs} * layer.outputs; }

    // Adam (Kingma and Ba 2015) on the sum of all tiles' gradients, for a part of the parameters.
    void update_decoder(int part, int parts) {
        const Index parameters = decoder_.parameters();
        const Index begin = parameters * part / parts, end = parameters * (part + 1) / parts;
        float* total = gradient_of(0);
        for (int tile = 1; tile < tiles_; ++tile) {
            const float* gradient = gradient_of(tile);
            for (Index i = begin; i < end; ++i) total[i] += gradient[i];
        }
        const float count = training_.decoder_steps[scale_];
        const float rate = decoder_rate_ / (1.0f - std::pow(MOMENTUM, count));
        const float unbias = 1.0f / std::sqrt(1.0f - std::pow(DECAY, count));
        Index first = 0;  // of the array's parameters, among all
        const auto update = [&](float* const (&state)[3], Index size) {
            const Index from = std::max(begin, first), to = std::min(end, first + size), offset = scale_ * size - first;
            if (from < to) adam(state, offset + from, to - from, total + from, rate, unbias);
            first += size;
        };
        for (int i = 0; i < decoder_.count; ++i) {
            update(training_.decoder[i].weight, weights_of(training_.decoder[i]));
            update(training_.decoder[i].bias, training_.decoder[i].outputs);
        }
    }

    static void adam(float* const (&state)[3], Index offset, Index size, const float* gradient, float rate, float unbias) {
        float *value = state[0] + offset, *first = state[1] + offset, *second = state[2] + offset;
        for (Index i = 0; i < size; ++i) {
            first[i] = MOMENTUM * first[i] + (1.0f - MOMENTUM) * gradient[i];
            second[i] = DECAY * second[i] + (1.0f - DECAY) * gradient[i] * gradient[i];
            value[i] -= rate * first[i] / (std::sqrt(second[i]) * unbias + EPSILON);
        }
    }

    const Training& training_;
    const Schedule& schedule_;
    const Kernels& kernels_;
    Samples samples_;
    int number_ = -1, scale_ = 0, tiles_ = 0;
    float encoder_rate_ = 0, decoder_rate_ = 0;
    Decoder decoder_{};
    View view_;
    std::vector<Entries> entries_;
    std::vector<float> gradients_;
    alignas(64) std::atomic<int> next_{0};  // on a line of its own: all threads write to it
};

template <class Samples>
void train_on(const Training& training, const Schedule& schedule, const Kernels& kernels, int threads) {
    Step<Samples> step(training, schedule, kernels);
    step.begin();
    together(threads, [&](int thread, Meeting& meeting) {
        for (int number = 0; number < schedule.steps; ++number) {
            step.learn();
            meeting.wait();
            step.update(thread, meeting.count());
            meeting.wait([&] { step.begin(); });
        }
    });
}

}  // namespace

void train(const Training& training, const Schedule& schedule, const Kernels& kernels, int threads) {
    train_on<PicturePatches>(training, schedule, kernels, threads);
}

void train_points(const Training& training, const Schedule& schedule, const Kernels& kernels, int threads) {
    train_on<PointRuns>(training, schedule, kernels, threads);
}

}  // namespace acorn::cpu
