/* Attention of many queries, with products in bfloat16 on AMX: functions and tasks as in many.h. */
#ifndef LEPTON_BFLOAT16_H
#define LEPTON_BFLOAT16_H

#include <stddef.h>

void pack_many_bfloat16(void *call, size_t task);
void attend_many_bfloat16(void *call, size_t task);

#endif
