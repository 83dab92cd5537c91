// Device-neutral kernel bodies: what every machine computes alike, written once.
//
// Free of torch, CUDA headers, threads and memory management, and of the host's headers too, which NVRTC
// does not have. The CPU kernels (cpu_lanes.h) and the CUDA kernels (cuda.cu) are built from these; the plain
// PyTorch reference in acorn_svc/field/ops/reference.py is the specification.
#pragma once

#if defined(__CUDACC__)
#define ACORN_BODY __host__ __device__ __forceinline__
#else
#define ACORN_BODY inline
#endif

namespace acorn {

// A sample reads SLOTS groups of features: levels of strides 1, 2, 4 and 8 pixels of its scale, and the sum
// of all coarser ones (acorn_svc/field/reader.py).
constexpr int SLOTS = 5;
constexpr int DIRECT_SLOTS = SLOTS - 1;
constexpr int PATCH_SIDE = 4;  // pixels per side of the squares (cubes) in which samples are drawn
constexpr int PATCH_SHIFT = 2;

constexpr int RUN = 32;        // points that are drawn together

constexpr float MOMENTUM = 0.9f;     // Adam's decay of the first moment,
constexpr float DECAY = 0.99f;       // and of the second
constexpr float EPSILON = 1e-12f;
constexpr int LONGEST_GAP = 32;      // steps after which an untouched row's second moment decays no further

constexpr ACORN_BODY int power(int base, int exponent) {
    return exponent == 0 ? 1 : base * power(base, exponent - 1);
}

constexpr ACORN_BODY int patch_pixels(int dimension) { return power(PATCH_SIDE, dimension); }

// --- where things are ---

// One lattice as flat arrays; see acorn_svc/field/lattice.py. `nodes` is also the row of the absent block.
struct Geometry {
    int depth;
    int cell_shift;               // a block has 1 << cell_shift cells per side
    int nodes;
    int extent[3];                // finest-level blocks per axis, x first
    const int* leaf_map;          // [(z,) y, x]: leaf over each finest-level block
    const int* ancestors;         // [nodes + 1, depth + 1]: block over each block at each level
    const int* table;             // [nodes + 1, (cells + 1)**dimension]: feature row of each vertex
    const unsigned char* levels;  // [nodes]

    ACORN_BODY int cells() const { return 1 << cell_shift; }
};

template <int D>
ACORN_BODY int row_size(const Geometry& geometry) {
    return power(geometry.cells() + 1, D);
}

// The leaf over a finest-level block, clamped to the extent.
template <int D>
ACORN_BODY int leaf_at(const Geometry& geometry, const long long (&block)[D]) {
    long long index = 0;
    for (int axis = D - 1; axis >= 0; --axis) {
        long long place = block[axis] < 0 ? 0 : block[axis];
        if (place >= geometry.extent[axis]) place = geometry.extent[axis] - 1;
        index = index * geometry.extent[axis] + place;
    }
    return geometry.leaf_map[index];
}

// Blocks over one place, from root to leaf; absent below the leaf.
template <int D>
ACORN_BODY const int* ancestors_at(const Geometry& geometry, const long long (&block)[D]) {
    return geometry.ancestors + static_cast<long long>(leaf_at<D>(geometry, block)) * (geometry.depth + 1);
}

// The leaf under a position in full-size pixels, clamped to the extent.
template <int D>
ACORN_BODY int leaf_under(const Geometry& geometry, const double* position) {
    long long block[D];
    for (int axis = 0; axis < D; ++axis) {
        const long long far = static_cast<long long>(geometry.extent[axis]) << geometry.cell_shift;
        const double clamped = position[axis] > 0 ? position[axis] : 0.0;
        block[axis] = clamped < static_cast<double>(far) ? static_cast<long long>(clamped) >> geometry.cell_shift : geometry.extent[axis] - 1;
    }
    return leaf_at<D>(geometry, block);
}

// Index into the table of the lowest vertex of a cell, given in cells of the block's own level.
template <int D>
ACORN_BODY long long vertex_index(const Geometry& geometry, int node, const long long (&cell)[D]) {
    int local = 0;
    for (int axis = D - 1; axis >= 0; --axis) {
        local = local * (geometry.cells() + 1) + static_cast<int>(cell[axis] & (geometry.cells() - 1));
    }
    return static_cast<long long>(node) * row_size<D>(geometry) + local;
}

// Table offset of a vertex that lies `place` further (bit or digit per axis) in the same block.
template <int D>
ACORN_BODY int vertex_offset(const Geometry& geometry, int corner) {
    int offset = 0;
    for (int axis = D - 1; axis >= 0; --axis) {
        offset = offset * (geometry.cells() + 1) + ((corner >> axis) & 1);
    }
    return offset;
}

// Where slot `up` of a patch or point starts to be read: a block, and the exponent of its cells' side in
// pixels of the scale. `node == geometry.nodes` where there is none.
struct Source {
    int node;
    int up;
};

// The deepest block that the last slot's folded sum covers.
template <int D>
ACORN_BODY Source folded_source(const Geometry& geometry, const int* ancestors, int level) {
    int deepest = level - DIRECT_SLOTS;
    while (ancestors[deepest] == geometry.nodes) --deepest;  // the root is always there
    return {ancestors[deepest], level - deepest};
}

// --- interpolation ---

// Pixel i of a patch lies between vertices low and low + 1 of VERTICES that span the patch.
template <int VERTICES>
constexpr ACORN_BODY int spread_low(int i) {
    return (2 * i + 1) * (VERTICES - 1) / (2 * PATCH_SIDE);
}

template <int VERTICES>
constexpr ACORN_BODY float spread_fraction(int i) {
    return (i + 0.5f) * (VERTICES - 1) / PATCH_SIDE - spread_low<VERTICES>(i);
}

// Places of a patch's two ends within a cell of side 1 << up, as fractions of it.
struct Ends {
    float low, high;
};

ACORN_BODY Ends patch_ends(long long corner, int up) {
    const long long cell = 1LL << up;
    const float inverse = 1.0f / static_cast<float>(cell);
    const float low = static_cast<float>(corner & (cell - 1)) * inverse;
    return {low, low + PATCH_SIDE * inverse};
}

// --- sampling ---

ACORN_BODY unsigned long long mix(unsigned long long x) {  // splitmix64 (Steele, Lea and Flood 2014)
    x += 0x9E3779B97F4A7C15ULL;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

// The `index`-th of `count` things in a random order that `key` chooses: a bijection on the next power of two,
// repeated until it falls inside.
ACORN_BODY unsigned long long shuffled(unsigned long long index, unsigned long long count,
                                       unsigned long long key) {
    int bits = 1;
    while ((1ULL << bits) < count) ++bits;
    const unsigned long long mask = (1ULL << bits) - 1;
    const int half = (bits + 1) / 2;
    do {
        unsigned long long round_key = key;
        for (int round = 0; round < 4; ++round) {
            round_key = mix(round_key);
            index = (index * (round_key | 1) + (round_key >> 32)) & mask;
            index ^= index >> half;
        }
    } while (index >= count);
    return index;
}

// --- learning ---

// A row's decayed second moment and the step it takes: Adam without a first moment, where the moment of a row
// decays with the steps since it was last touched.
template <typename V>
ACORN_BODY V decayed(V second, V gradient, float kept) {
    return second * kept + gradient * gradient * (1.0f - DECAY);
}

}  // namespace acorn
