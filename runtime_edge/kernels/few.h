/* Attention of few queries. */
#ifndef LEPTON_FEW_H
#define LEPTON_FEW_H

#include <stddef.h>
#include <stdint.h>

#include "call.h"

#define FEW 16 /* queries of a head below which keys are not packed */

void plan_few(Call *call);                /* sets first, part and part_count */
int64_t few_floats(const Call *call);     /* of parts */
void attend_few(void *call, size_t task); /* tasks: kv_heads * part_count */
void join_few(const Call *call);

#endif
