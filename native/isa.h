// The only place with intrinsics: vectors of LANES floats or ints, for the instruction set that
// GORGON_ISA names (512: AVX-512 VNNI, 257: AVX2 with AVX-VNNI, 256: AVX2). Everything is local to
// the including file, so that the linker can never mix code of two instruction sets.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

#define INLINE inline __attribute__((always_inline))

INLINE void fetch(const void * p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }
INLINE void fetch_once(const void * p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_NTA); }  // keeps other caches as they are
INLINE void fetch_far(const void * p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T1); }  // into the L2 cache

#if GORGON_ISA == 512

#define VECTOR(name) _mm512_##name
constexpr int LANES = 16;
using Floats = __m512;
using Ints = __m512i;  // 16 x i32, or 64 bytes
using HalfVector = __m256i_u;  // anywhere in memory

INLINE __m128i quarter(const void * p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }
INLINE __m256i to_bytes(const Ints a[2]) { return _mm256_set_m128i(_mm512_cvtepi32_epi8(a[1]), _mm512_cvtepi32_epi8(a[0])); }
INLINE uint32_t lanes_above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }  // a bit each
INLINE Ints choose(int8_t mask, Ints a, Ints b) { return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi8(mask), 0xE4); }  // a's bits where mask has some, else b's
INLINE Floats zero_if_below(Floats x, float limit, Floats y) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GE_OQ), y); }
INLINE void store_quarters(uint16_t * p, int stride, Ints a) {  // 16 bytes each
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_castsi512_si128(a));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p + stride), _mm512_extracti32x4_epi32(a, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p + 2 * stride), _mm512_extracti32x4_epi32(a, 2));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p + 3 * stride), _mm512_extracti32x4_epi32(a, 3));
}

#else

#define VECTOR(name) _mm256_##name
constexpr int LANES = 8;
using Floats = __m256;
using Ints = __m256i;  // 8 x i32, or 32 bytes
using HalfVector = __m128i_u;

INLINE __m128i quarter(const void * p) { return _mm_loadl_epi64(static_cast<const __m128i *>(p)); }
INLINE __m256i to_bytes(const Ints a[4]) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a[0], a[1]), _mm256_packs_epi32(a[2], a[3]));  // fours, of low halves first
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
INLINE uint32_t lanes_above(Floats a, Floats b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
INLINE Ints choose(int8_t mask, Ints a, Ints b) { return (a & _mm256_set1_epi8(mask)) | _mm256_andnot_si256(_mm256_set1_epi8(mask), b); }
INLINE Floats zero_if_below(Floats x, float limit, Floats y) { return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_GE_OQ), y); }
INLINE void store_quarters(uint16_t * p, int stride, Ints a) {  // of which there are two
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_castsi256_si128(a));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p + stride), _mm256_extracti128_si256(a, 1));
}

#endif

INLINE Floats zero() { return VECTOR(setzero_ps)(); }
INLINE Floats all(float x) { return VECTOR(set1_ps)(x); }
INLINE Floats load(const float * p) { return VECTOR(loadu_ps)(p); }
INLINE void store(float * p, Floats x) { VECTOR(storeu_ps)(p, x); }
INLINE Floats fma(Floats a, Floats b, Floats c) { return VECTOR(fmadd_ps)(a, b, c); }
INLINE Floats max(Floats a, Floats b) { return VECTOR(max_ps)(a, b); }
INLINE Floats abs(Floats a) { return VECTOR(andnot_ps)(all(-0.0f), a); }
INLINE Floats to_floats(Ints a) { return VECTOR(cvtepi32_ps)(a); }
INLINE Ints to_ints(Floats a) { return VECTOR(cvtps_epi32)(a); }
INLINE Floats load_f16(const void * p) { return VECTOR(cvtph_ps)(*static_cast<const HalfVector *>(p)); }
INLINE Floats load_i8(const void * p) { return to_floats(VECTOR(cvtepi8_epi32)(quarter(p))); }
INLINE Floats load_i16(const void * p) { return to_floats(VECTOR(cvtepi16_epi32)(*static_cast<const HalfVector *>(p))); }
INLINE Ints load_u8(const void * p) { return VECTOR(cvtepu8_epi32)(quarter(p)); }
INLINE Ints i8_to_i16(const void * p) { return VECTOR(cvtepi8_epi16)(*static_cast<const HalfVector *>(p)); }

