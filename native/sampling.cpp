// Tokens from logits: the likeliest one, or one drawn at a temperature as llama.cpp draws it (its
// generator, its order of tokens), with the exponentials of whole vectors.
#include "kernels.h"

#include <algorithm>
#include <random>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int64_t gorgon_kernels_likeliest(const float * logits, int64_t n) { return registered_kernels()->likeliest(logits, n); }

EXPORT void * gorgon_kernels_new_random(uint32_t seed) { return new std::mt19937(seed); }
EXPORT void gorgon_kernels_free_random(void * random) { delete static_cast<std::mt19937 *>(random); }

// The first token up to which probabilities sum to a random part of one. Blocks are summed first, so that
// only the one where it happens is gone through token by token.
EXPORT int64_t gorgon_kernels_draw(void * random, const float * logits, int64_t n, float temperature) {
    constexpr int64_t BLOCK_SIZE = 512;
    const Kernels & kernels = *registered_kernels();
    const float most = logits[kernels.likeliest(logits, n)] / temperature;
    float weights[BLOCK_SIZE];
    std::vector<double> sums = {0.0};  // before each block
    const auto weigh = [&](int64_t first) { return kernels.weigh(logits + first, std::min(n - first, BLOCK_SIZE), temperature, most, weights); };
    for (int64_t first = 0; first < n; first += BLOCK_SIZE) sums.push_back(sums.back() + weigh(first));
    const double target = sums.back() * std::uniform_real_distribution<double>()(*static_cast<std::mt19937 *>(random));
    const int64_t block = std::lower_bound(sums.begin() + 1, sums.end() - 1, target) - sums.begin() - 1, first = block * BLOCK_SIZE;
    weigh(first);
    const int64_t last = std::min(n - first, BLOCK_SIZE) - 1;
    double sum = sums[block];
    for (int64_t i = 0; i <= last; i++)
        if ((sum += weights[i]) >= target) return first + i;
    return first + (std::max_element(weights, weights + last + 1) - weights);  // the block's sum was rounded up
}
