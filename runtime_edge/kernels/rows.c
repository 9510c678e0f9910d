/* What is done to a row of a head or of scores: rotation, softmax. */
#include "attention.h"

#define LOG2_E 1.4426950408889634f

void rotate(const Call *call, const float *from, float *to, int64_t position, float scale) {
    const int64_t half = call->turned / 2;
    const float *cosines = call->cosines + position * half, *sines = call->sines + position * half;
    if (call->turned && call->op->interleaved) {
        for (int64_t i = 0; i < half; i++) {
            const float a = from[2 * i], b = from[2 * i + 1];
            to[2 * i] = scale * (a * cosines[i] - b * sines[i]);
            to[2 * i + 1] = scale * (a * sines[i] + b * cosines[i]);
        }
    } else {
        const __m512 s = _mm512_set1_ps(scale);
        for (int64_t i = 0; i < half; i += 16) {
            const __mmask16 lanes = first_lanes(half - i);
            const __m512 a = _mm512_maskz_loadu_ps(lanes, from + i), b = _mm512_maskz_loadu_ps(lanes, from + half + i);
            const __m512 c = _mm512_maskz_loadu_ps(lanes, cosines + i), d = _mm512_maskz_loadu_ps(lanes, sines + i);
            _mm512_mask_storeu_ps(to + i, lanes, _mm512_mul_ps(s, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, d))));
            _mm512_mask_storeu_ps(to + half + i, lanes, _mm512_mul_ps(s, _mm512_fmadd_ps(a, d, _mm512_mul_ps(b, c))));
        }
    }
    for (int64_t i = call->turned; i < call->dim; i++) to[i] = scale * from[i];
}

/* 2^x to 2e-7 of itself: the series of 2^f, |f| <= 1/2, and an exponent. */
static inline __m512 exp2_of(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.5403530e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3333558e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

float soften(const Attention *op, float *scores, int64_t begin, int64_t end, int64_t width, Seen *seen) {
    if (begin >= end) {
        memset(scores, 0, (size_t)width * sizeof(float));
        return 1;
    }
    if (op->softcap > 0)
        for (int64_t i = begin; i < end; i++) scores[i] = op->softcap * tanhf(scores[i] / op->softcap);
    const int64_t start = begin / 16 * 16;
    const __mmask16 after = (__mmask16)(0xffffu << (begin - start));
    __m512 greatest = _mm512_set1_ps(-INFINITY);
    for (int64_t i = start; i < end; i += 16) {
        const __mmask16 lanes = first_lanes(end - i) & (i == start ? after : 0xffff);
        greatest = _mm512_mask_max_ps(greatest, lanes, greatest, _mm512_loadu_ps(scores + i));
    }
    const float before = seen->most, now = fmaxf(before, _mm512_reduce_max_ps(greatest));
    const __m512 log2_e = _mm512_set1_ps(LOG2_E), less = _mm512_set1_ps(-now * LOG2_E);
    __m512 sum = _mm512_setzero_ps();
    memset(scores, 0, (size_t)start * sizeof(float));
    int64_t i = start;
    for (; i < end; i += 16) {
        const __mmask16 lanes = first_lanes(end - i) & (i == start ? after : 0xffff);
        const __m512 weight = _mm512_maskz_mov_ps(lanes, exp2_of(_mm512_fmadd_ps(_mm512_loadu_ps(scores + i), log2_e, less)));
        sum = _mm512_add_ps(sum, weight);
        _mm512_storeu_ps(scores + i, weight);
    }
    memset(scores + i, 0, (size_t)(width - i) * sizeof(float));
    const float factor = before == -INFINITY ? 0 : expf(before - now);
    seen->most = now;
    seen->sum = seen->sum * factor + _mm512_reduce_add_ps(sum);
    return factor;
}
