#include "triangles.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu.h"

namespace acorn::triangles {

#if defined(__x86_64__)
namespace avx2 {
extern const Kernels KERNELS;
}
#endif
namespace portable {
extern const Kernels KERNELS;
}

namespace {

constexpr int CUTS = 16;           // places where a range of triangles may be divided, plus one
constexpr int FREE_LEVELS = 20;    // below these, ranges are halved: the tree stays shallow whatever comes
constexpr float FAR_AWAY = 1e15f;  // in units of the tree; its square is still a float
constexpr float ROUNDING = 1e-5f;   // relative, generously
constexpr float COARSE = 1.2f;      // accuracy of a winding number that decides unless it lies within MARGIN of a half
constexpr float MARGIN = 0.25f;

struct D3 {
    double x = 0, y = 0, z = 0;
    double operator[](int axis) const { return axis == 0 ? x : axis == 1 ? y : z; }
};
D3 operator+(const D3& a, const D3& b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
D3 operator-(const D3& a, const D3& b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
D3 operator*(const D3& a, double s) { return {a.x * s, a.y * s, a.z * s}; }
double dot(const D3& a, const D3& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
double length(const D3& a) { return std::sqrt(dot(a, a)); }
D3 cross(const D3& a, const D3& b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }
D3 read(const double* at) { return {at[0], at[1], at[2]}; }

struct Box {
    float low[3] = {INFINITY, INFINITY, INFINITY}, high[3] = {-INFINITY, -INFINITY, -INFINITY};

    void hold(const Box& other) {
        for (int axis = 0; axis < 3; ++axis) {
            low[axis] = std::min(low[axis], other.low[axis]);
            high[axis] = std::max(high[axis], other.high[axis]);
        }
    }
    float half_area() const {
        const float x = high[0] - low[0], y = high[1] - low[1], z = high[2] - low[2];
        return x < 0 ? 0 : x * y + y * z + z * x;
    }
};

struct Item {
    Box box;
    std::int32_t face;
    float twice_centre(int axis) const { return box.low[axis] + box.high[axis]; }
};

struct Range {
    Index begin, end;
    Box box;
    Index size() const { return end - begin; }
};

Box bounds(const std::vector<Item>& items, Index begin, Index end) {
    Box box;
    for (Index i = begin; i < end; ++i) box.hold(items[i].box);
    return box;
}

D3 corner_of(const Surface& s, std::int32_t face, int corner) {
    return (read(s.vertices + 3 * Index(s.faces[3 * Index(face) + corner])) - read(s.middle)) * s.scale;
}

// --- the tree ---

// Where to divide a range: a multiple of WIDE, for full packets, near the cheapest of some cuts by areas of boxes.
Index divide(std::vector<Item>& items, const Range& range, bool halve) {
    float low[3] = {INFINITY, INFINITY, INFINITY}, high[3] = {-INFINITY, -INFINITY, -INFINITY};
    for (Index i = range.begin; i < range.end; ++i) {
        for (int axis = 0; axis < 3; ++axis) {
            const float centre = items[i].twice_centre(axis);
            low[axis] = std::min(low[axis], centre);
            high[axis] = std::max(high[axis], centre);
        }
    }
    int axis = 0;
    for (int other = 1; other < 3; ++other) {
        if (high[other] - low[other] > high[axis] - low[axis]) axis = other;
    }
    const Index packets = (range.size() + WIDE - 1) / WIDE;
    Index left = packets / 2 * WIDE;
    if (!halve && high[axis] > low[axis] && packets > 2) {
        Box boxes[CUTS];
        Index counts[CUTS] = {};
        const float factor = CUTS / (high[axis] - low[axis]);
        for (Index i = range.begin; i < range.end; ++i) {
            const int cut = std::min(CUTS - 1, static_cast<int>((items[i].twice_centre(axis) - low[axis]) * factor));
            boxes[cut].hold(items[i].box);
            ++counts[cut];
        }
        float right_cost[CUTS];
        Box right;
        Index count = 0;
        for (int cut = CUTS - 1; cut > 0; --cut) {
            right.hold(boxes[cut]);
            count += counts[cut];
            right_cost[cut] = right.half_area() * static_cast<float>(count);
        }
        Box below;
        count = 0;
        float best = INFINITY;
        for (int cut = 1; cut < CUTS; ++cut) {
            below.hold(boxes[cut - 1]);
            count += counts[cut - 1];
            const float cost = below.half_area() * static_cast<float>(count) + right_cost[cut];
            if (cost < best) {
                best = cost;
                left = (count + WIDE / 2) / WIDE * WIDE;
            }
        }
        left = std::clamp<Index>(left, WIDE, (packets - 1) * WIDE);
    }
    const auto begin = items.begin() + range.begin;
    std::nth_element(begin, begin + left, items.begin() + range.end, [axis](const Item& a, const Item& b) {
        return a.twice_centre(axis) < b.twice_centre(axis);
    });
    return range.begin + left;
}

// Up to WIDE parts of a range: the largest is divided again and again.
int divide_to_children(std::vector<Item>& items, const Range& range, int level, Range* parts) {
    int count = 1;
    parts[0] = range;
    while (count < WIDE) {
        int largest = -1;
        for (int i = 0; i < count; ++i) {
            if (parts[i].size() <= WIDE) continue;
            if (largest < 0 || parts[i].box.half_area() > parts[largest].box.half_area()) largest = i;
        }
        if (largest < 0) break;
        const Range part = parts[largest];
        const Index middle = divide(items, part, level >= FREE_LEVELS);
        parts[largest] = {part.begin, middle, bounds(items, part.begin, middle)};
        parts[count++] = {middle, part.end, bounds(items, middle, part.end)};
    }
    return count;
}

void fill_packet(Surface& s, const std::vector<Item>& items, const Range& range) {
    Packet packet;
    Corners corners;
    for (int lane = 0; lane < WIDE; ++lane) {
        const bool used = lane < range.size();
        const std::int32_t face = items[used ? range.begin + lane : range.end - 1].face;
        s.face_of.push_back(face);
        D3 at[3];
        for (int i = 0; i < 3; ++i) {
            at[i] = corner_of(s, face, i);
            const D3 shown = used ? at[i] : at[0];  // unused lanes have no area for the winding number
            for (int axis = 0; axis < 3; ++axis) corners.at[i][axis].of[lane] = static_cast<float>(i && !used ? corner_of(s, face, 0)[axis] : shown[axis]);
        }
        int first = 0;
        double longest = -1;
        for (int i = 0; i < 3; ++i) {
            const double square = dot(at[(i + 1) % 3] - at[i], at[(i + 1) % 3] - at[i]);
            if (square > longest) longest = square, first = i;
        }
        const D3 origin = at[first], edge = at[(first + 1) % 3] - origin, third = at[(first + 2) % 3] - origin;
        D3 axes[3];
        const double along = length(edge);
        axes[0] = along > 0 ? edge * (1 / along) : D3{1, 0, 0};
        const D3 across = third - axes[0] * dot(third, axes[0]);
        double height = length(across);
        if (height > 1e-12 * along && height > 0) {
            axes[1] = across * (1 / height);
        } else {
            const D3 any = std::abs(axes[0].x) < 0.6 ? D3{1, 0, 0} : D3{0, 1, 0};
            const D3 beside = any - axes[0] * dot(any, axes[0]);
            axes[1] = beside * (1 / length(beside));
            height = 0;
        }
        axes[2] = cross(axes[0], axes[1]);
        const double x = dot(third, axes[0]);
        const double left = x * x + height * height, right = (along - x) * (along - x) + height * height;
        constexpr double TINY = 1e-30;
        for (int axis = 0; axis < 3; ++axis) {
            packet.origin[axis].of[lane] = static_cast<float>(origin[axis]);
            for (int i = 0; i < 3; ++i) packet.axis[i][axis].of[lane] = static_cast<float>(axes[i][axis]);
        }
        packet.length.of[lane] = static_cast<float>(along);
        packet.x.of[lane] = static_cast<float>(x);
        packet.y.of[lane] = static_cast<float>(height);
        packet.left.of[lane] = left > TINY ? static_cast<float>(1 / left) : 0.0f;
        packet.right.of[lane] = right > TINY ? static_cast<float>(1 / right) : 0.0f;
    }
    s.packets.push_back(packet);
    s.corners.push_back(corners);
}

// Moments around `middle`: of area, of the area vectors n, of n_j d_k and of n_j d_k d_l.
struct Moments {
    double area = 0;
    D3 middle, first;
    double second[3][3] = {}, third[3][3][3] = {};

    // Adds those of other triangles, moved here.
    void add(const Moments& other) {
        const D3 by = other.middle - middle;
        area += other.area;
        first = first + other.first;
        for (int j = 0; j < 3; ++j) {
            for (int k = 0; k < 3; ++k) {
                second[j][k] += other.second[j][k] + other.first[j] * by[k];
                for (int l = 0; l < 3; ++l) {
                    third[j][k][l] += other.third[j][k][l] + other.second[j][k] * by[l] + other.second[j][l] * by[k] + other.first[j] * by[k] * by[l];
                }
            }
        }
    }
};

Moments sum(const Moments* parts, Index count) {
    Moments total;
    D3 weighted, plain;
    double area = 0;
    for (Index i = 0; i < count; ++i) {
        area += parts[i].area;
        weighted = weighted + parts[i].middle * parts[i].area;
        plain = plain + parts[i].middle;
    }
    total.middle = area > 0 ? weighted * (1 / area) : plain * (1.0 / static_cast<double>(count));
    for (Index i = 0; i < count; ++i) total.add(parts[i]);
    return total;
}

Moments of_triangle(const Surface& s, std::int32_t face) {
    const D3 a = corner_of(s, face, 0), b = corner_of(s, face, 1), c = corner_of(s, face, 2);
    Moments moments;
    moments.middle = (a + b + c) * (1.0 / 3);
    moments.first = cross(b - a, c - a) * 0.5;
    moments.area = length(moments.first);
    for (const D3& corner : {a, b, c}) {
        const D3 from = corner - moments.middle;
        for (int j = 0; j < 3; ++j) {
            for (int k = 0; k < 3; ++k) {
                for (int l = 0; l < 3; ++l) moments.third[j][k][l] += moments.first[j] * from[k] * from[l] / 12;
            }
        }
    }
    return moments;
}

void fill_cluster(const Surface& s, const std::vector<Item>& items, const Range& range, const Moments& m, int lane,
                  Cluster& cluster) {
    double square_radius = 0;
    for (Index i = range.begin; i < range.end; ++i) {
        for (int corner = 0; corner < 3; ++corner) {
            const D3 away = corner_of(s, items[i].face, corner) - m.middle;
            square_radius = std::max(square_radius, dot(away, away));
        }
    }
    const auto put = [lane](Row& row, double value) { row.of[lane] = static_cast<float>(value); };
    put(cluster.square_radius, square_radius);
    for (int k = 0; k < 3; ++k) {
        put(cluster.centre[k], m.middle[k]);
        put(cluster.first[k], m.first[k]);
    }
    const auto& two = m.second;
    const double trace = (two[0][0] + two[1][1] + two[2][2]) / 3;
    put(cluster.second[0], 3 * (two[0][0] - trace));
    put(cluster.second[1], 3 * (two[1][1] - trace));
    put(cluster.second[2], 3 * (two[1][2] + two[2][1]));
    put(cluster.second[3], 3 * (two[0][2] + two[2][0]));
    put(cluster.second[4], 3 * (two[0][1] + two[1][0]));
    const auto& three = m.third;
    const auto symmetric = [&](int j, int k, int l) { return (three[j][k][l] + three[k][l][j] + three[l][j][k]) / 3; };
    double fifth[3];  // of the traces
    for (int j = 0; j < 3; ++j) fifth[j] = (symmetric(j, 0, 0) + symmetric(j, 1, 1) + symmetric(j, 2, 2)) / 5;
    put(cluster.third[0], 7.5 * (symmetric(0, 0, 0) - 3 * fifth[0]));
    put(cluster.third[1], 7.5 * (symmetric(1, 1, 1) - 3 * fifth[1]));
    put(cluster.third[2], 22.5 * (symmetric(0, 1, 1) - fifth[0]));
    put(cluster.third[3], 22.5 * (symmetric(1, 0, 0) - fifth[1]));
    put(cluster.third[4], 7.5 * (symmetric(2, 0, 0) - fifth[2]));
    put(cluster.third[5], 7.5 * (symmetric(2, 1, 1) - fifth[2]));
    put(cluster.third[6], 45.0 * symmetric(0, 1, 2));
}

void clear_lane(Node& node, Cluster& cluster, int lane) {
    for (int axis = 0; axis < 3; ++axis) {
        node.low[axis].of[lane] = INFINITY;
        node.high[axis].of[lane] = -INFINITY;
        cluster.centre[axis].of[lane] = 1e9f;
        cluster.first[axis].of[lane] = 0;
    }
    for (Row& row : cluster.second) row.of[lane] = 0;
    for (Row& row : cluster.third) row.of[lane] = 0;
    node.child[lane] = 0;
    cluster.square_radius.of[lane] = -1;
}

Moments grow(Surface& s, std::vector<Item>& items, const Range& range, int level);

std::int32_t next_child(const Surface& s, const Range& part) {
    return part.size() > WIDE ? static_cast<std::int32_t>(s.nodes.size()) : ~static_cast<std::int32_t>(s.packets.size());
}

// A node with all below it, or a packet.
Moments grow_child(Surface& s, std::vector<Item>& items, const Range& part, int level) {
    if (part.size() > WIDE) return grow(s, items, part, level);
    fill_packet(s, items, part);
    Moments each[WIDE];
    for (Index i = 0; i < part.size(); ++i) each[i] = of_triangle(s, items[part.begin + i].face);
    return sum(each, part.size());
}

void fill_lane(Surface& s, std::size_t node, int lane, const std::vector<Item>& items, const Range& part, const Moments& moments) {
    for (int axis = 0; axis < 3; ++axis) {
        s.nodes[node].low[axis].of[lane] = part.box.low[axis];
        s.nodes[node].high[axis].of[lane] = part.box.high[axis];
    }
    fill_cluster(s, items, part, moments, lane, s.clusters[node]);
}

Moments grow(Surface& s, std::vector<Item>& items, const Range& range, int level) {
    const std::size_t own = s.nodes.size();
    s.nodes.emplace_back();
    s.clusters.emplace_back();
    Range parts[WIDE];
    Moments moments[WIDE];
    const int count = divide_to_children(items, range, level, parts);
    for (int lane = 0; lane < WIDE; ++lane) {
        clear_lane(s.nodes[own], s.clusters[own], lane);
        if (lane >= count) continue;
        s.nodes[own].child[lane] = next_child(s, parts[lane]);
        moments[lane] = grow_child(s, items, parts[lane], level + 1);
        fill_lane(s, own, lane, items, parts[lane], moments[lane]);
    }
    return sum(moments, count);
}

template <class Rows>
void append(Rows& all, const Rows& more) { all.insert(all.end(), more.begin(), more.end()); }

void append(Surface& s, const Surface& part) {
    const auto nodes = static_cast<std::int32_t>(s.nodes.size()), packets = static_cast<std::int32_t>(s.packets.size());
    append(s.nodes, part.nodes);
    append(s.clusters, part.clusters);
    append(s.packets, part.packets);
    append(s.corners, part.corners);
    append(s.face_of, part.face_of);
    for (std::size_t i = nodes; i < s.nodes.size(); ++i) {
        for (std::int32_t& child : s.nodes[i].child) child += child >= 0 ? nodes : -packets;
    }
}

// The root, its children on several threads.
void grow_root(Surface& s, std::vector<Item>& items, int threads) {
    const auto all = static_cast<Index>(items.size());
    Range parts[WIDE];
    const int count = divide_to_children(items, {0, all, bounds(items, 0, all)}, 0, parts);
    std::vector<Surface> grown(count, s);
    std::vector<Moments> moments(count);
    cpu::share(count, 1, threads, [&](Index begin, Index) {
        moments[begin] = grow_child(grown[begin], items, parts[begin], 1);
    });
    const auto packets = static_cast<std::size_t>(all / WIDE * 9 / 8 + WIDE);  // about
    s.packets.reserve(packets);
    s.corners.reserve(packets);
    s.face_of.reserve(packets * WIDE);
    s.nodes.emplace_back();
    s.clusters.emplace_back();
    for (int lane = 0; lane < WIDE; ++lane) {
        clear_lane(s.nodes[0], s.clusters[0], lane);
        if (lane >= count) continue;
        s.nodes[0].child[lane] = next_child(s, parts[lane]);
        append(s, grown[lane]);
        grown[lane] = Surface{};
        fill_lane(s, 0, lane, items, parts[lane], moments[lane]);
    }
}

// --- is it closed ---

std::uint64_t mix(std::uint64_t x) {  // the finaliser of splitmix64
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// The sum over all edges of a random number of the edge, with the sign of its direction, is zero if each is used as
// often one way as the other, and else but for one case in 2**64. Vertices count as equal where they coincide.
bool is_closed(const Surface& s) {
    std::vector<std::uint64_t> name(s.vertex_count);
    for (Index i = 0; i < s.vertex_count; ++i) {
        std::uint64_t key = 0;
        for (int axis = 0; axis < 3; ++axis) {
            const double value = s.vertices[3 * i + axis] + 0.0;  // no negative zero
            std::uint64_t word;
            std::memcpy(&word, &value, sizeof word);
            key = mix(key + word + 0x9e3779b97f4a7c15u);
        }
        name[i] = key;
    }
    std::uint64_t total = 0;
    for (Index face = 0; face < s.face_count; ++face) {
        for (int i = 0; i < 3; ++i) {
            const std::uint64_t a = name[s.faces[3 * face + i]], b = name[s.faces[3 * face + (i + 1) % 3]];
            if (a == b) continue;
            const std::uint64_t edge = mix(mix(std::min(a, b) + 1) + std::max(a, b));
            total += a < b ? edge : 0 - edge;
        }
    }
    return total == 0;
}

// --- queries ---

// Twelve zero bits into the gaps of ten.
std::uint32_t spread(std::uint32_t x) {
    x = (x | (x << 16)) & 0x030000ff;
    x = (x | (x << 8)) & 0x0300f00f;
    x = (x | (x << 4)) & 0x030c30c3;
    return (x | (x << 2)) & 0x09249249;
}

// The points in an order in which neighbours are close: a curve through a grid over them all.
std::vector<std::uint32_t> order_of(const double* points, Index count) {
    constexpr int BITS = 10, DIGIT = 10, DIGITS = 1 << DIGIT;
    double low[3] = {INFINITY, INFINITY, INFINITY}, high[3] = {-INFINITY, -INFINITY, -INFINITY};
    for (Index i = 0; i < count; ++i) {
        for (int axis = 0; axis < 3; ++axis) {
            low[axis] = std::min(low[axis], points[3 * i + axis]);
            high[axis] = std::max(high[axis], points[3 * i + axis]);
        }
    }
    double factor = 0;
    for (int axis = 0; axis < 3; ++axis) factor = std::max(factor, high[axis] - low[axis]);
    factor = factor > 0 ? ((1 << BITS) - 1) / factor : 0;
    std::vector<std::uint64_t> keys(count), other(count);
    for (Index i = 0; i < count; ++i) {
        std::uint32_t key = 0;
        for (int axis = 0; axis < 3; ++axis) {
            key |= spread(static_cast<std::uint32_t>((points[3 * i + axis] - low[axis]) * factor)) << axis;
        }
        keys[i] = static_cast<std::uint64_t>(key) << 32 | static_cast<std::uint64_t>(i);
    }
    for (int shift = 32; shift < 32 + 3 * BITS; shift += DIGIT) {
        std::vector<Index> start(DIGITS + 1);
        for (std::uint64_t key : keys) ++start[((key >> shift) & (DIGITS - 1)) + 1];
        for (int i = 0; i < DIGITS; ++i) start[i + 1] += start[i];
        for (std::uint64_t key : keys) other[start[(key >> shift) & (DIGITS - 1)]++] = key;
        keys.swap(other);
    }
    std::vector<std::uint32_t> order(count);
    for (Index i = 0; i < count; ++i) order[i] = static_cast<std::uint32_t>(keys[i]);
    return order;
}

// What is worked on together.
struct Block {
    Point points[BLOCK];
    std::int32_t slots[BLOCK];
    float windings[BLOCK];
    bool inside[BLOCK];
};

// Calls work(block, order, count) for all points, with `block.points` filled: those numbered order[0 .. count).
template <class Work>
void for_blocks(const Surface& s, const double* points, Index count, int threads, const Work& work) {
    constexpr Index AT_ONCE = Index(1) << 30;  // numbers of points have 32 bits
    for (Index start = 0; start < count; start += AT_ONCE) {
        const double* some = points + 3 * start;
        const Index size = std::min(count - start, AT_ONCE);
        const std::vector<std::uint32_t> order = order_of(some, size);
        cpu::share(size, BLOCK, threads, [&](Index begin, Index end) {
            Block block;
            for (Index i = begin; i < end; ++i) {
                const D3 at = (read(some + 3 * Index(order[i])) - read(s.middle)) * s.scale;
                const auto near = [](double x) { return std::clamp(static_cast<float>(x), -FAR_AWAY, FAR_AWAY); };
                block.points[i - begin] = {near(at.x), near(at.y), near(at.z)};
            }
            work(block, start, order.data() + begin, static_cast<int>(end - begin));
        });
    }
}

struct Nearest {
    double distance;
    double barycentric[3];
};

// Of a segment from 0 to `edge`: how far along the point nearest to `to` lies, 0 to 1.
double along(const D3& edge, const D3& to) {
    const double square = dot(edge, edge);
    return square > 0 ? std::clamp(dot(edge, to) / square, 0.0, 1.0) : 0.0;
}

Nearest measure(const Surface& s, std::int32_t face, const D3& point) {
    D3 at[3];
    for (int i = 0; i < 3; ++i) at[i] = read(s.vertices + 3 * Index(s.faces[3 * Index(face) + i])) - point;
    const D3 b = at[1] - at[0], c = at[2] - at[0], to = at[0] * -1.0, normal = cross(b, c);
    const double square = dot(normal, normal);
    if (square > 0) {
        const double v = dot(cross(to, c), normal) / square, w = dot(cross(b, to), normal) / square;
        if (v > 0 && w > 0 && v + w < 1) return {std::abs(dot(to, normal)) / std::sqrt(square), {1 - v - w, v, w}};
    }
    Nearest best{INFINITY, {1, 0, 0}};
    for (int i = 0; i < 3; ++i) {
        const int j = (i + 1) % 3;
        const D3 edge = at[j] - at[i];
        const double t = along(edge, at[i] * -1.0), distance = length(at[i] + edge * t);
        if (distance < best.distance) {
            best = {distance, {0, 0, 0}};
            best.barycentric[i] = 1 - t;
            best.barycentric[j] = t;
        }
    }
    return best;
}

// Fetches what `measure` will read of the points that come soon: most of it lies far apart.
void fetch_ahead(const Surface& s, const Block& block, int i, int size) {
    constexpr int SOON = 8;
    if (i + 2 * SOON < size && block.slots[i + 2 * SOON] >= 0) {
        __builtin_prefetch(s.faces + 3 * Index(s.face_of[block.slots[i + 2 * SOON]]));
    }
    if (i + SOON < size && block.slots[i + SOON] >= 0) {
        const std::int32_t* face = s.faces + 3 * Index(s.face_of[block.slots[i + SOON]]);
        for (int corner = 0; corner < 3; ++corner) __builtin_prefetch(s.vertices + 3 * Index(face[corner]));
    }
}

// In units of the tree, a little more than what is asked for: float64 decides.
float bound(const Surface& s, double most) {
    return static_cast<float>(std::min(most * s.scale * (1 + ROUNDING) + 1e-6, 4.0 * FAR_AWAY));
}

// Whether absolute winding numbers are above a half. Most are known well enough from coarse ones.
void decide(const Surface& s, const Kernels& kernels, const Point* points, int count, float accuracy, float* windings,
            bool* inside) {
    const float first = std::min(COARSE, accuracy);
    kernels.winding(s, points, count, first, windings);
    for (int i = 0; i < count; ++i) {
        if (first < accuracy && std::abs(std::abs(windings[i]) - 0.5f) < MARGIN) {
            kernels.winding(s, points + i, 1, accuracy, windings + i);
        }
        inside[i] = std::abs(windings[i]) > 0.5f;
    }
}

// The last points of known sign and how far from the surface each is: on a closed surface, the winding number is the
// same all over a ball that no triangle reaches.
class Balls {
   public:
    void add(const Point& centre, float radius, bool inside) {
        centres_[next_] = centre;
        radii_[next_] = radius;
        inside_[next_] = inside;
        next_ = (next_ + 1) % COUNT;
    }

    // Whether a ball around one of the two holds the other; then `inside` is told.
    bool knows(const Point& point, float radius, bool& inside) const {
        for (int i = 0; i < COUNT; ++i) {
            const float x = centres_[i].x - point.x, y = centres_[i].y - point.y, z = centres_[i].z - point.z;
            const float reach = std::max(radius, radii_[i]);
            if (x * x + y * y + z * z < reach * reach) {
                inside = inside_[i];
                return true;
            }
        }
        return false;
    }

   private:
    static constexpr int COUNT = 8;
    Point centres_[COUNT] = {};
    float radii_[COUNT] = {};
    bool inside_[COUNT] = {};
    int next_ = 0;
};

}  // namespace

void* allocate(std::size_t bytes) {
    constexpr std::size_t LARGE = std::size_t(1) << 21, LINE = 64;
    const std::size_t page = bytes >= 2 * LARGE ? LARGE : LINE;
    void* memory = std::aligned_alloc(page, (bytes + page - 1) / page * page);
    if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (page == LARGE) madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: ordinary pages do too
#endif
    return memory;
}

void release(void* memory) { std::free(memory); }

const Kernels& chosen(const char* name) {
    const bool any = !*name;
#if defined(__x86_64__)
    if ((any || !std::strcmp(name, "avx512") || !std::strcmp(name, "avx2")) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return avx2::KERNELS;
    }
#endif
    if (any || !std::strcmp(name, portable::KERNELS.name)) return portable::KERNELS;
    throw std::invalid_argument("this processor does not run " + std::string(name));
}

Surface build(const double* vertices, Index vertex_count, const std::int32_t* faces, Index face_count, int threads) {
    if (face_count < 1) throw std::invalid_argument("a surface has at least one triangle");
    if (face_count > (Index(1) << 28)) throw std::invalid_argument("a surface has at most 2**28 triangles");
    Surface s{};
    s.vertices = vertices;
    s.faces = faces;
    s.vertex_count = vertex_count;
    s.face_count = face_count;
    double low[3] = {INFINITY, INFINITY, INFINITY}, high[3] = {-INFINITY, -INFINITY, -INFINITY};
    for (Index i = 0; i < 3 * face_count; ++i) {
        if (faces[i] < 0 || faces[i] >= vertex_count) throw std::invalid_argument("a face names a vertex that does not exist");
        for (int axis = 0; axis < 3; ++axis) {
            const double value = vertices[3 * Index(faces[i]) + axis];
            if (!std::isfinite(value)) throw std::invalid_argument("a vertex is not finite");
            low[axis] = std::min(low[axis], value);
            high[axis] = std::max(high[axis], value);
        }
    }
    double half = 0;
    for (int axis = 0; axis < 3; ++axis) {
        s.middle[axis] = low[axis] / 2 + high[axis] / 2;
        half = std::max(half, high[axis] / 2 - low[axis] / 2);
    }
    s.scale = half > 1e-300 ? 1 / half : 1;
    std::vector<Item> items(face_count);
    for (Index face = 0; face < face_count; ++face) {
        Item& item = items[face];
        item.face = static_cast<std::int32_t>(face);
        for (int corner = 0; corner < 3; ++corner) {
            const D3 at = corner_of(s, item.face, corner);
            for (int axis = 0; axis < 3; ++axis) {
                item.box.low[axis] = std::min(item.box.low[axis], static_cast<float>(at[axis]));
                item.box.high[axis] = std::max(item.box.high[axis], static_cast<float>(at[axis]));
            }
        }
    }
    s.closed = is_closed(s);
    grow_root(s, items, threads);
    return s;
}

void closest(const Surface& s, const Kernels& kernels, const double* points, Index count, double most,
             float* distances, std::int32_t* nearest, float* barycentric, int threads) {
    for_blocks(s, points, count, threads, [&](Block& block, Index start, const std::uint32_t* order, int size) {
        kernels.nearest(s, block.points, size, bound(s, most), block.slots);
        for (int i = 0; i < size; ++i) {
            const Index to = start + order[i];
            fetch_ahead(s, block, i, size);
            Nearest found{most, {}};
            std::int32_t face = -1;
            if (block.slots[i] >= 0) {
                const std::int32_t seen = s.face_of[block.slots[i]];
                const Nearest at = measure(s, seen, read(points + 3 * to));
                if (at.distance <= most) found = at, face = seen;
            }
            distances[to] = static_cast<float>(found.distance);
            if (nearest) nearest[to] = face;
            for (int k = 0; barycentric && k < 3; ++k) barycentric[3 * to + k] = static_cast<float>(found.barycentric[k]);
        }
    });
}

void winding(const Surface& s, const Kernels& kernels, const double* points, Index count, float accuracy,
             float* windings, int threads) {
    for_blocks(s, points, count, threads, [&](Block& block, Index start, const std::uint32_t* order, int size) {
        kernels.winding(s, block.points, size, accuracy, block.windings);
        for (int i = 0; i < size; ++i) windings[start + order[i]] = block.windings[i];
    });
}

void inside(const Surface& s, const Kernels& kernels, const double* points, Index count, float accuracy, bool* answers,
            int threads) {
    for_blocks(s, points, count, threads, [&](Block& block, Index start, const std::uint32_t* order, int size) {
        decide(s, kernels, block.points, size, accuracy, block.windings, block.inside);
        for (int i = 0; i < size; ++i) answers[start + order[i]] = block.inside[i];
    });
}

void signed_distance(const Surface& s, const Kernels& kernels, const double* points, Index count, double most,
                     float accuracy, float* distances, int threads) {
    for_blocks(s, points, count, threads, [&](Block& block, Index start, const std::uint32_t* order, int size) {
        kernels.nearest(s, block.points, size, bound(s, most), block.slots);
        if (!s.closed) decide(s, kernels, block.points, size, accuracy, block.windings, block.inside);
        Balls balls;
        for (int i = 0; i < size; ++i) {
            const Index to = start + order[i];
            fetch_ahead(s, block, i, size);
            double distance = most;
            if (block.slots[i] >= 0) {
                distance = std::min(most, measure(s, s.face_of[block.slots[i]], read(points + 3 * to)).distance);
            }
            if (s.closed) {
                const auto reach = static_cast<float>(std::min<double>(distance * s.scale, FAR_AWAY));
                const float radius = std::max(0.0f, reach * (1 - ROUNDING) - 1e-6f);
                if (!balls.knows(block.points[i], radius, block.inside[i])) {
                    decide(s, kernels, block.points + i, 1, accuracy, block.windings + i, block.inside + i);
                }
                balls.add(block.points[i], radius, block.inside[i]);
            }
            distances[to] = static_cast<float>(block.inside[i] ? -distance : distance);
        }
    });
}

// --- cells ---

namespace {

// low <= a * x + b * y <= high, of the least corner of a cell.
struct Strip {
    double a, b, low, high;
    bool holds(double x, double y) const {
        const double value = a * x + b * y;
        return low <= value && value <= high;
    }
};

struct Cells {
    const std::int64_t* counts;

    // Calls touch(x, y, z) for every cell that the triangle touches; corners in units of cells. The axes along which
    // triangle and cube might be apart (Akenine-Möller 2001): those of the grid give a range of cells, the cross
    // products of edges and axes three strips in each plane, and the normal a range along its greatest axis.
    template <class Touch>
    void visit(const D3* corner, const Touch& touch) const {
        std::int64_t first[3], last[3];
        double magnitude = 1;
        for (int axis = 0; axis < 3; ++axis) {
            const double low = std::min({corner[0][axis], corner[1][axis], corner[2][axis]});
            const double high = std::max({corner[0][axis], corner[1][axis], corner[2][axis]});
            if (high < 0 || low > static_cast<double>(counts[axis])) return;
            first[axis] = static_cast<std::int64_t>(std::max(0.0, std::ceil(low) - 1));
            last[axis] = std::min(counts[axis] - 1, static_cast<std::int64_t>(std::min(std::floor(high), 9e15)));
            magnitude = std::max({magnitude, std::abs(low), std::abs(high)});
        }
        if (first[0] == last[0] && first[1] == last[1] && first[2] == last[2]) {
            touch(first[0], first[1], first[2]);
            return;
        }
        const double slack = 1e-14 * magnitude;  // of rounding: a cell that is touched is never left out
        Strip strips[3][3];
        for (int axis = 0; axis < 3; ++axis) {
            const int u = (axis + 1) % 3, v = (axis + 2) % 3;
            for (int i = 0; i < 3; ++i) {
                const D3 &p = corner[i], &q = corner[(i + 1) % 3], &r = corner[(i + 2) % 3];
                const double a = p[v] - q[v], b = q[u] - p[u];
                const double here = a * p[u] + b * p[v], there = a * r[u] + b * r[v];
                const double more = slack * (std::abs(a) + std::abs(b));
                strips[axis][i] = {a, b, std::min(here, there) - std::max(a, 0.0) - std::max(b, 0.0) - more,
                                   std::max(here, there) - std::min(a, 0.0) - std::min(b, 0.0) + more};
            }
        }
        const D3 normal = cross(corner[1] - corner[0], corner[2] - corner[0]);
        int w = 0;
        for (int axis = 1; axis < 3; ++axis) {
            if (std::abs(normal[axis]) > std::abs(normal[w])) w = axis;
        }
        const int u = (w + 1) % 3, v = (w + 2) % 3;
        const bool flat = normal[w] == 0;
        const double au = flat ? 0 : normal[u] / normal[w], av = flat ? 0 : normal[v] / normal[w];
        const double height = corner[0][w] + au * corner[0][u] + av * corner[0][v];
        const double low = height - 1 - std::max(au, 0.0) - std::max(av, 0.0) - 4 * slack;
        const double high = height - std::min(au, 0.0) - std::min(av, 0.0) + 4 * slack;
        std::int64_t at[3];
        for (at[u] = first[u]; at[u] <= last[u]; ++at[u]) {
            for (at[v] = first[v]; at[v] <= last[v]; ++at[v]) {
                const double x = static_cast<double>(at[u]), y = static_cast<double>(at[v]);
                if (!strips[w][0].holds(x, y) || !strips[w][1].holds(x, y) || !strips[w][2].holds(x, y)) continue;
                std::int64_t from = first[w], to = last[w];
                if (!flat) {
                    const double slope = au * x + av * y;
                    from = std::max(from, static_cast<std::int64_t>(std::ceil(std::max(low - slope, -1.0))));
                    to = std::min(to, static_cast<std::int64_t>(std::floor(std::max(high - slope, -1.0))));
                }
                for (at[w] = from; at[w] <= to; ++at[w]) {
                    const double z = static_cast<double>(at[w]);
                    bool apart = false;
                    for (int i = 0; i < 3; ++i) apart |= !strips[u][i].holds(y, z) || !strips[v][i].holds(z, x);
                    if (!apart) touch(at[0], at[1], at[2]);
                }
            }
        }
    }
};

}  // namespace

std::vector<std::int64_t> occupied(const Surface& s, const double* origin, double side, const std::int64_t* counts,
                                   int threads) {
    constexpr Index AT_ONCE = 4096;
    constexpr std::int64_t LARGEST = std::int64_t(1) << 30;  // cells that have a bit each: 128 MiB
    const std::int64_t total = counts[0] * counts[1] * counts[2];
    const Cells cells{counts};
    const D3 from = read(origin);
    std::vector<std::int64_t> found;
    const auto visit = [&](Index face, const auto& touch) {
        D3 corner[3];
        for (int i = 0; i < 3; ++i) {
            const D3 at = read(s.vertices + 3 * Index(s.faces[3 * face + i])) - from;
            corner[i] = {at.x / side, at.y / side, at.z / side};
        }
        cells.visit(corner, [&](std::int64_t x, std::int64_t y, std::int64_t z) {
            touch(z + counts[2] * (y + counts[1] * x));
        });
    };
    if (total <= LARGEST) {
        std::vector<std::atomic<std::uint64_t>> bits((total + 63) / 64);
        cpu::share(s.face_count, AT_ONCE, threads, [&](Index begin, Index end) {
            for (Index face = begin; face < end; ++face) {
                visit(face, [&](std::int64_t cell) {
                    std::atomic<std::uint64_t>& word = bits[cell / 64];
                    const std::uint64_t bit = std::uint64_t(1) << cell % 64;
                    if (!(word.load(std::memory_order_relaxed) & bit)) word.fetch_or(bit, std::memory_order_relaxed);
                });
            }
        });
        for (std::size_t i = 0; i < bits.size(); ++i) {
            for (std::uint64_t word = bits[i].load(std::memory_order_relaxed); word; word &= word - 1) {
                found.push_back(static_cast<std::int64_t>(i * 64 + __builtin_ctzll(word)));
            }
        }
        return found;
    }
    std::vector<std::vector<std::int64_t>> parts((s.face_count + AT_ONCE - 1) / AT_ONCE);
    cpu::share(s.face_count, AT_ONCE, threads, [&](Index begin, Index end) {
        std::vector<std::int64_t>& part = parts[begin / AT_ONCE];
        for (Index face = begin; face < end; ++face) visit(face, [&](std::int64_t cell) { part.push_back(cell); });
        std::sort(part.begin(), part.end());
        part.erase(std::unique(part.begin(), part.end()), part.end());
    });
    for (const auto& part : parts) found.insert(found.end(), part.begin(), part.end());
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return found;
}

}  // namespace acorn::triangles
