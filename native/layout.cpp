#include "layout.h"

#include "ggml.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

namespace {

// ggml's blocks, as in a GGUF file; read(b, q) gives the weights of their block of 32 number b, bias added.

void nibbles(const uint8_t q[16], uint8_t out[BLOCK]) {  // low nibbles first
    for (int k = 0; k < 16; k++) out[k] = q[k] & 15;
    for (int k = 0; k < 16; k++) out[k + 16] = q[k] >> 4;
}

struct Q4_0 {
    uint16_t d;
    uint8_t  q[16];
    void read(int, uint8_t out[BLOCK]) const { nibbles(q, out); }
};
struct Q4_1 {
    uint16_t d, m;
    uint8_t  q[16];
    void read(int, uint8_t out[BLOCK]) const { nibbles(q, out); }
};
struct __attribute__((packed)) Q5_0 {
    uint16_t d;
    uint32_t high;
    uint8_t  q[16];
    void read(int, uint8_t out[BLOCK]) const {
        nibbles(q, out);
        for (int k = 0; k < BLOCK; k++) out[k] |= (high >> k & 1) << 4;
    }
};
struct Q8_0 {
    uint16_t d;
    int8_t   q[BLOCK];
    void read(int, uint8_t out[BLOCK]) const {
        for (int k = 0; k < BLOCK; k++) out[k] = q[k] + 128;
    }
};
struct Q4_K {
    uint16_t d, dmin;
    uint8_t  scales[12];  // 4 x 6-bit scales, 4 x minima, then the rest in the top bits
    uint8_t  q[4][BLOCK];
    void read(int b, uint8_t out[BLOCK]) const {
        for (int k = 0; k < BLOCK; k++) out[k] = q[b / 2][k] >> b % 2 * 4 & 15;
    }
    int scale(int b) const { return b < 4 ? scales[b] & 63 : (scales[b + 4] & 15) | scales[b - 4] >> 6 << 4; }
    int min(int b) const { return b < 4 ? scales[b + 4] & 63 : scales[b + 4] >> 4 | scales[b] >> 6 << 4; }
};
struct Q6_K {
    uint8_t  low[2][2][BLOCK], high[2][BLOCK];
    int8_t   scales[16];
    uint16_t d;
    void read(int b, uint8_t out[BLOCK]) const {
        for (int k = 0; k < BLOCK; k++)
            out[k] = (low[b / 4][b % 2][k] >> b % 4 / 2 * 4 & 15) | (high[b / 4][k] >> b % 4 * 2 & 3) << 4;
    }
};

// ---- what row r adds to a packed block: its scales, and the weights of block b --------------------

void put_nibbles(uint8_t planes[4][64], int r, const uint8_t q[BLOCK], int more_bits = 0) {
    for (int k = 0; k < 16; k++) planes[k / 4][r * 4 + k % 4] = (q[k] & 15) | q[k + 16] >> more_bits << 4;
}

void put_scales(PackedQ4_0 & p, int r, const Q4_0 & s) { p.d[r] = s.d; }
void put(PackedQ4_0 & p, int, int r, const uint8_t q[BLOCK]) { put_nibbles(p.q, r, q); }

void put_scales(PackedQ4_1 & p, int r, const Q4_1 & s) { p.d[r] = s.d, p.m[r] = s.m; }
void put(PackedQ4_1 & p, int, int r, const uint8_t q[BLOCK]) { put_nibbles(p.q, r, q); }

void put_scales(PackedQ5_0 & p, int r, const Q5_0 & s) { p.d[r] = s.d; }
void put(PackedQ5_0 & p, int, int r, const uint8_t q[BLOCK]) {
    put_nibbles(p.q, r, q, 1);
    for (int k = 0; k < 16; k++) p.rest[r * 4 + k % 4] |= (q[k] >> 4 << 1 | (q[k + 16] & 1)) << k / 4 * 2;
}

void put_scales(PackedQ8_0 & p, int r, const Q8_0 & s) { p.d[r] = s.d; }
void put(PackedQ8_0 & p, int, int r, const uint8_t q[BLOCK]) {
    for (int k = 0; k < BLOCK; k++) p.q[k / 4][r * 4 + k % 4] = q[k];
}

void put_scales(PackedQ4_K & p, int r, const Q4_K & s) {
    p.d[r] = s.d, p.dmin[r] = s.dmin;
    for (int b = 0; b < 8; b++) {
        p.low[b][r] = (s.scale(b) & 15) | (s.min(b) & 15) << 4;
        p.high[b / 2][r] |= (s.scale(b) >> 4 | s.min(b) >> 4 << 2) << b % 2 * 4;
    }
}
void put(PackedQ4_K & p, int b, int r, const uint8_t q[BLOCK]) { put_nibbles(p.q[b], r, q); }

void put_scales(PackedQ6_K & p, int r, const Q6_K & s) {
    p.d[r] = s.d;
    for (int i = 0; i < 16; i++) p.scale[i / 2][i % 2][r] = s.scales[i];
}
void put(PackedQ6_K & p, int b, int r, const uint8_t q[BLOCK]) {
    put_nibbles(p.block[b].q, r, q, 2);
    for (int k = 0; k < 16; k++) p.block[b].rest[k / 8][r * 4 + k % 4] |= (q[k] >> 4 << 2 | (q[k + 16] & 3)) << k / 4 % 2 * 4;
}

template <class Source, class Packed, int COLUMNS> constexpr Layout layout(int type) {
    static_assert(sizeof(Packed) == GROUP * sizeof(Source));
    return {type, COLUMNS, sizeof(Packed), [](const uint8_t * src, size_t src_row, void * dst) {
        Packed packed = {};
        for (int r = 0; r < GROUP; r++) {
            const Source & source = *reinterpret_cast<const Source *>(src + r * src_row);
            put_scales(packed, r, source);
            for (int b = 0; b < COLUMNS / BLOCK; b++) {
                uint8_t q[BLOCK];
                source.read(b, q);
                put(packed, b, r, q);
            }
        }
        std::memcpy(dst, &packed, sizeof packed);
    }};
}

const Layout LAYOUTS[] = {
    layout<Q4_0, PackedQ4_0, 32>(GGML_TYPE_Q4_0), layout<Q4_1, PackedQ4_1, 32>(GGML_TYPE_Q4_1),
    layout<Q5_0, PackedQ5_0, 32>(GGML_TYPE_Q5_0), layout<Q8_0, PackedQ8_0, 32>(GGML_TYPE_Q8_0),
    layout<Q4_K, PackedQ4_K, 256>(GGML_TYPE_Q4_K), layout<Q6_K, PackedQ6_K, 256>(GGML_TYPE_Q6_K),
};

}  // namespace