INLINE Ints all(int32_t x) { return VECTOR(set1_epi32)(x); }
INLINE Ints load_bytes(const void * p) { Ints a; __builtin_memcpy(&a, p, sizeof a); return a; }
INLINE Ints bits(Ints a, int mask) { return a & VECTOR(set1_epi8)(static_cast<char>(mask)); }
INLINE Ints either(Ints a, Ints b) { return a | b; }
INLINE Ints plus(Ints a, Ints b) { return VECTOR(add_epi32)(a, b); }
template <int N> INLINE Ints right(Ints a) { return N > 0 ? VECTOR(srli_epi16)(a, N) : VECTOR(slli_epi16)(a, -N); }  // then bits()

template <int N> INLINE Ints divided(Ints a) { return VECTOR(srai_epi32)(a, N); }  // by 2^N, of which it is a multiple

// which of the 16 halves at p are not `value`, a bit each
INLINE uint32_t differ16(const void * p, uint16_t value) {
    const __m256i equal = _mm256_cmpeq_epi16(_mm256_loadu_si256(static_cast<const __m256i *>(p)), _mm256_set1_epi16(static_cast<short>(value)));
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(equal), _mm256_extracti128_si256(equal, 1));
    return ~_mm_movemask_epi8(bytes) & 0xFFFF;
}

// 8 x 2 LANES: out[j * stride + i] = 16 bits number j of read(i)
template <class Read> INLINE void transpose(const Read & read, uint16_t * out, int stride) {
    Ints a[8], b[8];  // three times the number of rows whose parts lie side by side doubles
    for (int i = 0; i < 8; i++) a[i] = read(i);
    for (int i = 0; i < 8; i += 2) {
        b[i] = VECTOR(unpacklo_epi16)(a[i], a[i + 1]);
        b[i + 1] = VECTOR(unpackhi_epi16)(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = VECTOR(unpacklo_epi32)(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = VECTOR(unpackhi_epi32)(b[i + j], b[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        b[2 * i] = VECTOR(unpacklo_epi64)(a[i], a[i + 4]);
        b[2 * i + 1] = VECTOR(unpackhi_epi64)(a[i], a[i + 4]);
    }
    for (int i = 0; i < 8; i++) store_quarters(out + i * stride, 8 * stride, b[i]);
}

INLINE float half(const void * p) {
    uint16_t bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return _cvtsh_ss(bits);
}

// always in the same order
INLINE float sum(__m256 a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
INLINE float largest(__m256 a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
#if GORGON_ISA == 512
INLINE float sum(__m512 a) { return sum(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1))); }
INLINE float largest(__m512 a) { return largest(_mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1))); }
#endif

INLINE void store(int8_t * p, __m256i bytes) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), bytes); }

// of 32 signed bytes: the sums of the first and of the second 16
INLINE void sum_halves(__m256i bytes, int & first, int & second) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    __m256i x = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    x = _mm256_add_epi32(x, _mm256_shuffle_epi32(x, 0x4e));
    x = _mm256_add_epi32(x, _mm256_shuffle_epi32(x, 0xb1));
    first = _mm256_cvtsi256_si32(x);
    second = _mm_cvtsi128_si32(_mm256_extracti128_si256(x, 1));
}

using FourBytes __attribute__((may_alias)) = int32_t;  // read in place: a broadcast from memory costs nothing

// Makes the compiler compute here and now, and once. It would like to add in pairs and run out of registers,
// or to read again what it could keep.
INLINE void keep(Ints & a) { __asm__("" : "+v"(a)); }

