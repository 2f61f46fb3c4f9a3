// Registration in ggml-cpu: a buffer type that packs the weights it knows when they are loaded, and
// computes what becomes of them (products, embedding rows), and attention wherever its tensors lie.
// ggml asks it first about every operation; what it does not claim goes to ggml's own code.
#include "kernels.h"
#include "positions.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "traits.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>

namespace {

const Kernels * kernels;
bool            take_weights = true, take_attention = true;
std::atomic<int64_t> num_products, num_attentions;

ggml_backend_buffer_type_t buffer_type();

bool in_our_buffer(const ggml_tensor * t) {
    return t && t->buffer && t->buffer->buft == buffer_type() && !t->view_src;
}

const Layout * known_layout(const ggml_tensor * w) {
    const Layout * layout = find_layout(w->type);
    const bool fits = layout && w->ne[2] == 1 && w->ne[3] == 1 && w->ne[0] % layout->columns == 0 && w->ne[1] % GROUP == 0 && ggml_is_contiguous(w);
    return fits ? layout : nullptr;
}

bool on_host(const ggml_tensor * t) {
    return !t->buffer || ggml_backend_buft_is_host(t->buffer->buft);
}

// ---- products ----------------------------------------------------------------------------------

bool is_product(const ggml_tensor * op) {
    const ggml_tensor * x = op->src[1];
    return op->op == GGML_OP_MUL_MAT && in_our_buffer(op->src[0]) && known_layout(op->src[0]) && x->type == GGML_TYPE_F32 &&
           x->nb[0] == sizeof(float) && op->type == GGML_TYPE_F32 && ggml_is_contiguous(op) && on_host(x);
}

// The weights that a thread reads next are those that followed the last time. Their beginning is fetched while other
// operations are computed, which leave the memory idle. Only time depends on it: a fetch from lost weights does no harm.
class NextWeights {
  public:
    void begin(const char * weights, Soon share) {  // of a product, from which this thread reads a share
        *last = share;
        last = &followers[reinterpret_cast<uintptr_t>(weights) * 0x9E3779B97F4A7C15u >> 52];
        soon = {};
    }

    void end() { soon = {last->at, last->at + std::min(last->end - last->at, ROOM)}; }

    void fetch() {
        for (int line = 0; line < AT_ONCE && soon.at < soon.end; line++, soon.at += 64) __builtin_prefetch(soon.at, 0, 2);
    }

    Soon soon;

  private:
    static constexpr ptrdiff_t ROOM = 256 * 1024;  // of the L2 cache
    static constexpr int AT_ONCE = 64;  // lines for each operation

    Soon   followers[4096];  // by weights; where two meet, one is wrong
    Soon * last = followers;
};
thread_local NextWeights next_weights;

// Few activations: every thread quantises all of them for itself, which is cheaper than to wait for the others.
constexpr int64_t FEW = 12288;

struct Product : ggml::cpu::tensor_traits {
    bool work_size(int num_threads, const ggml_tensor * op, size_t & size) override {
        const int64_t count = ggml_nelements(op->src[1]);
        size = count / BLOCK * sizeof(Activation) * (count <= FEW ? num_threads : 1);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (params->ith == 0) num_products++;
        const ggml_tensor *w = op->src[0], *x = op->src[1];
        const int64_t columns = w->ne[0], groups = w->ne[1] / GROUP, n = ggml_nrows(x), blocks = columns / BLOCK;
        const int64_t first = groups * params->ith / params->nth, last = groups * (params->ith + 1) / params->nth;
        const auto * weights = static_cast<const char *>(w->data);
        const size_t group = group_bytes(*find_layout(w->type), columns);
        next_weights.begin(weights, {weights + first * group, weights + last * group});
        const bool few = n * columns <= FEW;
        auto * activations = reinterpret_cast<Activation *>(params->wdata) + (few ? params->ith * n * blocks : 0);
        // shares of all threads, cut anywhere, so that one long row is shared, too
        const int64_t total = n * blocks, to = few ? total : total * (params->ith + 1) / params->nth;
        for (int64_t b = few ? 0 : total * params->ith / params->nth, end; b < to; b = end) {
            const int64_t j = b / blocks;
            end = std::min(to, (j + 1) * blocks);
            auto * row = static_cast<const char *>(x->data) + j % x->ne[1] * x->nb[1] + j / x->ne[1] % x->ne[2] * x->nb[2] + j / (x->ne[1] * x->ne[2]) * x->nb[3];
            kernels->quantize(w->type, reinterpret_cast<const float *>(row) + (b - j * blocks) * BLOCK, (end - b) * BLOCK, activations + b);
        }
        if (!few) ggml_barrier(params->threadpool);
        kernels->multiply(w->type, w->data, columns, first, last, activations, n, static_cast<float *>(op->data), w->ne[1]);
        next_weights.end();
        return true;
    }
} product;

// ---- embedding rows ----------------------------------------------------------------------------

bool is_rows(const ggml_tensor * op) {
    const ggml_tensor * ids = op->src[1];
    return op->op == GGML_OP_GET_ROWS && in_our_buffer(op->src[0]) && known_layout(op->src[0]) && ids->type == GGML_TYPE_I32 &&
           ggml_is_contiguous(ids) && op->type == GGML_TYPE_F32 && ggml_is_contiguous(op) && on_host(ids);
}

struct Rows : ggml::cpu::tensor_traits {
    bool work_size(int, const ggml_tensor *, size_t & size) override {
        size = 0;
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const ggml_tensor * w = op->src[0];
        for (int64_t i = params->ith; i < ggml_nelements(op->src[1]); i += params->nth) {
            const int32_t row = static_cast<const int32_t *>(op->src[1]->data)[i];
            GGML_ASSERT(row >= 0 && row < w->ne[1]);
            kernels->unpack(w->type, w->data, w->ne[0], row, static_cast<float *>(op->data) + i * w->ne[0]);
        }
        return true;
    }
} rows;

// ---- attention ---------------------------------------------------------------------------------

bool is_cache(const ggml_tensor * t) {
    return (t->type == GGML_TYPE_F16 || t->type == GGML_TYPE_Q8_0) && t->nb[0] == ggml_type_size(t->type) && t->ne[3] == 1 &&
           t->ne[0] % BLOCK == 0 && t->ne[0] <= MAX_HEAD_DIM && on_host(t);
}

bool is_attention(const ggml_tensor * op) {
    if (op->op != GGML_OP_FLASH_ATTN_EXT) return false;
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
    float params[3];  // scale, max_bias, logit_softcap
    std::memcpy(params, op->op_params, sizeof params);
    return params[1] == 0 && params[2] == 0 && !op->src[4] && mask && mask->type == GGML_TYPE_F16 && mask->nb[0] == 2 && mask->ne[2] == 1 &&
           mask->ne[3] == 1 && mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1] && q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) &&
           q->ne[3] == 1 && is_cache(k) && is_cache(v) && q->ne[0] == k->ne[0] && k->ne[1] == v->ne[1] && k->ne[2] == v->ne[2] &&
           q->ne[2] % k->ne[2] == 0 && q->ne[2] / k->ne[2] <= MAX_HEAD_GROUP && op->type == GGML_TYPE_F32 && ggml_is_contiguous(op) &&
           k->ne[1] <= 1 << 24 && on_host(q) && on_host(mask);
}

