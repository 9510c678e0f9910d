#include "operator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static Api api;

Api open_api(const ApiBase *base) { return api = base->get_api(ABI_VERSION); }

Status *fault(const char *expected, const char *name) {
    char text[200];
    snprintf(text, sizeof text, "lepton kernels: expected %s, found another %s", expected, name);
    return ((Status * (*)(int, const char *)) api[CREATE_STATUS])(INVALID_ARGUMENT, text);
}

Status *no_memory(void) {
    return ((Status * (*)(int, const char *)) api[CREATE_STATUS])(FAIL, "lepton kernels: out of memory");
}

/* Reads rank and shape, and counts the elements. */
static Status *measure(const Opaque *info, int type, Tensor *tensor) {
    int of = 0;
    RETURN_IF(((Status * (*)(const Opaque *, int *)) api[GET_TENSOR_ELEMENT_TYPE])(info, &of));
    RETURN_IF(((Status * (*)(const Opaque *, size_t *)) api[GET_DIMENSIONS_COUNT])(info, &tensor->rank));
    if (of != type) return fault("elements of the type that the operator has", "type");
    if (tensor->rank > MOST_RANK) return fault("a rank of at most 8", "rank");
    tensor->count = 1;
    if (tensor->rank == 0) return NULL;
    RETURN_IF(((Status * (*)(const Opaque *, int64_t *, size_t)) api[GET_DIMENSIONS])(info, tensor->shape, tensor->rank));
    for (size_t at = 0; at < tensor->rank; at++)
        if (tensor->shape[at] < 0 || __builtin_mul_overflow(tensor->count, tensor->shape[at], &tensor->count))
            return fault("a shape that memory holds", "shape");
    return NULL;
}

static Status *describe(const Opaque *value, int type, Tensor *tensor) {
    Opaque *info = NULL;
    *tensor = (Tensor){0};
    if (value == NULL) return NULL;
    tensor->given = 1;
    RETURN_IF(((Status * (*)(const Opaque *, Opaque **)) api[GET_TENSOR_TYPE_AND_SHAPE])(value, &info));
    Status *status = measure(info, type, tensor);
    ((void (*)(Opaque *))api[RELEASE_TENSOR_TYPE_AND_SHAPE])(info);
    RETURN_IF(status);
    RETURN_IF(((Status * (*)(const Opaque *, void **)) api[GET_TENSOR_MUTABLE_DATA])(value, &tensor->data));
    return tensor->count > 0 && tensor->data == NULL ? fault("tensors that have memory", "input") : NULL;
}

void *memory(int64_t count, int64_t size) {
    int64_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes < 0 || bytes > INT64_MAX - LINE) return NULL;
    return aligned_alloc(LINE, ((size_t)bytes + LINE) / LINE * LINE); /* one byte more at least: never of size 0 */
}

Status *input_count(const Opaque *context, size_t *count) {
    return ((Status * (*)(const Opaque *, size_t *)) api[KERNEL_CONTEXT_GET_INPUT_COUNT])(context, count);
}

Status *input(const Opaque *context, size_t at, int type, Tensor *tensor) {
    const Opaque *value = NULL;
    RETURN_IF(((Status * (*)(const Opaque *, size_t, const Opaque **)) api[KERNEL_CONTEXT_GET_INPUT])(context, at, &value));
    return describe(value, type, tensor);
}

Status *output(Opaque *context, size_t at, const int64_t *shape, size_t rank, float **data) {
    Opaque *value = NULL;
    RETURN_IF(((Status * (*)(Opaque *, size_t, const int64_t *, size_t, Opaque **)) api[KERNEL_CONTEXT_GET_OUTPUT])(
        context, at, shape, rank, &value));
    if (value == NULL) return fault("a name for each output", "set of outputs");
    return ((Status * (*)(const Opaque *, void **)) api[GET_TENSOR_MUTABLE_DATA])(value, (void **)data);
}

Status *in_parallel(const Opaque *context, void (*task)(void *, size_t), int64_t count, void *call) {
    return ((Status * (*)(const Opaque *, void (*)(void *, size_t), size_t, size_t, void *)) api[KERNEL_CONTEXT_PARALLEL_FOR])(
        context, task, (size_t)count, 0, call);
}

static void release(Status *status) {
    if (status != NULL) ((void (*)(Status *))api[RELEASE_STATUS])(status);
}

void integer(const Opaque *info, const char *name, int64_t *value) {
    release(((Status * (*)(const Opaque *, const char *, int64_t *)) api[KERNEL_INFO_GET_ATTRIBUTE_INT64])(info, name, value));
}

void number(const Opaque *info, const char *name, float *value) {
    release(((Status * (*)(const Opaque *, const char *, float *)) api[KERNEL_INFO_GET_ATTRIBUTE_FLOAT])(info, name, value));
}

Status *constant(const Opaque *info, size_t at, int type, Tensor *tensor) {
    const Opaque *value = NULL;
    int is = 0;
    RETURN_IF(((Status * (*)(const Opaque *, size_t, int *, const Opaque **)) api[KERNEL_INFO_GET_CONSTANT_INPUT])(
        info, at, &is, &value));
    return describe(is ? value : NULL, type, tensor);
}

Status *named(const Opaque *info, size_t at, const char *end, int *is) {
    typedef Status *GetName(const Opaque *, size_t, char *, size_t *);
    size_t size = 0; /* with the zero behind it */
    RETURN_IF(((GetName *)api[KERNEL_INFO_GET_INPUT_NAME])(info, at, NULL, &size));
    char *name = malloc(size);
    if (name == NULL) return no_memory();
    Status *status = ((GetName *)api[KERNEL_INFO_GET_INPUT_NAME])(info, at, name, &size);
    *is = status == NULL && size > strlen(end) && strcmp(name + size - 1 - strlen(end), end) == 0;
    free(name);
    return status;
}

static const Operator *of(const CustomOp *self) { return (const Operator *)self; }
const char *operator_name(const CustomOp *self) { return of(self)->name; }
const char *operator_provider(const CustomOp *self) { return (void)self, NULL; }
size_t operator_inputs(const CustomOp *self) { return (size_t)of(self)->inputs; }
size_t operator_outputs(const CustomOp *self) { return (size_t)of(self)->outputs; }
int operator_type(const CustomOp *self, size_t at) { return of(self)->types[at]; }
int operator_kind(const CustomOp *self, size_t at) { return (int)at < of(self)->needed ? REQUIRED : OPTIONAL; }
int operator_zero(const CustomOp *self) { return (void)self, 0; }
int operator_zero_at(const CustomOp *self, size_t at) { return (void)self, (void)at, 0; }
int operator_float(const CustomOp *self, size_t at) { return (void)self, (void)at, FLOAT; }
int operator_first(const CustomOp *self) { return (void)self, 1; }
int operator_last(const CustomOp *self) { return (void)self, INT32_MAX; }
