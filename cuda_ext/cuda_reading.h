// Reading features on a GPU, one sample per thread; and the way back, one vertex per thread.
//
// A sample is a place in fixed point: pixels are their centres, so pixels and points are read alike. Threads of
// one patch read the same vertices, which the cache serves at once.
#pragma once

#include "kernels.h"

namespace acorn {

constexpr int PLACE_BITS = 32;     // of a place's fraction, in full-size pixels
constexpr int FRACTION_BITS = 24;  // of a place within a cell: as many as a float keeps

template <int CHANNELS>
struct Row {
    float channel[CHANNELS] = {};
};

// A row of a table, in loads of 16 bytes where it has as many.
template <int CHANNELS>
__device__ __forceinline__ Row<CHANNELS> load_row(const float* table, long long row) {
    const float* at = table + row * CHANNELS;
    Row<CHANNELS> result;
    if constexpr (CHANNELS == 1) {
        result.channel[0] = __ldg(at);
    } else if constexpr (CHANNELS == 2) {
        const float2 pair = __ldg(reinterpret_cast<const float2*>(at));
        result.channel[0] = pair.x, result.channel[1] = pair.y;
    } else {
#pragma unroll
        for (int i = 0; i < CHANNELS; i += 4) {
            const float4 quad = __ldg(reinterpret_cast<const float4*>(at + i));
            result.channel[i] = quad.x, result.channel[i + 1] = quad.y;
            result.channel[i + 2] = quad.z, result.channel[i + 3] = quad.w;
        }
    }
    return result;
}

template <int CHANNELS>
__device__ __forceinline__ void add(Row<CHANNELS>& total, const Row<CHANNELS>& row, float weight) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) total.channel[c] += row.channel[c] * weight;
}

// What is read: the features of one lattice at one scale.
struct View {
    Geometry geometry;
    int scale;
    const float* features;  // [vertices + 1, channels]
    const float* folded;    // or null: then the coarser levels are summed one by one

    __device__ __forceinline__ int level() const { return geometry.depth - scale; }
};

template <int D>
struct Sample {
    long long place[D];    // in full-size pixels, of PLACE_BITS fractional bits
    const int* ancestors;  // blocks over it, from root to leaf
};

template <int D>
__device__ __forceinline__ void find_ancestors(const View& view, Sample<D>& sample) {
    long long block[D];
#pragma unroll
    for (int axis = 0; axis < D; ++axis) block[axis] = sample.place[axis] >> (PLACE_BITS + view.geometry.cell_shift);
    sample.ancestors = ancestors_at<D>(view.geometry, block);
}

// The centre of a pixel of the view's scale.
template <int D>
__device__ __forceinline__ Sample<D> pixel_sample(const View& view, const long long (&pixel)[D]) {
    Sample<D> sample;
#pragma unroll
    for (int axis = 0; axis < D; ++axis) sample.place[axis] = (2 * pixel[axis] + 1) << (PLACE_BITS - 1 + view.scale);
    find_ancestors<D>(view, sample);
    return sample;
}

// A position in full-size pixels, clamped to the extent.
template <int D>
__device__ __forceinline__ Sample<D> point_sample(const View& view, const double* position) {
    Sample<D> sample;
#pragma unroll
    for (int axis = 0; axis < D; ++axis) {
        const int far = view.geometry.extent[axis] << view.geometry.cell_shift;
        const double place = position[axis] > 0 ? position[axis] : 0.0;
        const long long last = (static_cast<long long>(far) << PLACE_BITS) - 1;
        sample.place[axis] = place < far ? static_cast<long long>(place * (1LL << PLACE_BITS)) : last;
    }
    find_ancestors<D>(view, sample);
    return sample;
}

// Pixel `number` of the patch at `corner`, in (z,) y, x order.
template <int D>
__device__ __forceinline__ Sample<D> patch_sample(const View& view, const long long* corner, int number) {
    long long pixel[D];
#pragma unroll
    for (int axis = 0; axis < D; ++axis) {
        pixel[axis] = corner[axis] + ((number >> (axis * PATCH_SHIFT)) & (PATCH_SIDE - 1));
    }
    return pixel_sample<D>(view, pixel);
}

// Calls visit(table index, weight) for the vertices around a sample in one block, whose cells are `1 << up` pixels
// of the view's scale wide.
template <int D, class Visit>
__device__ __forceinline__ void visit_cell(const View& view, const Sample<D>& sample, int node, int up,
                                           const Visit& visit) {
    const int shift = PLACE_BITS + view.scale + up;
    long long cell[D];
    float fraction[D];
#pragma unroll
    for (int axis = 0; axis < D; ++axis) {
        cell[axis] = sample.place[axis] >> shift;
        const int bits = static_cast<int>(sample.place[axis] >> (shift - FRACTION_BITS)) & ((1 << FRACTION_BITS) - 1);
        fraction[axis] = static_cast<float>(bits) * (1.0f / (1 << FRACTION_BITS));
    }
    const long long base = vertex_index<D>(view.geometry, node, cell);
#pragma unroll
    for (int corner = 0; corner < 1 << D; ++corner) {
        float weight = 1.0f;
#pragma unroll
        for (int axis = 0; axis < D; ++axis) weight *= corner >> axis & 1 ? fraction[axis] : 1.0f - fraction[axis];
        visit(base + vertex_offset<D>(view.geometry, corner), weight);
    }
}

// The block over a sample at `up` levels above the view's finest; geometry.nodes where there is none.
template <int D>
__device__ __forceinline__ int node_at(const View& view, const Sample<D>& sample, int up) {
    return up <= view.level() ? __ldg(sample.ancestors + (view.level() - up)) : view.geometry.nodes;
}

