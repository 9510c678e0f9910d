/* What is computed of sizes. */
#ifndef LEPTON_SIZES_H
#define LEPTON_SIZES_H

#include <stdint.h>

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t up32(int64_t n) { return (n + 31) / 32 * 32; }

#endif
