#define GORGON_ISA 257
#include "kernels.inc"
#include "attention.inc"
#include "sampling.inc"

const Kernels KERNELS_AVXVNNI = {"avxvnni", quantize, multiply, unpack, attention_scratch, attend, likeliest, bound, best_of};
