// From the logits of draft heads to ranked guesses: an operation of ggml's graph that finds the largest, on
// all threads, and what makes probabilities of them.
#include "guesses.h"
#include "kernels.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// What is known of a part of a row: the sum of e^(logit - largest), then its k largest logits, falling, and
// their places in the row as integers.
struct Part {
    const float * values;
    int64_t       k;
    float sum() const { return values[0]; }
    float logit(int64_t rank) const { return values[1 + rank]; }
    int32_t place(int64_t rank) const {
        int32_t place;
        std::memcpy(&place, values + 1 + k + rank, sizeof place);
        return place;
    }
};

}  // namespace

float Map::operator()(float at) const {
    const int64_t i = std::upper_bound(x, x + n, at) - x;
    if (i == 0 || i == n) return y[i ? n - 1 : 0];
    return y[i - 1] + (y[i] - y[i - 1]) * (at - x[i - 1]) / (x[i] - x[i - 1]);
}

// A `ggml_custom_op_t`: dst [1 + 2 k, parts, rows] holds a Part of each of the equal parts of logits [n, rows].
EXPORT void gorgon_kernels_find_best(ggml_tensor * dst, int index, int count, void *) {
    const ggml_tensor * logits = dst->src[0];
    const int64_t n = logits->ne[0], width = dst->ne[0], k = (width - 1) / 2, parts = dst->ne[1], size = (n + parts - 1) / parts;
    const int64_t total = parts * ggml_nrows(logits);
    GGML_ASSERT(ggml_is_contiguous(logits) && logits->type == GGML_TYPE_F32);
    for (int64_t p = total * index / count; p < total * (index + 1) / count; p++) {
        const int64_t first = p % parts * size;
        float * out = static_cast<float *>(dst->data) + p * width;
        auto * places = reinterpret_cast<int32_t *>(out + 1 + k);
        out[0] = registered_kernels()->best_of(static_cast<const float *>(logits->data) + p / parts * n + first, std::min(size, n - first), k, out + 1, places);
        for (int64_t i = 0; i < k; i++) places[i] += static_cast<int32_t>(first);
    }
}

void gorgon_kernels_rank(const float * found, int64_t rows, int64_t parts, int64_t k, const int32_t * token_map,
                         const Map * maps, int64_t num_maps, int32_t * tokens, float * probs) {
    std::vector<int64_t> ranks(parts);
    for (int64_t row = 0; row < rows; row++) {
        const auto part = [&](int64_t p) { return Part{found + (row * parts + p) * (1 + 2 * k), k}; };
        float most = part(0).logit(0), sum = 0;
        for (int64_t p = 1; p < parts; p++) most = std::max(most, part(p).logit(0));
        for (int64_t p = 0; p < parts; p++) sum += part(p).sum() * std::exp(part(p).logit(0) - most);
        std::fill(ranks.begin(), ranks.end(), 0);
        for (int64_t i = 0; i < k; i++) {
            int64_t best = 0;
            for (int64_t p = 1; p < parts; p++)
                if (ranks[best] == k || (ranks[p] < k && part(p).logit(ranks[p]) > part(best).logit(ranks[best]))) best = p;
            const int64_t rank = ranks[best]++, at = row * k + i;
            const int32_t place = part(best).place(rank);
            const float prob = std::exp(part(best).logit(rank) - most) / sum;
            tokens[at] = token_map ? token_map[place] : place;
            probs[at] = num_maps ? maps[row % num_maps](prob) : prob;
        }
    }
}
