/* The operator of products of 8-bit integers. */
#ifndef LEPTON_PRODUCT_H
#define LEPTON_PRODUCT_H

#include "operator.h"

extern const Operator product_int8;

#endif
