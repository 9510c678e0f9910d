/* Few queries, as in a step of decoding: keys and values are read as they lie, once for all heads that share them, in
 * parts that run side by side and are joined at the end (Flash-Decoding, Dao et al. 2023). */
#include "few.h"

#include <math.h>
#include <stdalign.h>
#include <string.h>

#include "rows.h"
#include "vector.h"

#define MOST_PART 256
#define WIDE (LANES / 4) /* vectors of a row's sums that are in registers beside those of three others */
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

/* scores [rows, MOST_PART] of queries [rows, dim] and `count` keys; up to three more columns are written */
static inline __attribute__((always_inline)) void dots(
    int rows, const float *queries, const float *keys, int64_t count, int64_t dim, float *scores
) {
    for (int64_t n = 0; n < count; n += 4) {
        const float *key[4];
        for (int j = 0; j < 4; j++) key[j] = keys + least(n + j, count - 1) * dim;
        /* As many keys at once as there are registers for sums: four, or two and two. */
        Vector sum[4][4];
        for (int first = 0; first < 4; first += LANES / 4) {
            for (int r = 0; r < rows; r++)
                for (int j = first; j < first + LANES / 4; j++) sum[r][j] = splat(0);
            for (int64_t i = 0; i < dim; i += LANES)
                for (int r = 0; r < rows; r++) {
                    const Vector query = load(queries + r * dim + i);
                    for (int j = first; j < first + LANES / 4; j++) sum[r][j] = times_add(query, load(key[j] + i), sum[r][j]);
                }
        }
        for (int r = 0; r < rows; r++)
            _mm_storeu_ps(scores + r * MOST_PART + n, sums4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
    }
}

/* sums [rows, width of dim] = weights [rows, count] values; width is LANES * vectors */
static inline __attribute__((always_inline)) void mix(
    int rows, int vectors, const float *weights, const float *values, int64_t count, int64_t dim, float *sums
) {
    Vector sum[4][WIDE];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < vectors; j++) sum[r][j] = splat(0);
    for (int64_t n = 0; n < count; n++) {
        Vector value[WIDE];
        for (int j = 0; j < vectors; j++) value[j] = load(values + n * dim + j * LANES);
        for (int r = 0; r < rows; r++) {
            const Vector weight = splat(weights[r * MOST_PART + n]);
            for (int j = 0; j < vectors; j++) sum[r][j] = times_add(weight, value[j], sum[r][j]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < vectors; j++) store(sums + r * dim + j * LANES, sum[r][j]);
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
    for (; i + WIDE * LANES <= dim; i += WIDE * LANES)
        mix(rows, WIDE, scores, call->values + at + i, end - begin, dim, sums + i);
    for (; i < dim; i += 2 * LANES) mix(rows, 2, scores, call->values + at + i, end - begin, dim, sums + i);
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
