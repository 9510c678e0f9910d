/* What is done to a row of a head or of scores: rotation, softmax. */
#ifndef LEPTON_ROWS_H
#define LEPTON_ROWS_H

#include <stdint.h>

#include "call.h"

/* Rows that follow are for a token at `position`; `to` may be `from`. */
void rotate(const Call *call, const float *from, float *to, int64_t position, float scale);

/* Makes weights of scores[begin..end), zeros of the rest up to `width`, a multiple of 16.
 * Returns by what earlier sums are multiplied. */
float soften(const Attention *op, float *scores, int64_t begin, int64_t end, int64_t width, Seen *seen);

#endif
