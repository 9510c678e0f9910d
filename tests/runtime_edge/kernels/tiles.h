/* Tiles in software, in the place of `runtime_edge/kernels/tiles.h`: kernels for AMX then run on CPUs without it, and
 * sanitizers see every byte that a tile is loaded from or stored to, which they do not with the instructions. */
#ifndef LEPTON_TILES_H
#define LEPTON_TILES_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    int rows[8];
    _Alignas(64) uint8_t bytes[8][16][64];
} TileConfig;

static __thread TileConfig tiles;

static inline void memory_is_written(void) {}

static inline TileConfig take_tiles(int64_t rows) {
    for (int t = 0; t < 8; t++) tiles.rows[t] = 16;
    if (rows < 16) tiles.rows[0] = tiles.rows[1] = tiles.rows[4] = (int)rows;
    if (rows > 16) tiles.rows[2] = tiles.rows[3] = tiles.rows[5] = (int)rows - 16;
    return (TileConfig){0};
}

static inline void give_back_tiles(const TileConfig *before) { tiles = *before; }

static inline void tile_zero(int t) { memset(tiles.bytes[t], 0, sizeof tiles.bytes[t]); }

static inline void tile_load(int t, const void *from, int64_t stride) {
    tile_zero(t);
    for (int r = 0; r < tiles.rows[t]; r++) memcpy(tiles.bytes[t][r], (const char *)from + r * stride, 64);
}

static inline void tile_store(int t, void *to, int64_t stride) {
    for (int r = 0; r < tiles.rows[t]; r++) memcpy((char *)to + r * stride, tiles.bytes[t][r], 64);
}

/* Products touch the tiles alone: they are not instrumented, and as fast as the compiler makes them. */
#define PLAIN inline __attribute__((no_sanitize("address"), no_sanitize("undefined"), optimize("O3")))

static PLAIN void tile_dpbusd(int c, int a, int b) {
    for (int m = 0; m < tiles.rows[c]; m++) {
        int32_t *sums = (int32_t *)tiles.bytes[c][m];
        for (int k = 0; k < 64; k++) {
            const int code = tiles.bytes[a][m][k];
            const int8_t *weights = (const int8_t *)tiles.bytes[b][k / 4] + k % 4;
            for (int n = 0; n < 16; n++) sums[n] += code * weights[4 * n];
        }
    }
}

/* A bfloat16 is the upper half of a float32. */
static PLAIN void tile_dpbf16ps(int c, int a, int b) {
    for (int m = 0; m < tiles.rows[c]; m++) {
        float *sums = (float *)tiles.bytes[c][m];
        for (int k = 0; k < 32; k++) {
            union { uint32_t bits; float number; } left, right;
            left.bits = (uint32_t)((const uint16_t *)tiles.bytes[a][m])[k] << 16;
            for (int n = 0; n < 16; n++) {
                right.bits = (uint32_t)((const uint16_t *)tiles.bytes[b][k / 2])[2 * n + k % 2] << 16;
                sums[n] += left.number * right.number;
            }
        }
    }
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define _tile_zero(t) tile_zero(t)
#define _tile_loadd(t, from, stride) tile_load(t, from, stride)
#define _tile_stored(t, to, stride) tile_store(t, to, stride)
#define _tile_dpbusd(c, a, b) tile_dpbusd(c, a, b)
#define _tile_dpbf16ps(c, a, b) tile_dpbf16ps(c, a, b)

#endif
