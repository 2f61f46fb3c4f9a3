#define GORGON_ISA 512
#include "kernels.inc"
#include "attention.inc"
#include "sampling.inc"

const Kernels KERNELS_AVX512 = {"avx512", quantize, multiply, unpack, attention_scratch, attend, likeliest, bound, best_of};
