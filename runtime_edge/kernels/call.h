/* Attention of new tokens over a cache of keys and values, float32 at its edges: what one call is about. */
#ifndef LEPTON_CALL_H
#define LEPTON_CALL_H

#include <stdint.h>

#include "sizes.h"

#define MOST_DIM 256 /* of a head, a multiple of 32 */
/* With positions in 32 bits, and a new token's or a cached one's features in memory, no product of sizes is near 2^63. */
#define MOST_HEADS 65536

typedef struct {
    int64_t heads, kv_heads, window, rotary, interleaved;
    float scale, softcap; /* scale 0 is 1 / sqrt(dim) */
    int bfloat16; /* products of many queries in it, on AMX; they are summed in float32 */
} Attention;

typedef struct {
    const Attention *op;
    const float *query, *key, *value, *cosines, *sines, *sinks;
    float *output, *keys, *values;     /* [length, heads * dim]; [kv_heads, capacity, dim], new rows included */
    int64_t query_row, key_row;        /* floats from one token's to the next's */
    int64_t length, past, total, dim;  /* new tokens, those before, both; a head's width */
    float scale;                       /* of scores */
    int64_t capacity, turned;          /* rows of a head in the cache; features of a head that are rotated */
    /* many */
    void *packed_keys, *packed_values; /* values only in bfloat16 */
    /* few */
    float *turned_queries, *parts;     /* [heads, length, dim]; of each part [rows, dim] and [rows, 2] */
    int64_t part, first, part_count;   /* keys a part, the first key that is seen, parts */
} Call;

/* What a row of scores has seen: the greatest, and the sum of exponentials relative to it. */
typedef struct {
    float most, sum;
} Seen;

/* The first key that the query at `position` sees. */
static inline int64_t first_seen(const Attention *op, int64_t position) {
    return op->window > 0 ? most(0, position - op->window + 1) : 0;
}

#endif
