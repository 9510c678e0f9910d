/* Many queries in float32. */
#include "many.h"

#include "blocks.h"
#include "vector.h"

#define HIGH (LANES / 2)  /* rows of a product whose sums are in registers, two vectors each */
#define ACROSS (2 * LANES)

int64_t packed_bytes(const Call *call) {
    /* Keys in float32, or keys and values in half of it each. */
    return up32(call->total) * call->dim * call->op->kv_heads * (int64_t)sizeof(float);
}

/* Features by 32 keys; values are read as they lie. */
static void pack(const Call *call, int64_t head, int64_t block, const float *const *keys, const float *const *values) {
    (void)values;
    const int64_t dim = call->dim;
    float *to = (float *)call->packed_keys + (head * up32(call->total) + block * 32) * dim;
    if (block * 32 + 32 <= call->total) { /* all rows are in the cache */
        for (int64_t i = 0; i < dim; i++)
            for (int64_t n = 0; n < 32; n += LANES) store(to + i * 32 + n, load_every(keys[n] + i, dim));
    } else {
        for (int64_t i = 0; i < dim; i++)
            for (int64_t n = 0; n < 32; n++) to[i * 32 + n] = keys[n][i];
    }
}

/* c [HIGH, ACROSS] (+)= a [HIGH, depth] b [depth, ACROSS] */
static inline void product(
    const float *a, int64_t a_row, const float *b, int64_t b_row, float *c, int64_t c_row, int64_t depth, int add
) {
    Vector sum[HIGH][2];
    for (int r = 0; r < HIGH; r++)
        for (int j = 0; j < 2; j++) sum[r][j] = add ? load(c + r * c_row + j * LANES) : splat(0);
    for (int64_t k = 0; k < depth; k++) {
        const Vector left = load(b + k * b_row), right = load(b + k * b_row + LANES);
        for (int r = 0; r < HIGH; r++) {
            const Vector factor = splat(a[r * a_row + k]);
            sum[r][0] = times_add(factor, left, sum[r][0]);
            sum[r][1] = times_add(factor, right, sum[r][1]);
        }
    }
    for (int r = 0; r < HIGH; r++)
        for (int j = 0; j < 2; j++) store(c + r * c_row + j * LANES, sum[r][j]);
}

static void scores_of(
    const Call *call, int64_t head, const float *queries, int64_t begin, int64_t count, float *scores
) {
    const int64_t dim = call->dim;
    const float *keys = (const float *)call->packed_keys + (head * up32(call->total) + begin) * dim;
    for (int64_t i = 0; i < count; i += 32, keys += 32 * dim)
        for (int64_t j = 0; j < 32; j += ACROSS)
            for (int r = 0; r < ROWS; r += HIGH)
                product(queries + r * dim, dim, keys + j, 32, scores + r * BLOCK + i + j, BLOCK, dim, 0);
}

static void add_values(
    const Call *call, int64_t head, const float *weights, int64_t begin, int64_t count, float *sums
) {
    const int64_t dim = call->dim;
    const float *values = call->values + (head * call->capacity + begin) * dim;
    /* A few keys at a time: their values, a row's width apart, share few lines of the cache. */
    for (int64_t i = 0; i < dim; i += ACROSS)
        for (int64_t k = 0; k < count; k += 32)
            for (int r = 0; r < ROWS; r += HIGH)
                product(
                    weights + r * BLOCK + k, BLOCK, values + k * dim + i, dim, sums + r * dim + i, dim, least(32, count - k), 1
                );
}

void pack_many(void *call, size_t task) { pack_block(call, task, pack); }
void attend_many(void *call, size_t task) { attend_block(call, task, scores_of, add_values); }
