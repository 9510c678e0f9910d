/* `GroupQueryAttention` of ONNX Runtime's domain, for one sequence in float32, as a custom operator in the place of its
 * own kernel: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md says what it computes.
 * In its variant bfloat16 products of 16 queries and more are in that format, on AMX. */
#include "attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bfloat16.h"
#include "call.h"
#include "few.h"
#include "many.h"
#include "rows.h"

/* Data and shape of an input of float32 of a rank; null data where it is left out. */
static Status *ranked(const Opaque *context, size_t at, size_t rank, const float **data, int64_t *shape) {
    Tensor tensor;
    RETURN_IF(input(context, at, FLOAT, &tensor));
    if (tensor.given && tensor.rank != rank) return fault("inputs of GroupQueryAttention's ranks", "rank");
    if (tensor.given && tensor.count == 0 && rank != 4) return fault("inputs that have elements", "shape");
    *data = tensor.data;
    memcpy(shape, tensor.shape, rank * sizeof *shape);
    return NULL;
}

/* A cache [1, kv_heads, capacity, dim]; with a capacity of 0 its data may be null. */
static Status *cached(const Attention *op, const Opaque *context, size_t at, const float **data, int64_t *shape) {
    RETURN_IF(ranked(context, at, 4, data, shape));
    if (shape[3] == 0) return fault("queries, caches and lengths", "set of inputs"); /* or left out */
    if (shape[0] != 1) return fault("one sequence", "batch");
    if (shape[3] % 32 != 0 || shape[3] > MOST_DIM) return fault("heads of 32, 64, ... 256", "width");
    if (shape[1] != op->kv_heads) return fault("caches of equal shapes that hold what is past", "shape of a cache");
    return NULL;
}

/* Keys and values: beside the queries, or tensors of their own. */
static Status *rows(const Attention *op, const Opaque *context, Call *call) {
    int64_t query[3] = {0}, key[3], value[3];
    RETURN_IF(ranked(context, 0, 3, &call->query, query));
    RETURN_IF(ranked(context, 1, 3, &call->key, key));
    RETURN_IF(ranked(context, 2, 3, &call->value, value));
    if (!call->query) return fault("queries, caches and lengths", "set of inputs");
    if (query[0] != 1) return fault("one sequence", "batch");
    call->length = query[1];
    const int64_t queries = op->heads * call->dim, keys = op->kv_heads * call->dim;
    if (call->key == NULL && call->value == NULL) { /* packed side by side */
        if (query[2] != queries + 2 * keys) return fault("queries, keys and values side by side", "width");
        call->key = call->query + queries, call->value = call->key + keys;
        call->query_row = call->key_row = query[2];
        return NULL;
    }
    if (!call->key || !call->value || query[2] != queries || key[2] != keys || memcmp(key, value, sizeof key) != 0 ||
        key[0] != 1 || key[1] != call->length)
        return fault("keys and values of as many tokens as queries", "shape");
    call->query_row = queries, call->key_row = keys;
    return NULL;
}

/* How many tokens there are in all, from the index of the last, which is an input of each run. */
static Status *lengths(const Opaque *context, Call *call) {
    Tensor last;
    RETURN_IF(input(context, 5, INT32, &last));
    if (!last.given) return fault("queries, caches and lengths", "set of inputs");
    if (last.rank != 1) return fault("inputs of GroupQueryAttention's ranks", "rank");
    if (last.count != 1) return fault("one sequence", "batch");
    call->total = (int64_t) * (const int32_t *)last.data + 1, call->past = call->total - call->length;
    if (call->length < 1 || call->past < 0) return fault("as many tokens in all as new ones at least", "length");
    return NULL;
}