// Adds what one level says at a sample.
template <int D, int CHANNELS>
__device__ __forceinline__ void add_level(const View& view, const Sample<D>& sample, int up, Row<CHANNELS>& total) {
    const int node = node_at<D>(view, sample, up);
    if (node == view.geometry.nodes) return;
    visit_cell<D>(view, sample, node, up, [&](long long index, float weight) {
        add(total, load_row<CHANNELS>(view.features, __ldg(view.geometry.table + index)), weight);
    });
}

// Calls put(slot, row) for every slot of a sample.
template <int D, int CHANNELS, class Put>
__device__ __forceinline__ void read_slots(const View& view, const Sample<D>& sample, const Put& put) {
#pragma unroll
    for (int slot = 0; slot < DIRECT_SLOTS; ++slot) {
        Row<CHANNELS> row;
        add_level<D, CHANNELS>(view, sample, slot, row);
        put(slot, row);
    }
    Row<CHANNELS> rest;
    if (view.folded == nullptr) {
        for (int up = DIRECT_SLOTS; up <= view.level(); ++up) add_level<D, CHANNELS>(view, sample, up, rest);
    } else if (view.level() >= DIRECT_SLOTS) {
        const Source source = folded_source<D>(view.geometry, sample.ancestors, view.level());
        visit_cell<D>(view, sample, source.node, source.up, [&](long long index, float weight) {
            add(rest, load_row<CHANNELS>(view.folded, index), weight);
        });
    }
    put(DIRECT_SLOTS, rest);
}

// --- the way back ---

// Adds to sums that do not depend on the order of their terms: each is first rounded to a multiple of `unit`, a power
// of two, and such doubles add without error as long as the sum stays below 2**53 units.
__device__ __forceinline__ void add_exactly(double* total, float value, float unit) {
    atomicAdd(total, static_cast<double>(rintf(value * (1.0f / unit)) * unit));
}

template <int CHANNELS>
__device__ __forceinline__ void add_exactly(double* table, int row, const Row<CHANNELS>& value, float unit) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        add_exactly(table + static_cast<long long>(row) * CHANNELS + c, value.channel[c], unit);
    }
}

// How many vertices a patch reads: all of its own at the two finest levels, then those of one cell for each level.
template <int D>
__device__ __forceinline__ int patch_vertices(int level) {
    const int coarser = level < 2 ? 0 : (level - 1) << D;
    return power(PATCH_SIDE + 1, D) + (level < 1 ? 0 : power(PATCH_SIDE / 2 + 1, D)) + coarser;
}

// One vertex that a patch reads.
template <int D>
struct PatchVertex {
    int row;          // of the features, 0 where there is none
    int slot;
    float first[D];   // place of the patch's first pixel from the vertex, in cells
    float step;       // from one pixel to the next

    // How much of it pixel `i` along an axis reads.
    __device__ __forceinline__ float weight(int axis, int i) const {
        return fmaxf(1.0f - fabsf(first[axis] + i * step), 0.0f);
    }
};

template <int D>
__device__ __forceinline__ PatchVertex<D> patch_vertex(const View& view, const long long* corner, int number) {
    const Geometry& geometry = view.geometry;
    int up = 0, side = PATCH_SIDE + 1;
    if (number >= power(PATCH_SIDE + 1, D)) {
        number -= power(PATCH_SIDE + 1, D);
        up = 1, side = PATCH_SIDE / 2 + 1;
        if (number >= power(PATCH_SIDE / 2 + 1, D)) {
            number -= power(PATCH_SIDE / 2 + 1, D);
            up = 2 + (number >> D), side = 2;
            number &= (1 << D) - 1;
        }
    }
    PatchVertex<D> vertex;
    vertex.slot = up < DIRECT_SLOTS ? up : DIRECT_SLOTS;
    vertex.step = 1.0f / static_cast<float>(1LL << up);
    long long block[D], cell[D];
    int offset = 0, stride = 1;
#pragma unroll
    for (int axis = 0; axis < D; ++axis) {
        const int place = number % side;
        number /= side;
        block[axis] = (corner[axis] << view.scale) >> geometry.cell_shift;
        cell[axis] = corner[axis] >> up;
        const float within = static_cast<float>(corner[axis] & ((1LL << up) - 1)) + 0.5f;
        vertex.first[axis] = within * vertex.step - static_cast<float>(place);
        offset += place * stride;
        stride *= geometry.cells() + 1;
    }
    const int node = __ldg(ancestors_at<D>(geometry, block) + (view.level() - up));
    const long long index = vertex_index<D>(geometry, node, cell) + offset;
    vertex.row = __ldg(geometry.table + index);
    return vertex;
}

// What the pixels of its patch say to a vertex; read(pixel) gives the gradient of its slot.
template <int D, int CHANNELS, class Read>
__device__ __forceinline__ Row<CHANNELS> vertex_gradient(const PatchVertex<D>& vertex, const Read& read) {
    Row<CHANNELS> total;
    for (int line = 0; line < patch_pixels(D - 1); ++line) {
        float weight = vertex.weight(1, line & (PATCH_SIDE - 1));
        if constexpr (D == 3) weight *= vertex.weight(2, line >> PATCH_SHIFT);
#pragma unroll
        for (int x = 0; x < PATCH_SIDE; ++x) add(total, read(line * PATCH_SIDE + x), weight * vertex.weight(0, x));
    }
    return total;
}

}  // namespace acorn
