// The searches of triangles.h for one width of vector registers. Included by triangles_*.cpp, each of which defines
// ACORN_NAMESPACE and ACORN_NAME. Vectors always hold eight floats; where registers are narrower, the compiler uses
// two. No function of the standard library is called here: the linker might keep this file's copy for all.
#include "triangles.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace acorn::triangles::ACORN_NAMESPACE {
namespace {

#define ACORN_INLINE static inline __attribute__((always_inline))

typedef float V __attribute__((vector_size(32), may_alias));
typedef std::int32_t I __attribute__((vector_size(32), may_alias));

ACORN_INLINE V load(const Row& row) { return *reinterpret_cast<const V*>(row.of); }
ACORN_INLINE V splat(float value) { return value - V{}; }

#if defined(__AVX2__)
ACORN_INLINE V lesser(V a, V b) { return _mm256_min_ps(a, b); }
ACORN_INLINE V greater(V a, V b) { return _mm256_max_ps(a, b); }
ACORN_INLINE V square_root(V a) { return _mm256_sqrt_ps(a); }
ACORN_INLINE unsigned bits(I mask) { return static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<__m256&>(mask))); }
#else
ACORN_INLINE V lesser(V a, V b) { return a < b ? a : b; }
ACORN_INLINE V greater(V a, V b) { return a > b ? a : b; }
ACORN_INLINE V square_root(V a) {
    V root;
    for (int i = 0; i < WIDE; ++i) root[i] = __builtin_sqrtf(a[i]);
    return root;
}
ACORN_INLINE unsigned bits(I mask) {
    const I powers = {1, 2, 4, 8, 16, 32, 64, 128};
    mask &= powers;
    return static_cast<unsigned>((mask[0] | mask[1] | mask[2] | mask[3]) | (mask[4] | mask[5] | mask[6] | mask[7]));
}
#endif

ACORN_INLINE V where(I mask, V value) {  // or 0
    const I kept = mask & reinterpret_cast<I&>(value);
    return reinterpret_cast<const V&>(kept);
}
ACORN_INLINE V absolute(V a) { return where(I{} + 0x7fffffff, a); }
ACORN_INLINE float sum(V a) { return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])); }

