// The noise that tokens are drawn with, as gorgon/noise.py explains and computes it: a function of seed, place and token.
// Local to the including file, like isa.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Key {
    uint32_t first, second;
};

// splitmix64
inline Key key_of(uint64_t seed, int64_t place) {
    uint64_t z = seed + (static_cast<uint64_t>(place) + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return {static_cast<uint32_t>(z), static_cast<uint32_t>(z >> 32)};
}

// The first 32 bits of a token's share of 1.
inline uint32_t high_word(Key key, uint32_t token) {
    uint32_t x = token * 0x9E3779B1u + key.first;
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = ((x ^ x >> 15) + key.second) * 0x846CA68Bu;
    return x ^ x >> 16;
}

// Exponentially distributed: e^-noise.
inline double exponential(Key key, uint32_t token) {
    const uint32_t high = high_word(key, token);
    uint32_t x = (high + key.first) * 0x85EBCA6Bu;
    x = (x ^ x >> 13) * 0xC2B2AE35u;
    x ^= x >> 16;
    return -std::log1p(-(high * 0x1p32 + x + 0.5) * 0x1p-64);
}

// At least noise / ln 2, and cheap: noise <= -ln(share), and a float's bits, read as an integer, are below its logarithm.
inline float least_bound(Key key, uint32_t token) {
    const float share = static_cast<float>(static_cast<int32_t>(high_word(key, token) >> 1));  // of 2^31
    int32_t bits;
    std::memcpy(&bits, &share, sizeof bits);
    return 158.001f - static_cast<float>(bits) * 0x1p-23f;  // with something for rounding
}

}  // namespace
