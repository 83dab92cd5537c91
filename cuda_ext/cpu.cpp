#include "cpu.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>

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

constexpr int PIXELS = patch_pixels(2);
constexpr int PATCHES = TILE / PIXELS;

// One step's work: which patches, and what each tile of them found.
class Step {
   public:
    Step(const Training& training, const Kernels& kernels)
        : training_(training), kernels_(kernels) {}

    // Before the threads start on a step: `number` counts the steps of this call.
    void begin(const Schedule& schedule, int number) {
        scale_ = schedule.scales[number];
        encoder_rate_ = schedule.encoder_rates[number];
        decoder_rate_ = schedule.decoder_rates[number];
        const Image& image = training_.pyramid[scale_];
        across_ = (image.width + PATCH_SIDE - 1) / PATCH_SIDE;
        available_ = across_ * ((image.height + PATCH_SIDE - 1) / PATCH_SIDE);
        const Index wanted = scale_ ? training_.coarse_patches : training_.patches;
        patches_ = static_cast<int>(std::min(wanted, 2 * available_));
        tiles_ = (patches_ + PATCHES - 1) / PATCHES;
        decoder_ = decoder_at(scale_);
        view_ = training_.view;
        view_.scale = scale_;
        if (static_cast<int>(entries_.size()) < tiles_) entries_.resize(tiles_);
        gradients_.resize(static_cast<std::size_t>(tiles_) * decoder_.parameters());
        squares_.resize(patches_);
        pixel_counts_.resize(patches_);
        leaves_.resize(patches_);
        *training_.encoder_steps += 1;
        training_.decoder_steps[scale_] += 1;
        next_ = 0;
    }

    void learn() {
        Batch batch, coming;
        begin(coming);
        while (coming.tile < tiles_) {
            std::swap(batch, coming);
            begin(coming);  // its pixels arrive while this one is worked on
            learn(batch);
        }
    }

    void update(int thread, int threads) {
        kernels_.update_rows(view_, training_.table, entries_.data(), tiles_, thread, threads, *training_.encoder_steps, encoder_rate_);
        if (thread != threads - 1) return;
        update_decoder();
        if (scale_ == 0) record();
        training_.drawn[scale_] += patches_;
    }

   private:
    // The patches of one tile.
    struct Batch {
        int tile, first, count;
        Index corners[2 * PATCHES];
    };

    void begin(Batch& batch) {
        batch.tile = next_.fetch_add(1);
        batch.first = batch.tile * PATCHES;
        batch.count = std::min(PATCHES, patches_ - batch.first);
        for (int p = 0; p < batch.count; ++p) {
            draw(batch.first + p, batch.corners + 2 * p);
            prefetch(training_.pyramid[scale_], batch.corners + 2 * p);
        }
    }

    void learn(const Batch& batch) {
        const int channels = decoder_.outputs();
        float truth[TILE * 4], weights[TILE];
        for (int p = 0; p < batch.count; ++p) {
            const Index* corner = batch.corners + 2 * p;
            float* weight = weights + p * PIXELS;
            read_truth(training_.pyramid[scale_], corner, truth + p * PIXELS * channels, weight);
            const Index block[2] = {(corner[0] << scale_) >> view_.geometry.cell_shift,
                                    (corner[1] << scale_) >> view_.geometry.cell_shift};
            leaves_[batch.first + p] = leaf_at<2>(view_.geometry, block);
            pixel_counts_[batch.first + p] = static_cast<int>(std::count(weight, weight + PIXELS, 1.0f));
        }
        const float factor = 2.0f / static_cast<float>(patches_ * PIXELS * channels);
        float* gradient = gradients_.data() + static_cast<std::size_t>(batch.tile) * decoder_.parameters();
        kernels_.learn_tile(view_, decoder_, batch.corners, batch.count, truth, weights, factor, entries_[batch.tile],
                            gradient, squares_.data() + batch.first);
    }

    Decoder decoder_at(int scale) const {
        Decoder decoder{};
        decoder.count = training_.layers;
        for (int i = 0; i < decoder.count; ++i) {
            const TrainedLayer& layer = training_.decoder[i];
            const Index size = static_cast<Index>(layer.inputs) * layer.outputs;
            decoder.layers[i] = {layer.weight[0] + scale * size, layer.bias[0] + static_cast<Index>(scale) * layer.outputs, layer.inputs, layer.outputs};
        }
        return decoder;
    }

    void draw(int number, Index* corner) const {
        const unsigned long long all = training_.drawn[scale_] + number;
        const unsigned long long key = mix(mix(mix(training_.seed) + scale_) + all / available_);
        const Index place = static_cast<Index>(shuffled(all % available_, available_, key));
        corner[0] = place % across_ * PATCH_SIDE;
        corner[1] = place / across_ * PATCH_SIDE;
    }

    // Adam (Kingma and Ba 2015) on the sum of all tiles' gradients.
    void update_decoder() {
        const int parameters = decoder_.parameters();
        float* total = gradients_.data();
        for (int tile = 1; tile < tiles_; ++tile) {
            const float* part = gradients_.data() + static_cast<std::size_t>(tile) * parameters;
            for (int i = 0; i < parameters; ++i) total[i] += part[i];
        }
        const float count = training_.decoder_steps[scale_];
        const float rate = decoder_rate_ / (1.0f - std::pow(MOMENTUM, count));
        const float unbias = 1.0f / std::sqrt(1.0f - std::pow(DECAY, count));
        for (int i = 0; i < decoder_.count; ++i) {
            const TrainedLayer& layer = training_.decoder[i];
            const Index size = static_cast<Index>(layer.inputs) * layer.outputs;
            total = adam(layer.weight, scale_ * size, size, total, rate, unbias);
            total = adam(layer.bias, static_cast<Index>(scale_) * layer.outputs, layer.outputs, total, rate, unbias);
        }
    }

    static float* adam(float* const (&state)[3], Index offset, Index size, float* gradient, float rate, float unbias) {
        float *value = state[0] + offset, *first = state[1] + offset, *second = state[2] + offset;
        for (Index i = 0; i < size; ++i) {
            first[i] = MOMENTUM * first[i] + (1.0f - MOMENTUM) * gradient[i];
            second[i] = DECAY * second[i] + (1.0f - DECAY) * gradient[i] * gradient[i];
            value[i] -= rate * first[i] / (std::sqrt(second[i]) * unbias + EPSILON);
        }
        return gradient + size;
    }

    void record() {
        const int nodes = view_.geometry.nodes;
        for (int p = 0; p < patches_; ++p) {
            training_.errors[leaves_[p]] += squares_[p];
            training_.errors[nodes + leaves_[p]] += pixel_counts_[p];
        }
    }

    const Training& training_;
    const Kernels& kernels_;
    int scale_ = 0, patches_ = 0, tiles_ = 0;
    float encoder_rate_ = 0, decoder_rate_ = 0;
    Index across_ = 1, available_ = 1;
    Decoder decoder_{};
    View view_{};
    std::atomic<int> next_{0};
    std::vector<Entries> entries_;
    std::vector<float> gradients_;
    std::vector<double> squares_;
    std::vector<int> pixel_counts_, leaves_;
};

}  // namespace

void train(const Training& training, const Schedule& schedule, const Kernels& kernels, int threads) {
    Step step(training, kernels);
    together(threads, [&](int thread, Meeting& meeting) {
        for (int number = 0; number < schedule.steps; ++number) {
            if (thread == 0) step.begin(schedule, number);
            meeting.wait();
            step.learn();
            meeting.wait();
            step.update(thread, meeting.count());
            meeting.wait();
        }
    });
}

}  // namespace acorn::cpu
