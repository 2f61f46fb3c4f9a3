#include "layout.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

float f16_to_f32(uint16_t h) {
    return ggml_fp16_to_fp32(h);
}

namespace {

// ggml's blocks, as in a GGUF file
struct Q4_0 { uint16_t d; uint8_t q[16]; };
struct Q4_1 { uint16_t d, m; uint8_t q[16]; };
struct __attribute__((packed)) Q5_0 { uint16_t d; uint32_t high; uint8_t q[16]; };
struct Q8_0 { uint16_t d; int8_t q[32]; };
struct Q4_K { uint16_t d, dmin; uint8_t scales[12]; uint8_t q[128]; };
struct Q6_K { uint8_t low[128], high[64]; int8_t scales[16]; uint16_t d; };

void nibbles(const uint8_t q[16], uint8_t out[BLOCK]) {  // low nibbles first
    for (int k = 0; k < 16; k++) {
        out[k] = q[k] & 15;
        out[k + 16] = q[k] >> 4;
    }
}

// planes are written and read four columns (one row's share of a plane) at a time
void put_nibbles(uint8_t planes[4][64], int row, const uint8_t q[BLOCK]) {
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++) planes[i][row * 4 + k] = (q[4 * i + k] & 15) | (q[4 * (i + 4) + k] & 15) << 4;
}

void get_nibbles(const uint8_t planes[4][64], int row, int q[BLOCK]) {
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++) {
            q[4 * i + k] = planes[i][row * 4 + k] & 15;
            q[4 * (i + 4) + k] = planes[i][row * 4 + k] >> 4;
        }
}

void set(Unpacked & out, float d0, float d1, float m, int bias) {
    out.d[0] = d0;
    out.d[1] = d1;
    out.m = m;
    for (int & q : out.q) q -= bias;
}

void pack_q4_0(const uint8_t * src, size_t stride, void * dst) {
    auto & p = *static_cast<PackedQ4_0 *>(dst);
    uint8_t q[BLOCK];
    for (int r = 0; r < GROUP; r++) {
        auto & s = *reinterpret_cast<const Q4_0 *>(src + r * stride);
        p.d[r] = s.d;
        nibbles(s.q, q);
        put_nibbles(p.q, r, q);
    }
}

void unpack_q4_0(const void * src, int, int r, Unpacked & out) {
    auto & p = *static_cast<const PackedQ4_0 *>(src);
    get_nibbles(p.q, r, out.q);
    set(out, f16_to_f32(p.d[r]), f16_to_f32(p.d[r]), 0, 8);
}

void pack_q4_1(const uint8_t * src, size_t stride, void * dst) {
    auto & p = *static_cast<PackedQ4_1 *>(dst);
    uint8_t q[BLOCK];
    for (int r = 0; r < GROUP; r++) {
        auto & s = *reinterpret_cast<const Q4_1 *>(src + r * stride);
        p.d[r] = s.d;
        p.m[r] = s.m;
        nibbles(s.q, q);
        put_nibbles(p.q, r, q);
    }
}

void unpack_q4_1(const void * src, int, int r, Unpacked & out) {
    auto & p = *static_cast<const PackedQ4_1 *>(src);
    get_nibbles(p.q, r, out.q);
    set(out, f16_to_f32(p.d[r]), f16_to_f32(p.d[r]), f16_to_f32(p.m[r]), 0);
}

void pack_q5_0(const uint8_t * src, size_t stride, void * dst) {
    auto & p = *static_cast<PackedQ5_0 *>(dst);
    std::memset(p.high, 0, sizeof p.high);
    uint8_t q[BLOCK];
    for (int r = 0; r < GROUP; r++) {
        auto & s = *reinterpret_cast<const Q5_0 *>(src + r * stride);
        const uint32_t high = s.high;
        p.d[r] = s.d;
        nibbles(s.q, q);
        put_nibbles(p.q, r, q);
        for (int k = 0; k < BLOCK; k++) p.high[r * 4 + k % 4] |= (high >> k & 1) << k / 4;
    }
}

void unpack_q5_0(const void * src, int, int r, Unpacked & out) {
    auto & p = *static_cast<const PackedQ5_0 *>(src);
    get_nibbles(p.q, r, out.q);
    for (int k = 0; k < BLOCK; k++) out.q[k] |= (p.high[r * 4 + k % 4] >> k / 4 & 1) << 4;
    set(out, f16_to_f32(p.d[r]), f16_to_f32(p.d[r]), 0, 16);
}

