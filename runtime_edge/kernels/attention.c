/* `GroupQueryAttention` of ONNX Runtime's domain, for one sequence in float32, as a custom operator in the place of its
 * own kernel: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md says what it computes.
 *
 * A session registers this library and runs the same graph. With the entry `lepton.attention` = `bfloat16` in its
 * configuration, products of 16 queries and more are in that format, on AMX. */
#define _GNU_SOURCE
#include "attention.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "abi.h"

#define EXPORT __attribute__((visibility("default")))
#define LINE 64 /* bytes that memory is aligned to */

static Api api;

#define RETURN_IF(expression)              \
    do {                                   \
        Status *failed_ = (expression);    \
        if (failed_ != NULL) return failed_; \
    } while (0)

static Status *fault(const char *expected, const char *name) {
    char text[200];
    snprintf(text, sizeof text, "lepton attention: expected %s, found another %s", expected, name);
    return ((Status * (*)(int, const char *)) api[CREATE_STATUS])(INVALID_ARGUMENT, text);
}

static Status *value_of(const Opaque *context, size_t at, const Opaque **value) {
    return ((Status * (*)(const Opaque *, size_t, const Opaque **)) api[KERNEL_CONTEXT_GET_INPUT])(context, at, value);
}

/* Data and shape of an input; null data where it is left out. */
static Status *input(const Opaque *context, size_t at, size_t wanted, void **data, int64_t *shape) {
    const Opaque *value = NULL;
    Opaque *info = NULL;
    size_t count = 0;
    *data = NULL;
    RETURN_IF(value_of(context, at, &value));
    if (value == NULL) return NULL;
    RETURN_IF(((Status * (*)(const Opaque *, Opaque **)) api[GET_TENSOR_TYPE_AND_SHAPE])(value, &info));
    Status *status = ((Status * (*)(const Opaque *, size_t *)) api[GET_DIMENSIONS_COUNT])(info, &count);
    if (status == NULL && count != wanted) status = fault("inputs of GroupQueryAttention's ranks", "rank");
    if (status == NULL && wanted > 0)
        status = ((Status * (*)(const Opaque *, int64_t *, size_t)) api[GET_DIMENSIONS])(info, shape, wanted);
    ((void (*)(Opaque *))api[RELEASE_TENSOR_TYPE_AND_SHAPE])(info);
    RETURN_IF(status);
    return ((Status * (*)(const Opaque *, void **)) api[GET_TENSOR_MUTABLE_DATA])(value, data);
}

static Status *output(Opaque *context, size_t at, const int64_t *shape, size_t count, float **data) {
    Opaque *value = NULL;
    RETURN_IF(((Status * (*)(Opaque *, size_t, const int64_t *, size_t, Opaque **)) api[KERNEL_CONTEXT_GET_OUTPUT])(
        context, at, shape, count, &value));
    return ((Status * (*)(const Opaque *, void **)) api[GET_TENSOR_MUTABLE_DATA])(value, (void **)data);
}

static Status *in_parallel(const Opaque *context, void (*task)(void *, size_t), int64_t count, Call *call) {
    return ((Status * (*)(const Opaque *, void (*)(void *, size_t), size_t, size_t, void *)) api[KERNEL_CONTEXT_PARALLEL_FOR])(
        context, task, (size_t)count, 0, call);
}