/* Tables of cosines and sines [positions, half of the features that turn]. */
static Status *tables(const Opaque *context, Call *call) {
    int64_t table[2], sines[2];
    RETURN_IF(ranked(context, 7, 2, &call->cosines, table));
    RETURN_IF(ranked(context, 8, 2, &call->sines, sines));
    if (!call->cosines || !call->sines || memcmp(table, sines, sizeof table) != 0 || table[0] < call->total ||
        table[1] > call->dim / 2)
        return fault("tables of cosines and sines for all positions", "shape");
    call->turned = table[1] * 2;
    return NULL;
}

/* What may be left out, and what has to be. */
static Status *others(const Attention *op, const Opaque *context, Call *call) {
    int64_t sinks[1] = {0};
    size_t count = 0;
    RETURN_IF(input_count(context, &count));
    if (count > 9) {
        Tensor ids, bias = {0};
        RETURN_IF(input(context, 9, INT64, &ids));
        if (count > 10) RETURN_IF(input(context, 10, FLOAT, &bias));
        if (ids.given || bias.given) return fault("no position ids and no bias", "set of inputs");
    }
    if (count > 11) RETURN_IF(ranked(context, 11, 1, &call->sinks, sinks));
    if (call->sinks && sinks[0] != op->heads) return fault("a sink for each head", "shape");
    return NULL;
}

/* Reads the inputs and makes the outputs of a call. */
static Status *prepare(const Attention *op, Opaque *context, Call *call) {
    int64_t past[4], past_value[4];
    const float *past_keys = NULL, *past_values = NULL;
    RETURN_IF(cached(op, context, 3, &past_keys, past));
    RETURN_IF(cached(op, context, 4, &past_values, past_value));
    call->dim = past[3];
    call->scale = op->scale != 0 ? op->scale : 1 / sqrtf((float)call->dim);
    RETURN_IF(rows(op, context, call));
    RETURN_IF(lengths(context, call));
    if (memcmp(past, past_value, sizeof past) != 0 || past[2] < call->past)
        return fault("caches of equal shapes that hold what is past", "shape of a cache");
    if (op->rotary) RETURN_IF(tables(context, call));
    RETURN_IF(others(op, context, call));

    call->capacity = most(past[2], call->total);
    const int64_t shape[3] = {1, call->length, op->heads * call->dim};
    const int64_t cache[4] = {1, op->kv_heads, call->capacity, call->dim};
    RETURN_IF(output(context, 0, shape, 3, &call->output));
    RETURN_IF(output(context, 1, cache, 4, &call->keys));
    RETURN_IF(output(context, 2, cache, 4, &call->values));
    if (call->past > 0 && (call->keys != past_keys || call->values != past_values))
        for (int64_t head = 0; head < op->kv_heads; head++) {
            const size_t bytes = (size_t)(call->past * call->dim) * sizeof(float);
            memmove(call->keys + head * call->capacity * call->dim, past_keys + head * past[2] * past[3], bytes);
            memmove(call->values + head * call->capacity * call->dim, past_values + head * past[2] * past[3], bytes);
        }
    return NULL;
}

static Status *many(const Opaque *context, Call *call) {
    const int64_t bytes = packed_bytes(call);
    call->packed_keys = memory(bytes, 1);
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
    call->turned_queries = memory(op->heads * call->length * dim + few_floats(call), sizeof(float));
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
    int64_t smooth = 0;
    integer(info, "num_heads", &op->heads);
    integer(info, "kv_num_heads", &op->kv_heads);
    integer(info, "local_window_size", &op->window);
    integer(info, "do_rotary", &op->rotary);
    integer(info, "rotary_interleaved", &op->interleaved);
    integer(info, "smooth_softmax", &smooth);
    number(info, "scale", &op->scale);
    number(info, "softcap", &op->softcap);
    const char *expected = NULL;
    if (op->heads < 1 || op->heads > MOST_HEADS) expected = "between 1 and 65536 heads";
    else if (op->kv_heads < 1 || op->heads % op->kv_heads != 0) expected = "heads that share keys evenly";
    else if (smooth != 0) expected = "a softmax without smoothing";
    if (expected != NULL) {
        free(op);
        return fault(expected, "set of attributes");
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
