// Distance to triangles, winding numbers of triangles, and the cubes of a grid that triangles touch.
//
// A `Surface` is a tree whose nodes have WIDE children and whose leaves are packets of WIDE triangles, so that one
// point is compared with WIDE boxes, clusters or triangles at once. Everything in it is float32 in units of the
// half extent around the middle of the surface; the triangle found is then measured again in float64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace acorn::triangles {

using Index = long long;

constexpr int WIDE = 8;
constexpr int STACK = 1024;       // entries; WIDE for each level of a tree suffice, and there are at most MAX_LEVELS
constexpr int MAX_LEVELS = 64;
constexpr int BLOCK = 1024;       // points that are worked on together: results depend on no others

struct alignas(64) Row {
    float of[WIDE];
};

// Boxes around the children. A child is a node, or the packet ~child.
struct Node {
    Row low[3], high[3];
    std::int32_t child[WIDE];
};

// The children seen from afar: moments of their area vectors to the third order (Barill et al., Fast Winding Numbers
// for Soups and Clouds, SIGGRAPH 2018). The kernel is harmonic, so that of the symmetric moments only the parts
// without trace count. second: xx, yy, and twice yz, zx, xy, all times 3. third: xxx, yyy, 3 xyy, 3 xxy, xxz, yyz and
// 6 xyz, all times 7.5.
struct Cluster {
    Row centre[3], square_radius, first[3], second[5], third[7];
};

// Triangles in frames of their own: at `origin` starts the longest edge, along `axis[0]`, of length `length`; the
// third corner is at (x, y) along axis[0] and axis[1]; axis[2] is the normal. `left` and `right` are one over the
// squared lengths of the other two edges, from the origin and from the end of the longest, or 0.
struct Packet {
    Row origin[3], axis[3][3], length, x, y, left, right;
};

struct Corners {
    Row at[3][3];  // [corner][coordinate]
};

// Memory in large pages where the system has them: a search jumps about in it.
void* allocate(std::size_t bytes);
void release(void* memory);

template <class T>
struct LargePages {
    using value_type = T;
    LargePages() = default;
    template <class Other>
    LargePages(const LargePages<Other>&) {}
    T* allocate(std::size_t count) { return static_cast<T*>(triangles::allocate(count * sizeof(T))); }
    void deallocate(T* memory, std::size_t) { triangles::release(memory); }
    template <class Other>
    bool operator==(const LargePages<Other>&) const { return true; }
    template <class Other>
    bool operator!=(const LargePages<Other>&) const { return false; }
};

template <class T>
using Table = std::vector<T, LargePages<T>>;

struct Surface {
    const double* vertices;  // [vertex_count, 3], borrowed
    const std::int32_t* faces;  // [face_count, 3], borrowed
    Index vertex_count, face_count;

    double middle[3], scale;  // units of the tree = (position - middle) * scale
    bool closed;              // every edge is used as often in one direction as in the other
    Table<Node> nodes;  // the root comes first
    Table<Cluster> clusters;
    Table<Packet> packets;
    Table<Corners> corners;
    std::vector<std::int32_t> face_of;  // [packets * WIDE], the face in each lane
};

struct Point {
    float x, y, z;
};

// The kernels for one width of vector registers; points are in units of the tree.
struct Kernels {
    const char* name;
    // The nearest triangle of each point as packet * WIDE + lane, or -1 where none is nearer than `most`.
    void (*nearest)(const Surface&, const Point*, int count, float most, std::int32_t* slots);
    // `accuracy`: clusters farther than so many of their radii are taken as moments.
    void (*winding)(const Surface&, const Point*, int count, float accuracy, float* windings);
};

const Kernels& chosen(const char* name);  // empty: the widest; null name if this processor does not run it

// Faces must lie within the vertices, of which all that are used are finite. Throws std::invalid_argument where the
// surface has no triangle.
Surface build(const double* vertices, Index vertex_count, const std::int32_t* faces, Index face_count, int threads);

// Closest points; beyond `most` the distance is `most`, the face -1 and the barycentric coordinates are 0.
// Any of the results may be null. distances [count], nearest [count], barycentric [count, 3].
void closest(const Surface&, const Kernels&, const double* points, Index count, double most, float* distances,
             std::int32_t* nearest, float* barycentric, int threads);

void winding(const Surface&, const Kernels&, const double* points, Index count, float accuracy, float* windings,
             int threads);

// Whether absolute winding numbers are above a half.
void inside(const Surface&, const Kernels&, const double* points, Index count, float accuracy, bool* answers,
            int threads);

// Distances, negative inside.
void signed_distance(const Surface&, const Kernels&, const double* points, Index count, double most, float accuracy,
                     float* distances, int threads);

// Cells of a grid that a triangle touches, closed sets both: z + counts[2] * (y + counts[1] * x), sorted.
std::vector<std::int64_t> occupied(const Surface&, const double* origin, double side, const std::int64_t* counts,
                                   int threads);

}  // namespace acorn::triangles
