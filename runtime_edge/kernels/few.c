/* Few queries, as in a step of decoding: keys and values are read as they lie, once for all heads that share them, in
 * parts that run side by side and are joined at the end (Flash-Decoding, Dao et al. 2023). */
#include <stdalign.h>

#include "attention.h"

#define MOST_PART 256
#define TASKS 8 /* that a call is cut into, where parts are not too small */

void plan_few(Call *call) {
    call->first = first_seen(call->op, call->past);
    const int64_t keys = call->total - call->first;
    call->part = most(32, least(MOST_PART, up32((keys * call->op->kv_heads + TASKS - 1) / TASKS)));
    call->part_count = (keys + call->part - 1) / call->part;
}

static int64_t shared_rows(const Call *call) { return call->op->heads / call->op->kv_heads * call->length; }

int64_t few_floats(const Call *call) {
    return call->op->kv_heads * call->part_count * shared_rows(call) * (call->dim + 2);
}

static inline float *sums_of(const Call *call, int64_t task) {
    return call->parts + task * shared_rows(call) * (call->dim + 2);
}

/* Sums of the lanes of four vectors. */
static inline __m128 sums4(const __m512 *v) {
    __m256 half[4];
    for (int i = 0; i < 4; i++)
        half[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

/* scores [rows, MOST_PART] of queries [rows, dim] and `count` keys; up to three more columns are written */
static inline __attribute__((always_inline)) void dots(
    int rows, const float *queries, const float *keys, int64_t count, int64_t dim, float *scores
) {
    for (int64_t n = 0; n < count; n += 4) {
        const float *key[4];
        for (int j = 0; j < 4; j++) key[j] = keys + least(n + j, count - 1) * dim;
        __m512 sum[4][4];
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < 4; j++) sum[r][j] = _mm512_setzero_ps();
        for (int64_t i = 0; i < dim; i += 16)
            for (int r = 0; r < rows; r++) {
                const __m512 query = _mm512_loadu_ps(queries + r * dim + i);
                for (int j = 0; j < 4; j++) sum[r][j] = _mm512_fmadd_ps(query, _mm512_loadu_ps(key[j] + i), sum[r][j]);
            }
        for (int r = 0; r < rows; r++) _mm_storeu_ps(scores + r * MOST_PART + n, sums4(sum[r]));
    }
}

/* sums [rows, width of dim] = weights [rows, count] values; width is 16 * vectors */
static inline __attribute__((always_inline)) void mix(
    int rows, int vectors, const float *weights, const float *values, int64_t count, int64_t dim, float *sums
) {
    __m512 sum[4][4];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < vectors; j++) sum[r][j] = _mm512_setzero_ps();
    for (int64_t n = 0; n < count; n++) {
        __m512 value[4];
        for (int j = 0; j < vectors; j++) value[j] = _mm512_loadu_ps(values + n * dim + j * 16);
        for (int r = 0; r < rows; r++) {
            const __m512 weight = _mm512_set1_ps(weights[r * MOST_PART + n]);
            for (int j = 0; j < vectors; j++) sum[r][j] = _mm512_fmadd_ps(weight, value[j], sum[r][j]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < vectors; j++) _mm512_storeu_ps(sums + r * dim + j * 16, sum[r][j]);
}

/* One to four rows, of a count that the compiler knows. */
static inline __attribute__((always_inline)) void attend_rows(
    int rows, const Call *call, int64_t kv_head, int64_t row, int64_t begin, int64_t end, float *sums, Seen *seen
) {
    alignas(64) float scores[4 * MOST_PART];
    const int64_t dim = call->dim, at = (kv_head * call->capacity + begin) * dim;
    const float *queries = call->turned_queries + (kv_head * shared_rows(call) + row) * dim;
    dots(rows, queries, call->keys + at, end - begin, dim, scores);
    for (int r = 0; r < rows; r++) {
        const int64_t position = call->past + (row + r) % call->length;
        const int64_t from = most(0, first_seen(call->op, position) - begin), to = least(end, position + 1) - begin;
        seen[r] = (Seen){-INFINITY, 0};
        soften(call->op, scores + r * MOST_PART, from, to, call->part, seen + r);
    }
    int64_t i = 0;
    for (; i + 64 <= dim; i += 64) mix(rows, 4, scores, call->values + at + i, end - begin, dim, sums + i);
    for (; i < dim; i += 32) mix(rows, 2, scores, call->values + at + i, end - begin, dim, sums + i);
}

void attend_few(void *argument, size_t task) {
    const Call *call = argument;
    const int64_t kv_head = (int64_t)task / call->part_count, part = (int64_t)task % call->part_count;
    const int64_t begin = call->first + part * call->part, end = least(call->total, begin + call->part);
    const int64_t rows = shared_rows(call);
    float *sums = sums_of(call, (int64_t)task);
    Seen *seen = (Seen *)(sums + rows * call->dim);
    for (int64_t row = 0; row < rows; row += 4) {
        float *to = sums + row * call->dim;
        switch (least(4, rows - row)) {
            case 1: attend_rows(1, call, kv_head, row, begin, end, to, seen + row); break;
            case 2: attend_rows(2, call, kv_head, row, begin, end, to, seen + row); break;
            case 3: attend_rows(3, call, kv_head, row, begin, end, to, seen + row); break;
            default: attend_rows(4, call, kv_head, row, begin, end, to, seen + row);
        }
    }
}

void join_few(const Call *call) {
    const Attention *op = call->op;
    const int64_t dim = call->dim, shared = shared_rows(call);
    for (int64_t head = 0; head < op->heads; head++)
        for (int64_t token = 0; token < call->length; token++) {
            const int64_t kv_head = head * op->kv_heads / op->heads;
            const int64_t row = head * call->length + token - kv_head * shared;
            float *to = call->output + (token * op->heads + head) * dim;
            float greatest = call->sinks ? call->sinks[head] : -INFINITY, sum = 0;
            for (int64_t part = 0; part < call->part_count; part++) {
                const Seen *seen = (const Seen *)(sums_of(call, kv_head * call->part_count + part) + shared * dim) + row;
                greatest = fmaxf(greatest, seen->most);
            }
            memset(to, 0, (size_t)dim * sizeof(float));
            if (call->sinks) sum = expf(call->sinks[head] - greatest);
            for (int64_t part = 0; part < call->part_count; part++) {
                const float *sums = sums_of(call, kv_head * call->part_count + part);
                const Seen *seen = (const Seen *)(sums + shared * dim) + row;
                const float factor = expf(seen->most - greatest);
                sum += factor * seen->sum;
                for (int64_t i = 0; i < dim; i++) to[i] += factor * sums[row * dim + i];
            }
            for (int64_t i = 0; i < dim; i++) to[i] /= sum;
        }
}
