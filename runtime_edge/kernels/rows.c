/* What is done to a row of a head or of scores: rotation, softmax. */
#include "rows.h"

#include <math.h>
#include <string.h>

#include "vector.h"

#define LOG2_E 1.4426950408889634f

void rotate(const Call *call, const float *from, float *to, int64_t position, float scale) {
    const int64_t half = call->turned / 2;
    const float *cosines = half ? call->cosines + position * half : NULL; /* without rotation there are no tables */
    const float *sines = half ? call->sines + position * half : NULL;
    if (half && call->op->interleaved) {
        for (int64_t i = 0; i < half; i++) {
            const float a = from[2 * i], b = from[2 * i + 1];
            to[2 * i] = scale * (a * cosines[i] - b * sines[i]);
            to[2 * i + 1] = scale * (a * sines[i] + b * cosines[i]);
        }
    } else {
        const Vector s = splat(scale);
        for (int64_t i = 0; i < half; i += LANES) {
            const int64_t left = half - i;
            const Vector a = load_first(from + i, left), b = load_first(from + half + i, left);
            const Vector c = load_first(cosines + i, left), d = load_first(sines + i, left);
            store_first(to + i, times(s, times_less(a, c, times(b, d))), left);
            store_first(to + half + i, times(s, times_add(a, d, times(b, c))), left);
        }
    }
    for (int64_t i = call->turned; i < call->dim; i++) to[i] = scale * from[i];
}

/* 2^x to 2e-7 of itself: the series of 2^f, |f| <= 1/2, and an exponent. */
static inline Vector exp2_of(Vector x) {
    const Vector whole = rounded(x), f = times_add(whole, splat(-1), x);
    Vector p = splat(1.5403530e-4f);
    p = times_add(p, f, splat(1.3333558e-3f));
    p = times_add(p, f, splat(9.6181291e-3f));
    p = times_add(p, f, splat(5.5504109e-2f));
    p = times_add(p, f, splat(2.4022651e-1f));
    p = times_add(p, f, splat(6.9314718e-1f));
    p = times_add(p, f, splat(1.0f));
    return scaled(p, whole);
}

float soften(const Attention *op, float *scores, int64_t begin, int64_t end, int64_t width, Seen *seen) {
    if (begin >= end) {
        memset(scores, 0, (size_t)width * sizeof(float));
        return 1;
    }
    if (op->softcap > 0)
        for (int64_t i = begin; i < end; i++) scores[i] = op->softcap * tanhf(scores[i] / op->softcap);
    const int64_t start = begin / LANES * LANES;
    Vector most = splat(-INFINITY);
    for (int64_t i = start; i < end; i += LANES) {
        const Vector score = load(scores + i);
        most = greater(most, begin <= i && i + LANES <= end ? score : kept(score, begin - i, end - i, most));
    }
    const float before = seen->most, now = fmaxf(before, greatest_of(most));
    const Vector log2_e = splat(LOG2_E), less = splat(-now * LOG2_E), zero = splat(0);
    Vector sum = zero;
    memset(scores, 0, (size_t)start * sizeof(float));
    int64_t i = start;
    for (; i < end; i += LANES) {
        Vector weight = exp2_of(times_add(load(scores + i), log2_e, less));
        if (i < begin || i + LANES > end) weight = kept(weight, begin - i, end - i, zero);
        sum = add(sum, weight);
        store(scores + i, weight);
    }
    memset(scores + i, 0, (size_t)(width - i) * sizeof(float));
    const float factor = before == -INFINITY ? 0 : expf(before - now);
    seen->most = now;
    seen->sum = seen->sum * factor + sum_of(sum);
    return factor;
}
