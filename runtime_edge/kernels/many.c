/* Many queries: 32 rows of a head at a time over the keys that they see, BLOCK keys at a time. Sums are kept relative to
 * the greatest score so far ("online softmax": Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022), so scores
 * that a mask would drop are not computed and none leave the cache of a core. */
#include <stdalign.h>

#include "attention.h"
#include "tiles.h"

#define ROWS 32
#define BLOCK 256
#define TILE 512 /* numbers of a tile in bfloat16: 16 rows of 32 */

int64_t packed_bytes(const Call *call) {
    /* Keys in float32, or keys and values in half of it each. */
    return up32(call->total) * call->dim * call->op->kv_heads * (int64_t)sizeof(float);
}

/* 0, step, 2 step, ... */
static inline __m512i multiples(int64_t step) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)step));
}

/* 32 numbers in bfloat16, rounded to nearest even. */
static inline __m512i rounded(const float *low, const float *high) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(high), _mm512_loadu_ps(low));
}

/* Tiles of keys, as the second operand of a product wants them: pairs of features by keys, 16 of each. */
static void pack_keys_bfloat16(const Call *call, int64_t head, int64_t block, const float *const *rows) {
    alignas(64) uint16_t keys[16 * MOST_DIM];
    const int64_t dim = call->dim, blocks = up32(call->total) / 32, steps = dim / 32;
    const __m512i pairs = multiples(dim / 2);
    for (int64_t half = 0; half < 2; half++) {
        for (int64_t n = 0; n < 16; n++)
            for (int64_t i = 0; i < dim; i += 32) {
                const float *row = rows[half * 16 + n] + i;
                _mm512_storeu_si512(keys + n * dim + i, rounded(row, row + 16));
            }
        uint16_t *to = (uint16_t *)call->packed_keys + ((head * blocks + block) * 2 + half) * steps * TILE;
        for (int64_t pair = 0; pair < dim / 2; pair++)
            _mm512_storeu_si512(to + pair * 32, _mm512_i32gather_epi32(pairs, (const int *)keys + pair, 4));
    }
}

/* Tiles of values: pairs of keys by features. */
static void pack_values_bfloat16(const Call *call, int64_t head, int64_t block, const float *const *rows) {
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i interleave = _mm512_loadu_si512(order);
    const int64_t blocks = up32(call->total) / 32, columns = call->dim / 16;
    uint16_t *to = (uint16_t *)call->packed_values + (head * blocks + block) * columns * TILE;
    for (int64_t pair = 0; pair < 16; pair++)
        for (int64_t i = 0; i < columns; i++) {
            const __m512i both = rounded(rows[2 * pair] + i * 16, rows[2 * pair + 1] + i * 16);
            _mm512_storeu_si512(to + i * TILE + pair * 32, _mm512_permutexvar_epi16(interleave, both));
        }
}

/* Features by 32 keys. */
static void pack_keys_float32(const Call *call, int64_t head, int64_t block, const float *const *rows) {
    const int64_t dim = call->dim;
    float *to = (float *)call->packed_keys + (head * up32(call->total) + block * 32) * dim;
    if (block * 32 + 32 > call->total) { /* the last rows are not in the cache */
        for (int64_t i = 0; i < dim; i++)
            for (int64_t n = 0; n < 32; n++) to[i * 32 + n] = rows[n][i];
        return;
    }
    const __m512i every = multiples(dim);
    for (int64_t i = 0; i < dim; i++) {
        _mm512_storeu_ps(to + i * 32, _mm512_i32gather_ps(every, rows[0] + i, 4));
        _mm512_storeu_ps(to + i * 32 + 16, _mm512_i32gather_ps(every, rows[16] + i, 4));
    }
}