const Layout * find_layout(int type) {
    for (const Layout & layout : LAYOUTS)
        if (layout.type == type) return &layout;
    return nullptr;
}

size_t group_bytes(const Layout & layout, int64_t columns) { return columns / layout.columns * layout.bytes; }

void pack_rows(const Layout & layout, int64_t columns, int64_t rows, const void * src, void * dst) {
    const size_t unit = layout.bytes / GROUP, row_bytes = columns / layout.columns * unit;
    const auto pack_groups = [&](int64_t first, int64_t last) {
        for (int64_t g = first; g < last; g++)
            for (int64_t b = 0; b < columns / layout.columns; b++)
                layout.pack(static_cast<const uint8_t *>(src) + g * GROUP * row_bytes + b * unit, row_bytes,
                            static_cast<uint8_t *>(dst) + g * group_bytes(layout, columns) + b * layout.bytes);
    };
    const int64_t groups = rows / GROUP, num_threads = groups * columns < 65536 ? 1 : std::clamp(std::thread::hardware_concurrency(), 1u, 16u);
    std::vector<std::thread> threads;
    for (int64_t t = 1; t < num_threads; t++)
        threads.emplace_back(pack_groups, groups * t / num_threads, groups * (t + 1) / num_threads);
    pack_groups(0, groups / num_threads);
    for (auto & thread : threads) thread.join();
}