Attention describe(const ggml_tensor * op) {
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
    const auto bytes = [](const ggml_tensor * t) { return static_cast<const char *>(t->data); };
    Attention a{bytes(q), q->nb[1], q->nb[2], bytes(k), k->nb[1], k->nb[2], k->type, bytes(v), v->nb[1], v->nb[2], v->type,
                bytes(mask), mask->nb[1], static_cast<float *>(op->data), static_cast<int>(q->ne[1]), static_cast<int>(q->ne[2]),
                static_cast<int>(k->ne[2]), static_cast<int>(k->ne[1]), static_cast<int>(k->ne[0]), static_cast<int>(v->ne[0]), 0.0f,
                cache_positions(k, k->ne[1]), 0};
    std::memcpy(&a.scale, op->op_params, sizeof a.scale);
    return a;
}

// A graph is planned before each of its evaluations, in which a mask stays as it is.
std::atomic<uint64_t> num_plans{1};

uint64_t seen_as(const ggml_tensor * mask) {
    thread_local uint64_t plan = 0, number = 0;
    thread_local const ggml_tensor * last = nullptr;
    if (plan != num_plans || last != mask) number++;
    plan = num_plans, last = mask;
    return number;
}

struct FewQueries : ggml::cpu::tensor_traits {
    bool work_size(int num_threads, const ggml_tensor * op, size_t & size) override {
        num_plans++;
        size = kernels->attention_scratch(describe(op), num_threads);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (params->ith == 0) num_attentions++;
        const auto barrier = [](void * pool) { ggml_barrier(static_cast<ggml_threadpool *>(pool)); };
        Attention a = describe(op);
        a.seen_as = seen_as(op->src[3]);
        kernels->attend(a, {params->ith, params->nth, static_cast<char *>(params->wdata), barrier, params->threadpool, &next_weights.soon});
        return true;
    }
} few_queries;

// Operations that ggml computes, looked at for the positions of the cells.
template <void (*note)(const ggml_tensor *)> struct Watch : ggml::cpu::tensor_traits {
    bool work_size(int, const ggml_tensor *, size_t &) override { return false; }
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (params->ith == 0) note(op);
        return false;
    }
};
Watch<note_positions> watch_rope;
Watch<note_cells>     watch_cells;

bool tells_positions(const ggml_tensor * op) {
    return take_attention && op->src[1]->type == GGML_TYPE_I32 && on_host(op->src[1]);
}