void pack_q8_0(const uint8_t * src, size_t stride, void * dst) {
    auto & p = *static_cast<PackedQ8_0 *>(dst);
    for (int r = 0; r < GROUP; r++) {
        auto & s = *reinterpret_cast<const Q8_0 *>(src + r * stride);
        p.d[r] = s.d;
        for (int k = 0; k < BLOCK; k++) p.q[k / 4][r * 4 + k % 4] = static_cast<uint8_t>(s.q[k] + 128);
    }
}

void unpack_q8_0(const void * src, int, int r, Unpacked & out) {
    auto & p = *static_cast<const PackedQ8_0 *>(src);
    for (int k = 0; k < BLOCK; k++) out.q[k] = p.q[k / 4][r * 4 + k % 4];
    set(out, f16_to_f32(p.d[r]), f16_to_f32(p.d[r]), 0, 128);
}

void pack_q4_k(const uint8_t * src, size_t stride, void * dst) {
    auto & p = *static_cast<PackedQ4_K *>(dst);
    std::memset(p.high, 0, sizeof p.high);
    for (int r = 0; r < GROUP; r++) {
        auto & s = *reinterpret_cast<const Q4_K *>(src + r * stride);
        p.d[r] = s.d;
        p.dmin[r] = s.dmin;
        for (int b = 0; b < 8; b++) {
            const uint8_t * c = s.scales;  // ggml: 4 x 6-bit scales, 4 x minima, then the rest in the top bits
            const int scale = b < 4 ? c[b] & 63 : (c[b + 4] & 15) | c[b - 4] >> 6 << 4;
            const int min = b < 4 ? c[b + 4] & 63 : c[b + 4] >> 4 | c[b] >> 6 << 4;
            p.low[b][r] = (scale & 15) | (min & 15) << 4;
            p.high[b / 2][r] |= (scale >> 4 | min >> 4 << 2) << b % 2 * 4;
            uint8_t q[BLOCK];
            for (int k = 0; k < BLOCK; k++) q[k] = s.q[b / 2 * 32 + k] >> b % 2 * 4 & 15;
            put_nibbles(p.q[b], r, q);
        }
    }
}

void unpack_q4_k(const void * src, int b, int r, Unpacked & out) {
    auto & p = *static_cast<const PackedQ4_K *>(src);
    const int high = p.high[b / 2][r] >> b % 2 * 4;
    const int scale = (p.low[b][r] & 15) | (high & 3) << 4, min = p.low[b][r] >> 4 | (high >> 2 & 3) << 4;
    get_nibbles(p.q[b], r, out.q);
    const float d = f16_to_f32(p.d[r]) * scale;
    set(out, d, d, -(f16_to_f32(p.dmin[r]) * min), 0);
}

void pack_q6_k(const uint8_t * src, size_t stride, void * dst) {
    auto & p = *static_cast<PackedQ6_K *>(dst);
    for (auto & block : p.block) std::memset(block.high, 0, sizeof block.high);
    for (int r = 0; r < GROUP; r++) {
        auto & s = *reinterpret_cast<const Q6_K *>(src + r * stride);
        p.d[r] = s.d;
        for (int b = 0; b < 8; b++) {
            const uint8_t * low = s.low + b / 4 * 64 + b % 2 * 32, * high = s.high + b / 4 * 32;
            uint8_t q[BLOCK];
            for (int k = 0; k < BLOCK; k++) {
                q[k] = low[k] >> b % 4 / 2 * 4 & 15;
                p.block[b].high[k / 16][r * 4 + k % 4] |= (high[k] >> b % 4 * 2 & 3) << k / 4 % 4 * 2;
            }
            put_nibbles(p.block[b].q, r, q);
            p.scale[b][0][r] = s.scales[2 * b];
            p.scale[b][1][r] = s.scales[2 * b + 1];
        }
    }
}

void unpack_q6_k(const void * src, int b, int r, Unpacked & out) {
    auto & p = *static_cast<const PackedQ6_K *>(src);
    get_nibbles(p.block[b].q, r, out.q);
    for (int k = 0; k < BLOCK; k++) out.q[k] |= (p.block[b].high[k / 16][r * 4 + k % 4] >> k / 4 % 4 * 2 & 3) << 4;
    const float d = f16_to_f32(p.d[r]);
    set(out, d * p.scale[b][0][r], d * p.scale[b][1][r], 0, 32);
}

