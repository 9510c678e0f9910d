/* Vectors of float32 of the CPU that a file is compiled for: 16 lanes of AVX-512, or 8 of AVX2. */
#ifndef LEPTON_VECTOR_H
#define LEPTON_VECTOR_H

#include <immintrin.h>
#include <stdint.h>

#ifdef __AVX512F__

#define LANES 16
typedef __m512 Vector;

static inline __mmask16 first_lanes(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

/* 0, step, 2 step, ... */
static inline __m512i multiples(int64_t step) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)step));
}

static inline Vector splat(float x) { return _mm512_set1_ps(x); }
static inline Vector load(const float *from) { return _mm512_loadu_ps(from); }
static inline void store(float *to, Vector v) { _mm512_storeu_ps(to, v); }
static inline Vector load_first(const float *from, int64_t count) {
    return _mm512_maskz_loadu_ps(first_lanes(count), from);
}
static inline void store_first(float *to, Vector v, int64_t count) { _mm512_mask_storeu_ps(to, first_lanes(count), v); }
static inline Vector load_every(const float *from, int64_t step) {
    return _mm512_i32gather_ps(multiples(step), from, 4);
}
static inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
static inline Vector times(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
static inline Vector times_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vector times_less(Vector a, Vector b, Vector c) { return _mm512_fmsub_ps(a, b, c); }
static inline Vector greater(Vector a, Vector b) { return _mm512_max_ps(a, b); }
static inline Vector rounded(Vector v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline Vector scaled(Vector v, Vector exponent) { return _mm512_scalef_ps(v, exponent); } /* v 2^exponent */
static inline float sum_of(Vector v) { return _mm512_reduce_add_ps(v); }
static inline float greatest_of(Vector v) { return _mm512_reduce_max_ps(v); }
/* Lanes from `begin` to `end` are kept, others are those of `other`. */
static inline Vector kept(Vector v, int64_t begin, int64_t end, Vector other) {
    return _mm512_mask_mov_ps(other, first_lanes(end) & (__mmask16)~first_lanes(begin), v);
}
static inline __m256 halved(Vector v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); }

#else

#define LANES 8
typedef __m256 Vector;

static inline __m256i lanes_from(int64_t begin, int64_t end) {
    const __m256i at = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i first = _mm256_set1_epi32(begin < 0 ? 0 : begin > 8 ? 8 : (int)begin);
    const __m256i last = _mm256_set1_epi32(end < 0 ? 0 : end > 8 ? 8 : (int)end);
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(first, at), _mm256_cmpgt_epi32(last, at));
}

static inline Vector splat(float x) { return _mm256_set1_ps(x); }
static inline Vector load(const float *from) { return _mm256_loadu_ps(from); }
static inline void store(float *to, Vector v) { _mm256_storeu_ps(to, v); }
static inline Vector load_first(const float *from, int64_t count) { return _mm256_maskload_ps(from, lanes_from(0, count)); }
static inline void store_first(float *to, Vector v, int64_t count) { _mm256_maskstore_ps(to, lanes_from(0, count), v); }
static inline Vector load_every(const float *from, int64_t step) {
    const int next = (int)step;
    const __m256i at = _mm256_set_epi32(7 * next, 6 * next, 5 * next, 4 * next, 3 * next, 2 * next, next, 0);
    return _mm256_i32gather_ps(from, at, 4);
}
static inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
static inline Vector times(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
static inline Vector times_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vector times_less(Vector a, Vector b, Vector c) { return _mm256_fmsub_ps(a, b, c); }
static inline Vector greater(Vector a, Vector b) { return _mm256_max_ps(a, b); }
static inline Vector rounded(Vector v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* v 2^exponent of whole exponents; what would be below the least normal number is zero. */
static inline Vector scaled(Vector v, Vector exponent) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127));
    const __m256 factor = _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    return _mm256_and_ps(_mm256_mul_ps(v, factor), _mm256_castsi256_ps(_mm256_cmpgt_epi32(biased, _mm256_setzero_si256())));
}
static inline Vector kept(Vector v, int64_t begin, int64_t end, Vector other) {
    return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(lanes_from(begin, end)));
}
static inline __m256 halved(Vector v) { return v; }
static inline float sum_of(Vector v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_hadd_ps(sum, sum);
    return _mm_cvtss_f32(_mm_hadd_ps(sum, sum));
}
static inline float greatest_of(Vector v) {
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

#endif

/* Sums of the lanes of four vectors. */
static inline __m128 sums4(Vector a, Vector b, Vector c, Vector d) {
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(halved(a), halved(b)), _mm256_hadd_ps(halved(c), halved(d)));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

#endif
