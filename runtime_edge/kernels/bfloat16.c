/* Many queries, with products in bfloat16 on AMX, 32 by 32 in four tiles; sums and all else in float32. */
#include "bfloat16.h"

#include "blocks.h"
#include "tiles.h"
#include "vector.h"

#define TILE 512 /* numbers of a tile: 16 rows of 32 */

/* 32 numbers in bfloat16, rounded to nearest even. */
static inline __m512i bfloat16_of(const float *low, const float *high) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(high), _mm512_loadu_ps(low));
}

/* Tiles of keys, as the second operand of a product wants them: pairs of features by keys, 16 of each. */
static void keys_of(const Call *call, int64_t head, int64_t block, const float *const *rows) {
    alignas(64) uint16_t keys[16 * MOST_DIM];
    const int64_t dim = call->dim, blocks = up32(call->total) / 32, steps = dim / 32;
    const __m512i pairs = multiples(dim / 2);
    for (int64_t half = 0; half < 2; half++) {
        for (int64_t n = 0; n < 16; n++)
            for (int64_t i = 0; i < dim; i += 32) {
                const float *row = rows[half * 16 + n] + i;
                _mm512_storeu_si512(keys + n * dim + i, bfloat16_of(row, row + 16));
            }
        uint16_t *to = (uint16_t *)call->packed_keys + ((head * blocks + block) * 2 + half) * steps * TILE;
        for (int64_t pair = 0; pair < dim / 2; pair++)
            _mm512_storeu_si512(to + pair * 32, _mm512_i32gather_epi32(pairs, (const int *)keys + pair, 4));
    }
}

/* Tiles of values: pairs of keys by features. */
static void values_of(const Call *call, int64_t head, int64_t block, const float *const *rows) {
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i interleave = _mm512_loadu_si512(order);
    const int64_t blocks = up32(call->total) / 32, columns = call->dim / 16;
    uint16_t *to = (uint16_t *)call->packed_values + (head * blocks + block) * columns * TILE;
    for (int64_t pair = 0; pair < 16; pair++)
        for (int64_t i = 0; i < columns; i++) {
            const __m512i both = bfloat16_of(rows[2 * pair] + i * 16, rows[2 * pair + 1] + i * 16);
            _mm512_storeu_si512(to + i * TILE + pair * 32, _mm512_permutexvar_epi16(interleave, both));
        }
}

static void pack(const Call *call, int64_t head, int64_t block, const float *const *keys, const float *const *values) {
    keys_of(call, head, block, keys);
    values_of(call, head, block, values);
}

/* Tiles 0 to 3 += rows of a, 32, by two tiles of b a step. */
static inline void product_tiles(
    const uint16_t *a, int64_t a_row, const uint16_t *b, int64_t b_step, int64_t b_next, int64_t steps
) {
    memory_is_written();
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
    memory_is_written();
    _tile_loadd(0, c, row * 4);
    _tile_loadd(1, c + 16, row * 4);
    _tile_loadd(2, c + 16 * row, row * 4);
    _tile_loadd(3, c + 16 * row + 16, row * 4);
}

static void to_bfloat16(const float *from, uint16_t *to, int64_t count) {
    for (int64_t i = 0; i < count; i += 32) _mm512_storeu_si512(to + i, bfloat16_of(from + i, from + i + 16));
}

static void scores_of(
    const Call *call, int64_t head, const float *queries, int64_t begin, int64_t count, float *scores
) {
    alignas(64) uint16_t rounded_queries[ROWS * MOST_DIM];
    const int64_t dim = call->dim;
    const uint16_t *keys = (const uint16_t *)call->packed_keys + (head * up32(call->total) + begin) * dim;
    to_bfloat16(queries, rounded_queries, ROWS * dim);
    for (int64_t i = 0; i < count; i += 32) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        product_tiles(rounded_queries, dim, keys + i * dim, TILE, dim / 32 * TILE, dim / 32);
        store_tiles(scores + i, BLOCK);
    }
}

static void add_values(
    const Call *call, int64_t head, const float *weights, int64_t begin, int64_t count, float *sums
) {
    alignas(64) uint16_t rounded_weights[ROWS * BLOCK];
    const int64_t dim = call->dim, blocks = up32(call->total) / 32;
    const uint16_t *values = (const uint16_t *)call->packed_values + (head * blocks + begin / 32) * (dim / 16) * TILE;
    for (int64_t r = 0; r < ROWS; r++) to_bfloat16(weights + r * BLOCK, rounded_weights + r * BLOCK, up32(count));
    for (int64_t i = 0; i < dim; i += 32) {
        load_tiles(sums + i, dim);
        product_tiles(rounded_weights, BLOCK, values + i / 16 * TILE, dim / 16 * TILE, TILE, up32(count) / 32);
        store_tiles(sums + i, dim);
    }
}

void pack_many_bfloat16(void *call, size_t task) { pack_block(call, task, pack); }

void attend_many_bfloat16(void *call, size_t task) {
    const TileConfig before = take_tiles(32);
    attend_block(call, task, scores_of, add_values);
    give_back_tiles(&before);
}