bool tells_cells(const ggml_tensor * op) {
    return take_attention && (op->type == GGML_TYPE_F16 || op->type == GGML_TYPE_Q8_0) && op->src[1]->type == GGML_TYPE_I64 &&
           op->ne[2] == 1 && op->ne[3] == 1 && ggml_nrows(op->src[1]) == 1 && on_host(op) && on_host(op->src[1]);
}

// ---- the buffer type ---------------------------------------------------------------------------

struct Registration : ggml::cpu::extra_buffer_type {
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        return take_weights && (is_product(op) || is_rows(op));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        next_weights.fetch();
        switch (op->op) {
            case GGML_OP_MUL_MAT: return is_product(op) ? &product : nullptr;
            case GGML_OP_GET_ROWS: return is_rows(op) ? &rows : nullptr;
            case GGML_OP_ROPE: return tells_positions(op) ? &watch_rope : nullptr;
            case GGML_OP_SET_ROWS: return tells_cells(op) ? &watch_cells : nullptr;
            case GGML_OP_FLASH_ATTN_EXT: return take_attention && is_attention(op) ? &few_queries : nullptr;
            default: return nullptr;
        }
    }
};

void set_tensor(ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    const Layout * layout = known_layout(t);
    const size_t group = layout ? group_bytes(*layout, t->ne[0]) : 1;  // equal to the bytes of 16 unpacked rows
    GGML_ASSERT(layout && offset % group == 0 && size % group == 0);
    pack_rows(*layout, t->ne[0], size / group * GROUP, data, static_cast<char *>(t->data) + offset);
}

// Weights and cache are read from end to end at every step: large pages spare the processor most of
// its page walks, which are dear in virtual machines.
ggml_backend_buffer_t with_large_pages(ggml_backend_buffer_t buffer) {
    constexpr uintptr_t PAGE = 2 << 20;
    if (!buffer || !buffer->size) return buffer;
    const auto base = reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(buffer));
    const uintptr_t first = (base + PAGE - 1) / PAGE * PAGE, last = (base + buffer->size) / PAGE * PAGE;
    if (first < last) madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);
    return buffer;
}

ggml_backend_buffer_t (*allocate_plain)(ggml_backend_buffer_type_t type, size_t size);

ggml_backend_buffer_t allocate_large(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = allocate_plain(type, size);
    return take_attention ? with_large_pages(buffer) : buffer;
}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = with_large_pages(ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size));
    if (buffer) {
        buffer->buft = type;
        buffer->iface.set_tensor = set_tensor;
        buffer->iface.get_tensor = nullptr;
        buffer->iface.cpy_tensor = nullptr;
    }
    return buffer;
}

ggml_backend_buffer_type_t buffer_type() {
    static Registration registration;
    static ggml_backend_buffer_type type = {
        {[](ggml_backend_buffer_type_t) { return "CPU_GORGON"; }, allocate, [](ggml_backend_buffer_type_t) -> size_t { return 64; }, nullptr, nullptr, nullptr},
        ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        &registration,
    };
    return &type;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Offer the kernels to ggml, before any model is loaded; returns the instruction set, or NULL when
// the processor runs none (or not the one asked for).
EXPORT const char * gorgon_kernels_register(const char * isa) {
    if (kernels) return kernels->name;
    kernels = find_kernels(isa);
    if (!kernels) return nullptr;
    auto & types = ggml_backend_cpu_get_extra_buffer_types();
    types.insert(types.begin(), buffer_type());
    auto & plain = ggml_backend_cpu_buffer_type()->iface;  // where the cache lies
    allocate_plain = plain.alloc_buffer;
    plain.alloc_buffer = allocate_large;
    return kernels->name;
}

// Raised whenever what the caller may rely on changes; 2: attention sums in the order of positions;
// 3: guesses are ranked here.
EXPORT int gorgon_kernels_interface() { return 7; }

const Kernels * registered_kernels() { return kernels; }

// What to take over from now on: weights of models loaded later, attention of steps computed later.
EXPORT void gorgon_kernels_take(bool weights, bool attention) {
    take_weights = weights;
    take_attention = attention;
}

// How many operations of each kind were computed so far.
EXPORT int64_t gorgon_kernels_num_products() { return num_products; }
EXPORT int64_t gorgon_kernels_num_attentions() { return num_attentions; }

// For tests: the kernels of any instruction set that this processor runs, and weights in our layout.
EXPORT const Kernels * gorgon_kernels_find(const char * isa) { return find_kernels(isa); }
EXPORT void gorgon_kernels_pack(int type, int64_t columns, int64_t rows, const void * src, void * dst) {
    pack_rows(*find_layout(type), columns, rows, src, dst);
}

// Whether a weight of `rows` x `columns` can lie in our buffer.
EXPORT bool gorgon_kernels_packs(int type, int64_t columns, int64_t rows) {
    const Layout * layout = find_layout(type);
    return kernels && take_weights && layout && columns % layout->columns == 0 && rows % GROUP == 0;
}

// The buffer type, for tensors that are placed by hand.
EXPORT ggml_backend_buffer_type_t gorgon_kernels_buffer_type() {
    return kernels ? buffer_type() : nullptr;
}
