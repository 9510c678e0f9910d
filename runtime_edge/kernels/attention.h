/* The operators of attention. */
#ifndef LEPTON_ATTENTION_H
#define LEPTON_ATTENTION_H

#include "operator.h"

extern const Operator attention_float32, attention_bfloat16;

#endif
