/* Attention of many queries, in float32. */
#ifndef LEPTON_MANY_H
#define LEPTON_MANY_H

#include <stddef.h>
#include <stdint.h>

#include "call.h"

int64_t packed_bytes(const Call *call);    /* in bfloat16 too */
void pack_many(void *call, size_t task);   /* tasks: kv_heads * ceil(total / 32); writes new rows to the cache */
void attend_many(void *call, size_t task); /* tasks: heads * ceil(length / 32) */

#endif