void pack_keys(void *argument, size_t task) {
    const Call *call = argument;
    static const float zeros[MOST_DIM];
    const int64_t blocks = up32(call->total) / 32, head = (int64_t)task / blocks, block = (int64_t)task % blocks;
    const int64_t dim = call->dim;
    const float *keys[32], *values[32];
    for (int64_t n = 0; n < 32; n++) {
        const int64_t at = block * 32 + n, new = at - call->past;
        float *key = call->keys + (head * call->capacity + at) * dim;
        float *value = call->values + (head * call->capacity + at) * dim;
        if (at >= call->total) {
            keys[n] = values[n] = zeros;
            continue;
        }
        if (new >= 0) {
            rotate(call, call->key + new * call->key_row + head * dim, key, at, 1);
            memcpy(value, call->value + new * call->key_row + head * dim, (size_t)dim * sizeof(float));
        }
        keys[n] = key, values[n] = value;
    }
    if (call->op->bfloat16) {
        pack_keys_bfloat16(call, head, block, keys);
        pack_values_bfloat16(call, head, block, values);
    } else {
        pack_keys_float32(call, head, block, keys);
    }
}

/* c [8, 32] (+)= a [8, depth] b [depth, 32] */
static inline void product8(
    const float *a, int64_t a_row, const float *b, int64_t b_row, float *c, int64_t c_row, int64_t depth, int add
) {
    __m512 sum[8][2];
    for (int r = 0; r < 8; r++)
        for (int j = 0; j < 2; j++) sum[r][j] = add ? _mm512_loadu_ps(c + r * c_row + j * 16) : _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k++) {
        const __m512 left = _mm512_loadu_ps(b + k * b_row), right = _mm512_loadu_ps(b + k * b_row + 16);
        for (int r = 0; r < 8; r++) {
            const __m512 factor = _mm512_set1_ps(a[r * a_row + k]);
            sum[r][0] = _mm512_fmadd_ps(factor, left, sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(factor, right, sum[r][1]);
        }
    }
    for (int r = 0; r < 8; r++)
        for (int j = 0; j < 2; j++) _mm512_storeu_ps(c + r * c_row + j * 16, sum[r][j]);
}

