/* Many queries: 32 rows of a head at a time over the keys that they see, BLOCK keys at a time. Sums are kept relative to
 * the greatest score so far ("online softmax": Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022), so scores
 * that a mask would drop are not computed and none leave the cache of a core. */
#ifndef LEPTON_BLOCKS_H
#define LEPTON_BLOCKS_H

#include <math.h>
#include <stdalign.h>
#include <stddef.h>
#include <string.h>

#include "call.h"
#include "rows.h"

#define ROWS 32
#define BLOCK 256

/* What a number format has of its own; keys from `begin` on, a multiple of 32, of a head of keys.
 * pack: of 32 keys and values. scores [ROWS, BLOCK] of queries [ROWS, dim], `count` of them, a multiple of 32.
 * sums [ROWS, dim] += weights [ROWS, BLOCK] values, `count` of them; weights are zero up to a multiple of 32. */
typedef void Pack(const Call *call, int64_t head, int64_t block, const float *const *keys, const float *const *values);
typedef void Scores(const Call *call, int64_t head, const float *queries, int64_t begin, int64_t count, float *scores);
typedef void AddValues(const Call *call, int64_t head, const float *weights, int64_t begin, int64_t count, float *sums);

/* A task of `pack_many`: 32 keys of a head of keys, of which new ones and their values go into the cache. */
static inline void pack_block(const Call *call, size_t task, Pack *pack) {
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
    pack(call, head, block, keys, values);
}

/* A task of `attend_many`: 32 rows of a head. */
static inline void attend_block(const Call *call, size_t task, Scores *scores_of, AddValues *add_values) {
    const Attention *op = call->op;
    const int64_t dim = call->dim, blocks = (call->length + ROWS - 1) / ROWS, head = (int64_t)task / blocks;
    const int64_t block = blocks - 1 - (int64_t)task % blocks; /* those that see most begin */
    const int64_t kv_head = head / (op->heads / op->kv_heads), row = block * ROWS, rows = least(ROWS, call->length - row);
    alignas(64) float queries[ROWS * MOST_DIM], scores[ROWS * BLOCK], sums[ROWS * MOST_DIM];
    Seen seen[ROWS];

    memset(queries, 0, sizeof(float) * (size_t)(ROWS * dim));
    memset(sums, 0, sizeof(float) * (size_t)(ROWS * dim));
    for (int64_t r = 0; r < rows; r++) {
        const float *query = call->query + (row + r) * call->query_row + head * dim;
        rotate(call, query, queries + r * dim, call->past + row + r, call->scale);
        seen[r] = (Seen){-INFINITY, 0};
    }
    const int64_t end = call->past + row + rows; /* keys that the last row sees */
    for (int64_t begin = first_seen(op, call->past + row) / 32 * 32; begin < end; begin += BLOCK) {
        const int64_t count = least(BLOCK, end - begin), width = up32(count);
        scores_of(call, kv_head, queries, begin, width, scores);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t position = call->past + row + r;
            const int64_t from = most(0, first_seen(op, position) - begin), to = least(count, position + 1 - begin);
            const float factor = soften(op, scores + r * BLOCK, from, to, width, seen + r);
            if (factor != 1)
                for (int64_t i = 0; i < dim; i++) sums[r * dim + i] *= factor;
        }
        add_values(call, kv_head, scores, begin, count, sums);
    }
    for (int64_t r = 0; r < rows; r++) {
        float sum = seen[r].sum;
        if (call->sinks) sum += expf(call->sinks[head] - seen[r].most);
        float *to = call->output + (row + r) * op->heads * dim + head * dim;
        for (int64_t i = 0; i < dim; i++) to[i] = sums[r * dim + i] / sum;
    }
}

#endif
