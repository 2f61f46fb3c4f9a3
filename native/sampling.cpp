// Tokens from logits: the likeliest one, or the one that is largest with noise added.
#include "kernels.h"
#include "noise.h"

#include <algorithm>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr double LOG2_E = 1.4426950408889634;

// A ``llama_token_data``.
struct Entry {
    int32_t token;
    float   logit, prob;
};

// The largest so far, as a power of 2.
struct Winner {
    Key     key;
    double  score = -HUGE_VAL;
    int64_t place = 0;

    void meet(int64_t at, uint32_t token, double above) {
        const double met = (above - std::log(exponential(key, token))) * LOG2_E;
        if (met > score) score = met, place = at;
    }
};

}  // namespace

EXPORT int64_t gorgon_kernels_likeliest(const float * logits, int64_t n) { return registered_kernels()->likeliest(logits, n); }

// The token whose logit / temperature + noise is largest. Bounds spare most tokens the logarithms.
EXPORT int64_t gorgon_kernels_draw(uint64_t seed, int64_t draw, const float * logits, int64_t n, float temperature) {
    constexpr int64_t BLOCK_SIZE = 1024;
    const Kernels & kernels = *registered_kernels();
    Winner winner{key_of(seed, draw)};
    winner.place = kernels.likeliest(logits, n);
    const float most = logits[winner.place];
    winner.meet(winner.place, static_cast<uint32_t>(winner.place), 0.0);
    float bounds[BLOCK_SIZE];
    for (int64_t first = 0; first < n; first += BLOCK_SIZE) {
        const int64_t size = std::min(n - first, BLOCK_SIZE);
        const float above = kernels.bound(logits + first, size, most, static_cast<float>(LOG2_E / temperature), winner.key.first, winner.key.second, first, bounds);
        for (int64_t i = 0; above > winner.score && i < size; i++)
            if (bounds[i] > winner.score) winner.meet(first + i, static_cast<uint32_t>(first + i), (static_cast<double>(logits[first + i]) - most) / temperature);
    }
    return winner.place;
}

// The same among some tokens, whose logits are scaled already; the place of the entry.
EXPORT int64_t gorgon_kernels_draw_among(uint64_t seed, int64_t draw, const Entry * entries, int64_t n) {
    Winner winner{key_of(seed, draw)};
    float most = -HUGE_VALF;
    for (int64_t i = 0; i < n; i++) most = std::max(most, entries[i].logit);
    for (int64_t i = 0; i < n; i++) {
        const float above = entries[i].logit - most;
        if (above * static_cast<float>(LOG2_E) + least_bound(winner.key, entries[i].token) > winner.score) winner.meet(i, entries[i].token, above);
    }
    return winner.place;
}
