#include "isosurface.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu.h"

namespace acorn::isosurface {
namespace {

constexpr int PADDED = BLOCK + 2;
constexpr int AT_ONCE = 16;  // blocks that a thread takes at once
constexpr int AXES = 3;
constexpr int STEP[AXES] = {1, PADDED, PADDED * PADDED};
constexpr unsigned ROW = (1u << BLOCK) - 1;

constexpr int place(int z, int y, int x) { return ((z + 1) * PADDED + y + 1) * PADDED + x + 1; }

// A block with one point more on each side, and the signs of its points: bit x + 1 of a row.
struct Padded {
    float values[PADDED * PADDED * PADDED];
    unsigned below[PADDED][PADDED];  // [z + 1][y + 1]
    unsigned above[PADDED][PADDED];  // zero counts as above; an unknown value is neither

    void read(const Blocks& blocks, Index block) {
        const int* neighbours = blocks.neighbours + block * NEIGHBOURS;
        for (int z = -1; z <= BLOCK; ++z) {
            for (int y = -1; y <= BLOCK; ++y) {
                const int* row = neighbours + (side(z) * 3 + side(y)) * 3;
                const int from = ((z & (BLOCK - 1)) * BLOCK + (y & (BLOCK - 1))) * BLOCK;
                float* to = values + place(z, y, -1);
                to[0] = one(blocks, row[0], from + BLOCK - 1);
                if (row[1] < 0) {
                    std::fill_n(to + 1, BLOCK, UNKNOWN);
                } else {
                    std::memcpy(to + 1, blocks.values + Index{row[1]} * POINTS + from, sizeof(float) * BLOCK);
                }
                to[BLOCK + 1] = one(blocks, row[2], from);
                unsigned negative = 0, positive = 0;
                for (int x = 0; x < PADDED; ++x) {
                    negative |= static_cast<unsigned>(to[x] < 0) << x;
                    positive |= static_cast<unsigned>(to[x] >= 0) << x;
                }
                below[z + 1][y + 1] = negative;
                above[z + 1][y + 1] = positive;
            }
        }
    }

    // Whether one end is below and the other above, as bits x of the edges from a row of points to another row.
    unsigned crossed(int z, int y, int to_z, int to_y, int to_x) const {
        const unsigned low = below[z + 1][y + 1] >> 1, high = above[z + 1][y + 1] >> 1;
        const unsigned other_low = below[to_z + 1][to_y + 1] >> (1 + to_x);
        const unsigned other_high = above[to_z + 1][to_y + 1] >> (1 + to_x);
        return ((low & other_high) | (high & other_low)) & ROW;
    }

    // Cells whose corners are all known and not all on one side, as bits x.
    unsigned mixed(int z, int y) const {
        unsigned any_below = 0, any_above = 0, known = ~0u;
        for (int dz = 1; dz <= 2; ++dz) {
            for (int dy = 1; dy <= 2; ++dy) {
                const unsigned negative = below[z + dz][y + dy], positive = above[z + dz][y + dy];
                any_below |= negative;
                any_above |= positive;
                known &= negative | positive;
            }
        }
        any_below |= any_below >> 1;
        any_above |= any_above >> 1;
        known &= known >> 1;
        return (any_below & any_above & known) >> 1 & ROW;
    }

    int cell_case(int z, int y, int x) const {
        int result = 0;
        for (int dz = 0; dz < 2; ++dz) {
            for (int dy = 0; dy < 2; ++dy) {
                result |= static_cast<int>(below[z + dz + 1][y + dy + 1] >> (x + 1) & 3) << (4 * dz + 2 * dy);
            }
        }
        return result;
    }

   private:
    static constexpr float UNKNOWN = std::numeric_limits<float>::quiet_NaN();

    static int side(int coordinate) { return coordinate < 0 ? 0 : coordinate < BLOCK ? 1 : 2; }

