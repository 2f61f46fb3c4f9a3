// Which kernels this processor runs.
#include "kernels.h"

#include <cstring>
#include <initializer_list>

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

}  // namespace

const Kernels * find_kernels(const char * name) {
    const bool any = !name || !*name;
    for (const Kernels * kernels : {&KERNELS_AVX512, &KERNELS_AVXVNNI, &KERNELS_AVX2})
        if ((any || std::strcmp(name, kernels->name) == 0) && runs(*kernels)) return kernels;
    return nullptr;
}