// Dot products, in each lane, of the planes of a block (4 weights a lane, unsigned, at most LARGEST)
// and the 4 activations that go with each plane. Integers all the way: exact in any order.
#if GORGON_ISA == 512 || GORGON_ISA == 257

constexpr bool PLANE_BY_PLANE = false;

template <int LARGEST> struct Dots {
    Ints sum;
    INLINE void start(int32_t from) { sum = all(from); }
    INLINE void add(int, Ints weights, const FourBytes & x) {
#    if GORGON_ISA == 512  // GCC's intrinsic would take a register, and an instruction, to broadcast x
        __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(x));
#    else
        sum = _mm256_dpbusd_avx_epi32(sum, weights, all(x));
#    endif
    }
};

#else

// AVX2 multiplies into 16 bits, two products added, and stops at their limits. So many planes are
// added before they are widened as can never get there: 8 of 4 bits, 4 of 5 bits, 2 of 6 bits.
constexpr bool PLANE_BY_PLANE = true;

INLINE Ints widen(Ints a, int factor = 1) { return _mm256_madd_epi16(a, _mm256_set1_epi16(static_cast<short>(factor))); }

template <int LARGEST> struct Dots {
    static constexpr int PLANES = 32767 / (LARGEST * 127 * 2);
    Ints sum, words;
    // plane number i of this sum, from 0 on without a gap
    INLINE void add(int i, Ints weights, const FourBytes & x) {
        const Ints p = _mm256_maddubs_epi16(weights, all(x));
        words = i % PLANES == 0 ? p : _mm256_add_epi16(words, p);
        keep(words);
        if (i % PLANES == PLANES - 1) sum = i < PLANES ? widen(words) : plus(sum, widen(words));
    }
};

// 8 bits are two times 4 bits
template <> struct Dots<255> {
    Ints sum, low, high;
    INLINE void add(int i, Ints weights, const FourBytes & x) {
        const Ints p = _mm256_maddubs_epi16(bits(weights, 15), all(x)), q = _mm256_maddubs_epi16(bits(right<4>(weights), 15), all(x));
        low = i == 0 ? p : _mm256_add_epi16(low, p);
        high = i == 0 ? q : _mm256_add_epi16(high, q);
        keep(low), keep(high);
        if (i == 7) sum = plus(widen(low), widen(high, 16));
    }
};

#endif

// 2^x for x from -0.5 to 0.5 (minimax polynomial)
INLINE Floats exp2_fraction(Floats x) {
    Floats p = all(1.5353362e-4f);
    p = fma(p, x, all(1.33988739e-3f));
    p = fma(p, x, all(9.61843692e-3f));
    p = fma(p, x, all(5.55033237e-2f));
    p = fma(p, x, all(2.40226477e-1f));
    p = fma(p, x, all(6.93147182e-1f));
    return fma(p, x, all(1.0f));
}

constexpr float LOG2_E = 1.44269504f, ROUND = 12582912.0f;  // x + ROUND: its last bits are x as an integer

// a * 2^n for n + ROUND, as long as that is a normal number
INLINE Floats times_power_of_two(Floats a, Floats n) {
    return reinterpret_cast<Floats>(plus(reinterpret_cast<Ints>(a), VECTOR(slli_epi32)(reinterpret_cast<Ints>(n), 23)));
}

// e^x for x <= 0, relative error about 1e-7; 0 below -87
INLINE Floats exp_negative(Floats x) {
    const Floats safe = max(x, all(-88.0f)), rounded = fma(safe, all(LOG2_E), all(ROUND)), n = rounded - all(ROUND);
    const Floats rest = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), safe));
    return zero_if_below(x, -87.0f, times_power_of_two(exp2_fraction(rest * all(LOG2_E)), rounded));
}

// 2^x for x <= 0, relative error below 1e-7; never below 2^-126
INLINE Floats exp2_negative(Floats x) {
    const Floats safe = max(x, all(-126.0f)), rounded = safe + all(ROUND);
    return times_power_of_two(exp2_fraction(safe - (rounded - all(ROUND))), rounded);
}

}  // namespace