/* Reads the inputs and makes the outputs of a call. */
static Status *prepare(const Attention *op, Opaque *context, Call *call) {
    int64_t query[3], key[3], value[3], past[4], past_value[4], one[1], table[2], sines[2], sinks[1];
    const float *past_keys, *past_values;
    const int32_t *last;
    RETURN_IF(input(context, 0, 3, (void **)&call->query, query));
    RETURN_IF(input(context, 1, 3, (void **)&call->key, key));
    RETURN_IF(input(context, 2, 3, (void **)&call->value, value));
    RETURN_IF(input(context, 3, 4, (void **)&past_keys, past));
    RETURN_IF(input(context, 4, 4, (void **)&past_values, past_value));
    RETURN_IF(input(context, 5, 1, (void **)&last, one));
    if (!call->query || !past_keys || !past_values || !last) return fault("queries, caches and lengths", "set of inputs");
    if (query[0] != 1 || one[0] != 1 || past[0] != 1) return fault("one sequence", "batch");
    call->length = query[1], call->dim = past[3];
    call->scale = op->scale != 0 ? op->scale : 1 / sqrtf((float)call->dim);
    call->total = (int64_t)last[0] + 1, call->past = call->total - call->length;
    if (call->length < 1 || call->past < 0) return fault("as many tokens in all as new ones at least", "length");
    if (call->dim % 32 != 0 || call->dim < 32 || call->dim > MOST_DIM) return fault("heads of 32, 64, ... 256", "width");
    if (past[1] != op->kv_heads || memcmp(past, past_value, sizeof past) != 0 || past[2] < call->past)
        return fault("caches of equal shapes that hold what is past", "shape of a cache");
    const int64_t queries = op->heads * call->dim, keys = op->kv_heads * call->dim;
    if (call->key == NULL && call->value == NULL) { /* packed side by side */
        if (query[2] != queries + 2 * keys) return fault("queries, keys and values side by side", "width");
        call->key = call->query + queries, call->value = call->key + keys;
        call->query_row = call->key_row = query[2];
    } else {
        if (!call->key || !call->value || query[2] != queries || key[2] != keys || memcmp(key, value, sizeof key) != 0 ||
            key[0] != 1 || key[1] != call->length)
            return fault("keys and values of as many tokens as queries", "shape");
        call->query_row = queries, call->key_row = keys;
    }
    if (op->rotary) {
        RETURN_IF(input(context, 7, 2, (void **)&call->cosines, table));
        RETURN_IF(input(context, 8, 2, (void **)&call->sines, sines));
        if (!call->cosines || !call->sines || memcmp(table, sines, sizeof table) != 0 || table[0] < call->total ||
            table[1] * 2 > call->dim)
            return fault("tables of cosines and sines for all positions", "shape");
        call->turned = table[1] * 2;
    }
    size_t count = 0;
    RETURN_IF(((Status * (*)(const Opaque *, size_t *)) api[KERNEL_CONTEXT_GET_INPUT_COUNT])(context, &count));
    for (size_t at = 9; at < 11 && at < count; at++) {
        const Opaque *value = NULL;
        RETURN_IF(value_of(context, at, &value));
        if (value != NULL) return fault("no position ids and no bias", "set of inputs");
    }
    if (count > 11) RETURN_IF(input(context, 11, 1, (void **)&call->sinks, sinks));
    if (call->sinks && sinks[0] != op->heads) return fault("a sink for each head", "shape");

    call->capacity = most(past[2], call->total);
    const int64_t shape[3] = {1, call->length, queries}, cache[4] = {1, op->kv_heads, call->capacity, call->dim};
    RETURN_IF(output(context, 0, shape, 3, &call->output));
    RETURN_IF(output(context, 1, cache, 4, &call->keys));
    RETURN_IF(output(context, 2, cache, 4, &call->values));
    if (call->keys != past_keys || call->values != past_values)
        for (int64_t head = 0; head < op->kv_heads; head++) {
            const size_t bytes = (size_t)(call->past * call->dim) * sizeof(float);
            memmove(call->keys + head * call->capacity * call->dim, past_keys + head * past[2] * past[3], bytes);
            memmove(call->values + head * call->capacity * call->dim, past_values + head * past[2] * past[3], bytes);
        }
    return NULL;
}

static Status *no_memory(void) {
    return ((Status * (*)(int, const char *)) api[CREATE_STATUS])(FAIL, "lepton attention: out of memory");
}

static Status *many(const Opaque *context, Call *call) {
    const int64_t bytes = (packed_bytes(call) + LINE - 1) / LINE * LINE;
    call->packed_keys = aligned_alloc(LINE, (size_t)bytes);
    if (call->packed_keys == NULL) return no_memory();
    call->packed_values = (char *)call->packed_keys + bytes / 2;
    Status *status = in_parallel(context, pack_keys, call->op->kv_heads * (up32(call->total) / 32), call);
    if (status == NULL) status = in_parallel(context, attend_many, call->op->heads * (up32(call->length) / 32), call);
    free(call->packed_keys);
    return status;
}

static Status *few(const Opaque *context, Call *call) {
    const Attention *op = call->op;
    const int64_t dim = call->dim;
    plan_few(call);
    call->turned_queries = malloc(sizeof(float) * (size_t)(op->heads * call->length * dim + few_floats(call)));
    if (call->turned_queries == NULL) return no_memory();
    call->parts = call->turned_queries + op->heads * call->length * dim;
    for (int64_t token = 0; token < call->length; token++) {
        const int64_t at = call->past + token;
        for (int64_t head = 0; head < op->heads; head++) {
            float *to = call->turned_queries + (head * call->length + token) * dim;
            rotate(call, call->query + token * call->query_row + head * dim, to, at, call->scale);
        }
        for (int64_t head = 0; head < op->kv_heads; head++) {
            const int64_t from = token * call->key_row + head * dim, row = (head * call->capacity + at) * dim;
            rotate(call, call->key + from, call->keys + row, at, 1);
            memcpy(call->values + row, call->value + from, (size_t)dim * sizeof(float));
        }
    }
    Status *status = in_parallel(context, attend_few, op->kv_heads * call->part_count, call);
    if (status == NULL) join_few(call);
    free(call->turned_queries);
    return status;
}

static Status *compute(void *kernel, Opaque *context) {
    Call call = {.op = kernel};
    RETURN_IF(prepare(kernel, context, &call));
    return call.length < FEW ? few(context, &call) : many(context, &call);
}

