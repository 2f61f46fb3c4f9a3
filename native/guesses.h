// From the best logits of draft heads, as the graph's operation leaves them, to ranked guesses.
#pragma once

#include <cstdint>

// A rising map, linear between its knots and constant beyond them.
struct Map {
    const float *x, *y;
    int64_t      n;
    float operator()(float at) const;
};

// The k likeliest of each row, their tokens by `token_map` (nullptr: places are tokens) and their probabilities by
// the row's map; maps take turns, none at all leaves probabilities as they are.
extern "C" __attribute__((visibility("default"))) void gorgon_kernels_rank(
    const float * found, int64_t rows, int64_t parts, int64_t k, const int32_t * token_map, const Map * maps, int64_t num_maps, int32_t * tokens, float * probs);
