#define GORGON_ISA 256
#include "kernels.inc"
#include "attention.inc"
#include "sampling.inc"

const Kernels KERNELS_AVX2 = {"avx2", quantize, multiply, unpack, attention_scratch, attend, likeliest, bound, best_of};
