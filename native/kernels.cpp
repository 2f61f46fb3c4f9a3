// Which kernels this processor runs, and the plain reference of attention.
#include "kernels.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

bool runs(const Kernels & kernels) {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (&kernels == &KERNELS_AVX512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    if (&kernels == &KERNELS_AVXVNNI) {
        unsigned eax, ebx, ecx, edx;
        __asm__("cpuid" : "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(7), "c"(1));
        return avx2 && (eax >> 4 & 1);
    }
    return avx2;
}

void cache_row(int type, const char * src, int dim, std::vector<double> & out) {
    for (int d = 0; d < dim; d++) {
        uint16_t half;
        if (type == GGML_TYPE_F16) {
            std::memcpy(&half, src + 2 * d, 2);
            out[d] = f16_to_f32(half);
        } else {
            const char * block = src + d / 32 * 34;
            std::memcpy(&half, block, 2);
            out[d] = f16_to_f32(half) * static_cast<double>(static_cast<int8_t>(block[2 + d % 32]));
        }
    }
}

}  // namespace

const Kernels * find_kernels(const char * name) {
    const bool any = !name || !*name;
    for (const Kernels * kernels : {&KERNELS_AVX512, &KERNELS_AVXVNNI, &KERNELS_AVX2})
        if ((any || std::strcmp(name, kernels->name) == 0) && runs(*kernels)) return kernels;
    return nullptr;
}

void attend_reference(const Attention & a) {
    std::vector<double> key(a.dim_k), value(a.dim_v), out(a.dim_v), scores(a.num_cells);
    for (int i = 0; i < a.num_queries; i++)
        for (int h = 0; h < a.num_heads; h++) {
            const int kv = h / (a.num_heads / a.num_kv_heads);
            auto * q = reinterpret_cast<const float *>(a.q + i * a.q_query + h * a.q_head);
            auto * mask = reinterpret_cast<const uint16_t *>(a.mask + i * a.mask_query);
            double most = -INFINITY, sum = 0;
            for (int c = 0; c < a.num_cells; c++) {
                scores[c] = f16_to_f32(mask[c]);
                if (std::isinf(scores[c])) continue;
                cache_row(a.k_type, a.k + c * a.k_cell + kv * a.k_head, a.dim_k, key);
                double dot = 0;
                for (int d = 0; d < a.dim_k; d++) dot += q[d] * key[d];
                scores[c] += dot * a.scale;
                most = std::max(most, scores[c]);
            }
            std::fill(out.begin(), out.end(), 0.0);
            for (int c = 0; c < a.num_cells; c++) {
                if (std::isinf(scores[c])) continue;
                cache_row(a.v_type, a.v + c * a.v_cell + kv * a.v_head, a.dim_v, value);
                const double p = std::exp(scores[c] - most);
                sum += p;
                for (int d = 0; d < a.dim_v; d++) out[d] += p * value[d];
            }
            for (int d = 0; d < a.dim_v; d++)
                a.out[(static_cast<size_t>(i) * a.num_heads + h) * a.dim_v + d] = sum > 0 ? static_cast<float>(out[d] / sum) : 0.0f;
        }
}