struct V3 {
    V x, y, z;
};
ACORN_INLINE V3 load(const Row* rows) { return {load(rows[0]), load(rows[1]), load(rows[2])}; }
ACORN_INLINE V3 splat(const Point& point) { return {splat(point.x), splat(point.y), splat(point.z)}; }
ACORN_INLINE V3 minus(const V3& a, const V3& b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
ACORN_INLINE V dot(const V3& a, const V3& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
ACORN_INLINE V3 cross(const V3& a, const V3& b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

// --- nearest ---

ACORN_INLINE V to_boxes(const Node& node, const V3& point) {
    const V3 low = load(node.low), high = load(node.high);
    const V zero{};
    const V x = greater(greater(low.x - point.x, point.x - high.x), zero);
    const V y = greater(greater(low.y - point.y, point.y - high.y), zero);
    const V z = greater(greater(low.z - point.z, point.z - high.z), zero);
    return x * x + y * y + z * z;
}

// Squared distances. Within a triangle's own frame it is a problem of the plane: nothing inside, else the nearest
// of three segments. The comparisons are strict, so that a triangle without area has no inside.
ACORN_INLINE V to_triangles(const Packet& packet, const V3& point) {
    const V3 from = minus(point, load(packet.origin));
    const V px = dot(from, load(packet.axis[0])), py = dot(from, load(packet.axis[1])), pz = dot(from, load(packet.axis[2]));
    const V length = load(packet.length), x = load(packet.x), y = load(packet.y);
    const V zero{}, one = splat(1.0f);
    const V along = px - lesser(greater(px, zero), length);
    const V base = along * along + py * py;
    const V l = lesser(greater((px * x + py * y) * load(packet.left), zero), one);
    const V lx = px - l * x, ly = py - l * y;
    const V qx = px - length, rx = x - length;
    const V r = lesser(greater((qx * rx + py * y) * load(packet.right), zero), one);
    const V sx = qx - r * rx, sy = py - r * y;
    const V border = lesser(base, lesser(lx * lx + ly * ly, sx * sx + sy * sy));
    const I inside = (py > zero) & (px * y - py * x > zero) & (py * rx - qx * y > zero);
    return where(~inside, border) + pz * pz;
}

struct Waiting {
    float square;
    std::int32_t child;
};

struct Found {
    float square;
    std::int32_t slot;
};

ACORN_INLINE void look_at(const Surface& surface, std::int32_t packet, const V3& point, Found& found) {
    const V squares = to_triangles(surface.packets[packet], point);
    for (unsigned hits = bits(squares < splat(found.square)); hits; hits &= hits - 1) {
        const int lane = __builtin_ctz(hits);
        float square;
        __builtin_memcpy(&square, reinterpret_cast<const char*>(&squares) + 4 * lane, 4);
        if (square < found.square) found = {square, packet * WIDE + lane};
    }
}

void nearest(const Surface& surface, const Point* points, int count, float most, std::int32_t* slots) {
    Waiting stack[STACK];
    const Node* nodes = surface.nodes.data();
    std::int32_t last = -1;
    for (int i = 0; i < count; ++i) {
        const V3 point = splat(points[i]);
        Found found{most * most, -1};
        if (last >= 0) look_at(surface, last, point, found);  // the last point's packet is a good first guess
        int waiting = 0;
        stack[waiting++] = {0.0f, 0};
        while (waiting) {
            const Waiting next = stack[--waiting];
            if (next.square >= found.square) continue;
            if (next.child < 0) {
                look_at(surface, ~next.child, point, found);
                continue;
            }
            const Node& node = nodes[next.child];
            alignas(32) float squares[WIDE];
            const V distances = to_boxes(node, point);
            *reinterpret_cast<V*>(squares) = distances;
            const int first = waiting;
            for (unsigned hits = bits(distances < splat(found.square)); hits; hits &= hits - 1) {
                const int lane = __builtin_ctz(hits);
                const Waiting child{squares[lane], node.child[lane]};
                int at = waiting++;
                for (; at > first && stack[at - 1].square < child.square; --at) stack[at] = stack[at - 1];
                stack[at] = child;
            }
        }
        slots[i] = found.slot;
        if (found.slot >= 0) last = found.slot / WIDE;
    }
}

// --- winding ---

// atan2 to about 2e-7; (0, 0) gives 0. Coefficients: Abramowitz and Stegun, Handbook of Mathematical Functions, 4.4.49.
ACORN_INLINE V angle(V y, V x) {
    const V ax = absolute(x), ay = absolute(y);
    const V t = lesser(ax, ay) / greater(greater(ax, ay), splat(1e-37f));
    const V s = t * t;
    V p = s * 0.0028662257f - 0.0161657367f;
    p = p * s + 0.0429096138f;
    p = p * s - 0.0752896400f;
    p = p * s + 0.1065626393f;
    p = p * s - 0.1420889944f;
    p = p * s + 0.1999355085f;
    p = p * s - 0.3333314528f;
    V a = p * s * t + t;
    const I steep = ay > ax, behind = x < V{};
    a = where(~steep, a) + where(steep, splat(1.57079632679f) - a);
    a = where(~behind, a) + where(behind, splat(3.14159265359f) - a);
    const I sign = reinterpret_cast<I&>(y) & (I{} + static_cast<std::int32_t>(0x80000000));
    const I with_sign = sign | reinterpret_cast<I&>(a);
    return reinterpret_cast<const V&>(with_sign);
}

// Half the solid angles of triangles (van Oosterom and Strackee 1983).
ACORN_INLINE V half_angles(const Corners& corners, const V3& point) {
    const V3 a = minus(load(corners.at[0]), point), b = minus(load(corners.at[1]), point), c = minus(load(corners.at[2]), point);
    const V la = square_root(dot(a, a)), lb = square_root(dot(b, b)), lc = square_root(dot(c, c));
    const V volume = dot(a, cross(b, c));
    const V cosine = la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb;
    return angle(volume, cosine);
}

// The solid angles of the children that are far away; near: those that are not.
ACORN_INLINE V far_angles(const Cluster& cluster, const V3& point, float accuracy, unsigned& near) {
    const V3 away = minus(load(cluster.centre), point);
    const V square = dot(away, away);
    const I far = square > load(cluster.square_radius) * (accuracy * accuracy);
    near = bits(~far);
    const V inverse_square = 1.0f / square;
    const V x = away.x, y = away.y, z = away.z, xx = x * x, yy = y * y, zz = z * z;
    const V xx_zz = xx - zz, yy_zz = yy - zz;
    const V dipole = dot(load(cluster.first), away);
    const V second = load(cluster.second[0]) * xx_zz + load(cluster.second[1]) * yy_zz +
                     z * (load(cluster.second[2]) * y + load(cluster.second[3]) * x) + load(cluster.second[4]) * (x * y);
    const V third = x * (load(cluster.third[0]) * (xx_zz - 2.0f * zz) + load(cluster.third[2]) * yy_zz) +
                    y * (load(cluster.third[1]) * (yy_zz - 2.0f * zz) + load(cluster.third[3]) * xx_zz) +
                    z * (load(cluster.third[4]) * (2.0f * xx + xx_zz) + load(cluster.third[5]) * (2.0f * yy + yy_zz) +
                         load(cluster.third[6]) * (x * y));
    const V total = dipole + inverse_square * (third * inverse_square - second);
    return where(far, total * inverse_square * square_root(inverse_square));
}

void winding(const Surface& surface, const Point* points, int count, float accuracy, float* windings) {
    constexpr float WHOLE = 12.566370614359172f;
    std::int32_t stack[STACK];
    for (int i = 0; i < count; ++i) {
        const V3 point = splat(points[i]);
        V far{}, near{};
        int waiting = 0;
        stack[waiting++] = 0;
        while (waiting) {
            const std::int32_t next = stack[--waiting];
            unsigned open;
            far += far_angles(surface.clusters[next], point, accuracy, open);
            for (; open; open &= open - 1) {
                const std::int32_t child = surface.nodes[next].child[__builtin_ctz(open)];
                if (child >= 0) {
                    stack[waiting++] = child;
                } else {
                    near += half_angles(surface.corners[~child], point);
                }
            }
        }
        windings[i] = (sum(far) + 2.0f * sum(near)) / WHOLE;
    }
}

}  // namespace

extern const Kernels KERNELS;
const Kernels KERNELS{ACORN_NAME, nearest, winding};

}  // namespace acorn::triangles::ACORN_NAMESPACE