    static float one(const Blocks& blocks, int block, int point) {
        return block < 0 ? UNKNOWN : blocks.values[Index{block} * POINTS + point];
    }
};

// Calls each(z, y, x, axis) for the crossed edges of a block, in their order.
template <class Each>
void for_each_crossing(const Padded& padded, Index block, const Range& range, const Each& each) {
    const int planes = block < range.whole ? BLOCK : 1;
    for (int z = 0; z < planes; ++z) {
        for (int y = 0; y < BLOCK; ++y) {
            unsigned crossed[AXES] = {padded.crossed(z, y, z, y, 1), padded.crossed(z, y, z, y + 1, 0),
                                      padded.crossed(z, y, z + 1, y, 0)};
            if (block >= range.whole) crossed[2] = 0;
            if (z == 0 && block < range.carried) crossed[0] = crossed[1] = 0;
            if (!(crossed[0] | crossed[1] | crossed[2])) continue;
            for (int x = 0; x < BLOCK; ++x) {
                for (int axis = 0; axis < AXES; ++axis) {
                    if (crossed[axis] >> x & 1) each(z, y, x, axis);
                }
            }
        }
    }
}

// Calls work(block, padded) for all of so many blocks.
template <class Work>
void for_each_block(const Blocks& blocks, Index count, int threads, const Work& work) {
    cpu::share(count, AT_ONCE, threads, [&](Index begin, Index end) {
        Padded padded;
        for (Index block = begin; block < end; ++block) {
            padded.read(blocks, block);
            work(block, padded);
        }
    });
}

struct Cut {
    double at;           // of the edge
    double gradient[AXES];
    float span;
};

Cut cut_edge(const float* start, int axis, double limit, double closest) {
    const auto limited = [limit](float value) { return std::min(std::max(double{value}, -limit), limit); };
    const double low = start[0], high = start[STEP[axis]];
    Cut cut{};
    cut.at = std::min(std::max(low / (low - high), closest), 1 - closest);
    cut.span = static_cast<float>(std::abs(low - high));
    for (int across = 0; across < AXES; ++across) {
        if (across == axis) {
            cut.gradient[axis] = limited(start[STEP[axis]]) - limited(start[0]);
            continue;
        }
        const float* end = start + STEP[axis];
        const double here = limited(start[STEP[across]]) - limited(start[-STEP[across]]);
        const double there = limited(end[STEP[across]]) - limited(end[-STEP[across]]);
        cut.gradient[across] = 0.5 * ((1 - cut.at) * here + cut.at * there);
    }
    return cut;
}

}  // namespace

void count_crossings(const Blocks& blocks, const Range& range, int* counts, int threads) {
    for_each_block(blocks, blocks.count, threads, [&](Index block, const Padded& padded) {
        int count = 0;
        for_each_crossing(padded, block, range, [&](int, int, int, int) { ++count; });
        counts[block] = count;
    });
}

void cross_edges(const Blocks& blocks, const Range& range, const int* corners, double spacing, double closest,
                 double farthest, const Index* offsets, const Crossings& out, int threads) {
    const double limit = farthest * spacing;
    for_each_block(blocks, blocks.count, threads, [&](Index block, const Padded& padded) {
        Index next = offsets[block];
        for_each_crossing(padded, block, range, [&](int z, int y, int x, int axis) {
            if (next == offsets[block + 1]) return;  // more than was counted
            const Cut cut = cut_edge(padded.values + place(z, y, x), axis, limit, closest);
            const double* g = cut.gradient;
            const double length = std::sqrt(g[0] * g[0] + g[1] * g[1] + g[2] * g[2]);
            const int local[AXES] = {x, y, z};
            for (int i = 0; i < AXES; ++i) {
                double coordinate = corners[block * AXES + i] + local[i];
                if (i == axis) coordinate += cut.at;
                out.vertices[next * AXES + i] = static_cast<float>(coordinate * spacing);
                out.normals[next * AXES + i] = static_cast<float>(g[i] / length);
            }
            out.edges[next] = static_cast<int>((block * POINTS + (z * BLOCK + y) * BLOCK + x) * AXES + axis);
            out.spans[next] = cut.span;
            ++next;
        });
    });
}

void count_triangles(const Blocks& blocks, Index whole, const Table& table, int* counts, int threads) {
    int of_case[CASES];
    for (int number = 0; number < CASES; ++number) {
        const signed char* row = table.edges + number * table.most * 3;
        of_case[number] = 0;
        while (of_case[number] < table.most && row[of_case[number] * 3] >= 0) ++of_case[number];
    }
    for_each_block(blocks, whole, threads, [&](Index block, const Padded& padded) {
        int count = 0;
        for (int z = 0; z < BLOCK; ++z) {
            for (int y = 0; y < BLOCK; ++y) {
                const unsigned mixed = padded.mixed(z, y);
                for (int x = 0; x < BLOCK; ++x) {
                    if (mixed >> x & 1) count += of_case[padded.cell_case(z, y, x)];
                }
            }
        }
        counts[block] = count;
    });
}

void triangles(const Blocks& blocks, Index whole, const int* numbers, const Table& table, const Index* offsets,
               int* faces, int threads) {
    for_each_block(blocks, whole, threads, [&](Index block, const Padded& padded) {
        const int* neighbours = blocks.neighbours + block * NEIGHBOURS;
        int* next = faces + offsets[block] * 3;
        const int* const end = faces + offsets[block + 1] * 3;
        const auto number = [&](int z, int y, int x, int edge) {
            const int corner = table.corners[edge];
            x += corner & 1;
            y += corner >> 1 & 1;
            z += corner >> 2 & 1;
            const Index owner = neighbours[((1 + z / BLOCK) * 3 + 1 + y / BLOCK) * 3 + 1 + x / BLOCK];
            const int point = ((z % BLOCK) * BLOCK + y % BLOCK) * BLOCK + x % BLOCK;
            return numbers[(owner * POINTS + point) * AXES + table.axes[edge]];
        };
        for (int z = 0; z < BLOCK; ++z) {
            for (int y = 0; y < BLOCK; ++y) {
                const unsigned mixed = padded.mixed(z, y);
                for (int x = 0; x < BLOCK; ++x) {
                    if (!(mixed >> x & 1)) continue;
                    const signed char* row = table.edges + padded.cell_case(z, y, x) * table.most * 3;
                    for (int i = 0; i < table.most * 3 && row[i] >= 0 && next < end; ++i) *next++ = number(z, y, x, row[i]);
                }
            }
        }
    });
}

}  // namespace acorn::isosurface
