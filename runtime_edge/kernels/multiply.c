/* Products of unsigned codes and constant signed weights on AMX: 32 rows by 32 channels at a time, sums in registers over
 * all inputs; then the zero point, scales and bias. */
#include "multiply.h"

#include <stdalign.h>

#include "sizes.h"
#include "tiles.h"
#include "vector.h"

#define STEP 64   /* inputs of a tile */
#define TILE 1024 /* bytes of it */

void pack(const int8_t *weights, int64_t depth, int64_t width, int8_t *tiles) {
    for (int64_t channel = 0; channel < width; channel += 32)
        for (int64_t begin = 0; begin < depth; begin += STEP)
            for (int64_t half = 0; half < 32; half += 16) {
                const int64_t at = channel + half;
                const __mmask16 lanes = first_lanes(width - at);
                for (int64_t k = begin; k < begin + STEP; k += 4, tiles += 64) {
                    __m128i rows[4];
                    for (int64_t i = 0; i < 4; i++)
                        rows[i] = _mm_maskz_loadu_epi8(k + i < depth ? lanes : 0, weights + (k + i) * width + at);
                    const __m128i a = _mm_unpacklo_epi8(rows[0], rows[1]), b = _mm_unpackhi_epi8(rows[0], rows[1]);
                    const __m128i c = _mm_unpacklo_epi8(rows[2], rows[3]), d = _mm_unpackhi_epi8(rows[2], rows[3]);
                    __m512i all = _mm512_castsi128_si512(_mm_unpacklo_epi16(a, c));
                    all = _mm512_inserti32x4(all, _mm_unpackhi_epi16(a, c), 1);
                    all = _mm512_inserti32x4(all, _mm_unpacklo_epi16(b, d), 2);
                    all = _mm512_inserti32x4(all, _mm_unpackhi_epi16(b, d), 3);
                    _mm512_storeu_si512(tiles, all);
                }
            }
}

void add_up(const Weights *weights) {
    const __m512i ones = _mm512_set1_epi8(1);
    const int8_t *tiles = weights->tiles;
    for (int64_t channel = 0; channel < weights->width; channel += 32) {
        __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int64_t step = 0; step < weights->steps; step++)
            for (int64_t half = 0; half < 2; half++)
                for (int64_t row = 0; row < 16; row++, tiles += 64)
                    sums[half] = _mm512_dpbusd_epi32(sums[half], ones, _mm512_loadu_si512(tiles));
        _mm512_store_si512(weights->sums + channel, sums[0]);
        _mm512_store_si512(weights->sums + channel + 16, sums[1]);
    }
}

/* Sums of 16 rows by 32 channels, or of those and the rows below up to 32: a choice that the compiler knows. */
static inline __attribute__((always_inline)) void sums_of(
    int below, const uint8_t *a, int64_t row, const int8_t *b, int64_t steps, int32_t *c
) {
    memory_is_written();
    _tile_zero(0);
    _tile_zero(1);
    if (below) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < steps; k++) {
        _tile_loadd(4, a + k * STEP, row);
        _tile_loadd(6, b + k * 2 * TILE, 64);
        _tile_loadd(7, b + k * 2 * TILE + TILE, 64);
        if (below) _tile_loadd(5, a + 16 * row + k * STEP, row);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        if (below) {
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
    }
    _tile_stored(0, c, 128);
    _tile_stored(1, c + 16, 128);
    if (below) {
        _tile_stored(2, c + 16 * 32, 128);
        _tile_stored(3, c + 16 * 32 + 16, 128);
    }
}

/* Rows by 32 channels. */
static void block(const Product *product, int64_t row, int64_t rows, int64_t channel) {
    const Weights *weights = product->weights;
    const int64_t width = weights->width, steps = weights->steps;
    const uint8_t *codes = product->codes + row * steps * STEP;
    const int8_t *tiles = weights->tiles + channel * steps * STEP;
    alignas(64) int32_t sums[32 * 32];
    if (rows > 16) sums_of(1, codes, steps * STEP, tiles, steps, sums);
    else sums_of(0, codes, steps * STEP, tiles, steps, sums);
    for (int64_t half = 0; half < 32; half += 16) {
        const int64_t at = channel + half;
        const __mmask16 lanes = first_lanes(width - at);
        const __m512i off = _mm512_mullo_epi32(_mm512_set1_epi32(product->zero), _mm512_load_si512(weights->sums + at));
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(product->step), _mm512_maskz_loadu_ps(lanes, product->scales + at));
        const __m512 bias = product->bias ? _mm512_maskz_loadu_ps(lanes, product->bias + at) : _mm512_setzero_ps();
        for (int64_t r = 0; r < rows; r++) {
            const __m512i sum = _mm512_sub_epi32(_mm512_load_si512(sums + r * 32 + half), off);
            /* Rounded twice, as ONNX Runtime does: the same bits. */
            const __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale), bias);
            _mm512_mask_storeu_ps(product->output + (row + r) * width + at, lanes, y);
        }
    }
}

void multiply(void *argument, size_t task) {
    const Product *product = argument;
    const int64_t width = product->weights->width;
    const int64_t across = (up32(width) / 32 + product->columns - 1) / product->columns;
    const int64_t first = (int64_t)task % across * product->columns * 32;
    const int64_t last = least(width, first + product->columns * 32);
    const int64_t top = (int64_t)task / across * product->rows_a_task;
    const int64_t bottom = least(product->rows, top + product->rows_a_task), whole = top + (bottom - top) / 32 * 32;
    if (whole > top) {
        const TileConfig before = take_tiles(32);
        for (int64_t channel = first; channel < last; channel += 32)
            for (int64_t row = top; row < whole; row += 32) block(product, row, 32, channel);
        give_back_tiles(&before);
    }
    if (whole < bottom) {
        const TileConfig before = take_tiles(bottom - whole);
        for (int64_t channel = first; channel < last; channel += 32) block(product, whole, bottom - whole, channel);
        give_back_tiles(&before);
    }
}
