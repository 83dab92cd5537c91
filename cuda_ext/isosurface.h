// Marching cubes over blocks of a sparse lattice: acorn_svc/field/ops/marching_reference.py says what is computed.
//
// Counts come first, so that the caller can allocate the outputs; `offsets` are their running sums from zero, and
// nothing is written beyond them.
#pragma once

namespace acorn::isosurface {

using Index = long long;

constexpr int BLOCK = 8;                                  // points along a block
constexpr int POINTS = BLOCK * BLOCK * BLOCK;
constexpr int NEIGHBOURS = 27;
constexpr int CASES = 256;

struct Blocks {
    const float* values;    // [count, 8, 8, 8]
    const int* neighbours;  // [count, 27]
    Index count;
};

struct Range {
    Index carried, whole;  // blocks whose lowest edges are left out; blocks of which all edges and cells are taken
};

struct Crossings {
    float* vertices;  // [n, 3]
    float* normals;   // [n, 3]
    int* edges;       // [n]
    float* spans;     // [n]
};

struct Table {
    const signed char* edges;  // [256, most, 3]
    int most;
    const int* corners;  // [12], where an edge starts
    const int* axes;     // [12]
};

void count_crossings(const Blocks&, const Range&, int* counts, int threads);
void cross_edges(const Blocks&, const Range&, const int* corners, double spacing, double closest, double farthest,
                 const Index* offsets, const Crossings&, int threads);
void count_triangles(const Blocks&, Index whole, const Table&, int* counts, int threads);
void triangles(const Blocks&, Index whole, const int* numbers, const Table&, const Index* offsets, int* faces,
               int threads);

}  // namespace acorn::isosurface
