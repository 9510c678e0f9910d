/* `GroupQueryAttention` of ONNX Runtime's domain, for one sequence in float32, as a custom operator in the place of its
 * own kernel: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md says what it computes.
 * In its variant bfloat16 products of 16 queries and more are in that format, on AMX. */
#include "attention.h"

#include <stdlib.h>

#include "operator.h"

/* Data and shape of an input of a rank; null data where it is left out. */
static Status *ranked(const Opaque *context, size_t at, size_t rank, void **data, int64_t *shape) {
    Tensor tensor;
    RETURN_IF(input(context, at, &tensor));
    if (tensor.data != NULL && tensor.rank != rank) return fault("inputs of GroupQueryAttention's ranks", "rank");
    *data = tensor.data;
    memcpy(shape, tensor.shape, rank * sizeof *shape);
    return NULL;
}

/* Reads the inputs and makes the outputs of a call. */
static Status *prepare(const Attention *op, Opaque *context, Call *call) {
    int64_t query[3] = {0}, key[3], value[3], past[4], past_value[4], one[1] = {0}, table[2], sines[2], sinks[1];
    const float *past_keys = NULL, *past_values = NULL;
    const int32_t *last = NULL;
    RETURN_IF(ranked(context, 0, 3, (void **)&call->query, query));
    RETURN_IF(ranked(context, 1, 3, (void **)&call->key, key));
    RETURN_IF(ranked(context, 2, 3, (void **)&call->value, value));
    RETURN_IF(ranked(context, 3, 4, (void **)&past_keys, past));
    RETURN_IF(ranked(context, 4, 4, (void **)&past_values, past_value));
    RETURN_IF(ranked(context, 5, 1, (void **)&last, one));
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
        RETURN_IF(ranked(context, 7, 2, (void **)&call->cosines, table));
        RETURN_IF(ranked(context, 8, 2, (void **)&call->sines, sines));
        if (!call->cosines || !call->sines || memcmp(table, sines, sizeof table) != 0 || table[0] < call->total ||
            table[1] * 2 > call->dim)
            return fault("tables of cosines and sines for all positions", "shape");
        call->turned = table[1] * 2;
    }
    size_t count = 0;
    RETURN_IF(input_count(context, &count));
    for (size_t at = 9; at < 11 && at < count; at++) {
        Tensor tensor;
        RETURN_IF(input(context, at, &tensor));
        if (tensor.data != NULL) return fault("no position ids and no bias", "set of inputs");
    }
    if (count > 11) RETURN_IF(ranked(context, 11, 1, (void **)&call->sinks, sinks));
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

static Status *many(const Opaque *context, Call *call) {
    const int64_t bytes = (packed_bytes(call) + LINE - 1) / LINE * LINE;
    call->packed_keys = aligned_alloc(LINE, (size_t)bytes);
    if (call->packed_keys == NULL) return no_memory();
    call->packed_values = (char *)call->packed_keys + bytes / 2;
    void (*pack)(void *, size_t) = pack_many, (*attend)(void *, size_t) = attend_many;
#ifdef __AMX_BF16__
    if (call->op->bfloat16) pack = pack_many_bfloat16, attend = attend_many_bfloat16;
#endif
    Status *status = in_parallel(context, pack, call->op->kv_heads * (up32(call->total) / 32), call);
    if (status == NULL) status = in_parallel(context, attend, call->op->heads * (up32(call->length) / 32), call);
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

static Status *create(const CustomOp *self, Api table, const Opaque *info, void **kernel) {
    (void)table;
    Attention *op = calloc(1, sizeof *op);
    if (op == NULL) return no_memory();
    op->window = -1;
    op->bfloat16 = ((const Operator *)self)->variant;
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

#define GROUP_QUERY_ATTENTION                                                                                     \
    .abi = OPERATOR(create, compute, free), .name = "GroupQueryAttention", .inputs = 12, .needed = 1, .outputs = 3, \
    .types = {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, INT32, INT32, FLOAT, FLOAT, INT64, FLOAT, FLOAT}

const Operator attention_float32 = {GROUP_QUERY_ATTENTION, .choice = "attention.float32"};
#ifdef __AMX_BF16__
const Operator attention_bfloat16 = {GROUP_QUERY_ATTENTION, .choice = "attention.bfloat16", .variant = 1};
#endif
