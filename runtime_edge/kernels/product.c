/* `MatMulIntegerToFloat` of ONNX Runtime's domain, with unsigned codes and constant signed weights, as a custom operator
 * in the place of its own kernel: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md */
#define _GNU_SOURCE
#include "product.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "multiply.h"
#include "sizes.h"

#define SMALL (2 << 20)      /* bytes of weights that stay in a core's second cache beside what 32 rows become */
#define MANY 256             /* rows for which others are read once */
#define TASKS 16             /* at least, where rows are few or weights small */
#define LEAST_WORK (1 << 17) /* of a task: weights times 16 rows */

/* Weights [depth, width] in the order of tiles, as many bytes: what the runtime makes of a weight whose name ends in
 * ".derived", where both divide evenly. */
EXPORT void lepton_pack(const int8_t *weights, int64_t depth, int64_t width, int8_t *tiles) {
    pack(weights, depth, width, tiles);
}

/* Gives the memory of weights back that will not be read again, where all of it is as their file has it: whoever does
 * read it has it from there. Linux: Documentation/admin-guide/mm/pagemap.rst */
static void let_go(const void *data, int64_t bytes) {
    const uint64_t of_file = UINT64_C(1) << 61; /* above it: swapped, present */
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t first = ((uintptr_t)data + page - 1) / page, end = ((uintptr_t)data + (uint64_t)bytes) / page;
    if (end <= first) return;
    const size_t size = (end - first) * sizeof(uint64_t);
    uint64_t *entries = malloc(size);
    const int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int all = entries != NULL && file >= 0 && pread(file, entries, size, (off_t)(first * sizeof(uint64_t))) == (ssize_t)size;
    for (uint64_t at = 0; all && at < end - first; at++) all = entries[at] >> 62 == 0 || (entries[at] & of_file) != 0;
    if (all) (void)madvise((void *)(first * page), (end - first) * page, MADV_DONTNEED);
    if (file >= 0) close(file);
    free(entries);
}

static void destroy(void *kernel) {
    Weights *weights = kernel;
    free(weights->own);
    free(weights->sums);
    free(weights);
}

static Status *create(const CustomOp *self, Api table, const Opaque *info, void **kernel) {
    (void)self, (void)table;
    Tensor given;
    RETURN_IF(constant(info, 1, INT8, &given));
    if (given.rank != 2 || given.count == 0)
        return fault("constant weights [inputs, channels]", "second input");
    Weights *weights = calloc(1, sizeof *weights);
    if (weights == NULL) return no_memory();
    const int64_t depth = weights->depth = given.shape[0], width = weights->width = given.shape[1];
    weights->steps = (depth + 63) / 64;
    weights->sums = memory(up32(width), sizeof *weights->sums);
    int derived = 0;
    Status *status = named(info, 1, ".derived", &derived);
    if (status == NULL && derived && depth % 64 == 0 && width % 32 == 0) {
        weights->tiles = given.data;
    } else if (status == NULL && (weights->own = memory(up32(width), weights->steps * 64)) != NULL) {
        pack(given.data, depth, width, weights->own);
        let_go(given.data, depth * width);
        weights->tiles = weights->own;
    }
    if (weights->sums == NULL || weights->tiles == NULL) {
        destroy(weights);
        return status != NULL ? status : no_memory();
    }
    add_up(weights);
    *kernel = weights;
    return NULL;
}

/* An input of `count` numbers, null where it is left out. */
static Status *numbers(const Opaque *context, size_t at, int type, int64_t count, void **data) {
    Tensor tensor;
    RETURN_IF(input(context, at, type, &tensor));
    if (tensor.rank > 1 || (tensor.given && tensor.count != count))
        return fault("one step and zero point, and a scale for each channel", "shape");
    *data = tensor.data;
    return NULL;
}

/* Divides it into tasks. */
static void plan(Product *product) {
    const int64_t blocks = up32(product->weights->width) / 32, bytes = 32 * product->weights->steps * 64; /* of a block */
    product->rows_a_task = blocks * bytes <= SMALL ? 32 : MANY;
    const int64_t down = (product->rows + product->rows_a_task - 1) / product->rows_a_task;
    const int64_t work = bytes * ((least(product->rows, product->rows_a_task) + 15) / 16);
    const int64_t wanted = product->rows_a_task == MANY ? 1 : (blocks * down + TASKS - 1) / TASKS;
    product->columns = least(blocks, most(wanted, (LEAST_WORK + work - 1) / work));
}

static Status *compute(void *kernel, Opaque *context) {
    const Weights *weights = kernel;
    Product product = {.weights = weights};
    Tensor codes;
    float *step = NULL;
    uint8_t *zero = NULL, *padded = NULL;
    void *zeros = NULL;
    size_t count = 0;
    RETURN_IF(input_count(context, &count));
    RETURN_IF(input(context, 0, UINT8, &codes));
    RETURN_IF(numbers(context, 2, FLOAT, 1, (void **)&step));
    RETURN_IF(numbers(context, 3, FLOAT, weights->width, (void **)&product.scales));
    if (count > 4) RETURN_IF(numbers(context, 4, UINT8, 1, (void **)&zero));
    if (count > 5) RETURN_IF(numbers(context, 5, INT8, weights->width, &zeros));
    if (count > 6) RETURN_IF(numbers(context, 6, FLOAT, weights->width, (void **)&product.bias));
    if (step == NULL || product.scales == NULL) return fault("a step and scales", "set of inputs");
    if (zeros != NULL) return fault("weights whose zero point is zero", "set of inputs");
    if (codes.rank < 1 || codes.shape[codes.rank - 1] != weights->depth)
        return fault("as many inputs as the weights have", "shape");
    product.rows = codes.count / weights->depth;
    codes.shape[codes.rank - 1] = weights->width;
    RETURN_IF(output(context, 0, codes.shape, codes.rank, &product.output));
    if (product.rows == 0) return NULL;
    product.codes = codes.data, product.step = *step, product.zero = zero ? *zero : 0;
    const int64_t wide = weights->steps * 64, depth = weights->depth;
    if (wide != depth) { /* tiles are read whole */
        padded = memory(product.rows, wide);
        if (padded == NULL) return no_memory();
        memset(padded, 0, (size_t)(product.rows * wide));
        for (int64_t row = 0; row < product.rows; row++)
            memcpy(padded + row * wide, product.codes + row * depth, (size_t)depth);
        product.codes = padded;
    }
    plan(&product);
    const int64_t across = (up32(weights->width) / 32 + product.columns - 1) / product.columns;
    const int64_t down = (product.rows + product.rows_a_task - 1) / product.rows_a_task;
    Status *status = in_parallel(context, multiply, across * down, &product);
    free(padded);
    return status;
}

const Operator product_int8 = {
    .abi = OPERATOR(create, compute, destroy), .name = "MatMulIntegerToFloat", .choice = "product.int8", .inputs = 7,
    .needed = 4, .outputs = 1, .types = {UINT8, INT8, FLOAT, FLOAT, UINT8, INT8, FLOAT},
};