/* Tiles 0 to 3 += rows of a, 32, by two tiles of b a step. */
static inline void product_tiles(
    const uint16_t *a, int64_t a_row, const uint16_t *b, int64_t b_step, int64_t b_next, int64_t steps
) {
    for (int64_t k = 0; k < steps; k++) {
        _tile_loadd(4, a + k * 32, a_row * 2);
        _tile_loadd(5, a + 16 * a_row + k * 32, a_row * 2);
        _tile_loadd(6, b + k * b_step, 64);
        _tile_loadd(7, b + k * b_step + b_next, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

static inline void store_tiles(float *c, int64_t row) {
    _tile_stored(0, c, row * 4);
    _tile_stored(1, c + 16, row * 4);
    _tile_stored(2, c + 16 * row, row * 4);
    _tile_stored(3, c + 16 * row + 16, row * 4);
}

static inline void load_tiles(const float *c, int64_t row) {
    _tile_loadd(0, c, row * 4);
    _tile_loadd(1, c + 16, row * 4);
    _tile_loadd(2, c + 16 * row, row * 4);
    _tile_loadd(3, c + 16 * row + 16, row * 4);
}

static void to_bfloat16(const float *from, uint16_t *to, int64_t count) {
    for (int64_t i = 0; i < count; i += 32) _mm512_storeu_si512(to + i, rounded(from + i, from + i + 16));
}

/* scores [32, count] of queries [32, dim] and of keys from `begin` on, multiples of 32 */
static void scores_of(
    const Call *call, int64_t head, const float *queries, const uint16_t *rounded_queries, int64_t begin, int64_t count,
    float *scores
) {
    const int64_t dim = call->dim, first = head * up32(call->total) + begin;
    for (int64_t i = 0; i < count; i += 32) {
        if (call->op->bfloat16) {
            const uint16_t *keys = (const uint16_t *)call->packed_keys + (first + i) * dim;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            product_tiles(rounded_queries, dim, keys, TILE, dim / 32 * TILE, dim / 32);
            store_tiles(scores + i, BLOCK);
        } else {
            const float *keys = (const float *)call->packed_keys + (first + i) * dim;
            for (int r = 0; r < ROWS; r += 8)
                product8(queries + r * dim, dim, keys, 32, scores + r * BLOCK + i, BLOCK, dim, 0);
        }
    }
}

/* sums [32, dim] += weights [32, count] values [count, dim] */
static void add_values(
    const Call *call, int64_t head, const float *weights, const uint16_t *rounded_weights, int64_t begin, int64_t count,
    float *sums
) {
    const int64_t dim = call->dim, blocks = up32(call->total) / 32;
    for (int64_t i = 0; i < dim; i += 32) {
        if (call->op->bfloat16) {
            const uint16_t *values =
                (const uint16_t *)call->packed_values + ((head * blocks + begin / 32) * (dim / 16) + i / 16) * TILE;
            load_tiles(sums + i, dim);
            product_tiles(rounded_weights, BLOCK, values, dim / 16 * TILE, TILE, up32(count) / 32);
            store_tiles(sums + i, dim);
        } else {
            const float *values = call->values + (head * call->capacity + begin) * dim + i;
            for (int r = 0; r < ROWS; r += 8)
                product8(weights + r * BLOCK, BLOCK, values, dim, sums + r * dim + i, dim, count, 1);
        }
    }
}

void attend_many(void *argument, size_t task) {
    const Call *call = argument;
    const Attention *op = call->op;
    const int64_t dim = call->dim, blocks = (call->length + ROWS - 1) / ROWS, head = (int64_t)task / blocks;
    const int64_t block = blocks - 1 - (int64_t)task % blocks; /* those that see most begin */
    const int64_t kv_head = head / (op->heads / op->kv_heads), row = block * ROWS, rows = least(ROWS, call->length - row);
    alignas(64) float queries[ROWS * MOST_DIM], scores[ROWS * BLOCK], sums[ROWS * MOST_DIM];
    alignas(64) uint16_t rounded_queries[ROWS * MOST_DIM], weights[ROWS * BLOCK];
    Seen seen[ROWS];

    memset(queries, 0, sizeof(float) * (size_t)(ROWS * dim));
    memset(sums, 0, sizeof(float) * (size_t)(ROWS * dim));
    for (int64_t r = 0; r < rows; r++) {
        const float *query = call->query + (row + r) * call->query_row + head * dim;
        rotate(call, query, queries + r * dim, call->past + row + r, call->scale);
        seen[r] = (Seen){-INFINITY, 0};
    }
    TileConfig before = {0}, tiles = {.palette = 1};
    if (op->bfloat16) { /* ONNX Runtime's own kernels use tiles on this thread too */
        to_bfloat16(queries, rounded_queries, ROWS * dim);
        memset(weights, 0, sizeof weights);
        _tile_storeconfig(&before);
        for (int t = 0; t < 8; t++) tiles.columns[t] = 64, tiles.rows[t] = 16;
        _tile_loadconfig(&tiles);
    } else {
        memset(scores, 0, sizeof scores);
    }
    const int64_t end = call->past + row + rows; /* keys that the last row sees */
    for (int64_t begin = first_seen(op, call->past + row) / 32 * 32; begin < end; begin += BLOCK) {
        const int64_t count = least(BLOCK, end - begin), width = up32(count);
        scores_of(call, kv_head, queries, rounded_queries, begin, width, scores);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t position = call->past + row + r;
            const int64_t from = most(0, first_seen(op, position) - begin), to = least(count, position + 1 - begin);
            const float factor = soften(op, scores + r * BLOCK, from, to, width, seen + r);
            if (op->bfloat16) to_bfloat16(scores + r * BLOCK, weights + r * BLOCK, width);
            if (factor != 1)
                for (int64_t i = 0; i < dim; i++) sums[r * dim + i] *= factor;
        }
        add_values(call, kv_head, scores, weights, begin, count, sums);
    }
    if (op->bfloat16) {
        if (before.palette) _tile_loadconfig(&before);
        else _tile_release();
    }
    for (int64_t r = 0; r < rows; r++) {
        float sum = seen[r].sum;
        if (call->sinks) sum += expf(call->sinks[head] - seen[r].most);
        float *to = call->output + (row + r) * op->heads * dim + head * dim;
        for (int64_t i = 0; i < dim; i++) to[i] = sums[r * dim + i] / sum;
    }
}
