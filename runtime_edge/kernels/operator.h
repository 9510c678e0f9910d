/* A kernel of ours as a custom operator of ONNX Runtime, in the place of its own kernel of that name. */
#ifndef LEPTON_OPERATOR_H
#define LEPTON_OPERATOR_H

#include "abi.h"

#define EXPORT __attribute__((visibility("default")))
#define LINE 64 /* bytes that memory is aligned to */
#define MOST_RANK 8

typedef struct {
    CustomOp abi; /* begins it: functions there read the rest */
    const char *choice, *name; /* the word in `lepton.kernels` that asks for it; the operator */
    int inputs, needed, outputs; /* the first of the inputs are never left out; outputs are float32 */
    int types[12]; /* of inputs */
    int variant; /* what its own `create` makes of it */
} Operator;

/* Of a graph and its inputs, which others write: all that is computed from them is checked here or where it is used. */
typedef struct {
    int given;  /* 0 where it is left out: the rest is zero then */
    void *data; /* null also where it has no elements */
    size_t rank;
    int64_t shape[MOST_RANK]; /* not negative */
    int64_t count; /* of elements */
} Tensor;

#define RETURN_IF(expression)                \
    do {                                     \
        Status *failed_ = (expression);      \
        if (failed_ != NULL) return failed_; \
    } while (0)

/* The functions of ONNX Runtime, which all below call; null where it is an earlier one. */
Api open_api(const ApiBase *base);

Status *fault(const char *expected, const char *name); /* "expected EXPECTED, found another NAME" */
Status *no_memory(void);

Status *input_count(const Opaque *context, size_t *count);
Status *input(const Opaque *context, size_t at, int type, Tensor *tensor); /* of elements of that type */
Status *output(Opaque *context, size_t at, const int64_t *shape, size_t rank, float **data);
Status *in_parallel(const Opaque *context, void (*task)(void *, size_t), int64_t count, void *call);

/* Memory for `count` things of `size` bytes, at a multiple of LINE; null where there is none, or where the product is no
 * size of memory. It is given back by `free`. */
void *memory(int64_t count, int64_t size);

/* While a kernel is created. Attributes that are left out leave a value as it is; an input that is no constant is not
 * given. */
Status *named(const Opaque *info, size_t at, const char *end, int *is); /* whether an input's name ends so */
void integer(const Opaque *info, const char *name, int64_t *value);
void number(const Opaque *info, const char *name, float *value);
Status *constant(const Opaque *info, size_t at, int type, Tensor *tensor);

/* What begins an Operator. */
int operator_type(const CustomOp *self, size_t at);
int operator_kind(const CustomOp *self, size_t at);
const char *operator_name(const CustomOp *self);
const char *operator_provider(const CustomOp *self);
size_t operator_inputs(const CustomOp *self);
size_t operator_outputs(const CustomOp *self);
int operator_zero(const CustomOp *self);
int operator_zero_at(const CustomOp *self, size_t at);
int operator_float(const CustomOp *self, size_t at);
int operator_first(const CustomOp *self);
int operator_last(const CustomOp *self);

#define OPERATOR(create_, compute_, destroy_)                                                                          \
    {                                                                                                                  \
        .version = ABI_VERSION, .name = operator_name, .provider = operator_provider, .input_type = operator_type,     \
        .input_count = operator_inputs, .output_type = operator_float, .output_count = operator_outputs,               \
        .destroy = destroy_, .input_kind = operator_kind, .output_kind = operator_zero_at,                             \
        .input_memory = operator_zero_at, .variadic = {operator_zero, operator_zero, operator_zero, operator_zero},    \
        .create = create_, .compute = compute_, .start_version = operator_first, .end_version = operator_last,         \
    }

#endif
