/* Products of unsigned 8-bit codes and constant signed weights. */
#ifndef LEPTON_MULTIPLY_H
#define LEPTON_MULTIPLY_H

#include <stddef.h>
#include <stdint.h>

/* Constant weights [depth, width]: tiles of 64 inputs by 16 channels, four inputs of a channel side by side, those of 32
 * channels after each other; zeros beyond the ends. */
typedef struct {
    int64_t depth, width, steps; /* steps of 64 inputs */
    const int8_t *tiles;
    int32_t *sums; /* of each channel's weights, [width] and up to 31 more */
    int8_t *own; /* tiles that are freed with them */
} Weights;

/* What one call multiplies. */
typedef struct {
    const Weights *weights;
    const uint8_t *codes; /* [rows, steps * 64] */
    int64_t rows;
    const float *scales, *bias; /* [width]; bias may be null */
    float step;
    int32_t zero;
    float *output; /* [rows, width] */
    int64_t columns, rows_a_task; /* of a task: blocks of 32 channels; rows, a multiple of 32 */
} Product;

void pack(const int8_t *weights, int64_t depth, int64_t width, int8_t *tiles);
void add_up(const Weights *weights); /* makes the sums */
void multiply(void *product, size_t task);

#endif
