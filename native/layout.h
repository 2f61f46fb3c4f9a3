// How weights and activations lie in memory for the kernels, and the plain code that reads and writes it.
//
// Weights are packed in groups of 16 rows, block by block of 32 columns k. A "plane" of 64 bytes
// holds 4 columns of all 16 rows, so that one instruction multiplies 64 weights by 4 activations:
//
//     plane i:  r0k0 r0k1 r0k2 r0k3 | r1k0 r1k1 r1k2 r1k3 | ... | r15k3      k = 4i .. 4i+3
//
// A block is 8 planes, i = 0..7. Weights are unsigned (ggml's bias added); the bias is taken off
// through the sum of the activations. 4 bits: byte of nibble plane i = plane i | plane i+4 << 4.
// An AVX2 kernel uses the first half of each plane for rows 0..7, the second for rows 8..15.
//
// Every packed type takes exactly the bytes of the original one.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr int GROUP = 16;  // rows packed together
constexpr int BLOCK = 32;  // columns with one activation scale

constexpr float SMALLEST_SCALED = 1e-35f;  // a block of activations below counts as zeros: 127 / x would overflow

// 32 activations: x[k] ~ d * q[k]
struct Activation {
    float   d;
    float   sum;      // d * (q[0] + .. + q[31])
    int32_t init[2];  // where the integer dots start: -bias times the sum of q, of each half where halves have scales
    int8_t  q[BLOCK];
};

struct PackedQ4_0 {
    uint16_t d[GROUP];  // f16
    uint8_t  q[4][64];
};

struct PackedQ4_1 {
    uint16_t d[GROUP], m[GROUP];
    uint8_t  q[4][64];
};

// Of more than 4 bits, a nibble holds the lowest 4 of planes 0..3 and the highest 4 of planes 4..7. Shifted by
// one distance, rest then has what lacks above the low nibbles and below the high ones, side by side.
struct PackedQ5_0 {
    uint16_t d[GROUP];
    uint8_t  q[4][64];
    uint8_t  rest[64];  // bits 2i+1, 2i = highest bit of plane i, lowest bit of plane i+4
};

struct PackedQ8_0 {
    uint16_t d[GROUP];
    uint8_t  q[8][64];
};

// 8 blocks; scale and minimum have 6 bits: low[b] = scale & 15 | (min & 15) << 4,
// high[b / 2] = scale >> 4 | (min >> 4) << 2, shifted left by 4 for odd b
struct PackedQ4_K {
    uint16_t d[GROUP], dmin[GROUP];
    uint8_t  low[8][GROUP], high[4][GROUP];
    uint8_t  q[8][4][64];
};

// 8 blocks, a scale for each half block; nibble i of rest plane v = the highest 2 bits of plane 2v+i, then
// the lowest 2 of plane 2v+i+4
struct PackedQ6_K {
    uint16_t d[GROUP];
    int8_t   scale[8][2][GROUP];
    struct {
        uint8_t q[4][64];
        uint8_t rest[2][64];
    } block[8];
};

// One ggml type; `bytes` of 16 rows x `columns`, `columns` = 32 or 256.
struct Layout {
    int    type;  // enum ggml_type
    int    columns;
    size_t bytes;
    void (*pack)(const uint8_t * src, size_t src_row, void * dst);  // 16 source rows -> one group
};

const Layout * find_layout(int type);  // nullptr: not a type we know

size_t group_bytes(const Layout & layout, int64_t columns);
void   pack_rows(const Layout & layout, int64_t columns, int64_t rows, const void * src, void * dst);
