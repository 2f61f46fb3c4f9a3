// The kernels of one instruction set, behind plain functions. Knows arrays, not ggml's graph.
#pragma once

#include "layout.h"

// Attention of few queries over a cache of cells: out = softmax(scale * q k + mask) v. Strides in bytes.
//
// A query sees the cells whose mask is not -inf. They are gathered in the order of their positions and
// cut into tiles of 16 and chunks of 128 by their rank among the VISIBLE cells, so a result depends on
// the tokens in those cells alone: not on where they lie, on holes, on the cache's size, on the other
// queries, or on the number of threads. Without positions, the order of the cells counts.
struct Attention {
    const char * q;     // f32 [num_queries][num_heads][dim_k]
    size_t       q_query, q_head;
    const char * k;     // [num_cells][num_kv_heads][dim_k] of k_type
    size_t       k_cell, k_head;
    int          k_type;  // GGML_TYPE_F16 or GGML_TYPE_Q8_0
    const char * v;
    size_t       v_cell, v_head;
    int          v_type;
    const char * mask;  // f16 [num_queries][num_cells]
    size_t       mask_query;
    float *      out;   // f32 [num_queries][num_heads][dim_v], dense
    int          num_queries, num_heads, num_kv_heads, num_cells, dim_k, dim_v;
    float        scale;
    const int32_t * positions;  // [num_cells] of the cells' tokens in their texts, or nullptr
    uint64_t     seen_as;  // calls of a thread with the same number have the same masks; 0: nothing is known
};

constexpr int MAX_HEAD_DIM = 256;  // dim_k, dim_v: multiples of 32 up to here
constexpr int MAX_HEAD_GROUP = 32;  // query heads per KV head

// Memory that a thread will read before long, and fetches while it leaves the memory idle.
struct Soon {
    const char *at = nullptr, *end = nullptr;
};

// One of `count` threads, all of which make the same call.
struct Worker {
    int    index, count;
    char * scratch;  // the same memory for all
    void (*barrier)(void * pool);
    void * pool;
    Soon * soon;
};

struct Kernels {
    const char * name;
    // f32 -> activations for weights of a type; columns is a multiple of 32
    void (*quantize)(int type, const float * x, int64_t columns, Activation * out);
    // rows 16 * first .. 16 * last - 1 of W times n columns of x: y[j * y_stride + row]
    void (*multiply)(int type, const void * packed, int64_t columns, int64_t first, int64_t last,
                     const Activation * x, int64_t n, float * y, int64_t y_stride);
    // one row of W
    void (*unpack)(int type, const void * packed, int64_t columns, int64_t row, float * out);
    size_t (*attention_scratch)(const Attention & a, int num_threads);
    void (*attend)(const Attention & a, const Worker & worker);
    // the first of the largest of n > 0 numbers
    int64_t (*likeliest)(const float * logits, int64_t n);
    // bounds of (logit - most) * scale + noise / ln 2, see noise.h, for tokens numbered from `token`, and the largest
    float (*bound)(const float * logits, int64_t n, float most, float scale, uint32_t first, uint32_t second, int64_t token, float * bounds);
    // the k largest of n logits, falling, -inf where there are fewer, and their places; the sum of e^(logit - largest)
    float (*best_of)(const float * logits, int64_t n, int64_t k, float * values, int32_t * places);
};

extern const Kernels KERNELS_AVX512, KERNELS_AVX2, KERNELS_AVXVNNI;

const Kernels * find_kernels(const char * name);  // nullptr or "": the best that this processor runs
                                                  // nullptr returned: it does not run the named one

const Kernels * registered_kernels();  // those in use; nullptr before they are registered