const Layout LAYOUTS[] = {
    {GGML_TYPE_Q4_0, 32, sizeof(PackedQ4_0), pack_q4_0, unpack_q4_0},
    {GGML_TYPE_Q4_1, 32, sizeof(PackedQ4_1), pack_q4_1, unpack_q4_1},
    {GGML_TYPE_Q5_0, 32, sizeof(PackedQ5_0), pack_q5_0, unpack_q5_0},
    {GGML_TYPE_Q8_0, 32, sizeof(PackedQ8_0), pack_q8_0, unpack_q8_0},
    {GGML_TYPE_Q4_K, 256, sizeof(PackedQ4_K), pack_q4_k, unpack_q4_k},
    {GGML_TYPE_Q6_K, 256, sizeof(PackedQ6_K), pack_q6_k, unpack_q6_k},
};
static_assert(sizeof(PackedQ4_0) == 16 * sizeof(Q4_0) && sizeof(PackedQ4_1) == 16 * sizeof(Q4_1) &&
              sizeof(PackedQ5_0) == 16 * sizeof(Q5_0) && sizeof(PackedQ8_0) == 16 * sizeof(Q8_0) &&
              sizeof(PackedQ4_K) == 16 * sizeof(Q4_K) && sizeof(PackedQ6_K) == 16 * sizeof(Q6_K));

}  // namespace

const Layout * find_layout(int type) {
    for (const Layout & layout : LAYOUTS)
        if (layout.type == type) return &layout;
    return nullptr;
}

size_t group_bytes(const Layout & layout, int64_t columns) {
    return columns / layout.columns * layout.bytes;
}

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

void unpack_row(const Layout & layout, int64_t columns, const void * packed, int64_t row, float * out) {
    auto * group = static_cast<const uint8_t *>(packed) + row / GROUP * group_bytes(layout, columns);
    for (int64_t b = 0; b < columns / BLOCK; b++) {
        const int per = layout.columns / BLOCK;
        Unpacked block;
        layout.unpack(group + b / per * layout.bytes, b % per, row % GROUP, block);
        for (int k = 0; k < BLOCK; k++) out[b * BLOCK + k] = block.q[k] * block.d[k / 16] + block.m;
    }
}

void quantize_reference(const float * x, int64_t columns, int bias, Activation * out) {
    for (int64_t b = 0; b < columns / BLOCK; b++, x += BLOCK, out++) {
        float largest = 0;
        for (int k = 0; k < BLOCK; k++) largest = std::max(largest, std::fabs(x[k]));
        const float inverse = largest >= SMALLEST_SCALED ? 127.0f / largest : 0.0f;
        int sum[2] = {0, 0};
        for (int k = 0; k < BLOCK; k++) {
            out->q[k] = static_cast<int8_t>(std::nearbyint(x[k] * inverse));
            sum[k / 16] += out->q[k];
        }
        out->d = largest / 127.0f;
        out->sum = out->d * static_cast<float>(sum[0] + sum[1]);
        out->init[0] = -bias * sum[0];
        out->init[1] = -bias * sum[1];
    }
}

void multiply_reference(const Layout & layout, int64_t columns, int64_t rows, const void * packed,
                        const Activation * x, int n, float * y) {
    const int64_t blocks = columns / BLOCK;
    const int per = layout.columns / BLOCK;
    for (int j = 0; j < n; j++)
        for (int64_t r = 0; r < rows; r++) {
            auto * group = static_cast<const uint8_t *>(packed) + r / GROUP * group_bytes(layout, columns);
            float sum = 0;
            for (int64_t b = 0; b < blocks; b++) {
                const Activation & a = x[j * blocks + b];
                Unpacked w;
                layout.unpack(group + b / per * layout.bytes, b % per, r % GROUP, w);
                int dot[2] = {0, 0};
                for (int k = 0; k < BLOCK; k++) dot[k / 16] += w.q[k] * a.q[k];
                if (layout.type == GGML_TYPE_Q6_K) {
                    sum = std::fma(static_cast<float>(dot[0]), w.d[0] * a.d, sum);
                    sum = std::fma(static_cast<float>(dot[1]), w.d[1] * a.d, sum);
                } else {
                    sum = std::fma(static_cast<float>(dot[0] + dot[1]), w.d[0] * a.d, sum);
                    sum = std::fma(w.m, a.sum, sum);
                }
            }
            y[j * rows + r] = sum;
        }
}