/* An attribute that is left out leaves a value as it is. */
static void integer(const Opaque *info, const char *name, int64_t *value) {
    Status *status = ((Status * (*)(const Opaque *, const char *, int64_t *)) api[KERNEL_INFO_GET_ATTRIBUTE_INT64])(
        info, name, value);
    if (status != NULL) ((void (*)(Status *))api[RELEASE_STATUS])(status);
}

static void number(const Opaque *info, const char *name, float *value) {
    Status *status = ((Status * (*)(const Opaque *, const char *, float *)) api[KERNEL_INFO_GET_ATTRIBUTE_FLOAT])(
        info, name, value);
    if (status != NULL) ((void (*)(Status *))api[RELEASE_STATUS])(status);
}

static const CustomOp ops[2];

static Status *create(const CustomOp *self, Api table, const Opaque *info, void **kernel) {
    (void)table;
    Attention *op = calloc(1, sizeof *op);
    if (op == NULL) return no_memory();
    op->window = -1;
    op->bfloat16 = self == &ops[1];
    integer(info, "num_heads", &op->heads);
    integer(info, "kv_num_heads", &op->kv_heads);
    integer(info, "local_window_size", &op->window);
    integer(info, "do_rotary", &op->rotary);
    integer(info, "rotary_interleaved", &op->interleaved);
    number(info, "scale", &op->scale);
    number(info, "softcap", &op->softcap);
    if (op->heads < 1 || op->kv_heads < 1 || op->heads % op->kv_heads != 0) {
        free(op);
        return fault("heads that share keys evenly", "set of attributes");
    }
    *kernel = op;
    return NULL;
}

static const char *name(const CustomOp *self) { return (void)self, "GroupQueryAttention"; }
static const char *provider(const CustomOp *self) { return (void)self, NULL; }
static size_t input_count(const CustomOp *self) { return (void)self, 12; }
static size_t output_count(const CustomOp *self) { return (void)self, 3; }
static int input_type(const CustomOp *self, size_t at) {
    return (void)self, at == 5 || at == 6 ? INT32 : at == 9 ? INT64 : FLOAT;
}
static int output_type(const CustomOp *self, size_t at) { return (void)self, (void)at, FLOAT; }
static int input_kind(const CustomOp *self, size_t at) { return (void)self, at == 0 ? REQUIRED : OPTIONAL; }
static int output_kind(const CustomOp *self, size_t at) { return (void)self, (void)at, REQUIRED; }
static int input_memory(const CustomOp *self, size_t at) { return (void)self, (void)at, 0; }
static int none(const CustomOp *self) { return (void)self, 0; }
static int first_version(const CustomOp *self) { return (void)self, 1; }
static int last_version(const CustomOp *self) { return (void)self, INT32_MAX; }

#define GROUP_QUERY_ATTENTION                                                                               \
    {                                                                                                       \
        .version = ABI_VERSION, .name = name, .provider = provider, .input_type = input_type,               \
        .input_count = input_count, .output_type = output_type, .output_count = output_count,               \
        .destroy = free, .input_kind = input_kind, .output_kind = output_kind, .input_memory = input_memory, \
        .variadic = {none, none, none, none}, .create = create, .compute = compute,                         \
        .start_version = first_version, .end_version = last_version,                                        \
    }
static const CustomOp ops[2] = {GROUP_QUERY_ATTENTION, GROUP_QUERY_ATTENTION}; /* float32, bfloat16 */

/* Asks the kernel of the operating system for tiles; 0 where this process may not use them. */
EXPORT int lepton_tiles(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* Linux: Documentation/arch/x86/xstate.rst */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

EXPORT Status *RegisterCustomOps(Opaque *options, const ApiBase *base) {
    static const char *names[2] = {"float32", "bfloat16"};
    Opaque *domain = NULL;
    char wanted[16] = "";
    size_t size = sizeof wanted;
    api = base->get_api(ABI_VERSION);
    RETURN_IF(((Status * (*)(const Opaque *, const char *, char *, size_t *)) api[GET_SESSION_CONFIG_ENTRY])(
        options, "lepton.attention", wanted, &size));
    const CustomOp *op = strcmp(wanted, names[1]) == 0 ? &ops[1] : strcmp(wanted, names[0]) == 0 ? &ops[0] : NULL;
    if (op == NULL) return fault("float32 or bfloat16", "lepton.attention");
    RETURN_IF(((Status * (*)(const char *, Opaque **)) api[CREATE_CUSTOM_OP_DOMAIN])("com.microsoft", &domain));
    RETURN_IF(((Status * (*)(Opaque *, const CustomOp *)) api[CUSTOM_OP_DOMAIN_ADD])(domain, op));
    return ((Status * (*)(Opaque *, Opaque *)) api[ADD_CUSTOM_OP_DOMAIN])(options, domain);
}
