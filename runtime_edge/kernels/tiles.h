/* AMX: this thread's tiles. */
#ifndef LEPTON_TILES_H
#define LEPTON_TILES_H

#include <immintrin.h>
#include <stdint.h>

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t columns[16]; /* bytes of a row */
    uint8_t rows[16];
} TileConfig;

/* What GCC's intrinsics before 14 do not say: that loads of tiles and their configuration read memory (its bug 114098). */
static inline void memory_is_written(void) { __asm__ volatile("" ::: "memory"); }

/* Gives this thread tiles for products of 32 by 32: rows of 16, and the rest of up to 32. Returns what they were, for
 * ONNX Runtime's own kernels use tiles on this thread, too. */
static inline TileConfig take_tiles(int64_t rows) {
    TileConfig before, tiles = {.palette = 1};
    __asm__ volatile("sttilecfg %0" : "=m"(before));
    for (int t = 0; t < 8; t++) tiles.columns[t] = 64, tiles.rows[t] = 16;
    if (rows < 16) tiles.rows[0] = tiles.rows[1] = tiles.rows[4] = (uint8_t)rows;
    if (rows > 16) tiles.rows[2] = tiles.rows[3] = tiles.rows[5] = (uint8_t)(rows - 16);
    __asm__ volatile("ldtilecfg %0" ::"m"(tiles));
    return before;
}

static inline void give_back_tiles(const TileConfig *before) {
    if (before->palette) __asm__ volatile("ldtilecfg %0" ::"m"(*before));
    else _tile_release();
}

#endif
